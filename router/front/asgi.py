"""The ASGI of our server shell: its types, and the client that a scope belongs to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from .client import ClientLink

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_LINK = "router.client"  # an extension of ASGI


def extensions_with(link: ClientLink) -> dict[str, Any]:
    """The extensions of a scope that belongs to this client."""
    return {_LINK: link}


def link_of(scope: Scope) -> ClientLink:
    """The client that a scope belongs to."""
    link: ClientLink = scope["extensions"][_LINK]
    return link
