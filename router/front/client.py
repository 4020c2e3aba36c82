"""The client of an exchange: its state, and control of its connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from ..errors import BadRequest
from .record import ExchangeRecord

Reason: TypeAlias = Literal[
    "eof", "reset", "body_timeout", "send_timeout", "shutdown", "protocol_error"
]


class ClientGone(Exception):
    """The client left; nothing can be answered any more."""


class ClientStalled(BadRequest):
    """The client stopped half-way in its request; an answer can still reach it."""

    default_status = 408
    default_code = "client_timeout"

    def __init__(self, message: str = "The request body stopped arriving before its end") -> None:
        super().__init__(message)


class ClientConnection(Protocol):
    """What a link needs from a client's TCP connection."""

    peer: tuple[str, int] | None

    def abort(self) -> None: ...


class ClientLink:
    """The client of one exchange; `link_of` finds it in an ASGI scope.

    `gone`: the client has left or was given up; `reason` says why. After `body_timeout` an answer
    still reaches the client. `target` is the request target in origin form, byte for byte, because
    ASGI cannot express an empty query. `close_code` and `close_reason` come from a WebSocket
    client's close frame.
    """

    def __init__(self, connection: ClientConnection, record: ExchangeRecord, target: bytes) -> None:
        self.gone = False
        self.reason: Reason | None = None
        self.record = record
        self.target = target
        self.close_code: int | None = None
        self.close_reason: str | None = None
        self._callback: Callable[[], None] | None = None
        self._close_after = False
        self._over = False
        self._connection = connection

    @property
    def peer(self) -> tuple[str, int] | None:
        """Address and port of the client."""
        return self._connection.peer

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` once when the client is gone: at once if it already is.

        Replaces an earlier callback; None removes it. Not called after a complete exchange or an
        `abort()`.
        """
        self._callback = callback
        if self.gone:
            self._tell()

    def abort(self) -> None:
        """Reset the TCP connection now, so that the client sees a broken transfer.

        Does nothing once the exchange is complete: by then the connection may serve the next one.
        """
        if not self._over:
            self.gone = True
            self._callback = None
            self._connection.abort()

    def close_after(self) -> None:
        """Make this response the last on its connection. Call it before the response starts."""
        self._close_after = True

    def lose(self, reason: Reason) -> None:
        """The server's side: the client is gone."""
        if not self.gone and not self._over:
            self.gone = True
            self.reason = reason
            self._tell()

    def how_left(self) -> tuple[str, str] | None:
        """Code and words for the log when the client is gone; None if the log has them already."""
        match self.reason:
            case "protocol_error":
                return None
            case "send_timeout":
                return "client_send_timeout", "the client read nothing for --client-send-timeout"
            case _:
                return "client_gone", "the client left before the answer was complete"

    def _tell(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()
