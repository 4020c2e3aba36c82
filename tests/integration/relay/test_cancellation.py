"""Cancellation at every await of the relay: nothing is left behind, wherever it strikes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio

from tests.integration.relay.harness import Peer, Script, answering, run, until
from tests.integration.relay.rig import FakeExchange, cancelled_at, living, rigged
from tests.integration.relay.wire import LAST_CHUNK, chunked, pattern, response

BIG = pattern(3_000_000)


async def streams_answer(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(response(200, "Transfer-Encoding: chunked"))
        for _ in range(3):
            await peer.send(chunked(b"x" * 1000))
            await trio.lowlevel.checkpoint()
        await peer.send(LAST_CHUNK)


async def answers_early(peer: Peer) -> None:
    await peer.head()
    await peer.send(response(413, body=b"too much"))
    await peer.ended(30)


async def dies_at_get(peer: Peer) -> None:
    while True:
        message = await peer.request()
        if message.method == b"GET":
            return
        await peer.send(response(body=b"ok"))


async def answers_once(peer: Peer) -> None:
    await peer.request()
    await peer.send(response(body=b"ok"))
    await peer.head()


GOOD = answering(response(body=b"ok"))

CASES: dict[str, tuple[Callable[[], FakeExchange], list[Script], int, bytes]] = {
    "small body": (FakeExchange, [GOOD], 200, b"ok"),
    "no body": (lambda: FakeExchange("GET", ()), [GOOD], 200, b"ok"),
    "held body": (lambda: FakeExchange(pieces=[b"x" * 100] * 5), [GOOD], 200, b"ok"),
    "streamed upload": (lambda: FakeExchange(pieces=[b"x" * 900] * 5), [GOOD], 200, b"ok"),
    "chunked upload": (
        lambda: FakeExchange(pieces=[b"x" * 900] * 5, chunked=True),
        [GOOD],
        200,
        b"ok",
    ),
    "streamed answer": (FakeExchange, [streams_answer], 200, b"x" * 3000),
    "large answer": (FakeExchange, [answering(response(body=BIG))], 200, BIG),
    "early answer": (
        lambda: FakeExchange(pieces=[b"x" * 100_000] * 50),
        [answers_early],
        413,
        b"too much",
    ),
    "stale connection": (lambda: FakeExchange("GET", ()), [answers_once], 200, b"ok"),
    "another worker": (lambda: FakeExchange("GET", ()), [dies_at_get, GOOD], 200, b"ok"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bound", [None, 1])
def test_nothing_is_left_wherever_it_is_cancelled(case: str, bound: int | None) -> None:
    make, scripts, status, body = CASES[case]

    async def main() -> None:
        async with rigged(*scripts, max_connections=bound) as rig:
            tasks = living()
            step = 1
            while True:
                if case == "stale connection":
                    await rig.exchange(make())
                exchange = make()
                if not await cancelled_at(rig, step, exchange):
                    break
                await rig.nothing_left(tasks)
                step += 1
                assert step < 1000
            assert step > 5
            assert (exchange.status, exchange.body, exchange.over) == (status, body, True)
            # And the next one finds everything in order.
            exchange = make()
            await rig.exchange(exchange)
            assert (exchange.status, exchange.body, exchange.over) == (status, body, True)

    run(main)


def test_cancelled_while_waiting_for_a_connection() -> None:
    async def main() -> None:
        release = trio.Event()

        async def slow(peer: Peer) -> None:
            while True:
                await peer.request()
                await release.wait()
                await peer.send(response(body=b"ok"))

        async with rigged(slow, max_connections=1) as rig:
            first, second = FakeExchange(), FakeExchange()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.exchange, first)
                await until(lambda: rig.worker.open == 1)
                with trio.move_on_after(0.02):
                    await rig.exchange(FakeExchange())
                [pool] = rig.upstream._pools.values()
                assert pool.users == 1
                release.set()
            assert first.over
            await rig.exchange(second)
            assert second.over
            assert rig.worker.connections == 1

    run(main)


def test_a_connection_is_not_kept_if_the_client_left_in_the_answer() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response(200, "Content-Length: 10") + b"01234")
            await peer.ended()

        async with rigged(script) as rig, trio.open_nursery() as nursery:
            exchange = FakeExchange()
            with trio.CancelScope() as scope:

                async def leave() -> None:
                    await until(lambda: exchange.body == b"01234")
                    scope.cancel()

                nursery.start_soon(leave)
                await rig.exchange(exchange)
            assert scope.cancelled_caught
            assert rig.upstream.idle(rig.worker.url) == 0
            await until(lambda: rig.worker.open == 0)

    run(main)
