"""Which worker an exchange is given, what is said where there is none, and drains."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from router.dispatch import Dispatcher, NoCapableWorker
from router.errors import PoolUnavailable
from router.pool import policies
from router.pool.candidates import Facts
from router.pool.lifecycle import AdminEvent, MemoryEvent, Probe
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Origin, Task, Worker

ANYTHING = Facts()


class Pool:
    """A registry with its dispatcher."""

    def __init__(self, policy: str = "round-robin") -> None:
        self.registry = Registry(failure_threshold=3)
        self.dispatcher = Dispatcher(self.registry, policies.make(policy), failure_threshold=3)

    def add(self, name: str, *, model: str = "m", tasks: tuple[str, ...] = ("T2I",)) -> Worker:
        """A routable worker."""
        worker = self.registry.add(f"http://{name}", Origin.STATIC)
        self.registry.learned(worker, Capabilities(models=(model,), task_types=tasks))
        self.registry.probed(worker, Probe.OK)
        return worker

    def fail(self, worker: Worker, times: int = 3) -> None:
        for _ in range(times):
            self.registry.probed(worker, Probe.FAILED)

    def sleep(self, worker: Worker) -> None:
        self.registry.remember(worker, MemoryEvent.SLEEP)

    async def chosen(self, facts: Facts = ANYTHING, *tried: Worker) -> Worker:
        with await self.dispatcher.lease(facts, tried=tried) as lease:
            return lease.worker

    async def refusal(self, facts: Facts = ANYTHING, *tried: Worker) -> PoolUnavailable:
        with pytest.raises(PoolUnavailable) as caught:
            await self.chosen(facts, *tried)
        assert caught.value.status == 503
        return caught.value


def test_only_routable_workers_are_given() -> None:
    async def main() -> None:
        pool = Pool()
        a, b, c, d, e = (pool.add(name) for name in "abcde")
        pool.fail(a)
        pool.sleep(b)
        pool.registry.administer(c, AdminEvent.DRAIN)
        pool.registry.remove(d)
        assert {await pool.chosen() for _ in range(5)} == {e}
        assert pool.dispatcher.serves()

    trio.run(main)


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda pool, worker: pool.registry.remove(worker), "no_workers"),
        (lambda pool, worker: pool.sleep(worker), "pool_asleep"),
        (lambda pool, worker: pool.fail(worker), "no_routable_worker"),
        (
            lambda pool, worker: pool.registry.administer(worker, AdminEvent.DRAIN),
            "no_routable_worker",
        ),
        (
            lambda pool, worker: pool.registry.administer(worker, AdminEvent.QUARANTINE),
            "no_routable_worker",
        ),
        (lambda pool, worker: pool.registry.probed(worker, Probe.WARMING), "no_routable_worker"),
    ],
)
def test_why_there_is_none(spoil: Callable[[Pool, Worker], None], code: str) -> None:
    async def main() -> None:
        pool = Pool()
        spoil(pool, pool.add("a"))
        assert (await pool.refusal()).code == code
        assert not pool.dispatcher.serves()

    trio.run(main)


def test_dead_ones_do_not_hide_that_the_rest_is_asleep() -> None:
    async def main() -> None:
        pool = Pool()
        pool.sleep(pool.add("a"))
        pool.fail(pool.add("b"))
        assert (await pool.refusal()).code == "pool_asleep"
        pool.registry.probed(pool.add("c"), Probe.WARMING)
        assert (await pool.refusal()).code == "no_routable_worker"

    trio.run(main)


def test_a_pool_that_cannot_do_the_task() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a", tasks=("T2I",))
        with pytest.raises(NoCapableWorker) as caught:
            await pool.chosen(Facts(task=Task.VIDEO))
        assert (caught.value.status, caught.value.message) == (
            400,
            "No video-capable workers available in current worker pool.",
        )
        assert pool.dispatcher.serves()  # other requests are served
        # Of one that was not read yet nobody can say that it cannot.
        pool.registry.add("http://new", Origin.REGISTERED)
        assert (await pool.refusal(Facts(task=Task.VIDEO))).code == "no_routable_worker"

    trio.run(main)


def test_the_fitting_ones_count_not_the_pool() -> None:
    async def main() -> None:
        pool = Pool()
        a, b = pool.add("a", model="x"), pool.add("b", model="y")
        pool.sleep(a)
        assert (await pool.refusal(Facts(model="x"))).code == "pool_asleep"
        assert await pool.chosen(Facts(model="y")) is b

    trio.run(main)


def test_a_worker_that_was_tried_is_not_given_again() -> None:
    async def main() -> None:
        pool = Pool()
        a, b = pool.add("a"), pool.add("b")
        assert {await pool.chosen(Facts(), a) for _ in range(3)} == {b}
        assert (await pool.refusal(Facts(), a, b)).code == "no_routable_worker"

    trio.run(main)


def test_names_of_no_model_share_one_rotation() -> None:
    async def main() -> None:
        pool = Pool("round-robin")
        a, b = pool.add("a"), pool.add("b")
        given = [await pool.chosen(Facts(model=f"my-alias-{number}")) for number in range(4)]
        assert given == [a, b, a, b]

    trio.run(main)


def test_first_contact_is_optimistic_if_nobody_is_routable() -> None:
    async def main() -> None:
        pool = Pool()
        new = pool.registry.add("http://new", Origin.REGISTERED)
        assert await pool.chosen() is new
        assert not pool.dispatcher.serves()  # it is tried, which is no promise
        pool.fail(new, 2)
        assert await pool.chosen() is new
        pool.fail(new, 1)
        assert (await pool.refusal()).code == "no_routable_worker"

    trio.run(main)


def test_a_routable_worker_is_better_than_optimism() -> None:
    async def main() -> None:
        pool = Pool()
        pool.registry.add("http://new", Origin.REGISTERED)
        a = pool.add("a")
        assert {await pool.chosen() for _ in range(3)} == {a}

    trio.run(main)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pool, worker: pool.registry.administer(worker, AdminEvent.DRAIN),
        lambda pool, worker: pool.registry.administer(worker, AdminEvent.QUARANTINE),
        lambda pool, worker: pool.sleep(worker),
        lambda pool, worker: pool.registry.probed(worker, Probe.WARMING),
        lambda pool, worker: pool.registry.probed(worker, Probe.BACKEND_DEAD),
    ],
)
def test_optimism_has_its_limits(spoil: Callable[[Pool, Worker], None]) -> None:
    async def main() -> None:
        pool = Pool()
        spoil(pool, pool.registry.add("http://new", Origin.REGISTERED))
        await pool.refusal()

    trio.run(main)


def test_optimism_does_not_try_what_was_known_once() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        pool.fail(worker)
        pool.registry.forgive(worker)  # of unknown health, but met
        await pool.refusal()

    trio.run(main)


def test_a_drain_ends_with_the_last_exchange() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        await pool.dispatcher.drain(worker)  # nothing to wait for
        leases = [await pool.dispatcher.lease(Facts()) for _ in range(3)]
        drained: list[str] = []

        async def drain(name: str) -> None:
            await pool.dispatcher.drain(worker)
            drained.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, "one")
            nursery.start_soon(drain, "two")
            for lease in leases:
                await trio.testing.wait_all_tasks_blocked()
                assert drained == []
                lease.release()
        assert sorted(drained) == ["one", "two"]

    trio.run(main)


def test_a_drain_waits_on_if_somebody_was_quicker() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.dispatcher.lease(Facts())
        with trio.move_on_after(60) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.dispatcher.drain, worker)
                await trio.testing.wait_all_tasks_blocked()
                lease.release()
                again = await pool.dispatcher.lease(Facts())  # before the drain came to run
        assert waiting.cancelled_caught
        again.release()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_drain_is_not_held_up_by_a_process_that_is_gone() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.dispatcher.lease(Facts())
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.dispatcher.drain, worker)
                await trio.testing.wait_all_tasks_blocked()
                pool.registry.reincarnate(worker, "its idle connection was closed")
        lease.release()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_cancelled_drain_leaves_the_next_one_alone() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.dispatcher.lease(Facts())
        with trio.move_on_after(1):
            await pool.dispatcher.drain(worker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.dispatcher.drain, worker)
            await trio.testing.wait_all_tasks_blocked()
            lease.release()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
