"""The admin key for changes of workers, weights or memory: checked before relay and app."""

from __future__ import annotations

import hmac
import logging
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from attrs import define, field

from ..errors import RouterError
from ..front.asgi import App, Receive, Scope, Send, link_of
from ..front.errors import error_answer, log_error
from .routes import How, Route, find

logger = logging.getLogger("router.relay")

_READS = ("GET", "HEAD", "OPTIONS")


class KeyMissing(RouterError):
    default_status = 401
    default_code = "admin_key_missing"


class KeyWrong(RouterError):
    default_status = 403
    default_code = "admin_key_wrong"


def needs_key(route: Route, method: str) -> bool:
    """Whether a request changes workers, weights or memory, or reads what may hold secrets.

    A path outside the table needs the key for every method that does not only read: only the worker
    knows what such a request does.
    """
    if route.how in (How.CHANGE, How.TOGETHER) or route.guarded:
        return True
    return route.how in (How.OWN, How.REFUSED, How.ANY) and method not in _READS


@define(eq=False)
class AdminKey:
    """ASGI middleware: asks for the key where one is needed, and lets no worker see any."""

    app: App
    _key: bytes = field(alias="key", repr=False)
    intake: defaultdict[str, int] = field(factory=partial(defaultdict, int))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        given = [(name, _credential(name, value)) for name, value in headers]
        right = [key is not None and hmac.compare_digest(key, self._key) for _, key in given]
        scope["headers"] = [
            header for header, matches in zip(headers, right, strict=True) if not matches
        ]
        if scope["type"] == "http":
            method, path = scope["method"], scope["path"]
            route = find(method, path)
            if needs_key(route, method) and not any(right):
                link_of(scope).record.route = route.path
                self.intake[route.path] += 1
                await _refuse(scope, send, offered=any(key is not None for _, key in given))
                return
        await self.app(scope, receive, send)


def _credential(name: bytes, value: bytes) -> bytes | None:
    """The key in a header, or None if the header offers no key."""
    match name.lower():
        case b"x-api-key":
            return value.strip()
        case b"authorization":
            scheme, _, key = value.strip().partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else None
        case _:
            return None


async def _refuse(scope: Scope, send: Send, *, offered: bool) -> None:
    record = link_of(scope).record
    error: RouterError
    if offered:
        error = KeyWrong("The admin key is wrong")
    else:
        error = KeyMissing(
            "This needs the admin key: Authorization: Bearer KEY, or X-API-Key: KEY",
            headers=[("WWW-Authenticate", 'Bearer realm="sglang-d-router"')],
        )
    log_error(logger, record, error)
    headers, body = error_answer(record, error)
    start = {"type": "http.response.start", "status": error.status, "headers": headers}
    await send({**start, "router.more": True})
    await send({"type": "http.response.body", "body": body})
