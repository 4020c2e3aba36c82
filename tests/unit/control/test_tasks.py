"""The limiter: so many side by side, and those that hang are not counted for long."""

from __future__ import annotations

import trio
import trio.testing

from router.control.tasks import SoftLimiter


def test_no_more_than_so_many_side_by_side() -> None:
    async def main() -> None:
        limiter, inside, most = SoftLimiter(3, 10.0), 0, 0

        async def one() -> None:
            nonlocal inside, most
            async with limiter.slot():
                inside += 1
                most = max(most, inside)
                await trio.sleep(1)
                inside -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(one)
        assert most == 3
        assert trio.current_time() - begun == 4

    async def timed() -> None:
        nonlocal begun
        begun = trio.current_time()
        await main()

    begun = 0.0
    trio.run(timed, clock=trio.testing.MockClock(autojump_threshold=0))


def test_those_that_hang_hold_up_nobody_for_long() -> None:
    async def main() -> None:
        limiter = SoftLimiter(2, 1.0)
        begun = trio.current_time()

        async def hang() -> None:
            async with limiter.slot():
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(hang)
            await trio.testing.wait_all_tasks_blocked()
            async with limiter.slot():
                assert trio.current_time() - begun == 2
            nursery.cancel_scope.cancel()
        for _ in range(2):  # nobody who was cancelled has kept a turn, or given it back twice
            async with limiter.slot(), limiter.slot():
                with trio.move_on_after(0.5) as scope:
                    async with limiter.slot():
                        raise AssertionError
                assert scope.cancelled_caught

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
