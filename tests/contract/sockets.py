"""A WebSocket client that shows what the other side really sends."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import wsproto
from attrs import define, field
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Message, Request
from wsproto.extensions import PerMessageDeflate

from simulated_worker.msgpack import decode, encode
from tests.contract.harness import Worker, connection


@define
class Session:
    """An open WebSocket. Messages are msgpack, or bytes that follow one."""

    sock: socket.socket
    accepted: AcceptConnection
    _protocol: wsproto.WSConnection
    _waiting: list[Any] = field(factory=list)

    def send(self, message: Any) -> None:
        self.sock.sendall(self._protocol.send(BytesMessage(encode(message))))

    def close(self) -> None:
        self.sock.sendall(self._protocol.send(CloseConnection(1000)))

    def receive(self) -> Any:
        """The next whole message: a decoded map, or bytes that are none, or a `CloseConnection`."""
        parts = b""
        while True:
            while self._waiting:
                event = self._waiting.pop(0)
                if isinstance(event, CloseConnection):
                    return event
                if isinstance(event, Message):
                    parts += bytes(event.data)
                    if event.message_finished:
                        return decode(parts) if parts[:1] >= b"\x80" else parts
            self._protocol.receive_data(self.sock.recv(65536) or None)
            self._waiting += self._protocol.events()


@contextmanager
def session(worker: Worker, path: str) -> Iterator[Session]:
    protocol = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    with connection(worker) as sock:
        asked = Request(host="worker", target=path, extensions=[PerMessageDeflate()])
        sock.sendall(protocol.send(asked))
        while True:
            protocol.receive_data(sock.recv(65536) or None)
            events = list(protocol.events())
            if events:
                break
        accepted, *rest = events
        assert isinstance(accepted, AcceptConnection), accepted
        yield Session(sock, accepted, protocol, rest)
