"""A server of ours on a free loopback port, and raw clients for it."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import h11
import trio
import trio.testing
from attrs import Factory, define

from router.front.asgi import App, Receive, Scope, Send
from router.server import ServerLimits, Tls, open_listeners, serve
from tests.patience import fail_after

Headers = list[tuple[bytes, bytes]]


class SecureStream:
    """A connection over TLS that tests handle as a plain one; it is its own socket, too."""

    def __init__(self, stream: trio.SocketStream, context: ssl.SSLContext) -> None:
        self.socket = self
        self.close, self.fileno = stream.socket.close, stream.socket.fileno
        self.getsockname = stream.socket.getsockname
        self.setsockopt, self.aclose = stream.setsockopt, stream.aclose
        self._stream = stream
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out)
        self._rest = b""  # sealed and not yet sent

    async def do_handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self._flush()
                self._in.write(await self._stream.receive_some())
        await self._flush()

    async def receive_some(self, size: int = 65536) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                data = await self._stream.receive_some()
                self._in.write(data) if data else self._in.write_eof()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self.send(view) :]

    async def send(self, data: memoryview) -> int:
        """Send one record; once this is cancelled, the next call sends the rest of it first."""
        await self._flush()
        sent = self._tls.write(data[: 16 * 1024])
        await self._flush()
        return sent

    async def send_eof(self) -> None:
        self._rest += self.farewell()
        await self._flush()

    def seal(self, data: bytes) -> bytes:
        self._tls.write(data)
        return self._out.read()

    def farewell(self) -> bytes:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._out.read()

    async def _flush(self) -> None:
        self._rest += self._out.read()
        while self._rest:
            try:
                self._rest = self._rest[await self._stream.socket.send(self._rest) :]
            except OSError as error:
                raise trio.BrokenResourceError from error


secure: list[tuple[ssl.SSLContext, ssl.SSLContext]] = []
"""The server's and the clients' side of TLS while tests use it, else empty."""


@define
class Client:
    """One raw connection to the server."""

    stream: Any  # a trio.SocketStream, or one that behaves as such
    rest: bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    def push(self, data: bytes) -> None:
        """Send a little without giving the server a chance to run meanwhile."""
        if isinstance(self.stream, SecureStream):
            data = self.stream.seal(data)
        assert os.write(self.stream.socket.fileno(), data) == len(data)

    async def read(self, size: int = 65536) -> bytes:
        """What has come; b"" at a FIN. Raises trio.BrokenResourceError at a reset."""
        data, self.rest = self.rest, b""
        return data or await self.stream.receive_some(size)

    async def read_all(self) -> bytes:
        """Everything up to the FIN."""
        data = bytearray()
        while piece := await self.read():
            data += piece
        return bytes(data)

    async def answer(self, method: str = "GET") -> tuple[int, Headers, bytes]:
        """One complete response: status, headers with their case but the server's Date, body.

        Raises h11.RemoteProtocolError if it is incomplete.
        """
        parser = h11.Connection(h11.CLIENT)
        parser.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        status, headers, body = 0, [], bytearray()
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                parser.receive_data(await self.read(1024 * 1024))
            elif isinstance(event, h11.InformationalResponse):
                raise AssertionError(f"unexpected {event.status_code}")
            elif isinstance(event, h11.Response):
                status, headers = event.status_code, event.headers.raw_items()
                headers = [(name, value) for name, value in headers if name != b"date"]
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self.rest = parser.trailing_data[0]
                return status, headers, bytes(body)
            else:
                raise AssertionError(event)

    async def get(self, path: str = "/", *headers: str) -> tuple[int, Headers, bytes]:
        await self.send(request("GET", path, *headers))
        return await self.answer()

    def reset(self) -> None:
        """Leave with a RST."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.socket.close()

    async def expect_end(self) -> None:
        """The server has closed the connection, in whichever way."""
        with contextlib.suppress(trio.BrokenResourceError):
            assert await self.read() == b""


def request(
    method: str, path: str, *headers: str, body: bytes = b"", version: str = "1.1"
) -> bytes:
    """The bytes of a request; Content-Length is added to a body."""
    lines = [f"{method} {path} HTTP/{version}", "Host: test", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


@define
class Served:
    """A running server."""

    address: tuple[str, int]
    stop: trio.Event
    done: trio.Event
    clients: list[Client] = Factory(list)

    async def connect(self) -> Client:
        stream = await trio.open_tcp_stream(*self.address)
        client = Client(stream)
        if secure:
            client = Client(SecureStream(stream, secure[0][1]))
            await client.stream.do_handshake()
        self.clients.append(client)
        return client


@contextlib.asynccontextmanager
async def serving(app: App, **limits: Any) -> AsyncIterator[Served]:
    """The server runs until the block ends; then it must end by itself."""
    listeners = open_listeners("127.0.0.1", 0)
    served = Served(listeners[0].getsockname(), trio.Event(), trio.Event())

    async def run(task_status: trio.TaskStatus[None]) -> None:
        tls = Tls(secure[0][0]) if secure else None
        rest = {"limits": ServerLimits(**limits), "stop": served.stop, "tls": tls}
        await serve(app, listeners, **rest, task_status=task_status)  # type: ignore[arg-type]
        served.done.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        try:
            yield served
        finally:
            for client in served.clients:
                client.stream.socket.close()
        served.stop.set()


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main`; hanging is a failure."""

    async def bounded() -> None:
        with fail_after(20):
            await main()

    trio.run(bounded)


def run_by_hand(main: Callable[[trio.testing.MockClock], Awaitable[None]]) -> None:
    """Run `main` on a clock that stands still until it is told to jump."""
    clock = trio.testing.MockClock()
    trio.run(partial(main, clock), clock=clock)


async def settle() -> None:
    """Wait until every task waits for something, I/O on the loopback included."""
    await trio.testing.wait_all_tasks_blocked(0.02)


async def flood(client: Client, data: bytes, limit: int) -> int:
    """Send until the server stops taking, or `limit` bytes are sent; how many were."""
    sock = client.stream.socket
    sent = 0
    view = memoryview(data)
    while sent < limit:
        with trio.move_on_after(0.3) as scope:
            sent += await sock.send(view[sent:limit])
        if scope.cancelled_caught:
            break
    return sent


async def read_body(receive: Receive) -> bytes:
    """The whole request body."""
    body = bytearray()
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += message["body"]
        if not message["more_body"]:
            return bytes(body)


async def start(send: Send, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})


async def respond(
    send: Send, body: bytes = b"", status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> None:
    """A complete response with a Content-Length."""
    await start(send, status, [*headers, (b"content-length", b"%d" % len(body))])
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with method, path and body."""
    body = await read_body(receive)
    await respond(send, f"{scope['method']} {scope['path']} ".encode() + body)
