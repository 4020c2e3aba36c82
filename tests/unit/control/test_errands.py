"""Errands: what has begun goes on without its caller, what has not is dropped with it."""

from __future__ import annotations

from functools import partial

import pytest
import trio
import trio.testing

from router.control.errands import Begin, Errand, Errands
from router.errors import Conflict


def test_dropped_or_done_to_its_end() -> None:
    """In whichever order the caller's end and the turn of the work are seen."""
    began = ended = 0

    async def main() -> None:
        errands = Errands()
        turn = trio.Event()

        async def work(begin: Begin) -> None:
            nonlocal began, ended
            await turn.wait()
            await begin()
            began += 1
            await trio.sleep(1)
            ended += 1

        async with trio.open_nursery() as nursery:
            await nursery.start(errands.run)
            for _ in range(50):
                async with trio.open_nursery() as caller:
                    caller.start_soon(partial(errands.do, work, begun=False))
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
        errands = Errands()

        async def work(begin: Begin) -> None:
            if begun:
                await begin()
            await trio.sleep(1)
            done.append("work")

        async with trio.open_nursery() as nursery:
            await nursery.start(errands.run)
            with trio.move_on_after(0.5):
                await errands.do(work, begun=False)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert done == (["work"] if begun else [])


def test_what_comes_of_it_is_told_to_the_caller() -> None:
    async def main() -> None:
        errands = Errands()

        async def succeed(begin: Begin) -> int:
            await begin()
            return 7

        async def refuse(begin: Begin) -> None:
            raise Conflict("no")

        async with trio.open_nursery() as nursery:
            await nursery.start(errands.run)
            assert await errands.do(succeed, begun=False) == 7
            with pytest.raises(Conflict):
                await errands.do(refuse, begun=False)
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_failure_that_nobody_waits_for_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        errands = Errands()

        async def refuse(_: object) -> None:
            raise Conflict("not today")

        async with trio.open_nursery() as nursery:
            await nursery.start(errands.run)
            errands.start(refuse)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert "not today" in caplog.text


def test_what_is_told_before_the_end() -> None:
    async def main() -> None:
        errands = Errands()
        over = trio.Event()

        async def work(errand: Errand[int]) -> int:
            await errand.begin()
            errand.tell(7)
            await over.wait()
            return 7

        async with trio.open_nursery() as nursery:
            await nursery.start(errands.run)
            assert await errands.start(work, begun=False).result() == 7
            over.set()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()

    trio.run(main)
