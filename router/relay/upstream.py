"""Connections to workers: trio streams with h11 on top, kept alive per worker.

A worker closes a connection that is idle for 5 s, so one is used again only within 3 s and only
if no end of file has been seen on it. Each worker has its own pool: none can starve another, and
health probes use connections of their own.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import NoReturn
from urllib.parse import urlsplit

import h11
import trio
from attrs import define, field, frozen

from ..errors import WorkerFailed, WorkerTimeout, describe

IDLE_LIMIT = 3.0  # seconds
_MAX_HEAD = 64 * 1024
_READ_SIZE = 64 * 1024
_BIG_READ = 1024 * 1024
_REAP_INTERVAL = 1.0


class ConnectFailed(WorkerFailed):
    """No connection could be made; the worker has seen nothing of the request."""

    default_code = "connect_failed"


class ConnectTimeout(WorkerTimeout):
    default_code = "connect_timeout"


class Broken(Exception):
    """The connection ended or misbehaved. The message says how, for logs and people."""

    code = "worker_disconnected"


class Invalid(Broken):
    """What came is not the answer that HTTP allows."""

    code = "worker_invalid_answer"


@frozen
class Origin:
    """Where a worker listens."""

    url: str
    scheme: str
    host: str
    port: int
    host_header: bytes

    @classmethod
    def of(cls, url: str) -> Origin:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(url, parts.scheme, parts.hostname or "", port, parts.netloc.encode())


@frozen
class Head:
    """The head of a worker's answer, header names as it spelled them."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    http_version: bytes


@define(eq=False)
class Connection:
    """One connection to one worker, for one exchange at a time."""

    stream: trio.abc.Stream
    socket: trio.socket.SocketType
    host_header: bytes
    reused: bool = False
    idle_since: float = 0.0
    _h11: h11.Connection = field(init=False, repr=False, factory=lambda: _new_h11())
    # Bytes of the answer's body still to come where Content-Length frames it, else None.
    _left: int | None = field(init=False, default=None)
    # Bytes of the body that came along with the head.
    _early: bytes = field(init=False, default=b"", repr=False)
    _keep: bool = field(init=False, default=False)
    _sending: bool = field(init=False, default=False)

    def request(self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The bytes of the request's head. Raises h11.LocalProtocolError if it is not valid."""
        data = self._h11.send(h11.Request(method=method, target=target, headers=list(headers)))
        assert data is not None
        return data

    def body(self, piece: bytes) -> bytes:
        """The bytes of a piece of the request's body, framed as the head has announced."""
        data = self._h11.send(h11.Data(data=piece))
        assert data is not None
        return data

    def end(self) -> bytes:
        """The bytes that end the request."""
        return self._h11.send(h11.EndOfMessage()) or b""

    async def send(self, data: bytes | memoryview) -> None:
        """Write; raises Broken if the worker does not take it."""
        self._sending = True  # stays so if we are cancelled half-way
        try:
            await self.stream.send_all(data)
            self._sending = False
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken(
                f"the connection broke while the request was sent ({describe(error)})"
            ) from error

    async def head(self, *, bodiless: bool) -> Head:
        """The head of the answer; informational ones are skipped. Raises Broken.

        `bodiless`: the answer to a HEAD, which has no body whatever it announces.
        """
        while not isinstance(event := await self._next(), h11.Response):
            # h11 lets nothing but 1xx come before a response.
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                raise Invalid("it switched protocols though nobody asked it to")
        if not event.http_version.startswith(b"1."):
            raise Invalid(f"it answered in HTTP/{event.http_version.decode()}")
        head = Head(event.status_code, event.headers.raw_items(), event.http_version)
        self._keep = _keeps_alive(event)
        length = _content_length(event)
        if bodiless or event.status_code in (204, 304):
            length = 0
        if length is not None:
            self._left = length
            early, closed = self._h11.trailing_data
            # Bytes beyond the body belong to nothing we asked for.
            self._keep = self._keep and len(early) <= length and not closed
            self._early = early if length else b""
        return head

    @property
    def at_end(self) -> bool:
        """Whether the whole body of the answer has been taken."""
        return self._left == 0

    @property
    def ahead(self) -> bool:
        """Whether `piece` has something to give, or the end, without waiting for it."""
        return self.at_end or bool(self._early)

    async def piece(self) -> bytes:
        """The next piece of the answer's body, as it comes; b"" only at its end.

        Raises Broken if it is cut off.
        """
        if self._left is None:
            return await self._framed_piece()
        # Framed by Content-Length: straight from the socket, past the parser, which would copy
        # every piece twice.
        if self._early:
            piece, self._early = bytes(self._early[: self._left]), b""
        elif self._left:
            piece = await self._receive(min(self._left, _BIG_READ))
            if not piece:
                raise Broken(f"it closed the connection {self._left} bytes before the answer's end")
        else:
            return b""
        self._left -= len(piece)
        return piece

    async def _framed_piece(self) -> bytes:
        """A piece of a body that is chunked, or ends with the connection: all that is here."""
        pieces: list[bytes] = []
        event = await self._next()
        while isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
            event = self._parse()
            if event is h11.NEED_DATA:
                break
        if isinstance(event, h11.EndOfMessage):
            self._left = 0
            whole = self._h11.their_state is h11.DONE and not any(self._h11.trailing_data)
            self._keep = self._keep and whole
        elif not pieces:
            raise Broken("it closed the connection within the answer")
        return b"".join(pieces)

    def settle(self, now: float) -> bool:
        """After an exchange: make it ready for the next one. False if it cannot be used again."""
        # Whether it may stay open is ours to say: h11 never keeps one to an HTTP/1.0 worker.
        sent = self._h11.our_state in (h11.DONE, h11.MUST_CLOSE) and not self._sending
        if not (self._keep and self.at_end and sent):
            return False
        self._h11 = _new_h11()
        self._left, self._early, self._keep = None, b"", False
        self.idle_since = now
        self.reused = True
        return True

    def quiet(self) -> bool:
        """Whether nothing has arrived while it was idle: neither an end of file nor stray bytes."""
        decrypted = self.stream.pending() if isinstance(self.stream, trio.SSLStream) else 0
        return not decrypted and not _readable(self.socket.fileno())

    def close(self) -> None:
        """Close at once, whatever is under way."""
        self.socket.close()

    async def _next(self) -> object:
        while True:
            event = self._parse()
            if event is not h11.NEED_DATA:
                return event
            data = await self._receive(_READ_SIZE)
            if not data and self._h11.their_state is not h11.SEND_BODY:
                begun = bool(self._h11.trailing_data[0])
                where = "within the head of its answer" if begun else "without an answer"
                raise Broken(f"it closed the connection {where}")
            self._h11.receive_data(data)

    def _parse(self) -> object:
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            if self._h11.trailing_data[1]:
                raise Broken("it closed the connection within its answer") from error
            raise Invalid(f"its answer is not valid HTTP: {error}") from error

    async def _receive(self, size: int) -> bytes:
        try:
            return bytes(await self.stream.receive_some(size))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken(f"the connection broke within the answer ({describe(error)})") from error


_UNLIMITED: AbstractAsyncContextManager[object] = nullcontext()


@define(eq=False)
class _Pool:
    origin: Origin
    idle: list[Connection] = field(factory=list)
    users: int = 0  # exchanges under way or waiting for a connection
    limit: trio.Semaphore | None = None

    def reuse(self) -> Connection | None:
        """The connection that was used last, if it is good."""
        while self.idle:
            connection = self.idle.pop()
            young = trio.current_time() - connection.idle_since < IDLE_LIMIT
            if young and connection.quiet():
                return connection
            connection.close()
        return None

    def make_room(self) -> None:
        """Before one more is opened: idle ones count among those that a worker may have."""
        while self.limit is not None and len(self.idle) > self.limit.value:
            self.idle.pop(0).close()


@define(eq=False)
class Upstream:
    """The connections to all workers.

    `connect_timeout` in seconds; `max_connections` bounds those to one worker (None: no bound),
    further exchanges then wait for one.
    """

    connect_timeout: float = 5.0
    max_connections: int | None = None
    _pools: dict[str, _Pool] = field(init=False, factory=dict)
    _tls: ssl.SSLContext | None = field(init=False, default=None)

    async def run(self) -> None:
        """Close connections that have been idle for too long, and all idle ones at the end;
        never returns."""
        try:
            while True:
                await trio.sleep(_REAP_INTERVAL)
                self._reap(trio.current_time() - IDLE_LIMIT)
        finally:
            self._reap(math.inf)

    def _reap(self, limit: float) -> None:
        for url, pool in list(self._pools.items()):
            while pool.idle and pool.idle[0].idle_since < limit:  # the oldest come first
                pool.idle.pop(0).close()
            if not pool.idle and not pool.users:
                del self._pools[url]

    @asynccontextmanager
    async def connection(self, url: str, *, fresh: bool = False) -> AsyncIterator[Connection]:
        """A connection to the worker for one exchange, closed or kept at the end of the block.

        `fresh`: a new one, not one that was kept alive.

        Raises ConnectFailed or ConnectTimeout on entry.
        """
        pool = self._pools.get(url)
        if pool is None:
            limit = trio.Semaphore(self.max_connections) if self.max_connections else None
            pool = self._pools[url] = _Pool(Origin.of(url), limit=limit)
        pool.users += 1
        try:
            async with pool.limit or _UNLIMITED:
                connection = None if fresh else pool.reuse()
                if connection is None:
                    pool.make_room()
                    connection = await self._open(pool.origin)
                try:
                    yield connection
                except BaseException:
                    connection.close()
                    raise
                if connection.settle(trio.current_time()):
                    pool.idle.append(connection)
                else:
                    connection.close()
        finally:
            pool.users -= 1

    def idle(self, url: str) -> int:
        """How many idle connections to the worker are kept."""
        pool = self._pools.get(url)
        return len(pool.idle) if pool else 0

    async def _open(self, origin: Origin) -> Connection:
        where = f"{origin.host}:{origin.port}"
        try:
            with trio.fail_after(self.connect_timeout):
                stream = await trio.open_tcp_stream(origin.host, origin.port)
                try:
                    _notice_death(stream)
                    return await self._secure(stream, origin)
                except BaseException:
                    stream.socket.close()
                    raise
        except trio.TooSlowError:
            raise ConnectTimeout(
                f"Worker {where} did not accept a connection within {self.connect_timeout:g} s"
            ) from None
        except (OSError, trio.BrokenResourceError, ssl.SSLError, ssl.CertificateError) as error:
            _refuse(where, error)

    async def _secure(self, stream: trio.SocketStream, origin: Origin) -> Connection:
        if origin.scheme != "https":
            return Connection(stream, stream.socket, origin.host_header)
        if self._tls is None:
            self._tls = ssl.create_default_context()
        # Not `https_compatible`: an answer that ends with the connection is whole only if TLS was
        # closed in order (RFC 9112 section 9.8).
        tls = trio.SSLStream(stream, self._tls, server_hostname=origin.host)
        await tls.do_handshake()
        return Connection(tls, stream.socket, origin.host_header)


def _notice_death(stream: trio.SocketStream) -> None:
    """Have a host that vanished noticed within two minutes, not at the end of `--timeout`."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _refuse(where: str, error: Exception) -> NoReturn:
    raise ConnectFailed(f"Worker {where} could not be reached: {describe(error)}") from error


def _new_h11() -> h11.Connection:
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)


def _readable(fileno: int) -> bool:
    """Whether a read would not block (data, end of file or an error)."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])  # Windows


def _keeps_alive(response: h11.Response) -> bool:
    tokens = {
        token.strip().lower()
        for name, content in response.headers
        if name == b"connection"
        for token in content.split(b",")
    }
    return b"close" not in tokens and (response.http_version >= b"1.1" or b"keep-alive" in tokens)


def _content_length(response: h11.Response) -> int | None:
    """The body's length if Content-Length frames it (transfer coding wins, RFC 9112 section 6)."""
    length = None
    for name, content in response.headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(content)
    return length
