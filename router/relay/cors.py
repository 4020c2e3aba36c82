"""CORS: lets scripts of other origins read answers, as far as `--cors-origin` allows."""

from __future__ import annotations

from attrs import define

from ..front.asgi import App, Message, Receive, Scope, Send
from ..front.origins import Origins
from .headers import value

# The headers of answers that scripts may read, beside those that they always may.
_EXPOSED = (
    b"x-request-id, x-worker-id, x-weight-version, x-should-retry, x-split-workers,"
    b" x-router-instance, idempotent-replayed, retry-after, content-disposition, etag, location"
)
_METHODS = b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
_AGE = b"600"  # seconds for which a browser may remember the answer to its question


@define(eq=False)
class Cors:
    """ASGI middleware, outside of all others: answers preflights and adds headers to all answers.

    Credentials are never allowed: the router knows no cookies, and keys are ordinary headers here.
    """

    app: App
    origins: Origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        origin = value(scope["headers"], b"origin")
        added = [] if "*" in self.origins.allowed else [(b"vary", b"origin")]
        if self.origins.names(origin):
            any_page = "*" in self.origins.allowed
            added.append((b"access-control-allow-origin", b"*" if any_page else origin or b""))
            added.append((b"access-control-expose-headers", _EXPOSED))
        wanted = value(scope["headers"], b"access-control-request-method")
        if scope["method"] == "OPTIONS" and origin is not None and wanted is not None:
            if self.origins.names(origin):
                asked = value(scope["headers"], b"access-control-request-headers")
                added += [
                    (b"access-control-allow-methods", _METHODS),
                    (b"access-control-max-age", _AGE),
                ]
                if asked is not None:
                    added.append((b"access-control-allow-headers", asked))
            await send({"type": "http.response.start", "status": 204, "headers": added})
            await send({"type": "http.response.body", "body": b""})
            return

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self.app(scope, receive, adding)
