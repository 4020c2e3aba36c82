"""Changes, sleeps and wakes in order of arrival."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.testing

from router.control.turns import Turns
from router.pool.worker import Origin, Worker

A, B, C = (Worker(f"http://{name}:1", Origin.STATIC) for name in "abc")


class Log:
    """Who began, and ended, in order."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.lines: list[str] = []

    async def work(
        self, name: str, workers: Sequence[Worker], model: str | None = None, *, long: float = 1
    ) -> None:
        turn = self.turns.queue(workers, model)
        async with self.turns.having(turn):
            self.lines.append(f"+{name}")
            await trio.sleep(long)
            self.lines.append(f"-{name}")


def test_who_came_first_goes_first() -> None:
    async def main() -> None:
        log = Log()
        async with trio.open_nursery() as nursery:
            for name, workers in (("1", [A, B]), ("2", [B, C]), ("3", [A]), ("4", [C])):
                nursery.start_soon(log.work, name, workers)
                await trio.testing.wait_all_tasks_blocked()
        # The fourth waits for the second, which waits for the first; the third for the first only.
        at = log.lines.index
        assert log.lines[:2] == ["+1", "-1"]
        assert at("+2") > at("-1") < at("+3")
        assert at("+3") < at("-2") < at("+4")
        assert not log.turns.busy(A)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_changes_of_one_model_never_overlap() -> None:
    async def main() -> None:
        log = Log()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.work, "1", [A], "m")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.work, "other", [C], "n")
            nursery.start_soon(log.work, "2", [B], "m")
        assert log.lines.index("-1") < log.lines.index("+2")
        assert log.lines.index("+other") < log.lines.index("-1")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_one_that_leaves_blocks_nobody() -> None:
    async def main() -> None:
        log = Log()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.work, "1", [A])
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.5):
                await log.work("2", [A, B])
            with trio.fail_after(0.1):
                await log.work("3", [B], long=0)
        assert log.lines == ["+1", "+3", "-3", "-1"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_workers_are_let_go_one_by_one() -> None:
    async def main() -> None:
        log = Log()
        async with trio.open_nursery() as nursery:
            turn = log.turns.queue([A, B], "m")
            async with log.turns.having(turn):
                nursery.start_soon(log.work, "sleep", [A])
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(log.work, "change", [A], "m")
                await trio.testing.wait_all_tasks_blocked()
                assert not log.turns.is_last(turn)
                assert log.turns.extend(turn, C)
                assert not log.turns.extend(log.turns.queue([C]), A)
                turn.release(A)
                await trio.testing.wait_all_tasks_blocked()
                assert log.lines == ["+sleep"]
                assert log.turns.busy(B)
        assert log.lines == ["+sleep", "-sleep", "+change", "-change"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
