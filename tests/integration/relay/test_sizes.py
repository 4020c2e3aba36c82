"""Bodies are bounded in size, and what stands still is bounded in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from tests.integration.relay.harness import Peer, Script, answering, never, pour, routed, run, until
from tests.integration.relay.wire import (
    LAST_CHUNK,
    Message,
    chunked,
    error_of,
    pattern,
    request,
    response,
)

KIND = "Content-Type: application/octet-stream"
MB = 1024 * 1024

# What the kernel, our server and the relay may hold together of a body that stands still.
STANDING = 24 * MB


def test_a_length_over_the_limit_costs_no_worker_anything() -> None:
    async def main() -> None:
        async with routed(never, max_request_bytes=1000) as router:
            granted: list[object] = []
            router.running.parts.registry.subscribe(granted.append)
            client = await router.client()
            data = request("POST", "/x", f"Content-Length: {20 * MB}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour, client, 0)
                await client.send(data)
                nursery.start_soon(pour, client, 20 * MB)
                got = await client.answer()
            body = error_of(got, 413, "request_too_large")
            assert body["max_request_bytes"] == 1000
            assert granted == []
            # The upload was drained, so that the connection is good for the next request.
            client.rest = b""
            error_of(await client.ask(data), 413, "request_too_large")

    run(main)


@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
@pytest.mark.parametrize("peek", [100, 10 * MB])
def test_a_chunked_body_is_counted(kind: str, peek: int) -> None:
    async def main() -> None:
        left = trio.Event()

        async def script(peer: Peer) -> None:
            await peer.ended(5)
            left.set()

        async with routed(script, max_request_bytes=MB, peek_limit=peek) as router:
            client = await router.client()
            how = "Transfer-Encoding: chunked"
            await client.send(request("POST", "/x", how, f"Content-Type: {kind}"))
            async with trio.open_nursery() as nursery:

                async def upload() -> None:
                    piece = chunked(b"[" * 64 * 1024)
                    for _ in range(100):  # goes on long after the refusal
                        await client.send(piece)
                    await client.send(LAST_CHUNK)

                nursery.start_soon(upload)
                got = await client.answer()
            error_of(got, 413, "request_too_large")
            if router.worker.connections:
                await left.wait()

    run(main)


def test_a_body_of_the_largest_size_passes() -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with routed(answering(response(), record=seen), max_request_bytes=1000) as router:
            body = pattern(1000)
            assert (await router.ask(request("POST", body=body))).status == 200
            how = request("POST", "/x", "Transfer-Encoding: chunked", KIND)
            assert (await router.ask(how + chunked(body) + LAST_CHUNK)).status == 200
            assert [message.body for message in seen] == [body, body]

    run(main)


def test_a_client_that_does_not_read_stops_the_worker() -> None:
    async def main() -> None:
        size = 200 * MB
        sent = 0

        def flood(framing: str) -> Script:
            async def script(peer: Peer) -> None:
                nonlocal sent
                await peer.request()
                piece = bytes(64 * 1024)
                if framing == "length":
                    await peer.send(response(200, f"Content-Length: {size}"))
                else:
                    await peer.send(response(200, "Transfer-Encoding: chunked"))
                    piece = chunked(piece)
                while sent < size:
                    await peer.send(piece)
                    sent += len(piece)

            return script

        for framing in ("length", "chunked"):
            sent = 0
            async with routed(flood(framing)) as router:
                client = await router.client(buffer=64 * 1024)
                await client.send(request("GET"))
                await client.head()
                assert await standstill(lambda: sent) < STANDING  # noqa: B023
                assert router.active == 1

    run(main)


def test_a_worker_that_does_not_read_stops_the_client() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await trio.sleep_forever()

        # What a client has left behind in full buffers is not seen to end: the deadline ends it.
        async with routed(script, idle_timeout=1) as router:
            sent = 0
            client = await router.client()
            await client.send(request("POST", "/x", KIND, f"Content-Length: {200 * MB}"))

            async def upload() -> None:
                nonlocal sent
                while True:
                    await client.send(bytes(64 * 1024))
                    sent += 64 * 1024

            async with trio.open_nursery() as nursery:
                nursery.start_soon(upload)
                assert await standstill(lambda: sent) < STANDING
                nursery.cancel_scope.cancel()

    run(main)


async def standstill(count: Callable[[], int]) -> int:
    """Wait until a count has risen from nought and stays as it is."""
    await until(count)
    while True:
        before = count()
        await trio.sleep(0.1)
        if count() == before:
            return before
