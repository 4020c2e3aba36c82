"""HTTP/1.1 over wires: what clients ask, and what workers are asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import h11
import trio
from attrs import define, field, frozen

from tests.simulation.network import Cut, Link, Network, Wire


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
        parser = h11.Connection(h11.CLIENT)
        head = parser.send(h11.Request(method=method, target=target, headers=list(given.items())))
        end = parser.send(h11.Data(data=body)) if body else b""
        await wire.send((head or b"") + (end or b"") + (parser.send(h11.EndOfMessage()) or b""))
        status, told, data = 0, {}, bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await wire.receive())
            elif isinstance(event, h11.Response):
                status = event.status_code
                told = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                data += event.data
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, told, bytes(data))
            elif not isinstance(event, h11.InformationalResponse):
                raise Cut
    except h11.RemoteProtocolError:
        raise Cut from None
    finally:
        network.leave(wire)


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
    """One connection at a worker."""

    wire: Wire
    _h11: h11.Connection = field(init=False, factory=lambda: h11.Connection(h11.SERVER))
    _used: bool = field(init=False, default=False)

    async def requests(self, idle: float) -> AsyncIterator[Request]:
        """Each request in its turn; ends with the connection. Raises Cut."""
        while True:
            head: h11.Request | None = None
            body = bytearray()
            while True:
                try:
                    event = self._h11.next_event()
                except h11.RemoteProtocolError:
                    raise Cut from None
                if event is h11.NEED_DATA:
                    waits = self._used and head is None
                    with trio.move_on_after(idle if waits else float("inf")) as scope:
                        data = await self.wire.receive()
                    if scope.cancelled_caught:
                        return
                    self._h11.receive_data(data)
                elif isinstance(event, h11.Request):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    return
            assert head is not None
            self._used = True
            parts = urlsplit(head.target.decode())
            yield Request(
                head.method.decode(),
                parts.path,
                dict(parse_qsl(parts.query)),
                bytes(body),
                self.wire,
                dict(head.headers).get(b"x-request-id", b"").decode(),
            )
            if self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                return
            self._h11.start_next_cycle()

    async def answer(self, status: int, body: bytes, kind: str, *, cut: bool = False) -> None:
        """`cut`: break off in the middle of it."""
        headers = [("content-type", kind), ("content-length", str(len(body)))]
        head = self._h11.send(h11.Response(status_code=status, headers=headers)) or b""
        if cut:
            await self.wire.send(head + body[: len(body) // 2])
            raise Cut
        data = self._h11.send(h11.Data(data=body)) or b""
        await self.wire.send(head + data + (self._h11.send(h11.EndOfMessage()) or b""))
