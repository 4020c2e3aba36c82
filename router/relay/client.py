"""What the fronts for HTTP and for WebSockets share: the ASGI of our server shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class Link(Protocol):
    """What our server shell offers beside ASGI, as `extensions["router.client"]`."""

    reason: str | None  # why the client is gone
    request_id: str
    target: bytes  # of the request, in origin form

    def on_gone(self, callback: Callable[[], None] | None) -> None: ...

    def abort(self) -> None: ...


def link_of(scope: Scope) -> Link:
    """The link to the client of this scope."""
    link: Link = scope["extensions"]["router.client"]
    return link


def target_of(scope: Scope) -> bytes:
    """The request target as the client sent it, in origin form."""
    return link_of(scope).target or b"/"


def how_left(link: Link) -> tuple[str, str] | None:
    """Code and words for the log when a client is gone; None where the server has told it."""
    match link.reason:
        case "protocol_error":
            return None
        case "send_timeout":
            return "client_send_timeout", "the client took no byte for --client-send-timeout"
        case _:
            return "client_gone", "the client left before the answer was complete"
