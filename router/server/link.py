"""The interface of a connection for the protocols that run on it, and the limits of clients."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from attrs import define

from .. import boundary
from ..front.asgi import App
from ..front.origins import Origins
from ..front.record import ExchangeRecord


class Recorded(Protocol):
    """An exchange with its record, or a connection with the record of its current exchange."""

    @property
    def record(self) -> ExchangeRecord: ...


def contained(call: Recorded) -> boundary.contained:
    """A block about this call or connection: an unexpected error ends only this one."""
    name = lambda: call.record.request_id  # noqa: E731
    return boundary.contained("client", lambda: call.record.what, request_id=name)


READ_AHEAD = 256 * 1024  # bytes held for an app that does not read; one more receive may be added

log = logging.getLogger("router.server")


@define
class ServerLimits:
    """Limits for clients: times in seconds, sizes in bytes.

    `send` counts from the last progress of a send, `body` while the app waits for a piece of the
    request body, `head` from its first byte. `linger_*` bound the reading of an upload that was
    answered before its end.
    """

    handshake: float = 10.0  # of TLS
    keep_alive: float = 75.0
    send: float = 60.0
    head: float = 60.0
    body: float = 300.0
    shutdown: float = 60.0
    websocket_message: int = 64 * 1024 * 1024
    linger_bytes: int = 64 * 1024 * 1024
    linger_time: float = 30.0
    max_head: int = 64 * 1024
    connections: int | None = None  # of all clients together


class Transport(Protocol):
    """One TCP connection, as the protocol sees it."""

    limits: ServerLimits
    app: App
    peer: tuple[str, int] | None
    local: tuple[str, int] | None
    usable: bool
    secure: bool
    origins: Origins

    @property
    def stopping(self) -> bool: ...
    async def write(self, parts: Sequence[bytes | memoryview]) -> None: ...
    def spawn(self, task: Callable[..., Awaitable[Any]], *args: Any) -> None: ...
    def expire_after(self, seconds: float | None) -> None: ...
    def resume(self) -> None: ...
    def close(self, *, linger: bool = True) -> None: ...
    def abort(self) -> None: ...
    def ended(self, record: ExchangeRecord) -> None: ...
