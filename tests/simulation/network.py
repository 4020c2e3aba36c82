"""A network in memory: what the router connects to, and what connects to it.

To the router a connection is the end of a socket pair, real to Python and the kernel; at the other
end are the simulated workers and clients. What lies between is drawn from the seed: each piece is
late by its own delay (a lost packet is one that is sent again), a host may be out of reach, and a
connection may be cut. Connections overtake one another; the bytes of one never do.
"""

from __future__ import annotations

import contextlib
import errno
import random
import select
import socket
from collections.abc import Awaitable, Callable
from typing import Any
from unittest import mock

import trio
from attrs import define, field
from trio._socket import _SocketType

from tests.simulation.universe import LIFE, Life, Universe

PIECE = 64 * 1024
_SYN_PATIENCE = 127.0  # seconds until a connection is given up that nothing answers
_SYN_AGAIN = 3.0  # at most so long after a host is back in reach
_MSS_AGAIN = 0.3  # a lost packet


class Cut(Exception):
    """The connection is gone."""


@define(eq=False)
class Link:
    """The way between the router and one host."""

    dice: random.Random
    delay: float = 0.001  # seconds, at least, one way
    loss: float = 0.0  # the share of pieces that are sent again
    breaks: int = 0  # times that it was down
    _up: trio.Event = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._up = trio.Event()
        self._up.set()

    @property
    def up(self) -> bool:
        return self._up.is_set()

    def down(self) -> None:
        if self.up:
            self.breaks += 1
            self._up = trio.Event()

    def mend(self) -> None:
        self._up.set()

    async def wait_up(self) -> None:
        while not self.up:
            await self._up.wait()

    async def through(self) -> bool:
        """One piece, one way. Whether it was sent again."""
        lost = self.loss and self.dice.random() < self.loss
        await trio.sleep(self.delay * self.dice.uniform(1, 3) + (_MSS_AGAIN if lost else 0))
        if not self.up:
            await self.wait_up()
            await trio.sleep(self.dice.uniform(0, _SYN_AGAIN))  # until it is sent again
            return True
        return bool(lost)


@define(eq=False)
class Wire:
    """One connection, seen from its simulated end."""

    link: Link
    sock: socket.socket
    life: Life | None  # of the router at the other end
    options: dict[int, int]  # of TCP, as the router has set them
    received: int = 0  # bytes
    mute: bool = False  # its process is gone, and nothing could tell the router

    @property
    def open(self) -> bool:
        return self.sock.fileno() != -1

    @property
    def hung_up(self) -> bool:
        """Whether the router has closed its end."""
        if not self.open:
            return True
        poll = select.poll()
        poll.register(self.sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    async def receive(self) -> bytes:
        """What has come; b"" at its end. Raises Cut."""
        if not self.open:
            raise Cut
        try:
            await trio.lowlevel.wait_readable(self.sock)
            data = self.sock.recv(PIECE)
        except (OSError, trio.ClosedResourceError):
            raise Cut from None
        breaks = self.link.breaks
        again = await self.link.through()
        gone = breaks != self.link.breaks or (again and self.options.get(socket.SO_LINGER))
        if not self.open or (data and gone and self.hung_up):
            raise Cut  # nobody sends it again
        self.received += len(data)
        return data

    async def send(self, data: bytes) -> None:
        """Raises Cut."""
        await self.link.through()
        view = memoryview(data)
        try:
            while view:
                try:
                    view = view[self.sock.send(view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self.sock)
        except (OSError, trio.ClosedResourceError):
            raise Cut from None

    def close(self) -> None:
        if self.open:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()


class _Socket(_SocketType):
    """What trio takes for a socket of TCP."""

    def __init__(self, sock: socket.socket, options: dict[int, int]) -> None:
        super().__init__(sock)
        self._options = options

    def setsockopt(self, level: int, option: int, value: Any, optlen: Any = None) -> None:
        if level == socket.IPPROTO_TCP:
            self._options[option] = value


Serve = Callable[[Wire], Awaitable[None]]


@define(eq=False)
class Host:
    """One machine. `serve` is what listens there, None: nobody."""

    address: str
    link: Link
    serve: Serve | None = None
    nursery: trio.Nursery | None = None  # where it serves
    wires: list[Wire] = field(factory=list)

    def listen(self, serve: Serve, nursery: trio.Nursery) -> None:
        self.serve, self.nursery = serve, nursery

    def forget(self) -> list[Wire]:
        """The process is gone; its connections."""
        self.serve = self.nursery = None
        wires, self.wires = self.wires, []
        return wires


@define(eq=False)
class Network:
    """All hosts, and the router's listener."""

    universe: Universe
    nursery: trio.Nursery
    hosts: dict[str, Host] = field(factory=dict)
    front: socket.socket | None = None  # the router listens here
    life: Life | None = None

    def install(self, stack: contextlib.ExitStack) -> None:
        """From now on trio connects within this network."""
        stack.enter_context(mock.patch("trio.open_tcp_stream", self._open))
        # No other address may be looked at: what the real machine has would tell.
        stack.enter_context(mock.patch("router.net.addresses.is_local", return_value=False))

    async def _open(self, host: str, port: int, **_: object) -> trio.SocketStream:
        options: dict[int, int] = {}
        try:
            return trio.SocketStream(_Socket(await self.reach(host, port, options), options))
        except OSError as error:
            raise OSError(f"all attempts to connect to {host}:{port} failed") from error

    def host(self, address: str) -> Host:
        link = Link(self.universe.dice(f"link {address}"))
        host = self.hosts[address] = Host(address, link)
        return host

    async def reach(self, address: str, port: int, options: dict[int, int]) -> socket.socket:
        """The router opens a connection; its end of it, and the options of TCP that it will set.
        Raises OSError."""
        life = LIFE.get()
        host = self.hosts.get(address)
        if host is None:
            await trio.sleep(0.01)
            raise OSError(errno.EHOSTUNREACH, "No route to host")
        with trio.move_on_after(_SYN_PATIENCE):
            await host.link.through()
            await host.link.through()  # and back
            if host.serve is None or host.nursery is None or (life is not None and life.dead):
                raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
            mine, theirs = _pair()
            wire = Wire(host.link, theirs, life, options)
            host.wires.append(wire)
            host.nursery.start_soon(self._serve, host, host.serve, wire)
            if life is not None:
                life.on_crash[wire] = wire.close
            return mine
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    async def _serve(self, host: Host, serve: Serve, wire: Wire) -> None:
        LIFE.set(None)  # the router's task has begun this one
        try:
            with contextlib.suppress(Cut):
                await serve(wire)
        finally:
            if not wire.mute:
                wire.close()
            if wire in host.wires:
                host.wires.remove(wire)
            if wire.life is not None and not wire.mute:
                wire.life.on_crash.pop(wire, None)

    def lose(self, wire: Wire) -> None:
        """The process of a host is gone, and the router must hear of it; or cannot."""
        if wire.link.up:
            wire.close()
        else:
            wire.mute = True
            self.nursery.start_soon(self._reset_later, wire)

    async def _reset_later(self, wire: Wire) -> None:
        """The kernel of the router asks whether the other side still has the connection, and is
        told at the latest then."""
        await wire.link.wait_up()
        while wire.open and not wire.hung_up:
            idle = wire.options.get(socket.TCP_KEEPIDLE, 7200)
            with trio.move_on_after(min(idle, 0.5)) as asked:
                with contextlib.suppress(OSError, trio.ClosedResourceError):
                    await trio.lowlevel.wait_readable(wire.sock)
            if not asked.cancelled_caught or idle <= 1 or wire.link.dice.random() < 0.5 / idle:
                break
        wire.close()

    async def connect(self, link: Link) -> Wire:
        """A client connects to the router. Raises Cut if nobody listens."""
        await link.through()
        if self.front is None or self.front.fileno() == -1:
            raise Cut
        mine = socket.socket(socket.AF_UNIX)
        mine.setblocking(False)
        try:
            mine.connect(self.front.getsockname())
        except OSError:
            mine.close()
            raise Cut from None
        wire = Wire(link, mine, self.life, {})
        if self.life is not None:
            self.life.on_crash[wire] = wire.close
        return wire

    def leave(self, wire: Wire) -> None:
        """A client is done with its connection."""
        wire.close()
        if wire.life is not None:
            wire.life.on_crash.pop(wire, None)

    def open_front(self, life: Life) -> socket.socket:
        """A listener for one life of the router."""
        listener = socket.socket(socket.AF_UNIX)
        listener.bind("")  # a name that the kernel makes up
        listener.listen(512)
        listener.setblocking(False)
        self.front, self.life = listener, life
        return listener


def _pair() -> tuple[socket.socket, socket.socket]:
    mine, theirs = socket.socketpair()
    mine.setblocking(False)
    theirs.setblocking(False)
    return mine, theirs
