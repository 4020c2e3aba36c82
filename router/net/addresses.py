"""Where each worker is: one address of one process, used by all connections to the worker.

A name is looked up when its worker is first met, and again only once that address is lost. So
weights, jobs and generations never go to different processes that share a name, and a silent or
slow name server delays no known worker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from urllib.parse import urlsplit

import trio
from attrs import define, field, frozen

from ..pool.ids import is_blocked_address
from .allowed import AllowedHosts, NotAllowed, WorkerHostNotAllowed
from .listeners import is_local, read_listening, shared
from .lookup import Lookups, Silent, Unresolved

_PATIENCE = 3.0  # seconds to look up a name without a known address
# Seconds to look up a name with a known address, and to connect to one of several addresses.
_BRIEF = 1.0
_MOMENT = 0.5  # seconds for which the kernel's list of listening sockets stays valid


@frozen
class Origin:
    """Where a worker listens, as its URL says."""

    url: str
    scheme: str
    host: str
    port: int
    host_header: bytes

    @classmethod
    @lru_cache(4096)
    def of(cls, url: str) -> Origin:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(url, parts.scheme, parts.hostname or "", port, parts.netloc.encode())


class NotOneAddress(Unresolved):
    """The name cannot mean a single worker: it has several addresses, or a blocked one."""


class SamePeer(Unresolved):
    """The URL leads to the address of the worker `url`."""

    def __init__(self, origin: Origin, url: str) -> None:
        super().__init__(f"{origin.url} leads to the same address and port as {url}")
        self.url = url


@define(eq=False)
class Addresses:
    """The address of each known worker, by URL."""

    lookups: Lookups = field(factory=Lookups)
    allowed: AllowedHosts = field(factory=AllowedHosts)
    # Called with a URL and its old and new address, before any connection goes to the new one.
    on_move: Callable[[str, str, str], None] | None = None
    # URLs of workers whose idle connection is open: no other process can have their address.
    held: set[str] = field(init=False, factory=set)
    _peers: dict[str, str] = field(init=False, factory=dict)
    _origins: dict[str, Origin] = field(init=False, factory=dict)
    _claims: dict[tuple[str, int], str] = field(init=False, factory=dict)
    _own_sockets: Set[tuple[str, int]] = field(init=False, factory=frozenset)
    _read_at: float = field(init=False, default=-math.inf)

    def peer(self, url: str) -> str | None:
        """The address that all connections to the worker use; None if the worker was not met."""
        return self._peers.get(url)

    def forget(self, url: str) -> None:
        """The worker is no longer registered."""
        self.held.discard(url)
        self._unpin(url)

    async def admit(self, origin: Origin) -> None:
        """Raises WorkerHostNotAllowed if no worker may be there. A name that leads nowhere yet is
        admitted: each later look-up checks its address."""
        if self.allowed.rules and not self.allowed.exempt(origin.url):
            if self.allowed.verdict(origin.host) is False:
                raise _refused(origin, f"{origin.host} is not among --allowed-worker-hosts")
            try:
                await self._find(origin)
            except NotAllowed as error:
                raise _refused(origin, str(error)) from None
            except Unresolved:
                pass

    async def connect(self, origin: Origin) -> tuple[trio.SocketStream, str]:
        """A connection to the worker, and the address. Raises OSError (Unresolved is one)."""
        peer = self._peers.get(origin.url)
        choice = [peer] if peer is not None else await self._find(origin)
        return await _first(choice, origin.port)

    async def address(self, origin: Origin) -> str:
        """The address for a connection to the worker. Raises OSError."""
        peer = self._peers.get(origin.url)
        if peer is not None:
            return peer
        choice = await self._find(origin)
        if len(choice) > 1:
            stream, address = await _first(choice, origin.port)
            await trio.aclose_forcefully(stream)
            return address
        return choice[0]

    async def meet(self, origin: Origin) -> trio.SocketStream:
        """A connection to where the URL leads now; all others use this address from now on.

        For the task that watches the worker, while no other connection to the worker stands. A name
        that still has its old address among others keeps that address; so does a name whose name
        servers are silent. Raises OSError; Unresolved if no connection was tried.
        """
        peer = self._peers.get(origin.url)
        try:
            choice = await self._find(origin, known=peer)
        except Silent:
            if peer is None:
                raise
            choice = [peer]
        except Unresolved:
            self._unpin(origin.url)
            raise
        stream, address = await _first(choice, origin.port)
        try:
            if address != peer:
                await self._pin(origin, address)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream

    async def _find(self, origin: Origin, known: str | None = None) -> list[str]:
        """The addresses to try for the worker, in order; one of them is the worker's."""
        with suppress(ValueError):
            address = str(ip_address(origin.host))
            self.allowed.check(origin.url, origin.host, address)
            return [address]
        within = _PATIENCE if known is None else _BRIEF
        found = await self._look_up(origin, within)
        if len({ip_address(address).version for address in found}) == len(found):
            return sorted(found, key=lambda address: address != known)
        if known in found:
            return [known]  # the others may be other processes
        raise NotOneAddress(
            f"{origin.host} has {len(found)} addresses ({', '.join(found[:8])}), which may belong"
            " to different processes: register each address, or start the router with"
            " --resolve-all"
        )

    async def all_of(self, origin: Origin) -> list[str]:
        """The current addresses of a name, all of one family, since one host may have an address in
        both; none if the name is gone. Raises Silent, and NotOneAddress if one of them is
        blocked."""
        try:
            found = await self._look_up(origin, _PATIENCE)
        except (Silent, NotOneAddress):
            raise
        except Unresolved:
            return []
        version = ip_address(found[0]).version
        return [address for address in found if ip_address(address).version == version]

    async def _look_up(self, origin: Origin, within: float) -> list[str]:
        found = _unmapped(await self.lookups.find(origin.host, within=within))
        for address in found:
            if is_blocked_address(ip_address(address)):
                raise NotOneAddress(
                    f"{origin.host} is blocked: its address {address} is link-local or a metadata"
                    " service"
                )
            self.allowed.check(origin.url, origin.host, address)
        return found

    async def _pin(self, origin: Origin, address: str) -> None:
        """Make all connections use this address. Raises SamePeer if another worker has it."""
        owner = self._owner(origin, address)
        if owner is not None and owner not in self.held:
            # The owner is lost: check whether its own name still leads to this address.
            await self._check(self._origins[owner])
            owner = self._owner(origin, address)
        if owner is not None:
            raise SamePeer(origin, owner)
        before = self._peers.get(origin.url)
        if before is not None and self.on_move is not None:
            self.on_move(origin.url, before, address)
        self._unpin(origin.url)
        self._peers[origin.url] = address
        self._origins[origin.url] = origin
        self._claims[address, origin.port] = origin.url

    async def _check(self, lost: Origin) -> None:
        """Release the address of a lost worker if its name no longer leads there."""
        peer = self._peers.get(lost.url)
        try:
            found = await self._find(lost, known=peer)
        except Silent:
            return
        except Unresolved:
            found = []
        if peer not in found and lost.url not in self.held:
            self._unpin(lost.url)

    def _owner(self, origin: Origin, address: str) -> str | None:
        """The URL of another worker at this address and port, if there is one."""
        owner = self._claims.get((address, origin.port))
        if owner is not None:
            return None if owner == origin.url else owner
        if not is_local(address):
            return None
        others = [
            (url, peer)
            for (peer, port), url in self._claims.items()
            if port == origin.port and url != origin.url
        ]
        # Many workers may be met at once, each with an address of its own; a recent list will do.
        if not others or (address, origin.port) in self._alone():
            return None
        listening = read_listening()
        ours = shared(address, origin.port, listening)
        for url, peer in others if ours else ():
            if is_local(peer) and shared(peer, origin.port, listening) == ours:
                return url
        return None

    def _alone(self) -> Set[tuple[str, int]]:
        """The addresses and ports that recently had a listening socket of their own."""
        now = trio.current_time()
        if now - self._read_at > _MOMENT:
            self._read_at = now
            self._own_sockets = {
                (str(place), port) for place, port in read_listening() if not place.is_unspecified
            }
        return self._own_sockets

    def _unpin(self, url: str) -> None:
        peer, origin = self._peers.pop(url, None), self._origins.pop(url, None)
        if peer is not None and origin is not None:
            self._claims.pop((peer, origin.port), None)


def _refused(origin: Origin, why: str) -> WorkerHostNotAllowed:
    return WorkerHostNotAllowed(f"Worker URL {origin.url} is refused: {why}")


async def _first(addresses: Sequence[str], port: int) -> tuple[trio.SocketStream, str]:
    """A connection to the first address that accepts one. Raises OSError."""
    *others, last = addresses
    for address in others:
        with suppress(OSError), trio.move_on_after(_BRIEF):
            return await trio.open_tcp_stream(address, port), address
    return await trio.open_tcp_stream(last, port), last


def _unmapped(found: list[str]) -> list[str]:
    """The addresses without duplicates; IPv4-mapped IPv6 addresses become IPv4."""
    result = []
    for text in found:
        address = ip_address(text)
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        result.append(str(address))
    return list(dict.fromkeys(result))
