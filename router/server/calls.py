"""One call of the app: a crash ends the exchange and nothing else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

from ..front.record import serving
from .link import Recorded, contained

if TYPE_CHECKING:
    from .http1 import Http1Protocol


class Call(Recorded, Protocol):
    """An exchange, as the call of its app sees it."""

    scope: Any

    async def receive(self) -> Any: ...
    async def finish(self, *, crashed: bool) -> None: ...


async def call_app(
    protocol: Http1Protocol, call: Call, send: Callable[[Any], Awaitable[None]]
) -> None:
    """Call the app, then finish its exchange."""
    serving.set(call.record)
    crashed = True
    try:
        with contained(call):
            await protocol.transport.app(call.scope, call.receive, send)
            crashed = False
    finally:
        finished = False
        with contained(call):
            await call.finish(crashed=crashed)
            finished = True
        if not finished:
            protocol.transport.abort()
            protocol.end()
        protocol.transport.ended(call.record)
