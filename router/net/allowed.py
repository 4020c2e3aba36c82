"""Where workers may be: `--allowed-worker-hosts`."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

from attrs import define

from ..pool.ids import BadWorkerURL
from .lookup import Unresolved

Network: TypeAlias = IPv4Network | IPv6Network


class WorkerHostNotAllowed(BadWorkerURL):
    """No worker may be there."""

    default_status = 403
    default_code = "worker_host_not_allowed"


class NotAllowed(Unresolved):
    """No worker may be there; nothing was sent."""


@define(eq=False)
class AllowedHosts:
    """The rules: names, patterns such as `*.internal`, addresses and networks. Without rules, all.

    A name that a rule names may lead anywhere; any other name only to an address within a network.
    `exempt` tells of URLs that no rule concerns: the router itself has launched these workers, or
    found them behind an allowed name.
    """

    rules: tuple[str, ...] = ()
    exempt: Callable[[str], bool] = lambda url: False

    def verdict(self, host: str, address: str | None = None) -> bool | None:
        """Whether the host is allowed; None if that depends on its address."""
        if not self.rules:
            return True
        names, networks = _read(self.rules)
        found = _address_of(host) or (None if address is None else _address_of(address))
        if any(fnmatchcase(host, name) for name in names):
            return True
        if found is not None:
            return any(found in network for network in networks)
        return None if networks else False

    def check(self, url: str, host: str, address: str) -> None:
        """Raises NotAllowed if no worker may be there."""
        if self.rules and not self.verdict(host, address) and not self.exempt(url):
            where = host if host == address else f"{host} with the address {address}"
            raise NotAllowed(f"{where} is not among --allowed-worker-hosts")


@lru_cache(8)
def _read(rules: tuple[str, ...]) -> tuple[list[str], list[Network]]:
    names: list[str] = []
    networks: list[Network] = []
    for rule in rules:
        try:
            networks.append(ip_network(rule, strict=False))
        except ValueError:
            names.append(rule.lower())
    return names, networks


def _address_of(text: str) -> object:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
