"""Which socket of this machine a connection reaches.

A process that listens on all addresses of this machine is reached through each of them. Two
addresses are the same peer only if the kernel says that one listening socket serves both.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

_LISTENING = "0A"
_TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_EVERY_4, _EVERY_6 = IPv4Address(0), IPv6Address(0)

Address = IPv4Address | IPv6Address
Listening = dict[tuple[Address, int], set[str]]


def is_local(text: str) -> bool:
    """Whether the address belongs to this machine."""
    address = ip_address(text)
    if address.is_loopback:
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((text, 9))  # sends nothing; a route to ourselves begins where it ends
            return ip_address(probe.getsockname()[0]) == address
        except OSError:
            return False


def shared(text: str, port: int, listening: Listening) -> set[str]:
    """The sockets that accept connections to this address of ours and to other addresses too.

    Empty if a socket listens on this address alone, because the kernel prefers that socket.
    """
    address = ip_address(text)
    alone: list[Address] = [address]
    every: list[Address] = [_EVERY_6]
    if isinstance(address, IPv4Address):
        alone.append(IPv6Address(f"::ffff:{address}"))
        every.insert(0, _EVERY_4)
    if any((place, port) in listening for place in alone):
        return set()
    return next((found for place in every if (found := listening.get((place, port)))), set())


def read_listening(tables: tuple[Path, ...] = _TABLES) -> Listening:
    """All listening sockets of this machine, by address and port; empty if unknown."""
    found: Listening = {}
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for key, inode in _parse(lines):
            found.setdefault(key, set()).add(inode)
    return found


def _parse(lines: list[str]) -> Iterator[tuple[tuple[Address, int], str]]:
    for line in lines:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTENING:
            host, _, port = fields[1].partition(":")
            yield (_address(host), int(port, 16)), fields[9]


def _address(text: str) -> Address:
    raw = bytes.fromhex(text)
    if sys.byteorder == "little":  # 32-bit words in the machine's byte order
        raw = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return IPv4Address(raw) if len(raw) == 4 else IPv6Address(raw)
