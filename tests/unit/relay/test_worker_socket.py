"""The worker's side of a WebSocket session, over a pair of sockets."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Request

from router.relay.connection import Connection
from router.relay.plain import PlainStream
from router.relay.worker_socket import GOING_AWAY, Close, WorkerSocket


async def accept(sock: socket.socket) -> None:
    """Accept the handshake as a worker does."""
    server, stream = WSConnection(ConnectionType.SERVER), PlainStream(sock)
    server.receive_data(await stream.receive_some())
    assert isinstance(next(server.events()), Request)
    await stream.send_all(server.send(AcceptConnection()))


def test_no_close_frame_follows_half_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs, trio.fail_after(60):
            worker = WorkerSocket(Connection(PlainStream(ours), ours, b"worker"), 1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept, theirs)
                await worker.open(Request(host="worker", target="/"))
            with trio.move_on_after(0.1) as scope:
                await worker.send(b"x" * 50_000_000)  # nobody reads it
            assert scope.cancelled_caught
            sent: list[bytes] = []

            async def send(self: Connection, data: Any) -> None:
                sent.append(data)

            monkeypatch.setattr(Connection, "send", send)
            await worker.close(Close(GOING_AWAY))
            assert sent == []

    trio.run(main)
