"""Operations: in order of arrival; one that has begun goes on without its caller."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing

from router.control.operations import Operation, Operations
from router.errors import Conflict
from router.pool.worker import Origin, Worker

A, B, C = (Worker(f"http://{name}:1", Origin.STATIC) for name in "abc")


class Log:
    """Who began, and ended, in order."""

    def __init__(self) -> None:
        self.operations = Operations()
        self.lines: list[str] = []

    async def work(
        self, name: str, workers: Sequence[Worker], model: str | None = None, *, long: float = 1
    ) -> None:
        async with self.operations.take(workers, model):
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
        assert not log.operations.busy(A)

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
        async with (
            trio.open_nursery() as nursery,
            log.operations.take([A, B], "m") as operation,
        ):
            nursery.start_soon(log.work, "sleep", [A])
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(log.work, "change", [A], "m")
            await trio.testing.wait_all_tasks_blocked()
            assert log.operations.extend(operation, C)
            assert not log.operations.extend(Operation({C}), A)
            log.operations.release(operation, A)
            await trio.testing.wait_all_tasks_blocked()
            assert log.lines == ["+sleep"]
            assert log.operations.busy(B)
        assert log.lines == ["+sleep", "-sleep", "+change", "-change"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_same_is_joined_until_something_comes_after_it() -> None:
    """And not one that everybody has given up."""
    done: list[int] = []

    async def main() -> None:
        operations = Operations()

        def start(number: int, identity: object = "same") -> Operation[int]:
            async def work(operation: Operation[int]) -> int:
                await trio.sleep(1)
                done.append(number)
                return number

            return operations.start(work, [A], "m", identity, begun=False)

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            first = start(1)
            assert start(2) is first
            other = start(3, "other")
            again = start(4)
            assert again not in (first, other)
            with trio.move_on_after(0.5):
                await again.result()
            last = start(5)
            assert last is not again
            assert start(6, None) is not start(7, None)
            assert await first.result() == 1
            assert await last.result() == 5
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert done[:3] == [1, 3, 5]


def test_a_part_that_nothing_breaks_off() -> None:
    """It ends with its clients only before and after."""
    done: list[str] = []

    async def main() -> None:
        operations = Operations()

        async def work(operation: Operation[None]) -> None:
            await trio.sleep(1)
            async with operation.unbroken():
                await trio.sleep(2)
                done.append("the part")
            await trio.sleep(1)
            done.append("all")

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            for patience in (0.5, 1.5, 3.5, 5):
                with trio.move_on_after(patience):
                    await operations.start(work, begun=False).result()
                await trio.sleep(5)
                done.append(f"after {patience:g} s")
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    ends = [[], ["the part"], ["the part"], ["the part", "all"]]
    times = ("0.5", "1.5", "3.5", "5")
    assert done == [
        step for end, at in zip(ends, times, strict=True) for step in (*end, f"after {at} s")
    ]


def test_dropped_or_done_to_its_end() -> None:
    """In whichever order the caller's end and the turn of the work are seen."""
    began = ended = 0

    async def main() -> None:
        operations = Operations()
        turn = trio.Event()

        async def work(operation: Operation[Any]) -> None:
            nonlocal began, ended
            await turn.wait()
            await operation.begin()
            began += 1
            await trio.sleep(1)
            ended += 1

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            for _ in range(50):
                async with trio.open_nursery() as caller:
                    caller.start_soon(operations.start(work, begun=False).result)
                    await trio.testing.wait_all_tasks_blocked()
                    turn.set()
                    caller.cancel_scope.cancel()
                turn = trio.Event()
                await trio.sleep(2)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert 0 < began < 50
    assert ended == began


@pytest.mark.parametrize("begun", [False, True])
def test_a_caller_that_leaves(begun: bool) -> None:
    done: list[str] = []

    async def main() -> None:
        operations = Operations()

        async def work(operation: Operation[Any]) -> None:
            if begun:
                await operation.begin()
            await trio.sleep(1)
            done.append("work")

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            with trio.move_on_after(0.5):
                await operations.start(work, begun=False).result()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert done == (["work"] if begun else [])


def test_what_comes_of_it_is_told_to_the_caller() -> None:
    async def main() -> None:
        operations = Operations()

        async def succeed(operation: Operation[Any]) -> int:
            await operation.begin()
            return 7

        async def refuse(operation: Operation[Any]) -> None:
            raise Conflict("no")

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            assert await operations.start(succeed, begun=False).result() == 7
            with pytest.raises(Conflict):
                await operations.start(refuse, begun=False).result()
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        operations = Operations()

        async def refuse(_: object) -> None:
            raise Conflict("not today")

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            operations.start(refuse)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert "not today" in caplog.text


def test_what_is_told_before_the_end() -> None:
    async def main() -> None:
        operations = Operations()
        over = trio.Event()

        async def work(operation: Operation[int]) -> int:
            await operation.begin()
            operation.tell(7)
            await over.wait()
            return 7

        async with trio.open_nursery() as nursery:
            await nursery.start(operations.run)
            assert await operations.start(work, begun=False).result() == 7
            over.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
