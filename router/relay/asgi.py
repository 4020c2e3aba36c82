"""The exchange over ASGI, and the middleware that takes the relay's routes from the Quart app."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from urllib.parse import parse_qsl, urlencode

import trio
from attrs import define, field

from ..errors import BadRequest, Fault, RouterError
from ..front.asgi import App, Receive, Scope, Send, link_of
from ..front.client import ClientGone, ClientStalled
from ..front.drain import Drain, Draining
from ..front.errors import error_answer, log_end, log_error
from ..net.hops import Instance, LoopDetected, begin_anew
from ..observe.previews import Previews
from ..pool.assets import AssetKind, AssetMap
from ..pool.worker import Worker
from ..store.store import Store
from ..text import segment
from . import headers as heads
from . import split
from .body import named_pool, one_pool, queried
from .encoding import readable_only
from .forward import CutOff, Forwarder
from .idempotency import HEADER, Idempotency
from .learning import watcher
from .routes import TO_PLAIN, WEBSOCKET, How, Route, find, known
from .tapped import tapped
from .watcher import Watcher
from .websocket import WebSocketRelay

logger = logging.getLogger("router.relay")

# The router's own, and calls to all workers, whatever pool is named.
_OURS = (How.OWN, How.CHANGE, How.TOGETHER, How.GATHER)
# Answered by the router's own app.
_APP = (How.OWN, How.CHANGE, How.TOGETHER, How.GATHER, How.MERGED)
# Never made twice for one Idempotency-Key.
_ONCE = (How.GENERATE, How.SUBMIT)
# Whatever a worker does for it may be a generation, unless it only reads.
_MAYBE, _READS = (How.ANY, How.PLAIN), ("GET", "HEAD", "OPTIONS")

_DIRECTLY = (
    "hold the workers with POST /weights/begin, call each of them directly, then POST"
    " /weights/commit"
)
_HINTS = {
    "/load_lora_adapter": "load and choose adapters with POST /v1/set_lora",
    "/unload_lora_adapter": "take adapters out with POST /v1/unmerge_lora_weights",
    "/update_weights_from_ipc": f"each worker needs handles of its own; {_DIRECTLY}",
}


class UnknownWeightCall(RouterError):
    """No worker may get the call: it may change weights, and the router cannot send it to all."""

    fault = Fault.CLIENT
    default_status = 501
    default_code = "unknown_weight_call"

    @classmethod
    def of(cls, route: Route, path: str) -> UnknownWeightCall:
        """The error for this path, with a hint."""
        hint = _HINTS.get(route.path, _DIRECTLY)
        return cls(
            f"The router cannot give {path} to all workers, and one alone must not get it: {hint}",
            details={"hint": hint},
        )


class AsgiExchange:
    """An Exchange over an ASGI `http` scope of our server shell."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._link = link_of(scope)
        self._read_all = False
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self.http_version: str = scope["http_version"]
        self.scheme: str = scope["scheme"]
        self.peer: str | None = scope["client"][0] if scope["client"] else None
        self.record = self._link.record
        self.responded = False
        self.target = self._link.target

    async def read(self) -> bytes:
        while not self._read_all:
            message = await self._receive()
            if message["type"] != "http.request":
                if self._stalled:
                    raise ClientStalled
                raise ClientGone
            self._read_all = not message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            if piece:
                return piece
        return b""

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        self.responded = True
        await self._send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": headers,
                "router.more": more,
            }
        )

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        if callback is None:
            self._link.on_gone(None)
            return

        def gone() -> None:
            # A client that stalled before the answer still gets one: `read` raises ClientStalled.
            if not self._stalled or self.responded:
                callback()

        self._link.on_gone(gone)

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._link.gone

    def how_left(self) -> tuple[str, str] | None:
        return self._link.how_left()

    def tell(self, code: str, sentence: str) -> None:
        """Log the one line that says why the exchange ended early."""
        log_end(logger, self.record, code, sentence)

    @property
    def _stalled(self) -> bool:
        return self._link.reason == "body_timeout"


@define(eq=False)
class Relay:
    """ASGI middleware: relays what the route table gives to workers, hands the rest to `app`."""

    app: App
    forwarder: Forwarder
    websockets: WebSocketRelay
    assets: AssetMap
    store: Store
    # Finds the owner of an asset within a pool, by asking workers if necessary. Raises RouterError.
    find_owner: Callable[[str, AssetKind, str | None], Awaitable[Worker]]
    idempotency: Idempotency
    instance: Instance = field(factory=Instance)
    # How many requests have come, by route.
    intake: defaultdict[str, int] = field(factory=partial(defaultdict, int))
    previews: Previews | None = None
    drain: Drain = field(factory=Drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            link_of(scope).record.route = WEBSOCKET
            self.intake[WEBSOCKET] += 1
            await self.websockets(scope, receive, send)
            return
        route = find(scope["method"], scope["path"])
        exchange = AsgiExchange(scope, receive, send)
        plain = self.forwarder.attempts.registry.plain_pools
        if (
            plain
            and route.how not in _OURS
            and named_pool(exchange.target, exchange.headers) in plain
        ):
            route = TO_PLAIN
        if route is not TO_PLAIN and exchange.path.endswith("/") and known(exchange.path):
            exchange.path, exchange.target = exchange.path[:-1], _unslashed(exchange.target)
        if route.how is How.MERGED and (asset_id := _asked_for(scope)):
            # `GET /v1/videos?id=ID` means `GET /v1/videos/ID`.
            exchange.path = f"{route.path}/{segment(asset_id)}"
            pools = [("pool", pool) for pool in queried(exchange.target, "pool")]
            query = f"?{urlencode(pools)}" if pools else ""
            exchange.target = f"{exchange.path}{query}".encode()
            route = find("GET", exchange.path)
        exchange.record.route = route.path
        self.intake[route.path] += 1
        if route.how is How.OWN:
            begin_anew()
        else:
            try:
                exchange.headers = scope["headers"] = self.instance.passed_by(exchange.headers)
            except LoopDetected as error:
                await self._refuse(exchange, error)
                return
        # The workers of a transaction are fenced: the call would wait for its end.
        strays = (How.GENERATE, How.SUBMIT, How.ANY)
        stray = route.how in strays and "txn" in dict(_query(scope))
        if route.how is How.REFUSED or stray:
            unfit = route.how in (How.GENERATE, How.SUBMIT)
            refuses = _held(exchange.path) if unfit else UnknownWeightCall.of(route, exchange.path)
            await self._refuse(exchange, refuses)
            return
        if route.how in _APP:
            await self.app(scope, receive, send)
            return
        await self._relay(exchange, route)

    async def _relay(self, exchange: AsgiExchange, route: Route) -> None:
        drain = self.drain
        work = route.how in _ONCE or (route.how in _MAYBE and exchange.method not in _READS)
        if work and drain.active:
            await self._refuse(exchange, Draining())
            return
        drain.busy += work
        try:
            await self._make(exchange, route)
        finally:
            drain.busy -= work
            if drain.active:
                drain.look()

    async def _make(self, exchange: AsgiExchange, route: Route) -> None:
        with trio.CancelScope() as scope:
            exchange.on_gone(scope.cancel)
            try:
                owner: Worker | None = None
                if route.how is How.OWNER and route.asset is not None:
                    asset_id = route.parameter(exchange.path)
                    owner = await self.find_owner(asset_id, route.asset, _pool(exchange))
                dispatcher = self.forwarder.attempts.dispatcher
                method, path = exchange.method, exchange.path
                plain = self.forwarder.attempts.registry.plain_pools
                parts = self.assets, dispatcher, self.store
                watching = watcher(*parts, route, method, path, plain)
                if watching is not None and route.how is not How.ANY:
                    exchange.headers = readable_only(exchange.headers)
                if self.previews is not None:
                    watching = tapped(self.previews, route, path, watching)
                if route.how is How.SUBMIT:
                    self.store.check()  # no worker starts a job that the store could not record
                key = heads.value(exchange.headers, HEADER) if route.how in _ONCE else None
                if key is not None:
                    await self._once(key, exchange, route, watching, scope.cancel)
                elif split.meant(exchange):
                    await split.run(self.forwarder, exchange, route)
                else:
                    await self.forwarder.run(exchange, route, owner=owner, watcher=watching)
            except RouterError as error:
                await self._refuse(exchange, error)
            except CutOff as cut:
                # Return without the end of the answer: our server then breaks the transfer visibly.
                exchange.tell(cut.code, f"the answer was cut off: {cut}")
            except ClientGone:
                exchange.tell("client_gone", "the client left while it sent its request")
            finally:
                exchange.on_gone(None)
        if scope.cancelled_caught and (how := exchange.how_left()):
            exchange.tell(*how)

    async def _once(
        self,
        key: bytes,
        exchange: AsgiExchange,
        route: Route,
        watcher: Watcher | None,
        leave: Callable[[], None],
    ) -> None:
        error = await self.idempotency.run(key, exchange, route, watcher, leave)
        if exchange.gone and (how := exchange.how_left()):
            exchange.tell(*how)  # the exchange went on without its client
        elif error is not None:
            await self._refuse(exchange, error)

    async def _refuse(self, exchange: AsgiExchange, error: RouterError) -> None:
        log_error(logger, exchange.record, error)
        if exchange.responded:
            return
        headers, body = error_answer(exchange.record, error)
        await exchange.respond(error.status, headers, more=True)
        await exchange.send(body, last=True)  # the server omits the body for a HEAD


def _pool(exchange: AsgiExchange) -> str | None:
    """The one pool that a request names. Raises AmbiguousTarget."""
    named = heads.value(exchange.headers, b"x-pool")
    other = None if named is None else named.decode("latin-1")
    return one_pool(queried(exchange.target, "pool"), other)


def _held(path: str) -> BadRequest:
    return BadRequest(
        f"The workers of a transaction are held for calls about weights: {path} is no part of it"
        " and would wait for its end: leave ?txn= out",
        code="invalid_field",
    )


def _unslashed(target: bytes) -> bytes:
    """The target without the slash at the end of its path: workers do not know paths with one."""
    path, mark, query = target.partition(b"?")
    end = 1 if path.endswith(b"/") else 3 if path.lower().endswith(b"%2f") else 0
    return path[: len(path) - end] + mark + query


def _query(scope: Scope) -> list[tuple[str, str]]:
    return parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _asked_for(scope: Scope) -> str | None:
    """The id of a job in the query of a list, or None."""
    for name, value in _query(scope):
        if name in ("video_id", "mesh_id", "id") and value:
            return value
    return None
