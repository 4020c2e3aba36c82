"""Ports for workers."""

from __future__ import annotations

import socket
from collections.abc import Collection

from ..errors import StartError

_ATTEMPTS = 200


def free_port_pair(host: str, *, avoid: Collection[int] = ()) -> int:
    """A port P such that P and P+1 can both be bound: a worker takes both (worker contract).

    Raises StartError if none is found. Somebody else may still take it before the worker does.
    """
    for _ in range(_ATTEMPTS):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as first:
            first.bind((host, 0))
            port: int = first.getsockname()[1]
            if port in avoid or port + 1 in avoid or port >= 65535:
                continue
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as second:
                try:
                    second.bind((host, port + 1))
                except OSError:
                    continue
                return port
    raise StartError(f"no two neighbouring free ports were found on {host}")
