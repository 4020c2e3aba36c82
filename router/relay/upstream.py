"""The connections to all workers: opened, kept alive per worker, closed.

A worker closes a connection after 5 s of idling. The router therefore reuses a connection only
within 3 s and only if it has seen no end of file. Each worker has its own pool, so none can starve
another; health probes use connections of their own.
"""

from __future__ import annotations

import math
import socket
import ssl
from types import TracebackType
from typing import NoReturn

import trio
from attrs import define, field

from ..errors import WorkerFailed, WorkerTimeout, describe
from ..net.addresses import Addresses, Origin
from ..net.trust import Trust
from .connection import Connection
from .plain import PlainStream

IDLE_LIMIT = 3.0  # seconds
_REAP_INTERVAL = 1.0


class ConnectFailed(WorkerFailed):
    """No connection could be made; the worker has seen nothing of the request."""

    default_code = "connect_failed"


class ConnectTimeout(WorkerTimeout):
    default_code = "connect_timeout"


class NoneFree(WorkerTimeout):
    """All permitted connections were in use for too long; nothing was sent."""

    default_code = "response_timeout"


@define(eq=False)
class _Pool:
    origin: Origin
    idle: list[Connection] = field(factory=list)
    users: int = 0  # exchanges that use or await a connection
    limit: trio.Semaphore | None = None

    def reuse(self, address: str | None) -> Connection | None:
        """The connection used last that is still good and leads to the worker's current address."""
        while self.idle:
            connection = self.idle.pop()
            young = trio.current_time() - connection.idle_since < IDLE_LIMIT
            there = address is None or connection.address == address
            if young and there and connection.quiet():
                return connection
            connection.close()
        return None

    def make_room(self) -> None:
        """Close idle connections until one more fits: idle ones count towards the limit, too."""
        while self.limit is not None and len(self.idle) > self.limit.value:
            self.idle.pop(0).close()


@define(eq=False)
class Upstream:
    """The connections to all workers.

    `connect_timeout` is in seconds. `max_connections` bounds the connections to one worker (None:
    no bound). Further exchanges wait for one, except reads, which go beside generations.
    """

    connect_timeout: float = 5.0
    max_connections: int | None = None
    addresses: Addresses = field(factory=Addresses)
    trust: Trust = field(factory=Trust)
    _pools: dict[str, _Pool] = field(init=False, factory=dict)

    async def run(self) -> None:
        """Close connections that idle too long, and all idle ones at the end; never returns."""
        try:
            while True:
                await trio.sleep(_REAP_INTERVAL)
                self._reap(trio.current_time() - IDLE_LIMIT)
        finally:
            self._reap(math.inf)

    def _reap(self, limit: float) -> None:
        for url, pool in list(self._pools.items()):
            while pool.idle and pool.idle[0].idle_since < limit:  # oldest first
                pool.idle.pop(0).close()
            if not pool.idle and not pool.users:
                del self._pools[url]

    def connection(
        self, url: str, *, fresh: bool = False, within: float = math.inf, beside: bool = False
    ) -> _Use:
        """A connection to the worker for one exchange; the end of the block closes or keeps it.

        `fresh`: a new connection, not a kept-alive one. `within`: how many seconds to wait for a
        permitted one. `beside`: it does not count towards `max_connections`.

        Raises ConnectFailed, ConnectTimeout or NoneFree on entry.
        """
        pool = self._pools.get(url)
        if pool is None:
            limit = trio.Semaphore(self.max_connections) if self.max_connections else None
            pool = self._pools[url] = _Pool(Origin.of(url), limit=limit)
        return _Use(self, pool, None if beside else pool.limit, fresh, within)

    def idle(self, url: str) -> int:
        """The number of idle connections kept to the worker."""
        pool = self._pools.get(url)
        return len(pool.idle) if pool else 0

    async def open(self, origin: Origin) -> Connection:
        """A new connection. Raises ConnectFailed or ConnectTimeout."""
        where = f"{origin.host}:{origin.port}"
        try:
            with trio.fail_after(self.connect_timeout):
                stream, address = await self.addresses.connect(origin)
                try:
                    _notice_death(stream)
                    connection = await self._secure(stream, origin)
                    connection.address = address
                    return connection
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
            plain = PlainStream(socket.socket(fileno=stream.socket.detach()))
            return Connection(plain, plain.socket, origin.host_header, self.trust)
        # Not `https_compatible`: an answer that ends with the connection is complete only after an
        # orderly end of TLS (RFC 9112 section 9.8).
        tls = trio.SSLStream(stream, self.trust.tls, server_hostname=origin.host)
        await tls.do_handshake()
        return Connection(tls, stream.socket, origin.host_header, self.trust)


@define(eq=False)
class _Use:
    """The block of `Upstream.connection`. A class, because a generator costs the relay 4 % more."""

    upstream: Upstream
    pool: _Pool
    limit: trio.Semaphore | None
    fresh: bool
    within: float
    _connection: Connection | None = field(init=False, default=None)

    async def __aenter__(self) -> Connection:
        pool = self.pool
        pool.users += 1
        try:
            await self._turn()
            try:
                address = self.upstream.addresses.peer(pool.origin.url)
                connection = None if self.fresh else pool.reuse(address)
                if connection is None:
                    pool.make_room()
                    connection = await self.upstream.open(pool.origin)
            except BaseException:
                if self.limit is not None:
                    self.limit.release()
                raise
        except BaseException:
            pool.users -= 1
            raise
        self._connection = connection
        return connection

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pool, connection = self.pool, self._connection
        assert connection is not None
        if kind is None and connection.settle(trio.current_time()):
            pool.idle.append(connection)
        else:
            connection.close()
        if self.limit is not None:
            self.limit.release()
        pool.users -= 1

    async def _turn(self) -> None:
        """Wait until one more connection is permitted."""
        if self.limit is None:
            return
        try:
            self.limit.acquire_nowait()
        except trio.WouldBlock:
            with trio.move_on_after(self.within):
                await self.limit.acquire()
                return
            url = self.pool.origin.url
            raise NoneFree(
                f"All connections to worker {url} (--max-connections) were in use for"
                f" {self.within:g} s",
                details={"worker_url": url, "retry_safe": True},
            ) from None


def _notice_death(stream: trio.SocketStream) -> None:
    """Make the kernel notice a vanished host within two minutes, long before `--timeout`."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)


def _refuse(where: str, error: Exception) -> NoReturn:
    raise ConnectFailed(f"Worker {where} could not be reached: {describe(error)}") from error
