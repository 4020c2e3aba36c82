"""Ports for workers: found free, bound by us until the spawn, and never given to two workers."""

from __future__ import annotations

import errno
import random
import re
import socket
from collections.abc import Collection, Iterator
from ipaddress import ip_address
from pathlib import Path

from attrs import define, field

from ..errors import StartError, describe
from ..settings import LauncherSettings
from .base import WorkerPorts

_ATTEMPTS = 200
_HIGHEST = 65535
# Where free ports are sought, below the kernel's range for connections.
_QUIET = (20000, 30000)
_CONNECTIONS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def ports_of(ports: WorkerPorts, replicas: int = 1) -> frozenset[int]:
    """Every port that a worker takes (worker contract, "Starting one")."""
    scheduler = range(ports.scheduler, ports.scheduler + replicas)
    return frozenset((ports.http, ports.http + 1, ports.master, *scheduler))


@define(eq=False)
class HeldPorts:
    """The ports of one worker. A `Reservation`."""

    ports: WorkerPorts
    _book: PortBook
    _sockets: list[socket.socket]

    def unbind(self) -> None:
        """Close our sockets, just before the worker is spawned."""
        _close(self._sockets)

    def give_back(self) -> None:
        """Release the ports, bound or not: the worker is gone for good, or takes others."""
        self.unbind()
        self._book.forget(self)


@define(eq=False)
class PortBook:
    """All ports of all our workers. A port belongs to at most one of them."""

    _held: dict[HeldPorts, frozenset[int]] = field(init=False, factory=dict)

    def reserve(
        self,
        settings: LauncherSettings,
        index: int,
        *,
        keep: WorkerPorts | None = None,
        avoid: Collection[int] = (),
    ) -> HeldPorts:
        """Find and bind ports for a worker: `keep` if free, else the ports of the settings, else
        the next ones; never one of `avoid`. Raises StartError."""
        fault = host_fault(settings)
        if fault is not None:
            raise StartError(f"Launcher {settings.name}: {fault}")
        wide = settings.replicas
        found = []
        with _Search(frozenset(avoid).union(*self._held.values())) as search:
            for what, candidates, wide, base in (
                ("neighbouring ports", http_candidates, 2, settings.worker_base_port),
                ("master port", master_candidates, 1, settings.master_port_base),
                (
                    "scheduler port",
                    scheduler_candidates,
                    settings.replicas,
                    settings.scheduler_port_base,
                ),
            ):
                port = search.take(candidates(settings, index, keep), wide)
                if port is None:
                    raise StartError(
                        f"Launcher {settings.name}: found no free {what} for worker {index}"
                        f"{f' from {base} on' if base else ''}"
                    )
                found.append(port)
            return self._enter(WorkerPorts(*found), settings.replicas, search.keep())

    def adopt(self, ports: WorkerPorts, replicas: int) -> HeldPorts:
        """Note ports that a living worker holds, without binding them."""
        return self._enter(ports, replicas, [])

    def forget(self, held: HeldPorts) -> None:
        """Release these ports for other workers."""
        self._held.pop(held, None)

    def _enter(self, ports: WorkerPorts, replicas: int, sockets: list[socket.socket]) -> HeldPorts:
        held = HeldPorts(ports, self, sockets)
        self._held[held] = ports_of(ports, replicas)
        return held


def first_choice(settings: LauncherSettings, index: int) -> WorkerPorts:
    """The ports that the settings give a worker if they are free. A base of 0 stays 0."""
    return WorkerPorts(
        http=next(http_candidates(settings, index), 0),
        master=next(master_candidates(settings, index), 0),
        scheduler=next(scheduler_candidates(settings, index), 0),
    )


def http_candidates(
    settings: LauncherSettings, index: int, keep: WorkerPorts | None = None
) -> Iterator[int]:
    """Ports to try for HTTP, best first; 0 means any free port."""
    base = settings.worker_base_port
    if keep is not None:
        yield keep.http
    if base == 0:
        yield from [0] * _ATTEMPTS
        return
    yield base + 2 * index
    # Then ports that are no other worker's first choice in this launcher.
    yield from range(base + 2 * settings.num_workers, _HIGHEST, 2)
    yield from range(base, _HIGHEST)


def master_candidates(
    settings: LauncherSettings, index: int, keep: WorkerPorts | None = None
) -> Iterator[int]:
    """Ports to try for --master-port, best first; 0 means any free port."""
    if keep is not None:
        yield keep.master
    yield from _strided(settings.master_port_base, settings.internal_port_stride, index, 1)


def scheduler_candidates(
    settings: LauncherSettings, index: int, keep: WorkerPorts | None = None
) -> Iterator[int]:
    """Ports to try for --scheduler-port, best first; 0 means any free port."""
    if keep is not None:
        yield keep.scheduler
    base, wide = settings.scheduler_port_base, settings.replicas
    yield from _strided(base, settings.internal_port_stride, index, wide)


def _strided(base: int, stride: int, index: int, wide: int) -> Iterator[int]:
    """Multiples of the stride above the base, the worker's own first; then all ports between.

    The stride keeps ports free that workers take beyond the ones they are given: some versions take
    one for NCCL, up to 1000 above the scheduler's.
    """
    if base == 0:
        yield from [0] * _ATTEMPTS
        return
    stride = max(stride, wide)
    for offset in range(0, stride, wide):
        places = range(base + offset, _HIGHEST - wide + 2, stride)
        yield from places[index:]
        yield from places[:index]


class _Search:
    """Binds the ports that it finds, and closes them again unless told to keep them."""

    def __init__(self, taken: Collection[int]) -> None:
        self._taken = frozenset(taken)
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> _Search:
        return self

    def __exit__(self, *_: object) -> None:
        _close(self._sockets)

    def take(self, candidates: Iterator[int], wide: int) -> int | None:
        """The first candidate that is free together with the ports above it, `wide` in all."""
        for candidate in candidates:
            port = self._bind(candidate, wide)
            if port is not None:
                return port
        return None

    def _bind(self, port: int, wide: int) -> int | None:
        bound: list[socket.socket] = []
        port = port or quiet_port()
        try:
            for above in range(wide):
                if port and port + above in self._taken:
                    break
                bound.append(bind(port + above if port else 0))
                port = port or bound[0].getsockname()[1]
                if port in self._taken:
                    break
            else:
                self._sockets += bound
                return port
        except (OSError, OverflowError):  # taken, not permitted (below 1024), or above the last
            pass
        except BaseException:
            _close(bound)
            raise
        _close(bound)
        return None

    def keep(self) -> list[socket.socket]:
        """Hand over all bound sockets."""
        kept, self._sockets = self._sockets, []
        return kept


def quiet_port() -> int:
    """A random port outside the kernel's range for connections, or 0 if there is none. A port
    inside that range could go to another program's connection between our close and the worker's
    bind."""
    first, end = _QUIET
    try:
        lowest = int(_CONNECTIONS.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        lowest = end  # other systems begin at 49152 or above
    return random.randrange(first, min(end, lowest)) if lowest > first else 0


def bind(port: int) -> socket.socket:
    """Bind a port on every address, so that no other process can have it on any. Raises OSError.

    Workers look for free ports on every address too, and some of their sockets listen on all.
    """
    try:
        return _bind_any(port, exclusive=True)
    except OSError as error:
        if error.errno != errno.EADDRINUSE or port == 0:
            raise
    # Perhaps no process listens there, and only the last worker's connections still fade. Then only
    # a listening socket keeps others out.
    held = _bind_any(port, exclusive=False)
    try:
        held.listen(0)
    except BaseException:
        held.close()
        raise
    return held


def _bind_any(port: int, *, exclusive: bool) -> socket.socket:
    try:
        return _bind_to(socket.AF_INET6, ("::", port), exclusive)
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            raise
    return _bind_to(socket.AF_INET, ("", port), exclusive)  # a machine without IPv6


def _bind_to(
    family: socket.AddressFamily, address: tuple[str, int], exclusive: bool
) -> socket.socket:
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # IPv4 as well
        if not exclusive:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(address)
    except BaseException:
        held.close()
        raise
    return held


def _close(sockets: list[socket.socket]) -> None:
    while sockets:
        sockets.pop().close()


def host_fault(settings: LauncherSettings) -> str | None:
    """Why workers cannot listen on their address; None if they can. Names are not checked."""
    try:
        address = ip_address(settings.worker_host)
    except ValueError:
        return None
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((settings.worker_host, 0))
    except OSError as error:
        why = describe(error)
        return f"worker_host {settings.worker_host} is not an address of this machine ({why})"
    return None


_TAKEN = re.compile(
    r"address already in use|EADDRINUSE|errno (?:98|48)\b|port \d+ is unavailable"
    r"|port \d+ is already in use|cannot take port|failed to find (?:an )?available port",
    re.IGNORECASE,
)
_MOVED = re.compile(
    r"\bport (?P<old>\d+) (?:was unavailable|is taken), using (?:port )?(?P<new>\d+)",
    re.IGNORECASE,
)


def taken_ports(words: str, ports: WorkerPorts, replicas: int = 1) -> frozenset[int]:
    """The ports of a worker that another process had, according to the last words in its log; none
    if the worker ended for another reason. All ports if the log does not say which."""
    mine = ports_of(ports, replicas)
    lines = [line for line in words.splitlines() if _TAKEN.search(line)]
    named = {int(number) for line in lines for number in re.findall(r"(?<!\d)\d{1,5}(?!\d)", line)}
    if not lines:
        return frozenset()
    return (mine & named) or mine


def moved_to(words: str, port: int) -> int | None:
    """The port that a worker moved to because its HTTP port was taken; None if it stayed."""
    for found in _MOVED.finditer(words):
        if int(found["old"]) == port:
            return int(found["new"])
    return None
