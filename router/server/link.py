"""What an app may know of its client and ask of the connection, and the limits of clients."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

from attrs import frozen

from router import boundary

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
Reason: TypeAlias = Literal[
    "eof", "reset", "body_timeout", "send_timeout", "shutdown", "protocol_error"
]


class Named(Protocol):
    """What an error is told of: what was asked, and its request id."""

    @property
    def what(self) -> str: ...
    @property
    def request_id(self) -> str: ...


def contained(call: Named) -> boundary.contained:
    """A block about this call or connection: an unexpected error ends that alone."""
    return boundary.contained("client", lambda: call.what, request_id=lambda: call.request_id)


LINK = "router.client"  # key in scope["extensions"]
READ_AHEAD = 256 * 1024  # bytes held for an app that does not read; one receive more may follow

log = logging.getLogger("router.server")


@frozen
class ServerLimits:
    """How long clients may take, in seconds, and how much they may send, in bytes.

    `send` counts from the last progress of a send, `body` while the app waits for a piece of the
    request body, `head` from its first byte. `linger_*` bound the reading of an upload that was
    answered before its end.
    """

    keep_alive: float = 75.0
    send: float = 60.0
    head: float = 60.0
    body: float = 300.0
    shutdown: float = 60.0
    websocket_message: int = 64 * 1024 * 1024
    linger_bytes: int = 64 * 1024 * 1024
    linger_time: float = 30.0
    max_head: int = 64 * 1024


class Transport(Protocol):
    """One TCP connection, as the protocol sees it."""

    limits: ServerLimits
    app: ASGIApp
    peer: tuple[str, int] | None
    local: tuple[str, int] | None
    usable: bool

    @property
    def stopping(self) -> bool: ...
    async def write(self, parts: Sequence[bytes | memoryview]) -> None: ...
    def spawn(self, task: Callable[..., Awaitable[Any]], *args: Any) -> None: ...
    def expire_after(self, seconds: float | None) -> None: ...
    def resume(self) -> None: ...
    def close(self, *, linger: bool = True) -> None: ...
    def abort(self) -> None: ...


class ClientLink:
    """The client of one exchange; found in `scope["extensions"]["router.client"]`.

    `gone` says that the client has left, or was given up; `reason` why. After `body_timeout` an
    answer still reaches it. `request_id` names the exchange in answers and logs. `target` is the
    request target in origin form, byte for byte: ASGI has no word for an empty query. `close_code`
    and `close_reason` are those of a WebSocket client's close frame.
    """

    def __init__(self, transport: Transport, request_id: str, target: bytes) -> None:
        self.gone = False
        self.reason: Reason | None = None
        self.request_id = request_id
        self.target = target
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._callback: Callable[[], None] | None = None
        self._close_after = False
        self._over = False
        self._transport = transport

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the client."""
        return self._transport.peer

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Have `callback` called once when the client is gone: at once if it already is.

        Replaces an earlier callback; None removes it. Not called for an exchange that is complete,
        nor for `abort()`.
        """
        self._callback = callback
        if self.gone:
            self._tell()

    def abort(self) -> None:
        """Reset the TCP connection now, so that the client sees a broken transfer.

        Does nothing once the exchange is complete: the connection may serve another by then.
        """
        if not self._over:
            self.gone = True
            self._callback = None
            self._transport.abort()

    def close_after(self) -> None:
        """Make this response the last on its connection. Call it before the response starts."""
        self._close_after = True

    def lose(self, reason: Reason) -> None:
        """The server's side: the client is gone."""
        if not self.gone and not self._over:
            self.gone = True
            self.reason = reason
            self._tell()

    def _tell(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()
