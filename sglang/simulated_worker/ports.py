"""Binding the pair of ports that a worker takes, as the real one settles them."""

from __future__ import annotations

import socket

from attrs import frozen

STEP = 42
"""How far a worker moves when its port is taken and `--strict-ports` is not given."""
_BACKLOG = 1024
_TRIES = 60


class PortTaken(Exception):
    """A port could not be had; the text is a sentence for the user."""


@frozen
class Pair:
    """A worker's own port and the one above it, bound and listening."""

    main: socket.socket
    control: socket.socket

    @property
    def port(self) -> int:
        return int(self.main.getsockname()[1])


def bind_pair(host: str, port: int, *, strict: bool) -> Pair:
    """`port` and `port + 1`; 0 finds a free pair. Raises `PortTaken`."""
    if port == 0:
        for _ in range(_TRIES):
            first = bind(host, 0)
            try:
                second = bind(host, first.getsockname()[1] + 1)
            except (PortTaken, OverflowError):
                first.close()
            else:
                return Pair(first, second)
        raise PortTaken(f"no two free ports in a row on {host}")
    for attempt in range(1 if strict else _TRIES):
        wanted = port + attempt * STEP
        if wanted > 65534:
            break
        try:
            main = bind(host, wanted)
        except PortTaken:
            if strict:
                raise
            continue
        try:
            return Pair(main, bind(host, wanted + 1))
        except PortTaken:
            main.close()
            if strict:
                raise
    raise PortTaken(f"no free port at or above {port} on {host}")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `PortTaken`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(_BACKLOG)
        sock.setblocking(False)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise PortTaken(f"cannot take port {port} on {host}: {error.strerror}") from None
        raise
    return sock
