"""The table of endpoints: method and path to handler, as Starlette matches them."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from attrs import define, field, frozen

from .exchange import Exchange
from .messages import Response, json_response

Handler = Callable[[Exchange], Awaitable[Response]]


@frozen
class Route:
    """`{name}` takes one part of a path, `{name:path}` any number."""

    method: str
    pattern: str
    handler: Handler

    @property
    def regex(self) -> re.Pattern[str]:
        rest = re.sub(r"\{(\w+):path\}", r"(?P<\1>.*)", self.pattern)
        return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", rest))


@define(eq=False)
class Table:
    """Routes in order. The first whose path fits but whose method does not names the `allow`."""

    routes: list[Route]
    _compiled: list[tuple[re.Pattern[str], Route]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._compiled = [(route.regex, route) for route in self.routes]

    async def respond(self, exchange: Exchange) -> Response:
        path = exchange.path
        other: Route | None = None
        for regex, route in self._compiled:
            match = regex.fullmatch(path)
            if match is None:
                continue
            if route.method == exchange.method:
                exchange.params = match.groupdict()
                return await route.handler(exchange)
            other = other or route
        if other is not None:
            allow = (b"allow", other.method.encode())
            return json_response({"detail": "Method Not Allowed"}, 405, allow)
        if path != "/" and path.endswith("/") and self._knows(path.rstrip("/")):
            query = exchange.target.partition("?")[2]
            place = f"http://{exchange.header(b'host')}{path.rstrip('/')}"
            place += f"?{query}" if query else ""
            location = (b"location", place.encode("latin-1", "replace"))
            return Response(307, [(b"content-length", b"0"), location])
        return json_response({"detail": "Not Found"}, 404)

    def _knows(self, path: str) -> bool:
        return any(regex.fullmatch(path) for regex, _ in self._compiled)
