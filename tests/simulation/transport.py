"""In place of httpx's transport, below the router's own client: one connection for each call.

It raises what that one raises, and does as much of what it does as the router asks of it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import trio
from attrs import define, field

from tests.simulation.http import Reader, status_of
from tests.simulation.network import PIECE, Cut, Network


@define(eq=False)
class Transport(httpx.AsyncBaseTransport):
    network: Network
    socket_options: list[tuple[int, int, bytes]]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        patience = request.extensions["timeout"]
        options: dict[int, int] = {}
        sock = await self._connect(request.url, patience["connect"], options)
        call = _Call(sock, patience, options)
        for option in self.socket_options:
            call.setsockopt(*option)
        try:
            with suppress(httpx.WriteError):  # it may have answered already
                await call.write(request)
            found = None
            while found is None or 100 <= found[0] < 200:
                found = await call.read_head()
            status, headers = found
            return httpx.Response(
                status,
                headers=headers,
                stream=_Body(call, headers),
                request=request,
                extensions={"network_stream": call},
            )
        except BaseException:
            call.close()
            raise

    async def _connect(
        self, url: httpx.URL, within: float, options: dict[int, int]
    ) -> socket.socket:
        try:
            with trio.fail_after(within):
                return await self.network.reach(url.host, url.port or 80, options)
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout(str(error)) from error
        except OSError as error:
            raise httpx.ConnectError("All connection attempts failed") from error


@define(eq=False)
class _Call:
    sock: socket.socket
    patience: dict[str, float]
    options: dict[int, int]  # as the other end sees them
    _reader: Reader = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._reader = Reader(self._more)

    async def write(self, request: httpx.Request) -> None:
        lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
        lines += [b"%s: %s" % header for header in request.headers.raw]
        head = b"\r\n".join([*lines, b"", b""])
        assert isinstance(request.stream, httpx.AsyncByteStream)
        if "transfer-encoding" not in request.headers:
            body = [piece async for piece in request.stream]
            await self._send(head + b"".join(body))
            return
        await self._send(head)
        async for piece in request.stream:
            await self._send(b"%x\r\n%s\r\n" % (len(piece), piece))
        await self._send(b"0\r\n\r\n")

    async def read_head(self) -> tuple[int, dict[str, str]]:
        try:
            found = await self._reader.head()
            if found is None:
                raise httpx.RemoteProtocolError("Server disconnected without a response.")
            return status_of(found[0]), found[1]
        except Cut:
            raise httpx.RemoteProtocolError("it is no answer") from None

    async def read_body(self, headers: dict[str, str]) -> bytes:
        try:
            return await self._reader.body(headers, to_end=True)
        except Cut:
            raise httpx.RemoteProtocolError("peer closed connection") from None

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            with trio.fail_after(self.patience["write"]):
                await trio.lowlevel.checkpoint_if_cancelled()
                while view:
                    try:
                        view = view[self.sock.send(view) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self.sock)
        except trio.TooSlowError as error:
            raise httpx.WriteTimeout(str(error)) from error
        except (OSError, trio.ClosedResourceError) as error:
            raise httpx.WriteError(str(error)) from error

    async def _more(self) -> bytes:
        try:
            with trio.fail_after(self.patience["read"]):
                await trio.lowlevel.wait_readable(self.sock)
                return self.sock.recv(PIECE)
        except trio.TooSlowError as error:
            raise httpx.ReadTimeout(str(error)) from error
        except (OSError, trio.ClosedResourceError) as error:
            raise httpx.ReadError(str(error)) from error

    def get_extra_info(self, _: str) -> _Call:
        return self

    def setsockopt(self, _: int, option: int, value: bytes) -> None:
        self.options[option] = value[0]  # of SO_LINGER: whether its end is a reset

    def close(self) -> None:
        if self.sock.fileno() != -1:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


@define(eq=False)
class _Body(httpx.AsyncByteStream):
    """The body of an answer, in one piece once it is whole."""

    _call: _Call
    _headers: dict[str, str] | None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        headers, self._headers = self._headers, None
        piece = b"" if headers is None else await self._call.read_body(headers)
        if not piece:
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        self._call.close()


def made(network: Network) -> Any:
    """What makes one, in place of httpx's class."""
    return lambda socket_options=(), **_: Transport(network, list(socket_options))
