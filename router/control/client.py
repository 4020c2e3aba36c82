"""The HTTP client for control calls. httpx exceptions are mapped here, and nowhere else."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence
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
_CONNECT = 5.0
_POOLS = 256
Headers: TypeAlias = Sequence[tuple[str, str]]
_HEADERS: Headers = (
    ("accept", "*/*"),
    ("accept-encoding", "identity"),  # bodies are taken as they come
    # What a worker sends after its answer must not be read as the answer to the next call.
    ("connection", "close"),
    ("user-agent", "sglang-d-router"),
)


class Unreachable(Exception):
    """No answer came. `refused`: nobody listens there; `timed_out`: it took too long; `sent`: the
    worker may have acted on the call."""

    def __init__(
        self, message: str, *, refused: bool = False, timed_out: bool = False, sent: bool = True
    ) -> None:
        super().__init__(message)
        self.refused = refused
        self.timed_out = timed_out
        self.sent = sent


@frozen
class Call:
    """What workers are sent."""

    path: str
    # Seconds from the last byte sent to the answer: it may queue behind a generation.
    within: float
    body: bytes | AsyncIterable[bytes] = b""
    headers: Headers = ()
    stall: float = 300.0  # seconds that the worker may take for a piece of the body
    method: str = "POST"

    @classmethod
    def of_json(cls, path: str, within: float, body: bytes) -> Call:
        """A call of the router's own."""
        return cls(path, within, body, (("content-type", "application/json"),))


@frozen
class Answer:
    """What a worker answered to a control call."""

    status: int
    body: bytes
    instance: str | None = None  # of the router that answered, if it was one

    def json(self) -> Any:
        """The body as JSON, None if it is none."""
        return text.from_json(self.body)

    @property
    def fields(self) -> dict[str, Any]:
        """The members of the body, if it is a JSON object; else none."""
        content = self.json()
        return content if isinstance(content, dict) else {}


class ControlClient:
    """Sends control calls to workers. Never reads proxy settings from the environment."""

    def __init__(self, addresses: Addresses | None = None, trust: Trust | None = None) -> None:
        self.instance = Instance()
        self.addresses = addresses or Addresses()
        self.trust = trust or Trust()
        self._calls: dict[str, list[str]] = {}  # paths of those under way, by the worker's URL
        # Not httpx's client: it keeps cookies, which know no ports, and reads what redirects say.
        self._pools = _Pools(self.addresses, self.trust)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pools.aclose()

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        """GET a path of a worker within so many seconds in all. Raises Unreachable."""
        return await self._in_time(url, Call(path, within, method="GET"))

    async def status(self, url: str, path: str, *, within: float) -> int:
        """The status of a GET of a file, without fetching more of it than a byte. Raises
        Unreachable."""
        call = Call(path, within, headers=[("range", "bytes=0-0")], method="GET")
        return (await self._in_time(url, call, whole=False)).status

    def is_calling(self, url: str, path: str | None = None) -> bool:
        """Whether a call (to this path) is under way at the worker, which may keep it from
        answering others."""
        paths = self._calls.get(url, ())
        return bool(paths) if path is None else path in paths

    async def call(self, url: str, call: Call) -> Answer:
        """One call to a worker. Raises Unreachable, and what reading the body raises."""
        self._calls.setdefault(url, []).append(call.path)
        try:
            return await self._call(url, call)
        finally:
            self._calls[url].remove(call.path)
            if not self._calls[url]:
                del self._calls[url]

    async def _in_time(self, url: str, call: Call, *, whole: bool = True) -> Answer:
        # httpx's own timeouts are for each read: an answer that drips would never end.
        with trio.move_on_after(call.within):
            return await self._call(url, call, whole=whole)
        raise Unreachable(f"GET {call.path} had no answer within {call.within:g} s", timed_out=True)

    async def _call(self, url: str, call: Call, *, whole: bool = True) -> Answer:
        """`whole`: with the body of the answer."""
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
        # Beside its own errors httpx lets out those of reading host names.
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(
                f"{what} failed: {text.of_bytes(describe(error))}",
                refused=is_refusal(error),
                sent=not isinstance(error, httpx.ConnectError),
            ) from error


class _Pools(httpx.AsyncBaseTransport):
    """Many small pools of connections: one takes time with the square of what is in it."""

    def __init__(self, addresses: Addresses, trust: Trust) -> None:
        self._addresses = addresses
        verify = trust.tls  # httpx would bring certificates of its own
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._pools = [
            httpx.AsyncHTTPTransport(verify=verify, limits=limits) for _ in range(_POOLS)
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
        # To the worker's one address, with its name for Host (which is set already) and TLS.
        request.url = request.url.copy_with(host=address)
        request.extensions = {**request.extensions, "sni_hostname": origin.host}
        number = zlib.crc32(request.url.netloc) % _POOLS
        return await self._pools[number].handle_async_request(request)

    async def aclose(self) -> None:
        for pool in self._pools:
            await pool.aclose()


class _Body(httpx.AsyncByteStream):
    """A body as it comes, or in one piece. httpx would wrap it into a generator, and leave that
    behind where the worker breaks off."""

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
    # Cancelled, not left: httpx's generators end properly only at a failed or finished read.
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
