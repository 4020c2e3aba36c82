"""Retries with an Idempotency-Key: one generation or job, whatever the number of requests.

The first request with a key is made in its own task. Requests that come while it runs join it:
they wait for its end and get the same answer. Later ones get the outcome that was kept.
A request with a key is read whole before anything else, because only its whole body tells whether
it is the same request. So it needs nothing of its client any more: if the client leaves, its task
goes on for those that have joined, and for the retry that may follow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import trio
from attrs import define

from ..errors import Conflict, RouterError, StateUnavailable, WorkerFailed
from ..front.errors import internal_error
from ..pool.match import Facts
from . import facts as reading
from . import split
from .body import Body, name_in
from .exchange import Exchange
from .forward import GATEWAY, CutOff, Forwarder
from .keys import Answer, Entry, Keys, lost
from .routes import How, Route
from .watcher import Watcher

HEADER = b"idempotency-key"
# A request for other weights is another request: no kept answer may pass for its own.
_OF_WEIGHTS = (b"x-pool", b"x-min-weight-version", b"x-exact-weight-version", b"x-max-weight-lag")
_DELIMITER = b"\0boundary\0"  # stands for the boundary of a form, which is new in each retry


class AlreadyDone(Conflict):
    """The generation was made, but its answer was not kept."""

    default_code = "already_done"


@define(eq=False)
class Idempotency:
    """Answers requests that have an Idempotency-Key."""

    forwarder: Forwarder
    keys: Keys

    async def run(
        self,
        key: bytes,
        exchange: Exchange,
        route: Route,
        watcher: Watcher | None,
        leave: Callable[[], None],
    ) -> RouterError | None:
        """Answer a request; returns an error that is still to be answered. `leave` cancels this
        call.

        Raises what `Forwarder.run` raises, and Mismatch.
        """
        key_name = name_in(key, "Idempotency-Key")
        whole = _Reading(exchange)
        body, facts = await self.forwarder.read(whole, route, whole=True)
        try:
            name = hashlib.sha256(f"{facts.client}\0{key_name}".encode()).hexdigest()
            digest = whole.digest()
            entry = await self.keys.find(name, digest)
            if entry is None:
                entry = Entry(name, digest, route.how is How.SUBMIT, exchange.record)
                self.keys.begin(entry)
                return await self._make(entry, exchange, body, facts, watcher, leave)
        finally:
            body.release()
        return await self._join(entry, exchange)

    async def _make(
        self,
        entry: Entry,
        exchange: Exchange,
        body: Body,
        facts: Facts,
        watcher: Watcher | None,
        leave: Callable[[], None],
    ) -> RouterError | None:
        entry.leave = leave
        made = _Made(exchange, entry, self.keys)
        exchange.on_gone(made.gone)
        failure: RouterError | None = None
        try:
            if split.meant(exchange):
                await split.relay(self.forwarder, made, body, facts)
            else:
                intend = made.intend if entry.job else None
                await self.forwarder.relay(made, body, facts, None, watcher, intend=intend)
        except RouterError as error:
            # Kept, and answered to several clients: without what the traceback holds.
            failure = error.with_traceback(None)
            failure.__cause__ = failure.__context__ = None
        except CutOff as cut:
            failure = WorkerFailed(
                f"The answer to the first request with this key broke off: {cut}",
                code=cut.code,
                details={"retry_safe": False},
            )
            raise
        finally:
            made.end(failure)
        return failure

    async def _join(self, entry: Entry, exchange: Exchange) -> RouterError | None:
        entry.joiners += 1
        try:
            await entry.over.wait()
        finally:
            entry.joiners -= 1
            entry.forsaken()
        if entry.answer is None:
            return entry.error or AlreadyDone(
                "The generation or job of this Idempotency-Key was made, but its answer was too"
                " large to be kept (--idempotency-bytes); a new key makes another one",
                details={"retry_safe": False},
            )
        headers = [(n, v) for n, v in entry.answer.headers if n.lower() != b"x-request-id"]
        headers.append((b"x-request-id", exchange.record.request_id.encode()))
        headers.append((b"idempotent-replayed", b"true"))
        await exchange.respond(entry.answer.status, headers, more=True)
        await exchange.send(entry.answer.body, last=True)
        return None


class _Passed:
    """An exchange in front of another one."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.method = exchange.method
        self.target = exchange.target
        self.path = exchange.path
        self.headers = exchange.headers
        self.http_version = exchange.http_version
        self.scheme = exchange.scheme
        self.peer = exchange.peer
        self.record = exchange.record
        self.responded = False

    async def read(self) -> bytes:
        return await self.exchange.read()

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        await self.exchange.respond(status, headers, more=more)

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        await self.exchange.send(piece, last=last)

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self.exchange.on_gone(callback)


class _Reading(_Passed):
    """Makes the digest of a request while it is read."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._hash = hashlib.sha256(b"%s %s\n" % (exchange.method.encode(), exchange.target))
        for name, content in exchange.headers:
            if name.lower() in _OF_WEIGHTS:
                self._hash.update(b"%s: %s\n" % (name.lower(), content))
        self._boundary = reading.boundary_of(exchange.headers)
        self._rest = b""

    async def read(self) -> bytes:
        piece = await self.exchange.read()
        if not self._boundary:
            self._hash.update(piece)
            return piece
        *parts, rest = (self._rest + piece).split(self._boundary)
        for part in parts:
            self._hash.update(part)
            self._hash.update(_DELIMITER)
        begun = max(0, len(rest) - len(self._boundary) + 1)  # a boundary may have begun from here
        self._hash.update(rest[:begun])
        self._rest = rest[begun:]
        return piece

    def digest(self) -> str:
        """The digest of all that was read."""
        self._hash.update(self._rest)
        return self._hash.hexdigest()


class _Made(_Passed):
    """The exchange that makes the generation or job: keeps the answer on its way to the client, and
    does not end when the client leaves."""

    def __init__(self, exchange: Exchange, entry: Entry, keys: Keys) -> None:
        super().__init__(exchange)
        self._entry, self._keys = entry, keys
        self._status = 0
        self._answered: Sequence[tuple[bytes, bytes]] = ()
        self._kept: bytearray | None = bytearray()  # None: it cannot be kept
        self._held = entry.job  # the client gets nothing before the key is durable
        self._complete = False
        self._over = False

    def gone(self) -> None:
        """The client has left."""
        self._entry.left = True
        if self._kept is None:
            self._entry.leave()  # nobody gets the rest
        else:
            self._entry.forsaken()

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        self.responded = True
        self._status, self._answered = status, headers
        self._held = self._held and self._good
        if not self._held and not self._entry.left:
            await self.exchange.respond(status, headers, more=more)

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        held = bytes(self._kept or b"") if self._held else b""
        self._keep(piece)
        self._complete = last
        if self._held:
            if not last and self._kept is not None:
                return
            await self._acknowledge()
            piece = held + piece
        if last:
            self.end(None)  # before the client has it all: others may wait
        if not self._entry.left:
            await self.exchange.send(piece, last=last)
        elif self._kept is None and not last:
            self._entry.leave()

    async def intend(self) -> None:
        """Make the key durable before a worker gets the job: a router that dies before the answer
        leaves it in doubt. Raises StateUnavailable."""
        self._keys.put(self._entry, None, 0)
        await self._keys.store.commit()

    async def _acknowledge(self) -> None:
        """Send the head of the answer, once the key is durable. Raises StateUnavailable."""
        self._held = False
        self._keys.put(self._entry, self._answer() if self._complete else None, self._status)
        try:
            await self._keys.store.commit()
        except StateUnavailable as error:
            error.message = f"The job was taken, but its key may be forgotten: {error.message}"
            error.details["retry_safe"] = False
            raise
        if not self._entry.left:
            await self.exchange.respond(self._status, self._answered, more=True)

    def end(self, failure: RouterError | None) -> None:
        """The exchange is over, or as good as over: say what came of it."""
        if self._over:
            return
        self._over = True
        entry, done = self._entry, self._complete
        entry.answer = self._answer() if done else None
        if entry.answer is None:
            self._keys.drop(len(self._kept or b""))
        counts = self._good or self._status in GATEWAY if done else entry.delivered
        record = self.exchange.record
        if record.unfinished is not None:
            counts = not record.certain or record.unfinished()
        if entry.answer is None and not (counts and self._good and self._kept is None):
            entry.error = failure or (lost() if entry.delivered else internal_error())
        if counts:
            self._keys.settle(entry, trio.current_time())
            return
        if entry.answer is not None:
            self._keys.drop(len(entry.answer.body))  # only for those that have joined
        self._keys.forget(entry)

    @property
    def _good(self) -> bool:
        return 200 <= self._status < 300

    def _answer(self) -> Answer | None:
        if self._kept is None:
            return None
        return Answer(self._status, self._answered, bytes(self._kept))

    def _keep(self, piece: bytes) -> None:
        kept = self._kept
        if kept is None:
            return
        if self._keys.keep(len(piece), len(kept)):
            kept += piece
        else:
            self._keys.drop(len(kept))
            self._kept = None
