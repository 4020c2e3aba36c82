"""The exchange over ASGI, and the middleware that takes the relay's routes from the Quart app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio
from attrs import define

from ..errors import RouterError
from . import headers as heads
from .client import App, Receive, Scope, Send, error_answer, link_of, request_id, target_of
from .exchange import ClientGone
from .forward import CutOff, Forwarder
from .routes import How, Route, find
from .websocket import WebSocketRelay

logger = logging.getLogger("router.relay")


class AsgiExchange:
    """An Exchange over an ASGI `http` scope of our server shell."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._receive = receive
        self._send = send
        self._link = link_of(scope)
        self._framed = True
        self._read_all = False
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self.http_version: str = scope["http_version"]
        self.scheme: str = scope["scheme"]
        self.peer: str | None = scope["client"][0] if scope["client"] else None
        self.request_id = request_id
        self.responded = False
        self.target = target_of(scope)

    async def read(self) -> bytes:
        while not self._read_all:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            self._read_all = not message.get("more_body", False)
            piece: bytes = message.get("body", b"")
            if piece:
                return piece
        return b""

    async def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.responded = True
        self._framed = (
            self.http_version != "1.0" or heads.value(headers, b"content-length") is not None
        )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": not last})

    def abort(self) -> None:
        # Where the answer is framed, our server ends an unfinished one visibly by itself, and
        # what was sent still arrives; without framing only a reset can tell.
        if not self._framed:
            self._link.abort()

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        self._link.on_gone(callback)


@define(eq=False)
class Relay:
    """ASGI middleware: relays what the route table gives to workers, hands the rest on."""

    app: App
    forwarder: Forwarder
    websockets: WebSocketRelay

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self.websockets(scope, receive, send)
            return
        route = find(scope["method"], scope["path"])
        name = request_id(scope["headers"])
        if route.how is How.OWN:
            scope["extensions"]["router.request_id"] = name
            await self.app(scope, receive, send)
            return
        await self._relay(AsgiExchange(scope, receive, send, name), route)

    async def _relay(self, exchange: AsgiExchange, route: Route) -> None:
        with trio.CancelScope() as scope:
            exchange.on_gone(scope.cancel)
            try:
                if not route.ready:
                    raise not_ready(exchange.method, exchange.path)
                await self.forwarder.run(exchange, route)
            except RouterError as error:
                await self._refuse(exchange, error)
            except CutOff as cut:
                log(exchange, cut.code, f"the answer was cut off: {cut}")
                exchange.abort()
            except ClientGone:
                log(exchange, "client_gone", "the client left while it sent its request")
            finally:
                exchange.on_gone(None)
        if scope.cancelled_caught:
            log(exchange, "client_gone", "the client left before the answer was complete")

    async def _refuse(self, exchange: AsgiExchange, error: RouterError) -> None:
        log(exchange, error.code, f"{error.status}: {error.message}")
        if exchange.responded:
            exchange.abort()
            return
        headers, body = error_answer(error, exchange.request_id)
        await exchange.respond(error.status, headers)
        await exchange.send(b"" if exchange.method == "HEAD" else body, last=True)


def not_ready(method: str, path: str) -> RouterError:
    return RouterError(
        f"{method} {path} is not supported by this version of the router",
        status=501,
        code="not_implemented",
    )


def log(exchange: AsgiExchange, code: str, sentence: str) -> None:
    """The one line that every error and every cut-off leaves."""
    logger.warning(
        "%s %s: %s",
        exchange.method,
        exchange.path,
        sentence,
        extra={"request_id": exchange.request_id, "code": code},
    )
