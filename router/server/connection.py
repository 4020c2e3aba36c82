"""One client connection: its socket, the task that reads from it, its one deadline.

Replaces hypercorn's `TCPServer`, which spends a task per idle wait and shields sends without
deadline.
"""

from __future__ import annotations

import contextlib
import math
import select
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr

from ..errors import BadRequest, RouterError, describe
from ..front.asgi import App
from ..front.client import Reason
from ..front.origins import Origins
from ..front.record import ExchangeRecord
from .http1 import STOPPING, Http1Protocol
from .link import ServerLimits, contained, log
from .tls import TlsSocket

RECEIVE = 64 * 1024
GLANCE = 1.0  # seconds between checks whether a client has left while we do not read from it
BURST = 3  # full receives in a row without the event loop: makes uploads 40 % faster
LINGER_PAUSE = 5.0  # quiet seconds after our FIN that show that the client has read all
LINGER_PAUSE_STOPPING = 1.0
GATHERS = hasattr(socket.socket, "sendmsg")  # not on Windows


class TooManyConnections(RouterError):
    """`--max-client-connections` are open."""

    default_status = 503
    default_code = "too_many_connections"

    def __init__(self) -> None:
        super().__init__(
            "The router has as many connections as --max-client-connections allows",
            details={"retry_safe": True},
            headers=[("Retry-After", "1")],
        )


class Shared(Protocol):
    """What all connections of a server share."""

    app: App
    limits: ServerLimits
    origins: Origins
    config: Config
    context: WorkerContext
    nursery: trio.Nursery
    stopping: bool
    connections: set[Connection]
    on_end: Callable[[ExchangeRecord], None]


class Connection:
    """One client connection: its socket, the task that reads from it, its one deadline."""

    def __init__(self, server: Shared, sock: socket.socket) -> None:
        self.app = server.app
        self.limits = server.limits
        self.origins = server.origins
        self.peer = parse_socket_addr(sock.family, sock.getpeername())
        self.local = parse_socket_addr(sock.family, sock.getsockname())
        self.usable = True
        self.secure = isinstance(sock, TlsSocket)
        self._server = server
        self._sock = sock
        self._sending = trio.Lock()
        self._scope = trio.CancelScope()
        self._linger_end = math.inf
        self._closing = False  # our side is shut; further input is discarded
        self._resume: trio.Event | None = None
        self._app_done = trio.Event()
        self._protocol = Http1Protocol(self, server.config, server.context)

    @property
    def stopping(self) -> bool:
        return self._server.stopping

    async def run(self, surplus: bool = False) -> None:
        """Serve the client, or only tell it that there are too many. Any error ends this
        connection and nothing else."""
        self._surplus = surplus
        self.expire_after(self.limits.keep_alive)
        served = False
        try:
            with contained(self._protocol):
                await self._serve()
                served = True
            if not served:
                self.abort("reset")
            if self._protocol.busy:
                await self._app_done.wait()
        finally:
            if self._protocol.busy:
                self.abort("shutdown")
            else:
                self._shut()
            self._server.connections.discard(self)

    async def _serve(self) -> None:
        reason: Reason = "shutdown"
        while True:
            with self._scope:
                reason = await self._read()
            if not self._scope.cancelled_caught or self._closing or not self._protocol.busy:
                break
            # A request arrived just as the idle time expired.
            self._scope = trio.CancelScope()
        if self._scope.cancelled_caught and not self._closing:
            await self._protocol.expired()
        self._protocol.lose(reason)

    async def _read(self) -> Reason:
        protocol = self._protocol
        if isinstance(self._sock, TlsSocket):
            await self._shake_hands(self._sock)
        if self._surplus and not self._closing:
            await protocol.refuse(TooManyConnections())
        discarded = burst = 0
        while self._sock.fileno() != -1:
            if protocol.full and not self._closing:
                if hung_up := self._hung_up():
                    return hung_up
                self._resume = trio.Event()
                with trio.move_on_after(GLANCE):
                    await self._resume.wait()
                continue
            try:
                if burst == 0:
                    await trio.lowlevel.wait_readable(self._sock)
                data = self._sock.recv(RECEIVE)
            except (BlockingIOError, InterruptedError):
                burst = 0
                continue
            except (OSError, trio.ClosedResourceError):
                return "reset"
            if not data:
                return "eof"
            burst = burst + 1 if len(data) >= RECEIVE and burst < BURST else 0
            if not self._closing:
                await protocol.feed(data)
            else:
                discarded += len(data)
                if discarded > self.limits.linger_bytes:
                    return "eof"
                self._linger()
        return "reset"

    async def _shake_hands(self, sock: TlsSocket) -> None:
        """Begin TLS, or refuse the client. The rest of what a refused client sends is discarded: a
        reset could overtake the alert that says why."""
        self.expire_after(self.limits.handshake)
        try:
            await sock.shake_hands()
            self.expire_after(self.limits.keep_alive)
        except OSError as error:
            sock.plain = True
            if isinstance(error, ssl.SSLError) and error.reason == "HTTP_REQUEST":
                await self._protocol.refuse(
                    BadRequest("The router expects TLS here: use https", code="tls_required")
                )
            else:
                peer = self.peer[0] if self.peer else "a client"
                log.info("the TLS handshake with %s failed: %s", peer, describe(error))
                self.close()

    def _hung_up(self) -> Reason | None:
        """Whether the client has left although input is still unread. A reset is always seen; a
        close only once all bytes that the client sent have reached our kernel."""
        if not hasattr(select, "poll"):  # Windows
            return None
        poll = select.poll()
        poll.register(self._sock, getattr(select, "POLLRDHUP", 0))
        found = poll.poll(0)
        if not found:
            return None
        return "reset" if found[0][1] & select.POLLERR else "eof"

    async def write(self, parts: Sequence[bytes | memoryview]) -> None:
        """Send. A client that takes no byte for `limits.send` is given up.

        Shielded: half a response cannot be taken back. Yields only if the kernel's buffer is full.
        """
        rest = parts if self._sending.locked() else self._send_now(parts)
        if rest:
            with trio.CancelScope(shield=True):
                async with self._sending:
                    await self._send_rest(rest)

    async def _send_rest(self, rest: Sequence[bytes | memoryview]) -> None:
        with trio.CancelScope() as scope:
            while rest and self.usable:
                scope.deadline = trio.current_time() + self.limits.send
                try:
                    await trio.lowlevel.wait_writable(self._sock)
                except (OSError, trio.ClosedResourceError):
                    return
                rest = self._send_now(rest)
        if scope.cancelled_caught:
            self.abort("send_timeout")

    def _send_now(self, parts: Sequence[bytes | memoryview]) -> Sequence[bytes | memoryview]:
        """Send what the kernel takes at once. Returns the rest; nothing if the client is gone."""
        if not self.usable:
            return ()
        try:
            if len(parts) > 1 and not GATHERS:
                parts = [b"".join(parts)]
            sent = self._sock.send(parts[0]) if len(parts) == 1 else self._sock.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            return parts
        except OSError:
            self.usable = False
            self._protocol.lose("reset")
            return ()
        for position, part in enumerate(parts):
            if sent < len(part):
                return [memoryview(part)[sent:], *parts[position + 1 :]]
            sent -= len(part)
        return ()

    def ended(self, record: ExchangeRecord) -> None:
        """An exchange of this connection is over."""
        record.ended = trio.current_time()
        self._server.on_end(record)

    def spawn(self, task: Callable[..., Awaitable[Any]], *args: Any) -> None:
        self._server.nursery.start_soon(task, *args)

    def expire_after(self, seconds: float | None) -> None:
        """Set the one deadline. None: no deadline, because the app is working on a request."""
        if not self._closing:
            self._scope.deadline = math.inf if seconds is None else trio.current_time() + seconds

    def resume(self) -> None:
        """There is room again: the reading task may continue."""
        if self._resume is not None:
            self._resume.set()
            self._resume = None

    def close(self, *, linger: bool = True) -> None:
        """Send FIN, then discard input for a while: otherwise a reset could overtake the answer."""
        if not self._protocol.busy:
            self._app_done.set()
        if not self._closing:
            self._closing = True
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)
            self._linger_end = trio.current_time() + (self.limits.linger_time if linger else 0.0)
            self._linger()
            self.resume()

    def _linger(self) -> None:
        pause = LINGER_PAUSE_STOPPING if self.stopping else LINGER_PAUSE
        self._scope.deadline = min(self._linger_end, trio.current_time() + pause)

    def stop(self) -> None:
        """The server is stopping: close at once if no request is being received or answered."""
        if self._closing:
            return
        if self._protocol.idle:
            with contextlib.suppress(OSError):
                if self._sock.recv(1, socket.MSG_PEEK):
                    return  # a request has just arrived
            self._scope.cancel()
        elif self._protocol.head_begun:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + STOPPING)

    def abort(self, reason: Reason | None = None) -> None:
        """Reset the connection and wake the tasks that wait for it."""
        self.usable = False
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._shut()
        if reason is not None:
            self._protocol.lose(reason)

    def _shut(self) -> None:
        self.usable = False
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
