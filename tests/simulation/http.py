"""HTTP/1.1 over wires: what clients ask, and what workers are asked.

Small and strict, for whole messages only: a simulated hour has thousands of them, and what the
router makes of spoilt ones is the matter of `tests/fuzz`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trio
from attrs import define, field, frozen

from tests.simulation.network import Cut, Link, Network, Wire

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}


@frozen
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body, None if it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None

    @property
    def code(self) -> str:
        """The router's name of an error."""
        told = self.json()
        return str(told.get("code", "")) if isinstance(told, dict) else ""


@define(eq=False)
class Reader:
    """The messages of one connection. `more` gives what comes next, b"" at the end."""

    more: Callable[[], Awaitable[bytes]]
    _data: bytes = b""

    async def head(self) -> tuple[str, dict[str, str]] | None:
        """The first line and the headers; None if the connection has ended before. Raises Cut."""
        if not self._data:
            self._data = await self.more()
            if not self._data:
                return None
        first, *lines = (await self._until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise Cut
            headers[name.lower()] = value.strip()
        return first, headers

    async def body(self, headers: Mapping[str, str], *, to_end: bool) -> bytes:
        """`to_end`: it ends with the connection if nothing else is said. Raises Cut."""
        if headers.get("transfer-encoding", "") == "chunked":
            return await self._chunks()
        if "content-length" in headers:
            return await self._exactly(_number(headers["content-length"], 10))
        if to_end:
            while data := await self.more():
                self._data += data
            return await self._exactly(len(self._data))
        return b""

    async def _chunks(self) -> bytes:
        found = bytearray()
        while size := _number(await self._until(b"\r\n"), 16):
            found += await self._exactly(size)
            if await self._until(b"\r\n"):
                raise Cut
        while await self._until(b"\r\n"):
            pass  # trailers
        return bytes(found)

    async def _until(self, end: bytes) -> bytes:
        while (at := self._data.find(end)) < 0:
            await self._read()
        found, self._data = self._data[:at], self._data[at + len(end) :]
        return found

    async def _exactly(self, size: int) -> bytes:
        while len(self._data) < size:
            await self._read()
        found, self._data = self._data[:size], self._data[size:]
        return found

    async def _read(self) -> None:
        data = await self.more()
        if not data:
            raise Cut
        self._data += data


def _number(text: str | bytes, base: int) -> int:
    try:
        return int(text, base)
    except ValueError:
        raise Cut from None


def written(first: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A message."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{first}\r\n{lines}\r\n".encode("latin-1") + body


def status_of(first: str) -> int:
    """The status by the first line of an answer. Raises Cut."""
    version, _, rest = first.partition(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0") or not rest[:3].isdigit():
        raise Cut
    return int(rest[:3])


async def read_answer(reader: Reader, method: str) -> Answer | None:
    """The final answer; None if the connection has ended before. Raises Cut."""
    while (found := await reader.head()) is not None:
        status = status_of(found[0])
        if status >= 200:
            bare = method == "HEAD" or status in (204, 304)
            body = b"" if bare else await reader.body(found[1], to_end=True)
            return Answer(status, found[1], body)
    return None


async def ask(
    network: Network,
    link: Link,
    method: str,
    target: str,
    content: Any = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request to the router, `content` as JSON. Raises Cut."""
    body = b"" if content is None else json.dumps(content).encode()
    given = {"host": "router", "content-length": str(len(body)), "connection": "close"}
    given |= {"content-type": "application/json"} if body else {}
    given |= headers or {}
    wire = await network.connect(link)
    try:
        await wire.send(written(f"{method} {target} HTTP/1.1", given, body))
        answer = await read_answer(Reader(wire.receive), method)
    finally:
        network.leave(wire)
    if answer is None:
        raise Cut
    return answer


@frozen
class Request:
    """What a worker is asked."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    wire: Wire
    name: str  # X-Request-Id

    def json(self) -> dict[str, Any]:
        try:
            content = json.loads(self.body)
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {}


@define(eq=False)
class ServerSide:
    """One connection at a worker, kept for `idle` seconds between two requests."""

    wire: Wire
    idle: float
    _reader: Reader = field(init=False)
    _used: bool = field(init=False, default=False)
    _last: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        self._reader = Reader(self.wire.receive)

    async def next(self) -> Request | None:
        """The next request; None: there is none any more. Raises Cut."""
        found: tuple[str, dict[str, str]] | None = None
        if self._last:
            return None
        if self._used:
            with trio.move_on_after(self.idle):
                found = await self._reader.head()
        else:
            found = await self._reader.head()
        if found is None:
            return None
        first, headers = found
        method, target, version = first.split(" ")
        if version != "HTTP/1.1":
            raise Cut
        body = await self._reader.body(headers, to_end=False)
        self._used, self._last = True, headers.get("connection", "").lower() == "close"
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query)) if parts.query else {}
        name = headers.get("x-request-id", "")
        return Request(method, parts.path, query, body, self.wire, name)

    async def answer(self, status: int, body: bytes, kind: str, *, cut: bool = False) -> None:
        """`cut`: break off in the middle of it."""
        headers = {"content-type": kind, "content-length": str(len(body))}
        if self._last:
            headers["connection"] = "close"
        first = f"HTTP/1.1 {status} {_REASONS.get(status, 'Other')}"
        if cut:
            await self.wire.send(written(first, headers, body[: len(body) // 2]))
            raise Cut
        await self.wire.send(written(first, headers, body))
