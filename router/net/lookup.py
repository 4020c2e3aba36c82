"""Host name look-ups: bounded in number, and one at a time for each name."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable

import trio
from attrs import define, field

from .. import threads

# Threads for names that were never slow, and for names that were. A silent name server holds a
# thread for many seconds; names of other servers must not wait for that thread.
_AT_ONCE, _SLOW_AT_ONCE = 32, 4
_SLOW = 2.0  # seconds
_NO_SUCH_NAME = {
    getattr(socket, name)
    for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY")
    if hasattr(socket, name)
}

Resolver = Callable[[str], list[str]]


class Unresolved(OSError):
    """A host name leads to no usable address. The message is for people."""


class Silent(Unresolved):
    """The name is currently unknown: no name server has answered."""


def ask_system(host: str) -> list[str]:
    """The addresses of a name, in the order of the system's resolver. Blocks; raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@define(eq=False)
class Lookups:
    """Asks the system's resolver, in threads. A look-up goes on after its caller has given up, so
    that the next caller may get the answer."""

    resolver: Resolver = field(factory=lambda: ask_system)
    _fast: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_AT_ONCE))
    _slow: trio.CapacityLimiter = field(
        init=False, factory=lambda: trio.CapacityLimiter(_SLOW_AT_ONCE)
    )
    _slow_names: set[str] = field(init=False, factory=set)
    _under_way: dict[str, _Lookup] = field(init=False, factory=dict)
    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the look-ups; never returns."""
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None

    async def find(self, host: str, *, within: float) -> list[str]:
        """The addresses of a name. Raises Unresolved, or Silent after `within` seconds."""
        lookup = self._under_way.get(host)
        if lookup is None:
            if self._nursery is None:
                raise Silent(f"cannot look up {host}: the router is not running")
            lookup = self._under_way[host] = _Lookup()
            self._nursery.start_soon(self._look_up, host, lookup)
        with trio.move_on_after(within):
            await lookup.over.wait()
        if not lookup.over.is_set():
            raise Silent(f"no name server gave the address of {host} within {within:g} s")
        if lookup.failure is not None:
            raise type(lookup.failure)(str(lookup.failure))
        return lookup.found

    async def _look_up(self, host: str, lookup: _Lookup) -> None:
        def ask() -> list[str]:
            lookup.begun = time.monotonic()
            return self.resolver(host)

        limiter = self._slow if host in self._slow_names else self._fast
        try:
            # The limiter counts the thread until it ends, even after the task was cancelled.
            lookup.found = await threads.run(ask, limiter=limiter, abandon_on_cancel=True)
        except OSError as error:
            lookup.failure = _failure(host, error)
        except UnicodeError as error:  # a name that IDNA refuses
            lookup.failure = Unresolved(f"cannot look up {host}: {error}")
        finally:
            del self._under_way[host]
        if time.monotonic() - lookup.begun > _SLOW:
            self._slow_names.add(host)
        else:
            self._slow_names.discard(host)
        lookup.over.set()


@define(eq=False)
class _Lookup:
    over: trio.Event = field(factory=trio.Event)
    begun: float = 0.0
    found: list[str] = field(factory=list)
    failure: Unresolved | None = None


def _failure(host: str, error: OSError) -> Unresolved:
    if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME:
        return Unresolved(f"the name {host} has no address")
    return Silent(f"cannot look up {host}: {error.strerror or error}")
