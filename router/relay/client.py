"""What the fronts for HTTP and for WebSockets share: the ASGI of our server shell, the request's
id, the shape of an error."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from ..errors import RouterError
from . import headers as heads

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What clients may call a request; anything else is replaced, so that logs stay readable.
_REQUEST_ID = re.compile(rb"[!-~]{1,128}\Z")


class Link(Protocol):
    """What our server shell offers beside ASGI, as `extensions["router.client"]`."""

    reason: str | None  # why the client is gone
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


def request_id(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The client's X-Request-Id if it is presentable, else a new one."""
    given = heads.value(headers, b"x-request-id")
    if given is not None and _REQUEST_ID.match(given):
        return given.decode()
    return os.urandom(16).hex()


def error_answer(error: RouterError, request_id: str) -> tuple[heads.Headers, bytes]:
    """Headers and body of the answer that tells a client of an error."""
    body = json.dumps(error.body(request_id)).encode()
    headers: heads.Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(body)),
        (b"x-request-id", request_id.encode()),
        *((name.lower().encode(), content.encode()) for name, content in error.headers),
    ]
    return headers, body
