"""Each wait of an exchange has its bound, and each bound its own error."""

from __future__ import annotations

import pytest
import trio

from tests.integration.relay.harness import Peer, answering, never, pour, routed, run
from tests.integration.relay.wire import LAST_CHUNK, SOON, chunked, error_of, request, response
from tests.patience import fail_after

KIND = "Content-Type: application/octet-stream"
MB = 1024 * 1024


def test_a_worker_that_does_not_answer_is_a_response_timeout() -> None:
    async def main() -> None:
        async with routed(never, timeout=0.1) as router:
            for data, safe in [
                (request("POST", body=b"abc"), False),
                (request("GET"), True),
                (request("POST", body=bytes(200_000)), False),
                (request("POST", "/x", KIND, "Transfer-Encoding: chunked") + LAST_CHUNK, False),
            ]:
                got = await router.ask(data)
                assert error_of(got, 504, "response_timeout")["retry_safe"] is safe
            # Not tried again: another worker would take as long.
            assert router.worker.connections == 4
            assert router.idle(router.worker) == 0

    run(main)


def test_a_head_that_drips_is_bounded_as_a_whole() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n")
            while True:
                await peer.send(b"X: y\r\n")
                await trio.sleep(0.01)

        async with routed(script, timeout=0.15) as router:
            error_of(await router.ask(request("POST")), 504, "response_timeout")

    run(main)


def test_the_upload_does_not_count_towards_the_response_timeout() -> None:
    async def main() -> None:
        async with routed(answering(response()), timeout=0.2, peek_limit=10) as router:
            client = await router.client()
            await client.send(request("POST", "/x", KIND, "Content-Length: 40"))
            for _ in range(40):
                await client.send(b"x")
                await trio.sleep(0.01)
            assert (await client.answer()).status == 200

    run(main)


@pytest.mark.parametrize("framing", ["length", "chunked", "until the end"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_a_body_that_stops_is_cut_off(framing: str, version: str) -> None:
    async def main() -> None:
        how = {
            "length": "Content-Length: 10",
            "chunked": "Transfer-Encoding: chunked",
            "until the end": "Content-Length: 0",
        }[framing]
        head = response(200, how)
        if framing == "until the end":
            head = head.replace(b"Content-Length: 0\r\n", b"")

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(head + (chunked(b"abc") if framing == "chunked" else b"abc"))
            await peer.ended()
            left.set()

        left = trio.Event()
        async with routed(script, idle_timeout=0.1) as router:
            got = await router.ask(request("GET", version=version))
            assert got.status == 200
            assert not got.complete
            with fail_after(SOON):
                await left.wait()

    run(main)


def test_a_body_may_be_slow_as_long_as_it_moves() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response(200, "Content-Length: 20"))
            for _ in range(20):
                await peer.send(b"x")
                await trio.sleep(0.02)

        async with routed(script, idle_timeout=0.2) as router:
            assert (await router.ask(request("GET"))).body == b"x" * 20

    run(main)


@pytest.mark.parametrize("peek", [1000, 64 * MB])
def test_a_worker_that_stops_reading_is_an_idle_timeout(peek: int) -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await trio.sleep_forever()

        async with routed(script, idle_timeout=0.3, peek_limit=peek) as router:
            client = await router.client()
            size = 40 * MB
            await client.send(request("POST", "/x", KIND, f"Content-Length: {size}"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pour, client, size)
                got = await client.answer()
                nursery.cancel_scope.cancel()
            assert error_of(got, 504, "idle_timeout")["retry_safe"] is True
            assert router.worker.connections == 1

    run(main)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_client_that_stalls_its_upload_is_told(streamed: bool) -> None:
    async def main() -> None:
        left = trio.Event()

        async def script(peer: Peer) -> None:
            await peer.ended(5)
            left.set()

        async with routed(script, idle_timeout=0.2, peek_limit=100) as router:
            client = await router.client()
            size = 1000 if streamed else 50
            await client.send(request("POST", "/x", KIND, f"Content-Length: {size}") + b"abc")
            error_of(await client.answer(), 408, "client_timeout")
            await client.ended()
            # What is held until it is whole has cost no worker anything.
            assert router.worker.connections == (1 if streamed else 0)
            if streamed:
                await left.wait()

    run(main)


def test_a_client_that_stalls_after_the_answer_has_begun_is_cut_off() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(response(200, "Transfer-Encoding: chunked") + chunked(b"abc"))
            await peer.ended(5)

        async with routed(script, idle_timeout=0.2, peek_limit=10) as router:
            client = await router.client()
            await client.send(request("POST", "/x", KIND, "Content-Length: 1000") + b"abc")
            got = await client.answer()
            assert (got.status, got.body, got.complete) == (200, b"abc", False)

    run(main)
