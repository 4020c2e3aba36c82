"""HTTP as bytes on a wire, for the tests of the relay.

Nothing here leans on an HTTP library: what is written and read is bytes, so that a test sees what
is sent and no second parser forgives what ours lets through.
"""

from __future__ import annotations

import json
import math
import socket
import struct
from collections.abc import Sequence
from typing import Any

import trio
from attrs import define

from tests.patience import fail_after

Headers = list[tuple[bytes, bytes]]

SOON = 2.0  # seconds within which anything that happens at once has happened


@define
class Message:
    """A request or an answer as it was on the wire. `complete`: framed, and whole."""

    first: bytes
    headers: Headers
    body: bytes = b""
    complete: bool = True
    raw_body: bytes = b""  # with its framing

    @property
    def status(self) -> int:
        return int(self.first.split(b" ")[1])

    @property
    def method(self) -> bytes:
        return self.first.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.first.split(b" ")[1]

    def __getitem__(self, name: str) -> bytes | None:
        """The one value of a header, by its lower-case name; None if it is not there."""
        values = self.all(name)
        assert len(values) < 2, f"{name} came {len(values)} times"
        return values[0] if values else None

    def all(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.encode()]

    def json(self) -> Any:
        return json.loads(self.body)


def parse_head(head: bytes) -> Message:
    """A head without its last empty line; strict about line ends."""
    first, *lines = head.split(b"\r\n")
    assert b"\n" not in head.replace(b"\r\n", b"")
    assert b"\r" not in head.replace(b"\r\n", b"")
    headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        assert colon
        assert name == name.strip()
        assert name
        headers.append((name, value.strip(b" \t")))
    return Message(first, headers)


class Gone(Exception):
    """The other side ended the connection. `reset`: not in order."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "end of file")
        self.reset = reset


@define(eq=False)
class Wire:
    """One side of a connection, in bytes."""

    stream: trio.abc.Stream
    socket: trio.socket.SocketType
    rest: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def more(self) -> None:
        """Wait for more bytes. Raises Gone."""
        try:
            data = await self.stream.receive_some(256 * 1024)
        except trio.BrokenResourceError:
            raise Gone(reset=True) from None
        if not data:
            raise Gone(reset=False)
        self.rest += data

    async def until(self, mark: bytes) -> bytes:
        """Everything up to a mark, which is taken too."""
        start = 0
        while (at := self.rest.find(mark, start)) < 0:
            start = max(0, len(self.rest) - len(mark))
            await self.more()
        found, self.rest = self.rest[:at], self.rest[at + len(mark) :]
        return found

    async def exactly(self, size: int, message: Message) -> bytes:
        pieces, left = [], size
        while left:
            if not self.rest:
                await self.more()
            piece, self.rest = self.rest[:left], self.rest[left:]
            left -= len(piece)
            pieces.append(piece)
            message.body += piece if size < 100_000 else b""
        whole = b"".join(pieces)
        if size >= 100_000:
            message.body += whole
        return whole

    async def head(self) -> Message:
        return parse_head(await self.until(b"\r\n\r\n"))

    async def body(self, message: Message, *, length: int | None) -> None:
        """Read a body: of a length, or chunked where that is announced, or up to the end.

        Raises Gone where it is cut off; what came is in the message then.
        """
        message.complete = False
        coding = message["transfer-encoding"]
        if length is not None:
            message.raw_body = await self.exactly(length, message)
        elif coding is not None:
            assert coding == b"chunked"
            assert message["content-length"] is None, "two framings"
            while size := int(await self.until(b"\r\n"), 16):
                await self.exactly(size, message)
                assert await self.until(b"\r\n") == b""
            assert await self.until(b"\r\n") == b"", "trailers"
        else:
            try:
                while True:
                    message.body, self.rest = message.body + self.rest, b""
                    await self.more()
            except Gone as gone:
                if gone.reset:
                    raise
        message.complete = True

    async def ended(self, within: float = SOON) -> Gone:
        """Wait for the other side's end, through whatever still comes."""
        with fail_after(within):
            while True:
                self.rest = b""
                try:
                    await self.more()
                except Gone as gone:
                    return gone

    def close(self) -> None:
        """End the connection: in order, unless bytes were left unread."""
        self.socket.close()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def request(
    method: str, target: str = "/x", *headers: str, body: bytes = b"", version: str = "1.1"
) -> bytes:
    """The bytes of a request; Content-Length is added to a body."""
    lines = [f"{method} {target} HTTP/{version}", "Host: client.test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def response(status: int = 200, *headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """The bytes of an answer; Content-Length is added unless the framing is given."""
    framed = any(h.lower().startswith(("content-length", "transfer-encoding")) for h in headers)
    lines = [f"HTTP/{version} {status} Whatever", *headers]
    if not framed and status >= 200 and status not in (204, 304):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def chunked(*pieces: bytes) -> bytes:
    """Pieces as chunks, without the last one: that is `LAST_CHUNK`."""
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


LAST_CHUNK = b"0\r\n\r\n"


def pattern(size: int) -> bytes:
    """Bytes in which no two stretches are alike."""
    block = bytes(range(256))
    count = math.ceil(size / 256)
    return b"".join(block[i % 256 :] + block[: i % 256] for i in range(count))[:size]


def error_of(message: Message, status: int, code: str) -> dict[str, Any]:
    """The body of a router's error, whose shape is checked."""
    assert message.complete
    assert message.status == status, message.body
    assert message["content-type"] == b"application/json"
    body: dict[str, Any] = message.json()
    assert body["code"] == code, body
    assert isinstance(body["error"], str)
    assert body["error"]
    assert body["request_id"] == (message["x-request-id"] or b"").decode()
    return body


def without(headers: Headers, *names: str) -> Headers:
    drop = {name.encode() for name in names}
    return [(name, value) for name, value in headers if name.lower() not in drop]


def lines(headers: Headers) -> Sequence[str]:
    return [f"{name.decode('latin-1')}: {value.decode('latin-1')}" for name, value in headers]
