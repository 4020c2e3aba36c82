"""The plain stream on real sockets: every byte in order, back-pressure, ends of all kinds."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from router.relay.plain import PlainStream
from tests.integration.relay.harness import run
from tests.integration.relay.wire import pattern

BIG = pattern(8_000_000)  # more than the kernel takes of it


@contextlib.contextmanager
def connected() -> Iterator[tuple[PlainStream, trio.socket.SocketType]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs = trio.socket.from_stdlib_socket(listener.accept()[0])
    stream = PlainStream(ours)
    try:
        yield stream, theirs
    finally:
        stream.close()
        theirs.close()


async def receive(take: Callable[[int], Awaitable[bytes]]) -> bytes:
    got = bytearray()
    while len(got) < len(BIG):
        piece = await take(100_000)
        assert piece
        got += piece
    return bytes(got)


def test_both_ways_at_once() -> None:
    async def main() -> None:
        with connected() as (stream, peer):

            async def echo() -> None:
                while piece := await peer.recv(300_000):
                    await trio.SocketStream(peer).send_all(piece)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(echo)
                nursery.start_soon(stream.send_all, memoryview(BIG))
                assert await receive(stream.receive_some) == BIG
                nursery.cancel_scope.cancel()

    run(main)


def test_a_send_waits_until_the_peer_reads() -> None:
    async def main() -> None:
        with connected() as (stream, peer):
            done = False

            async def send() -> None:
                nonlocal done
                await stream.send_all(BIG)
                done = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(send)
                await wait_all_tasks_blocked(0.01)
                assert not done
                assert await receive(peer.recv) == BIG
            assert done

    run(main)


def test_who_was_cancelled_sends_nothing() -> None:
    async def main() -> None:
        with connected() as (stream, peer):
            with trio.CancelScope() as scope:
                scope.cancel()
                await stream.send_all(b"too late")
            assert scope.cancelled_caught
            await stream.send_all(b"in time")
            stream.close()
            assert await peer.recv(100) == b"in time"
            assert await peer.recv(100) == b""

    run(main)


@pytest.mark.parametrize("sends", [True, False])
def test_a_close_wakes_who_waits(sends: bool) -> None:
    async def main() -> None:
        with connected() as (stream, _):

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await (stream.send_all(BIG) if sends else stream.receive_some())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await wait_all_tasks_blocked(0.01)
                stream.close()
                stream.close()
            await wait()

    run(main)


def test_the_end_of_what_the_peer_sends() -> None:
    async def main() -> None:
        with connected() as (stream, peer):
            await peer.send(b"last")
            peer.shutdown(socket.SHUT_WR)
            assert await stream.receive_some(2) == b"la"
            assert await stream.receive_some() == b"st"
            assert await stream.receive_some() == b""
            await stream.send_all(b"still heard")
            assert await peer.recv(100) == b"still heard"

    run(main)


def test_a_reset_breaks_both_ways() -> None:
    async def main() -> None:
        with connected() as (stream, peer):
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
            with pytest.raises(trio.BrokenResourceError, match="reset"):
                await stream.receive_some()
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"x")

    run(main)
