"""The sockets that our server listens on, and the sentences for those it cannot have."""

from __future__ import annotations

import socket

import pytest

from router.errors import StartError
from router.server import open_listeners


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=rf"^Port {port} on 127.0.0.1 is already in use"):
            open_listeners("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("x" * 64 + ".invalid", 0, "the name has no known address"),
        ("192.0.2.1", 0, "not an address of this machine"),
        ("127.0.0.1", 70000, "not between 0 and 65535"),
    ],
)
def test_an_impossible_address_is_explained(host: str, port: int, sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        open_listeners(host, port)


def test_a_privileged_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(StartError, match="No permission to listen on port 80"):
        open_listeners("127.0.0.1", 80)


def test_all_addresses_of_a_name_get_the_same_port() -> None:
    listeners = open_listeners("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


def test_the_ipv6_wildcard_takes_ipv4_too() -> None:
    try:
        (listener,) = open_listeners("::", 0)
    except StartError:
        pytest.skip("no IPv6 here")
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass
