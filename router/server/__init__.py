"""The router's server: HTTP/1.1 and WebSockets for an ASGI app, on hypercorn's protocol code.

Connections are our own: one task that reads, bounded in what it holds, and one deadline for all
waiting. (hypercorn's `TCPServer` spends a task per idle wait and shields sends without a deadline.)
The app gets no lifespan messages.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from ..errors import StartError
from ..front.asgi import App
from ..front.origins import Origins
from ..front.record import ExchangeRecord
from .connection import Connection
from .link import ServerLimits, log
from .tls import Tls

__all__ = ["ServerLimits", "Tls", "inherited_listeners", "open_listeners", "serve"]

_FIRST = 3  # the first descriptor that sd_listen_fds(3) passes on
# Connections beyond the most, which are told so; still others are reset.
_SURPLUS = 64
UNSENT = 128 * 1024  # unsent bytes that the kernel may hold: progress stays visible


def open_listeners(host: str, port: int, backlog: int = 2048) -> list[socket.socket]:
    """Listen on `host` (a name may have several addresses) and `port` (0: any free port).

    `::` also takes IPv4 connections. Raises StartError with a sentence for the user.
    """
    host = host.removeprefix("[").removesuffix("]")
    if not 0 <= port <= 65535:
        raise StartError(f"Port {port} is not between 0 and 65535.")
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICSERV
        )
    except (socket.gaierror, UnicodeError) as error:
        raise StartError(f"Cannot listen on {host!r}: the name has no known address.") from error
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for attempt in range(10):
        try:
            return _listen_all(addresses, port, backlog)
        except OSError as error:
            # With port 0 the first address chose the port; at the second address it may be taken.
            if port or len(addresses) == 1 or error.errno != errno.EADDRINUSE or attempt == 9:
                raise StartError(_why_not(host, port, error)) from error
    raise AssertionError


def inherited_listeners() -> list[socket.socket]:
    """The listening sockets that this process was started with, as systemd's socket units start one
    (sd_listen_fds(3)); usually none. New connections wait in them while one router follows another.

    Raises StartError.
    """
    told = {name: os.environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES")}
    if told["PID"] != str(os.getpid()) or not told["FDS"].isdecimal():
        return []  # meant for no process, or for another
    listeners: list[socket.socket] = []
    for descriptor in range(_FIRST, _FIRST + int(told["FDS"])):
        try:
            listener = socket.socket(fileno=descriptor)
            fit = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            fit = 0
        if not fit or listener.family not in (socket.AF_INET, socket.AF_INET6):
            raise StartError(f"Descriptor {descriptor} of LISTEN_FDS is no listening TCP socket.")
        listener.set_inheritable(False)
        listener.setblocking(False)
        listeners.append(listener)
    return listeners


def _listen_all(
    addresses: Sequence[tuple[int, tuple[Any, ...]]], port: int, backlog: int
) -> list[socket.socket]:
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        missing: OSError | None = None
        for family, address in addresses:
            try:
                listener = _listen(family, (address[0], port, *address[2:]), backlog)
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error  # `localhost` on a machine without IPv6
            else:
                listeners.append(opened.enter_context(listener))
                port = port or listener.getsockname()[1]
        if missing is not None and not listeners:
            raise missing
        opened.pop_all()
        return listeners


def _listen(family: int, address: tuple[Any, ...], backlog: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere this option would let two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _why_not(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is already in use by another process."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"No permission to listen on port {port} of {host}; ports below 1024 are privileged."
    if error.errno == errno.EADDRNOTAVAIL:
        return f"Cannot listen on {host}: it is not an address of this machine."
    return f"Cannot listen on {host} port {port}: {error.strerror}."


def _tune(listener: socket.socket, limits: ServerLimits) -> None:
    """Set the options that accepted sockets inherit, as far as the platform has them."""
    tcp = socket.IPPROTO_TCP
    options = [
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (tcp, "TCP_KEEPIDLE", 60),
        (tcp, "TCP_KEEPINTVL", 15),
        (tcp, "TCP_KEEPCNT", 4),
        (tcp, "TCP_NODELAY", 1),
        (tcp, "TCP_NOTSENT_LOWAT", UNSENT),
        (tcp, "TCP_USER_TIMEOUT", int((limits.send + 5) * 1000)),  # our own deadline comes first
    ]
    for level, name, value in options:
        option = getattr(socket, name, None)
        if option is not None:
            with contextlib.suppress(OSError):  # not a TCP socket
                listener.setsockopt(level, option, value)


async def serve(
    app: App,
    listeners: list[socket.socket],
    *,
    limits: ServerLimits,
    stop: trio.Event,
    tls: Tls | None = None,
    origins: Origins | None = None,
    on_end: Callable[[ExchangeRecord], None] = lambda _: None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` until `stop` is set and open exchanges have ended; closes the listeners.

    With `tls` connections are encrypted. After `stop` idle connections are closed at once.
    Exchanges may finish within `limits.shutdown`; then they are cancelled and their connections
    reset. An error in one connection, or in the app for one exchange, is logged and ends nothing
    else. `on_end` gets the record of each exchange at its end.
    """
    try:
        async with trio.open_nursery() as watch:
            async with trio.open_nursery() as nursery:
                server = _Server(app, limits, nursery, on_end, tls, origins)
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        _tune(listener, limits)
                        accepting.start_soon(server.accept, listener)
                    task_status.started()
                    await stop.wait()
                    accepting.cancel_scope.cancel()
                for listener in listeners:
                    listener.close()
                server.stop()
                watch.start_soon(server.give_up)
            watch.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.close()


class _Server:
    """What the connections share."""

    def __init__(
        self,
        app: App,
        limits: ServerLimits,
        nursery: trio.Nursery,
        on_end: Callable[[ExchangeRecord], None],
        tls: Tls | None = None,
        origins: Origins | None = None,
    ) -> None:
        self.origins = origins or Origins()
        self.app = app
        self.on_end = on_end
        self.limits = limits
        self.tls = tls
        self.config = Config()
        self.config.accesslog = None
        self.config.websocket_max_message_size = limits.websocket_message
        self.context = WorkerContext(None)
        self.connections: set[Connection] = set()
        self.stopping = False
        self.nursery = nursery

    def stop(self) -> None:
        self.stopping = True
        for connection in list(self.connections):
            connection.stop()

    async def give_up(self) -> None:
        """Reset what has not ended within `limits.shutdown`. Connections go first, so that no
        cancelled app can still answer."""
        await trio.sleep(self.limits.shutdown)
        if self.connections:
            log.warning(
                "reset %d connections that did not end within --shutdown-timeout",
                len(self.connections),
            )
        for connection in list(self.connections):
            connection.abort("shutdown")
        self.nursery.cancel_scope.cancel()

    async def accept(self, listener: socket.socket) -> None:
        told = -math.inf
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                accepted, _ = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    if trio.current_time() >= told + 1:
                        told = trio.current_time()
                        log.error("cannot accept connections: %s", error.strerror)
                    await trio.sleep(0.1)
                elif error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise
                continue  # any other error concerns only that connection, which is gone
            accepted.setblocking(False)
            try:
                if self.tls is not None:
                    accepted = self.tls.wrap(accepted)
                connection = Connection(self, accepted)
            except OSError:  # the client reset it before we accepted it
                accepted.close()
                continue
            most = math.inf if self.limits.connections is None else self.limits.connections
            if len(self.connections) >= most + _SURPLUS:
                connection.abort()
                continue
            surplus = len(self.connections) >= most
            self.connections.add(connection)
            self.nursery.start_soon(connection.run, surplus)
