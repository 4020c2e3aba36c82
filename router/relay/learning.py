"""What the router learns from passing answers: ids of new jobs and images, and ends of jobs."""

from __future__ import annotations

from collections.abc import Collection

from attrs import define, field

from ..dispatch import Dispatcher
from ..errors import NotFound, StateUnavailable
from ..pool.assets import AssetKind, AssetMap
from ..pool.catalog import is_over
from ..pool.pools import name_plain
from ..pool.worker import Lease
from ..store.store import Store
from ..text import from_json, is_id
from .encoding import Decoder, decoder
from .facts import leading_fields
from .routes import How, Route, nearest
from .watcher import Watcher

# Up to this size an answer about a job is held, so that the id is known before the client has it.
_MOST_HELD = 1024 * 1024
# The id of an image is searched in the beginning of the answer; megabytes of pixels follow.
_LEADING = 16 * 1024
_NO_ROUTE = 256  # bytes of an answer that says that a worker does not know a path, at most
_ID = frozenset({"id"})


@define(eq=False)
class _Submission:
    """A new job: the id is recorded before the client sees it."""

    assets: AssetMap
    dispatcher: Dispatcher
    store: Store
    kind: AssetKind
    holds: int = _MOST_HELD
    _lease: Lease | None = field(init=False, default=None)
    _decode: Decoder | None = field(init=False, default=None)
    _body: bytearray = field(init=False, factory=bytearray)
    _learnt: str | None = field(init=False, default=None)  # the id of the job

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        self._decode = decoder(encoding, _MOST_HELD)
        self._lease = lease if 200 <= status < 300 and self._decode else None
        if self._lease is None:
            self.holds = 0

    def saw(self, piece: bytes) -> None:
        if self._lease is not None and self._decode is not None:
            self._body += self._decode(piece)

    def over(self) -> None:
        job = _object(self._body)
        job_id = job.get("id")
        if self._lease is not None and is_id(job_id):
            done = is_over(job)
            self.assets.learn(job_id, self._lease.worker, self.kind, finished=done)
            if done:
                self.dispatcher.job_went(self._lease.hold, job.get("status"))
            else:
                self.dispatcher.job_began(self._lease, job_id)
            self._learnt = job_id
        self._lease = None

    async def durable(self) -> None:
        if self._learnt is None or not self.store.keeps:
            return
        try:
            await self.store.commit()
        except StateUnavailable as error:
            error.message = f"The job was taken, but may be forgotten at a restart: {error.message}"
            error.details |= {"id": self._learnt, "retry_safe": False}
            raise


@define(eq=False)
class _Pictures:
    """New images: the id stands at the beginning of the answer."""

    assets: AssetMap
    holds: int = 0
    _lease: Lease | None = field(init=False, default=None)
    _decode: Decoder | None = field(init=False, default=None)
    _begun: bytearray = field(init=False, factory=bytearray)

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        self._decode = decoder(encoding, _LEADING)
        self._lease = lease if status == 200 else None

    def saw(self, piece: bytes) -> None:
        if self._lease is None or self._decode is None:
            return
        self._begun += self._decode(piece)[: _LEADING - len(self._begun)]
        image_id = leading_fields(self._begun, _ID).get("id")
        if is_id(image_id):
            self.assets.learn(image_id, self._lease.worker, AssetKind.IMAGE)
        if isinstance(image_id, str) or len(self._begun) >= _LEADING:
            self._lease = None

    def over(self) -> None:
        self._lease = None

    async def durable(self) -> None:
        pass  # a lost id is found again by asking the workers


@define(eq=False)
class _Reading:
    """A read or the deletion of a job."""

    assets: AssetMap
    dispatcher: Dispatcher
    asset_id: str
    deletes: bool
    holds: int = 0
    _watching: bool = field(init=False, default=False)
    _decode: Decoder | None = field(init=False, default=None)
    _body: bytearray = field(init=False, factory=bytearray)

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        self._decode = decoder(encoding, _MOST_HELD + 1)
        self._watching = status == 200
        if status == 404 or (status == 200 and self.deletes):
            self.assets.forget(self.asset_id)
        if status == 404:
            self.dispatcher.job_ended(self.asset_id, None)
        elif status == 200 and self.deletes:
            self.dispatcher.job_deleted(self.asset_id)

    def saw(self, piece: bytes) -> None:
        if self._watching and self._decode is not None:
            self._body += self._decode(piece)
            self._watching = len(self._body) <= _MOST_HELD

    def over(self) -> None:
        if not self._watching:
            return
        job = _object(self._body)
        if is_over(job) and not self.deletes:
            self.assets.finish(self.asset_id)
            self.dispatcher.job_ended(self.asset_id, job.get("status"))

    async def durable(self) -> None:
        pass


@define(eq=False)
class _Elsewhere:
    """A path outside the route table. If the worker's framework answers that it does not know the
    path either, the router answers with the nearest route, and with the pools of plain workers that
    may know the path."""

    method: str
    path: str
    pools: Collection[str]  # of plain workers
    holds: int = 0
    _body: bytearray = field(init=False, factory=bytearray)

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        self.holds = _NO_ROUTE if status == 404 else 0

    def saw(self, piece: bytes) -> None:
        if self.holds:
            self._body += piece

    def over(self) -> None:
        pass

    async def durable(self) -> None:
        if not self.holds or _object(self._body) != {"detail": "Not Found"}:
            return
        known = nearest(self.path)
        hint = f"; did you mean {known}?" if known else ""
        details: dict[str, object] = {"nearest": known}
        if self.pools:
            details["pools"] = sorted(self.pools)
            hint += f"; to ask a plain HTTP worker, {name_plain(self.pools)}"
        raise NotFound(
            f"Neither the router nor the worker it asked knows {self.method} {self.path}{hint}",
            code="unknown_path",
            details=details,
        )


def watcher(
    assets: AssetMap,
    dispatcher: Dispatcher,
    store: Store,
    route: Route,
    method: str,
    path: str,
    plain_pools: Collection[str] = (),
) -> Watcher | None:
    """The watcher for the answer to a request; None if the answer teaches nothing."""
    if route.how is How.SUBMIT and route.asset is not None:
        return _Submission(assets, dispatcher, store, route.asset)
    if route.path in ("/v1/images/generations", "/v1/images/edits"):
        return _Pictures(assets)
    if route.how is How.ANY:
        return _Elsewhere(method, path, plain_pools)
    if route.how is How.OWNER and route.asset is not AssetKind.IMAGE:
        asset_id = route.parameter(path)
        if not path.rstrip("/").endswith("/content"):
            return _Reading(assets, dispatcher, asset_id, deletes=method == "DELETE")
    return None


def _object(data: bytes | bytearray) -> dict[str, object]:
    content = from_json(data)
    return content if isinstance(content, dict) else {}
