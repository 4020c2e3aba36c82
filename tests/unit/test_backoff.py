"""Pauses that grow, up to a bound."""

from __future__ import annotations

import trio
import trio.testing

from router.backoff import Backoff


def test_each_is_twice_the_one_before() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1


def test_hope_ends_a_pause_and_begins_anew() -> None:
    async def main() -> None:
        backoff, hope = Backoff(), trio.Event()
        await backoff.pause()
        await backoff.pause(hope)
        assert trio.current_time() - began == 3
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backoff.pause, hope)
            await trio.sleep(1)
            hope.set()
        assert trio.current_time() - began == 4
        assert backoff.next() == 1

    clock = trio.testing.MockClock(autojump_threshold=0)
    began = clock.current_time()
    trio.run(main, clock=clock)
