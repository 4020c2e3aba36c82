"""What ends at a boundary, and what does not."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from router import boundary
from router.boundary import contained, keep_running
from router.errors import NotFound
from router.pool.registry import Registry
from router.pool.worker import Lease, Origin


def test_an_error_is_told_once_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    before = boundary.counts["worker"]
    with contained("worker", "reading", request_id="r1") as attempt:
        raise ZeroDivisionError("why\nnot")
    assert isinstance(attempt.error, ZeroDivisionError)
    [record] = caplog.records
    assert record.getMessage() == "reading failed unexpectedly: ZeroDivisionError: why\\nnot"
    assert record.exc_info
    assert record.request_id == "r1"  # type: ignore[attr-defined]
    assert boundary.counts["worker"] == before + 1


def test_words_are_made_only_when_needed() -> None:
    with contained("client", lambda: pytest.fail("nothing is told")):
        pass


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_ends_the_process_passes(kind: type[BaseException]) -> None:
    with pytest.raises(kind), contained("client", "it"):
        raise kind


def test_cancellation_passes() -> None:
    async def main() -> None:
        with trio.CancelScope() as scope:
            scope.cancel()
            with contained("client", "it"):
                await trio.sleep_forever()
            pytest.fail("the cancellation was swallowed")
        assert scope.cancelled_caught

    trio.run(main)


def test_the_errors_of_a_nursery_are_parted() -> None:
    async def fail() -> None:
        raise ZeroDivisionError

    async def interrupt() -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(interrupt)

    async def contain() -> None:
        with contained("client", "it") as attempt:
            try:
                await main()
            finally:
                contain.attempt = attempt  # type: ignore[attr-defined]

    with pytest.raises(BaseExceptionGroup) as caught:
        trio.run(contain, strict_exception_groups=True)
    assert caught.group_contains(KeyboardInterrupt)
    assert not caught.group_contains(ZeroDivisionError)
    assert contain.attempt.error is not None  # type: ignore[attr-defined]


def test_errors_of_the_core_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry()

    def fail(event: object) -> None:
        raise ZeroDivisionError

    registry.subscribe(fail)
    with pytest.raises(ZeroDivisionError), contained("worker", "it"):
        registry.add("http://a:1", Origin.STATIC)


def test_errors_of_the_core_pass_in_groups_too() -> None:
    worker = Registry().add("http://a:1", Origin.STATIC)
    lease = Lease(worker, 1, lambda _: None)
    lease.release()

    async def twice() -> None:
        lease.release()

    async def main() -> None:
        with contained("worker", "it"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(twice)

    with pytest.raises(ExceptionGroup) as caught:
        trio.run(main, strict_exception_groups=True)
    assert caught.group_contains(RuntimeError)


def test_answers_of_the_core_are_no_errors_of_it() -> None:
    with contained("client", "it") as attempt:
        Registry().get("http://a:1")
    assert isinstance(attempt.error, NotFound)


def test_an_error_under_a_lease_is_none_of_the_core() -> None:
    worker = Registry().add("http://a:1", Origin.STATIC)
    with contained("client", "it") as attempt, Lease(worker, 1, lambda _: None):
        raise ZeroDivisionError
    assert attempt.error is not None


def test_a_task_about_a_worker_runs_again(caplog: pytest.LogCaptureFixture) -> None:
    times: list[float] = []
    failures: list[Exception] = []

    async def work() -> None:
        times.append(trio.current_time())
        if len(times) == 5:
            await trio.sleep(100)
        if len(times) < 7:
            raise ZeroDivisionError

    async def main() -> None:
        times.clear()
        began = trio.current_time()
        await keep_running("the watch", work, failures.append)
        assert [round(when - began) for when in times] == [0, 1, 3, 7, 15, 116, 118]

    caplog.set_level(logging.CRITICAL, "router.boundary")
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(failures) == 6
