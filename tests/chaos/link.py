"""An HTTP client that costs little: hundreds of them share the processor with what they test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

import h11
import trio
from attrs import define, field, frozen

_PIECE = 64 * 1024


class Broken(Exception):
    """No whole answer came. `begun`: its head had come."""

    def __init__(self, why: str, *, begun: bool = False) -> None:
        super().__init__(why)
        self.begun = begun


@frozen
class Answer:
    """A whole answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def text(self) -> str:
        return self.content.decode(errors="replace")

    def json(self) -> Any:
        """Raises ValueError."""
        return json.loads(self.content)


@define(eq=False)
class Link:
    """One connection to a server, kept as long as that keeps it."""

    url: str
    within: float  # seconds for an answer
    era: int = 0  # of the server; for whoever counts its lives
    _stream: trio.SocketStream | None = field(init=False, default=None)
    _h11: h11.Connection = field(init=False, factory=lambda: h11.Connection(h11.CLIENT))

    async def ask(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request, `content` as JSON. Raises Broken, or trio.TooSlowError."""
        body = b"" if content is None else json.dumps(content).encode()
        target = f"{path}?{urlencode(params)}" if params else path
        given = {"host": urlsplit(self.url).netloc, "content-length": str(len(body))}
        given |= {"content-type": "application/json"} if body else {}
        given |= headers or {}
        try:
            with trio.fail_after(self.within):
                answer = await self._exchange(method, target, given, body)
        except BaseException:
            self.close()
            raise
        if self._h11.our_state is h11.MUST_CLOSE or self._h11.their_state is not h11.DONE:
            self.close()
        else:
            self._h11.start_next_cycle()
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.socket.close()
            self._stream = None

    async def _exchange(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        begun = False
        try:
            if self._stream is None:
                host, port = urlsplit(self.url).hostname, urlsplit(self.url).port
                self._stream = await trio.open_tcp_stream(host or "", port or 80)
                self._h11 = h11.Connection(h11.CLIENT)
            request = h11.Request(method=method, target=target, headers=list(headers.items()))
            data = self._h11.send(request) or b""
            data += self._h11.send(h11.Data(data=body)) or b"" if body else b""
            await self._stream.send_all(data + (self._h11.send(h11.EndOfMessage()) or b""))
            head = await self._event()
            assert isinstance(head, h11.Response)
            begun = True
            found = bytearray()
            while isinstance(event := await self._event(), h11.Data):
                found += event.data
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise Broken(repr(error), begun=begun) from error
        told = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        return Answer(head.status_code, told, bytes(found))

    async def _event(self) -> object:
        assert self._stream is not None
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self._stream.receive_some(_PIECE))
        return event
