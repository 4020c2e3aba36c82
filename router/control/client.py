"""The HTTP client for control calls. It maps httpx exceptions; no other module does."""

from __future__ import annotations

import socket
import struct
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Self, TypeAlias

import httpx
import trio
from attrs import frozen

from .. import text
from ..errors import describe, is_refusal
from ..net.addresses import Addresses, Origin
from ..net.hops import INSTANCE_HEADER, Instance
from ..net.trust import Trust

_MAX_ANSWER = 8 * 1024 * 1024
_READING = 60.0  # seconds for the body of an answer, once its head has come
_CONNECT = 4.0  # sooner than a probe gives up, which then knows that it reached nothing
_POOLS = 256
# How a connection is closed: with RST, so that the kernel sends nothing of it again; or as usual.
_ABORTS = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
_CLOSES = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
Headers: TypeAlias = Sequence[tuple[str, str]]
_HEADERS: Headers = (
    ("accept", "*/*"),
    ("accept-encoding", "identity"),  # bodies are read undecoded
    # Bytes that a worker sends after its answer must not be read as the answer to the next call.
    ("connection", "close"),
    ("user-agent", "sglang-d-router"),
)


class Unreachable(Exception):
    """No answer came. `refused`: no process listens at the address; `timed_out`: the answer took
    too long; `sent`: the worker may have acted on the call."""

    def __init__(
        self, message: str, *, refused: bool = False, timed_out: bool = False, sent: bool = True
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.timed_out = timed_out
        self.sent = sent


@frozen
class Call:
    """A request to a worker."""

    path: str
    # Seconds from the last byte sent to the answer: the call may queue behind a generation.
    within: float
    body: bytes | AsyncIterable[bytes] = b""
    headers: Headers = ()
    stall: float = 300.0  # seconds that the worker may take for a piece of the body
    method: str = "POST"

    @classmethod
    def of_json(cls, path: str, within: float, body: bytes) -> Call:
        """A call of the router itself."""
        return cls(path, within, body, (("content-type", "application/json"),))


@frozen
class Answer:
    """A worker's answer to a control call."""

    status: int
    body: bytes
    instance: str | None = None  # the id of the answering router, if a router answered

    def json(self) -> Any:
        """The body as JSON; None if the body is not JSON."""
        return text.from_json(self.body)

    @property
    def fields(self) -> dict[str, Any]:
        """The members of the body if it is a JSON object; else an empty dict."""
        content = self.json()
        return content if isinstance(content, dict) else {}


class ControlClient:
    """Sends control calls to workers. Never reads proxy settings from the environment."""

    def __init__(self, addresses: Addresses | None = None, trust: Trust | None = None) -> None:
        self.instance = Instance()
        self.addresses = addresses or Addresses()
        self.trust = trust or Trust()
        self._calls: dict[str, list[str]] = {}  # paths of running calls, by the worker's URL
        # Not httpx's client: it keeps cookies, which ignore ports, and reads the content of
        # redirects.
        self._pools = _Pools(self.addresses, self.trust)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pools.aclose()

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        """GET a path of a worker, within `within` seconds in all. Raises Unreachable."""
        return await self._in_time(url, Call(path, within, method="GET"))

    async def status(self, url: str, path: str, *, within: float) -> int:
        """The status of a GET of a file, fetching at most one byte of the file. Raises
        Unreachable."""
        call = Call(path, within, headers=[("range", "bytes=0-0")], method="GET")
        return (await self._in_time(url, call, whole=False)).status

    def is_calling(self, url: str, path: str | None = None) -> bool:
        """Whether a call (to this path) is under way at the worker: it may delay other answers."""
        paths = self._calls.get(url, ())
        return bool(paths) if path is None else path in paths

    async def call(self, url: str, call: Call) -> Answer:
        """Make one call to a worker. Raises Unreachable, and the errors of reading its body."""
        self._calls.setdefault(url, []).append(call.path)
        try:
            return await self._call(url, call)
        finally:
            self._calls[url].remove(call.path)
            if not self._calls[url]:
                del self._calls[url]

    async def _in_time(self, url: str, call: Call, *, whole: bool = True) -> Answer:
        # httpx's own timeouts apply to each read: an answer that drips would never end.
        with trio.move_on_after(call.within):
            return await self._call(url, call, whole=whole)
        raise Unreachable(f"GET {call.path} had no answer within {call.within:g} s", timed_out=True)

    async def _call(self, url: str, call: Call, *, whole: bool = True) -> Answer:
        """`whole`: read the body of the answer."""
        what, within = f"{call.method} {call.path}", call.within
        # Connecting is quick or hopeless; the answer may wait behind a generation.
        patience = httpx.Timeout(within, connect=min(within, _CONNECT), write=call.stall)
        try:
            request = httpx.Request(
                call.method,
                url + call.path,
                headers=self.trust.present(
                    [
                        (name.encode(), value.encode())
                        for name, value in (*_HEADERS, *call.headers, self.instance.on_call())
                    ]
                ),
                content=call.body,
                extensions={"timeout": patience.as_dict()},
            )
            request.stream = _Body(call.body)
            response = await self._pools.handle_async_request(request)
            try:
                data = await _read(response, what) if whole else b""
            finally:
                await response.aclose()
            instance = response.headers.get(INSTANCE_HEADER.decode())
            return Answer(response.status_code, data, instance)
        except httpx.TimeoutException as error:
            how = f"had no answer within {within:g} s"
            if isinstance(error, httpx.WriteTimeout):
                how = f"failed: the worker took no more of the body for {patience.write:g} s"
            raise Unreachable(
                f"{what} {how}",
                timed_out=True,
                sent=not isinstance(error, httpx.ConnectTimeout),
            ) from error
        # Besides its own errors, httpx raises errors from parsing host names.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(
                f"{what} failed: {text.without_bytes(describe(error))}",
                refused=is_refusal(error),
                sent=not isinstance(error, httpx.ConnectError),
            ) from error


class _Pools(httpx.AsyncBaseTransport):
    """Many small connection pools: the time of one grows with the square of its connections."""

    def __init__(self, addresses: Addresses, trust: Trust) -> None:
        self._addresses = addresses
        verify = trust.tls  # httpx would use its own certificates
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        # A call that is broken off must not come to the worker later: after the next call, the
        # worker would have the wrong weights.
        self._pools = [
            httpx.AsyncHTTPTransport(verify=verify, limits=limits, socket_options=[_ABORTS])
            for _ in range(_POOLS)
        ]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        origin = Origin.of(f"{request.url.scheme}://{request.url.netloc.decode()}")
        patience = request.extensions["timeout"]["connect"]
        try:
            with trio.fail_after(patience):
                address = await self._addresses.address(origin)
        except OSError as error:
            raise httpx.ConnectError(describe(error), request=request) from error
        except trio.TooSlowError as error:
            raise httpx.ConnectTimeout("no address was found", request=request) from error
        # Connect to the worker's one address; Host (already set) and TLS keep the worker's name.
        request.url = request.url.copy_with(host=address)
        request.extensions = {**request.extensions, "sni_hostname": origin.host}
        number = zlib.crc32(request.url.netloc) % _POOLS
        response = await self._pools[number].handle_async_request(request)
        with suppress(OSError):  # where the worker has closed it already
            response.extensions["network_stream"].get_extra_info("socket").setsockopt(*_CLOSES)
        return response

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class _Body(httpx.AsyncByteStream):
    """A streamed body, or a body in one piece. httpx would wrap the body in a generator and abandon
    the generator if the worker breaks off."""

    def __init__(self, body: bytes | AsyncIterable[bytes]) -> None:
        self._body = body

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self if isinstance(self._body, bytes) else aiter(self._body)

    async def __anext__(self) -> bytes:
        piece, self._body = self._body, b""
        if not isinstance(piece, bytes) or not piece:
            raise StopAsyncIteration
        return piece


async def _read(response: httpx.Response, what: str) -> bytes:
    data = bytearray()
    # Cancel instead of breaking out: httpx's generators end properly only at a failed or finished
    # read.
    with trio.CancelScope(deadline=trio.current_time() + _READING) as scope:
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > _MAX_ANSWER:
                scope.cancel()
    if len(data) > _MAX_ANSWER:
        raise Unreachable(f"{what} answered more than {_MAX_ANSWER} bytes")
    if scope.cancelled_caught:
        raise Unreachable(f"{what} was not answered whole within {_READING:g} s", timed_out=True)
    return bytes(data)
