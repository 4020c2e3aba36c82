"""Trying workers one after the other."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router.dispatch import Cancelled, Dispatcher
from router.errors import WorkerFailed
from router.pool.cost import Speeds
from router.pool.lifecycle import Probe
from router.pool.match import Facts, Need
from router.pool.policies import make
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Lease, Origin
from router.relay.attempts import Attempts, TryAnother

REFUSING, GOOD = "http://w:1", "http://w:2"


def test_who_waits_does_not_get_the_slot_of_a_worker_that_just_failed() -> None:
    asked: list[tuple[str, str]] = []

    async def main() -> None:
        registry = Registry()
        dispatcher = Dispatcher(registry, make("least-request", Speeds()))
        attempts = Attempts(registry, dispatcher, retries=3)
        refusing, good = (registry.add(url, Origin.REGISTERED) for url in (REFUSING, GOOD))
        for worker in (refusing, good):
            registry.learned(worker, Capabilities())
            registry.probed(worker, Probe.OK)

        async def request(name: str) -> None:
            async def attempt(lease: Lease) -> None:
                asked.append((name, lease.worker.url))
                await trio.sleep(1)
                if lease.worker is refusing:
                    raise TryAnother(WorkerFailed("connection refused"))

            await attempts.run(Facts(need=Need.SLOT), attempt)

        async with trio.open_nursery() as nursery:
            for name in ("a", "b", "c"):
                nursery.start_soon(request, name)
                await trio.testing.wait_all_tasks_blocked()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [url for _, url in asked].count(REFUSING) == 1
    assert sorted(name for name, url in asked if url == GOOD) == ["a", "b", "c"]


def test_a_request_that_is_cancelled_before_its_second_try_says_so() -> None:
    async def main() -> None:
        registry = Registry()
        dispatcher = Dispatcher(registry, make("least-request", Speeds()))
        attempts = Attempts(registry, dispatcher, retries=3)
        refusing, good = (registry.add(url, Origin.REGISTERED) for url in (REFUSING, GOOD))
        for worker in (refusing, good):
            registry.learned(worker, Capabilities())
            registry.probed(worker, Probe.OK)
        busy = await dispatcher.lease(Facts(need=Need.SLOT), tried=[refusing])

        async def refused(lease: Lease) -> None:
            assert lease.worker is refusing
            raise TryAnother(WorkerFailed("connection refused"))

        async def request() -> None:
            with pytest.raises(Cancelled):
                await attempts.run(Facts(need=Need.SLOT), refused)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
            assert dispatcher.cancel(lambda _: True) == 1
        busy.release()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
