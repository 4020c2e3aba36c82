"""One HTTP request as a handler sees it: its head, and its body as it arrives."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

import trio
from attrs import define, field, frozen

from .messages import Headers, NotJson, from_json, server_error, unprocessable
from .record import RequestEntry

if TYPE_CHECKING:
    from .connection import Connection


@frozen
class Pieces:
    """An iterator that may be left half-way, unlike an async generator."""

    _exchange: Exchange

    def __aiter__(self) -> Pieces:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._exchange.piece()
        if piece is None:
            raise StopAsyncIteration
        return piece


@define(eq=False)
class Exchange:
    """A request. `entry` is its line in the log; `params` are the parts of the path."""

    method: str
    target: str
    headers: Headers
    connection: Connection
    entry: RequestEntry
    _receive: Callable[[], Awaitable[bytes | None]]
    params: dict[str, str] = field(factory=dict)
    gone: trio.Event = field(factory=trio.Event)
    """Set when the client was seen to leave."""
    _digest: Any = field(factory=hashlib.sha256)

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The last value of each name."""
        parsed = parse_qs(self.target.partition("?")[2], keep_blank_values=True)
        return {name: values[-1] for name, values in parsed.items()}

    def header(self, name: bytes) -> str:
        """The first value of a header, empty where it is absent."""
        return next((v.decode("latin-1") for n, v in self.headers if n == name), "")

    def pieces(self) -> Pieces:
        """The body in pieces; counted and hashed for the log on the way."""
        return Pieces(self)

    async def piece(self) -> bytes | None:
        """The next piece of the body, None at its end."""
        piece = await self._receive()
        if piece is None:
            self.entry.body_sha256 = self._digest.hexdigest()
        else:
            self.entry.body_bytes += len(piece)
            self._digest.update(piece)
        return piece

    async def body(self) -> bytes:
        return b"".join([piece async for piece in self.pieces()])

    async def drop_body(self) -> None:
        """Reads the body to its end and forgets it."""
        while await self.piece() is not None:
            pass

    async def json(self) -> Any:
        """The body as JSON, whatever its content type. Malformed: the plain-text 500."""
        try:
            return from_json(await self.body())
        except NotJson:
            raise server_error() from None

    async def model(self, *, optional: bool = False) -> Any:
        """The body as the JSON object that a declared request model wants; else a 422.

        `optional`: no body counts as an empty object.
        """
        body = await self.body()
        kind = self.header(b"content-type").partition(";")[0].strip().lower()
        value: Any = None
        if kind == "application/json" or (kind.startswith("application/") and "+json" in kind):
            try:
                value = from_json(body) if body else None
            except NotJson as error:
                raise unprocessable(
                    [
                        {
                            "type": "json_invalid",
                            "loc": ["body", error.place],
                            "msg": "JSON decode error",
                            "input": {},
                            "ctx": {"error": str(error)},
                        }
                    ]
                ) from None
        elif body:
            value = body.decode("utf-8", "replace")
        if value is None and optional:
            return {}
        if value is None and not body:
            raise unprocessable(
                [{"type": "missing", "loc": ["body"], "msg": "Field required", "input": None}]
            )
        if not isinstance(value, dict):
            message = "Input should be a valid dictionary or object to extract fields from"
            raise unprocessable(
                [
                    {
                        "type": "model_attributes_type",
                        "loc": ["body"],
                        "msg": message,
                        "input": value,
                    }
                ]
            )
        return value
