"""Which worker an exchange is given, when it waits and when it is refused; slots; drains."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
import trio.testing

from router.dispatch import Dispatcher
from router.errors import PoolUnavailable
from router.pool import events, policies
from router.pool.cost import Speeds
from router.pool.lifecycle import AdminEvent, MemoryEvent, Probe
from router.pool.match import Facts, Need, NoCapableWorker
from router.pool.queue import QueueLimits
from router.pool.registry import Registry
from router.pool.versions import Bounds
from router.pool.worker import Capabilities, HoldKind, Lease, Origin, Task, Weights, Worker

ANYTHING = Facts()
VIDEO = Facts(task=Task.VIDEO, need=Need.JOB, kind="video", work=10)


class Pool:
    """A registry with its dispatcher."""

    def __init__(self, policy: str = "round-robin", **limits: object) -> None:
        self.registry = Registry(failure_threshold=3)
        speeds = Speeds(trio.current_time)
        self.dispatcher = Dispatcher(
            self.registry,
            policies.make(policy, speeds),
            limits=QueueLimits(**limits),  # type: ignore[arg-type]
            speeds=speeds,
        )

    def add(
        self, name: str, *, model: str = "m", tasks: tuple[str, ...] = ("T2I",), slots: int = 1
    ) -> Worker:
        """A routable worker."""
        worker = self.registry.add(f"http://{name}", Origin.STATIC, concurrency=slots)
        self.registry.learned(worker, Capabilities(models=(model,), task_types=tasks))
        self.registry.probed(worker, Probe.OK)
        return worker

    def fail(self, worker: Worker, times: int = 3) -> None:
        for _ in range(times):
            self.registry.probed(worker, Probe.FAILED)

    def sleep(self, worker: Worker) -> None:
        self.registry.apply_memory_event(worker, MemoryEvent.SLEEP)

    async def lease(self, facts: Facts = ANYTHING, *tried: Worker) -> Lease:
        return await self.dispatcher.lease(facts, tried=tried)

    async def chosen(self, facts: Facts = ANYTHING, *tried: Worker) -> Worker:
        with await self.lease(facts, *tried) as lease:
            return lease.worker

    async def refusal(self, facts: Facts = ANYTHING, *tried: Worker) -> PoolUnavailable:
        with pytest.raises(PoolUnavailable) as caught:
            await self.chosen(facts, *tried)
        assert caught.value.status == 503
        return caught.value


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run in virtual time; a deadlock is a failure."""

    async def bounded() -> None:
        with trio.fail_after(100_000):
            await main()

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(bounded, clock=clock, strict_exception_groups=True)


settled = trio.testing.wait_all_tasks_blocked


class Asking:
    """Tasks that ask for leases. `got`: names of those that have one, in order."""

    def __init__(self, pool: Pool, nursery: trio.Nursery) -> None:
        self.pool, self.nursery = pool, nursery
        self.got: list[str] = []
        self.leases: dict[str, Lease] = {}
        self.errors: dict[str, Exception] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    async def ask(self, name: str, facts: Facts = ANYTHING, *tried: Worker) -> None:
        self.nursery.start_soon(self._ask, name, facts, tried)
        await settled()

    async def _ask(self, name: str, facts: Facts, tried: tuple[Worker, ...]) -> None:
        with trio.CancelScope() as self.scopes[name]:
            try:
                self.leases[name] = await self.pool.lease(facts, *tried)
                self.got.append(name)
            except (PoolUnavailable, NoCapableWorker) as error:
                self.errors[name] = error

    async def release(self, name: str) -> None:
        self.leases.pop(name).release()
        await settled()


# Who is given.


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

    run(main)


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
        (
            lambda pool, worker: pool.registry.set_weights(worker, Weights.FAILED, 0),
            "weights_unavailable",
        ),
    ],
)
def test_why_there_is_none(spoil: Callable[[Pool, Worker], None], code: str) -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("waits")
            assert not asking.errors
            spoil(pool, worker)
            await settled()
            assert getattr(asking.errors["waits"], "code", None) == code
        assert (await pool.refusal()).code == code
        assert not pool.dispatcher.serves()
        lease.release()

    run(main)


def test_dead_ones_do_not_hide_that_the_rest_is_asleep() -> None:
    async def main() -> None:
        pool = Pool()
        pool.sleep(pool.add("a"))
        pool.fail(pool.add("b"))
        assert (await pool.refusal()).code == "pool_asleep"

    run(main)


def test_a_pool_that_cannot_do_the_task() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a", tasks=("T2I",))
        with pytest.raises(NoCapableWorker) as caught:
            await pool.chosen(VIDEO)
        assert (caught.value.status, caught.value.message) == (
            400,
            "No video-capable workers available in current worker pool.",
        )
        assert pool.dispatcher.serves()  # other requests are served
        video = pool.add("b", tasks=("T2V",))
        pool.sleep(video)
        assert (await pool.refusal(VIDEO)).code == "pool_asleep"

    run(main)


def test_one_that_was_not_read_yet_may_be_what_is_wanted() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a", tasks=("T2I",))
        new = pool.registry.add("http://new", Origin.REGISTERED)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("video", VIDEO)
            await asking.ask("model", Facts(model="unheard-of"))
            assert not asking.got
            assert not asking.errors
            pool.registry.learned(new, Capabilities(models=("unheard-of",), task_types=("T2I",)))
            await settled()
            assert isinstance(asking.errors["video"], NoCapableWorker)
            pool.registry.probed(new, Probe.OK)
            await settled()
            assert asking.leases["model"].worker is new

    run(main)


def test_the_fitting_ones_count_not_the_pool() -> None:
    async def main() -> None:
        pool = Pool()
        a, b = pool.add("a", model="x"), pool.add("b", model="y")
        pool.sleep(a)
        assert (await pool.refusal(Facts(model="x"))).code == "pool_asleep"
        assert await pool.chosen(Facts(model="y")) is b

    run(main)


def test_a_worker_that_was_tried_is_not_given_again() -> None:
    async def main() -> None:
        pool = Pool()
        a, b = pool.add("a"), pool.add("b")
        assert {await pool.chosen(Facts(), a) for _ in range(3)} == {b}
        assert (await pool.refusal(Facts(), a, b)).code == "no_routable_worker"

    run(main)


def test_names_of_no_model_share_one_rotation() -> None:
    async def main() -> None:
        pool = Pool("round-robin")
        a, b = pool.add("a"), pool.add("b")
        given = [await pool.chosen(Facts(model=f"my-alias-{number}")) for number in range(4)]
        assert given == [a, b, a, b]

    run(main)


# First contact.


def test_the_first_probe_is_waited_for() -> None:
    async def main() -> None:
        pool = Pool()
        new = pool.registry.add("http://new", Origin.REGISTERED)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("early")
            assert pool.dispatcher.serves()
            pool.registry.learned(new, Capabilities())
            pool.registry.probed(new, Probe.OK)
            await settled()
            assert asking.got == ["early"]

    run(main)


def test_first_contact_is_optimistic_if_nobody_is_routable() -> None:
    async def main() -> None:
        pool = Pool()
        new = pool.registry.add("http://new", Origin.REGISTERED)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("one")
            await asking.ask("two")
            pool.fail(new, 1)
            await settled()
            # It has one slot, and that is tried; the other has nothing to wait for.
            assert asking.leases["one"].worker is new
            assert "two" in asking.errors
            await asking.release("one")
        assert not pool.dispatcher.serves()  # it is tried, which is no promise
        pool.fail(new, 1)
        assert await pool.chosen() is new
        assert (await pool.refusal(ANYTHING, new)).code == "no_routable_worker"
        assert (await pool.refusal(Facts(bounds=Bounds(1)))).code == "no_routable_worker"
        pool.fail(new, 1)
        assert (await pool.refusal()).code == "no_routable_worker"

    run(main)


def test_a_routable_worker_is_better_than_optimism() -> None:
    async def main() -> None:
        pool = Pool()
        pool.fail(pool.registry.add("http://new", Origin.REGISTERED), 1)
        a = pool.add("a")
        assert {await pool.chosen() for _ in range(3)} == {a}

    run(main)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda pool, worker: pool.registry.administer(worker, AdminEvent.DRAIN),
        lambda pool, worker: pool.registry.administer(worker, AdminEvent.QUARANTINE),
        lambda pool, worker: pool.sleep(worker),
        lambda pool, worker: pool.registry.set_weights(
            worker, Weights.BEHIND, worker.weight_version
        ),
        lambda pool, worker: pool.registry.probed(worker, Probe.BACKEND_DEAD),
    ],
)
def test_optimism_has_its_limits(spoil: Callable[[Pool, Worker], None]) -> None:
    async def main() -> None:
        pool = Pool()
        new = pool.registry.add("http://new", Origin.REGISTERED)
        pool.fail(new, 1)
        assert await pool.chosen() is new
        spoil(pool, new)
        await pool.refusal()

    run(main)


def test_optimism_does_not_try_what_was_known_once() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        pool.fail(worker)
        pool.registry.forgive(worker)  # of unknown health, but met
        pool.fail(worker, 1)
        await pool.refusal()

    run(main)


# Waiting.


def test_what_finds_no_free_slot_waits_for_one_in_order() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", slots=2)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("1", "2", "3", "4", "5"):
                await asking.ask(name)
            assert asking.got == ["1", "2"]
            assert pool.dispatcher.queue.waiting == 3
            await asking.release("2")
            assert asking.got == ["1", "2", "3"]
            assert worker.free_slots == 0
            pool.registry.set_concurrency(worker, 4)
            await settled()
            assert set(asking.got) == {"1", "2", "3", "4", "5"}
            assert pool.dispatcher.queue.waiting == 0

    run(main)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            lambda pool, w: pool.registry.set_weights(w, Weights.UPDATING, w.weight_version),
            lambda pool, w: pool.registry.set_weights(w, Weights.CURRENT, w.weight_version),
        ),
        (
            lambda pool, w: pool.registry.set_weights(w, Weights.BEHIND, w.weight_version),
            lambda pool, w: pool.registry.set_weights(w, Weights.CURRENT, w.weight_version),
        ),
        (
            lambda pool, w: [
                pool.registry.apply_memory_event(w, event)
                for event in (MemoryEvent.SLEEP, MemoryEvent.SLEPT, MemoryEvent.WAKE)
            ],
            lambda pool, w: pool.registry.apply_memory_event(w, MemoryEvent.WOKE),
        ),
        (
            lambda pool, w: pool.registry.probed(w, Probe.WARMING),
            lambda pool, w: pool.registry.probed(w, Probe.OK),
        ),
        (
            lambda pool, w: (pool.fail(w), pool.registry.forgive(w)),
            lambda pool, w: pool.registry.probed(w, Probe.OK),
        ),
    ],
    ids=["updating", "behind", "waking", "warming", "to be probed"],
)
@pytest.mark.parametrize("need", [Need.SLOT, Need.JOB, Need.NOTHING, Need.SESSION])
def test_what_ends_by_itself_is_waited_for(
    before: Callable[[Pool, Worker], None], after: Callable[[Pool, Worker], None], need: Need
) -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        before(pool, worker)
        assert pool.dispatcher.serves()
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("waits", Facts(need=need, task=Task.VIDEO))
            assert not asking.got
            assert not asking.errors
            after(pool, worker)
            await settled()
            assert asking.got == ["waits"]

    run(main)


def test_a_queue_has_a_bound() -> None:
    async def main() -> None:
        pool = Pool(size=2)
        pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("runs", "waits", "waits too", "is refused"):
                await asking.ask(name)
            error = asking.errors["is refused"]
            assert isinstance(error, PoolUnavailable)
            assert (error.code, error.headers) == ("queue_full", (("Retry-After", "2"),))
            assert "2 requests are waiting" in error.message
            assert pool.dispatcher.queue.waiting == 2
            await asking.release("runs")
            await asking.ask("waits again")
            assert list(asking.errors) == ["is refused"]
            nursery.cancel_scope.cancel()

    run(main)


def test_the_bodies_of_what_waits_have_a_bound() -> None:
    async def main() -> None:
        pool = Pool(bytes=10)
        pool.add("a")
        running = await pool.dispatcher.lease(ANYTHING, held=1000)  # it does not wait
        async with trio.open_nursery() as nursery:
            for held in (6, 0, 4):
                nursery.start_soon(partial(pool.dispatcher.lease, ANYTHING, held=held))
                await settled()
            with pytest.raises(PoolUnavailable) as caught:
                await pool.dispatcher.lease(ANYTHING, held=1)
            assert caught.value.code == "queue_full"
            assert "10 bytes" in caught.value.message
            assert pool.dispatcher.queue.waiting == 3
            running.release()  # the first of them has its turn
            await settled()
            nursery.start_soon(partial(pool.dispatcher.lease, ANYTHING, held=6))
            await settled()
            assert pool.dispatcher.queue.waiting == 3
            nursery.cancel_scope.cancel()
        assert pool.dispatcher._held == 0

    run(main)


def test_a_queue_of_no_size_serves_what_need_not_wait() -> None:
    async def main() -> None:
        pool = Pool(size=0)
        pool.add("a")
        lease = await pool.lease()
        error = await pool.refusal()
        assert error.code == "queue_full"
        lease.release()
        await pool.chosen()

    run(main)


def test_one_that_was_tried_elsewhere_has_its_place() -> None:
    async def main() -> None:
        pool = Pool(size=1)
        a, b = pool.add("a"), pool.add("b")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("one", "two", "waits"):
                await asking.ask(name)
            await asking.ask("tried", ANYTHING, a)
            assert not asking.errors
            on_b = next(name for name, lease in asking.leases.items() if lease.worker is b)
            await asking.release(on_b)
            assert asking.got[-1] == "tried"  # before the others: it has waited already
            nursery.cancel_scope.cancel()

    run(main)


def test_patience_ends() -> None:
    async def main() -> None:
        pool = Pool(patience=60)
        pool.add("a")
        lease = await pool.lease()
        begun = trio.current_time()
        error = await pool.refusal()
        assert trio.current_time() - begun == pytest.approx(60)
        assert error.code == "queue_timeout"
        assert 1 <= int(dict(error.headers)["Retry-After"]) <= 300
        session = Facts(need=Need.SESSION)
        begun = trio.current_time()
        assert (await pool.refusal(session)).code == "queue_timeout"
        assert trio.current_time() - begun == pytest.approx(5)
        assert pool.dispatcher.queue.waiting == 0
        lease.release()

    run(main)


def test_retry_after_follows_the_rate_at_which_the_queue_drains() -> None:
    async def main() -> None:
        pool = Pool(size=30)
        pool.add("a")
        for _ in range(20):  # two seconds each
            with await pool.lease():
                await trio.sleep(2)
        assert pool.dispatcher.drain_rate() == pytest.approx(0.5)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for number in range(32):
                await asking.ask(str(number))
            error = asking.errors["31"]
            assert isinstance(error, PoolUnavailable)
            assert 55 <= int(dict(error.headers)["Retry-After"]) <= 65
            nursery.cancel_scope.cancel()

    run(main)


def test_clients_take_turns() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for number in range(5):
                await asking.ask(f"burst{number}", Facts(client="burst"))
            await asking.ask("single", Facts(client="single"))
            await asking.release("burst0")
            await asking.release("burst1")
            assert asking.got == ["burst0", "burst1", "single"]
            nursery.cancel_scope.cancel()

    run(main)


def test_the_longest_first_if_so_wanted_but_nobody_starves() -> None:
    async def main() -> None:
        pool = Pool(longest_first=True)
        pool.add("a")
        pool.dispatcher.speeds.learn("http://a", "image", 1, 1)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name, work in (("runs", 1), ("short", 1), ("long", 9), ("middle", 3)):
                await asking.ask(name, Facts(kind="image", work=work))
            await trio.sleep(300)
            await asking.ask("late and long", Facts(kind="image", work=30))
            for name in ("runs", "long", "middle", "short"):
                await asking.release(name)
            assert asking.got == ["runs", "long", "middle", "short", "late and long"]

    run(main)


# Cancellation.


def test_who_leaves_while_waiting_costs_nobody_anything() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("runs", "leaves", "stays"):
                await asking.ask(name)
            asking.scopes["leaves"].cancel()
            await settled()
            assert pool.dispatcher.queue.waiting == 1
            await asking.release("runs")
            assert asking.got == ["runs", "stays"]
            await asking.release("stays")
        assert not worker.holds
        assert not worker.leases

    run(main)


@pytest.mark.parametrize("cancel_first", [True, False])
def test_a_lease_given_in_the_moment_of_leaving_is_given_back(cancel_first: bool) -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("runs", "leaves", "stays"):
                await asking.ask(name)
            if cancel_first:
                asking.scopes["leaves"].cancel()
            asking.leases.pop("runs").release()
            if not cancel_first:
                asking.scopes["leaves"].cancel()
            await settled()
            if "leaves" in asking.leases:  # it had the lease before it was cancelled
                await asking.release("leaves")
            assert asking.got[-1] == "stays"
            await asking.release("stays")
        assert not worker.holds
        assert not worker.leases
        assert worker.free_slots == 1

    run(main)


def test_a_stop_refuses_what_waits_and_leaves_the_rest_alone() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for name in ("runs", "waits"):
                await asking.ask(name)
            pool.dispatcher.close()
            await settled()
            assert getattr(asking.errors["waits"], "code", None) == "shutting_down"
            assert (await pool.refusal()).code == "shutting_down"
            assert worker.active_requests == 1
            await asking.release("runs")
        assert worker.free_slots == 1

    run(main)


# Slots: generations, jobs, ghosts.


def test_a_slot_is_free_at_the_head_and_the_exchange_over_at_its_end() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        assert (worker.free_slots, worker.active_requests) == (0, 1)
        pool.dispatcher.answered(lease, 200)
        assert (worker.free_slots, worker.active_requests) == (1, 1)
        again = await pool.lease()
        lease.release()
        assert (worker.free_slots, worker.active_requests) == (0, 1)
        again.release()
        with pytest.raises(RuntimeError, match="released twice"):
            again.release()
        assert (worker.free_slots, worker.active_requests) == (1, 0)

    run(main)


def test_a_ghost_keeps_its_slot() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        (hold,) = worker.holds
        pool.dispatcher.abandon(lease)
        lease.release()
        assert (worker.free_slots, worker.ghosts, worker.active_requests) == (0, 1, 0)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("waits")
            assert not asking.got
            pool.registry.drop(hold)
            await settled()
            assert asking.got == ["waits"]
        pool.registry.drop(hold)  # once more changes nothing
        assert worker.free_slots == 0

    run(main)


def test_a_job_holds_its_slot_until_it_has_ended() -> None:
    async def main() -> None:
        pool = Pool("least-request")
        a, b = pool.add("a", tasks=("T2I", "T2V")), pool.add("b", tasks=("T2I", "T2V"))
        lease = await pool.lease(VIDEO)
        worker, other = (a, b) if lease.worker is a else (b, a)
        pool.dispatcher.answered(lease, 200)
        pool.dispatcher.job_began(lease, "job")
        lease.release()
        assert (worker.free_slots, worker.jobs, worker.active_requests) == (0, 1, 0)
        assert {await pool.chosen() for _ in range(4)} == {other}  # images go elsewhere
        pool.dispatcher.job_ended("job", "completed")
        pool.dispatcher.job_ended("job", "completed")
        assert (worker.free_slots, worker.jobs) == (1, 0)

    run(main)


def test_a_job_of_a_worker_that_was_removed_meanwhile_is_not_kept() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        with await pool.lease(VIDEO) as lease:
            pool.registry.remove(worker)
            pool.dispatcher.job_began(lease, "job")
        assert not pool.dispatcher._jobs

    run(main)


def test_a_job_that_was_refused_or_has_no_id_is_none() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        lease = await pool.lease(VIDEO)
        pool.dispatcher.answered(lease, 400)
        assert worker.free_slots == 1
        lease.release()
        lease = await pool.lease(VIDEO)
        pool.dispatcher.answered(lease, 200)
        assert worker.free_slots == 0
        lease.release()
        assert worker.free_slots == 1

    run(main)


def test_a_deleted_job_that_ran_is_a_ghost() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        lease = await pool.lease(VIDEO)
        pool.dispatcher.job_began(lease, "job")
        lease.release()
        pool.dispatcher.job_deleted("job")
        assert (worker.jobs, worker.ghosts, worker.free_slots) == (0, 1, 0)
        pool.dispatcher.job_ended("job", "completed")  # nobody follows it any more
        assert worker.ghosts == 1

    run(main)


def test_jobs_spread_by_what_is_outstanding() -> None:
    async def main() -> None:
        pool = Pool()
        workers = [pool.add(name, tasks=("T2V",)) for name in "abc"]
        for number in range(9):
            lease = await pool.lease(VIDEO)
            pool.dispatcher.job_began(lease, str(number))
            lease.release()
        assert [worker.jobs for worker in workers] == [3, 3, 3]

    run(main)


def test_too_many_jobs() -> None:
    async def main() -> None:
        pool = Pool(jobs_per_worker=2)
        pool.add("a", tasks=("T2V",))
        leases = [await pool.lease(VIDEO) for _ in range(2)]
        error = await pool.refusal(VIDEO)
        assert error.code == "too_many_jobs"
        assert dict(error.headers)["Retry-After"]
        leases[0].release()
        await pool.chosen(VIDEO)

    run(main)


def test_a_new_process_has_all_its_slots() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2I", "T2V"))
        job = await pool.lease(VIDEO)
        pool.dispatcher.job_began(job, "job")
        job.release()
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("waits")
            assert not asking.got
            pool.registry.reincarnate(worker, "it died")
            await settled()
            assert asking.got == ["waits"]
            # What ends late, of the process before, frees nothing.
            pool.dispatcher.job_ended("job", "completed")
            assert worker.free_slots == 0

    run(main)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_late_end_changes_nothing_in_the_next_incarnation(how: str) -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        old = await pool.lease()
        if how == "removed":
            pool.registry.remove(worker)
            worker = pool.add("a")
        else:
            pool.registry.reincarnate(worker, "it died")
        new = await pool.lease()
        assert new.worker is worker
        pool.dispatcher.abandon(old)
        old.release()
        assert (worker.free_slots, worker.active_requests, worker.ghosts) == (0, 1, 0)
        new.release()
        assert (worker.free_slots, worker.active_requests) == (1, 0)

    run(main)


# What is learnt.


def test_speeds_are_learnt_from_answers() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        facts = Facts(kind="image", work=4)
        lease = await pool.lease(facts)
        await trio.sleep(30)  # the upload
        pool.dispatcher.delivered(lease)
        await trio.sleep(2)
        assert pool.dispatcher.speeds.outstanding(worker) > 0
        pool.dispatcher.answered(lease, 200)
        await trio.sleep(60)  # the transfer
        lease.release()
        assert pool.dispatcher.speeds.of(worker.url) == {"image": 0.5}
        lease = await pool.lease(facts)
        await trio.sleep(9)
        pool.dispatcher.answered(lease, 400)
        lease.release()
        assert pool.dispatcher.speeds.of(worker.url) == {"image": 0.5}

    run(main)


def test_waiting_behind_others_does_not_distort_what_is_learnt() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        for name in ("one", "two", "three"):
            lease = await pool.lease(VIDEO)
            pool.dispatcher.answered(lease, 200)
            pool.dispatcher.job_began(lease, name)
            lease.release()
        assert pool.dispatcher.speeds.of(worker.url) == {}  # a POST is no generation
        for name in ("one", "two", "three"):
            await trio.sleep(20)
            pool.dispatcher.job_ended(name, "completed")
            assert pool.dispatcher.speeds.of(worker.url) == {"video": 2.0}

    run(main)


# Drains.


def test_a_drain_ends_with_the_last_exchange() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", slots=3)
        await pool.dispatcher.drain(worker)  # nothing to wait for
        leases = [await pool.lease() for _ in range(3)]
        drained: list[str] = []

        async def drain(name: str) -> None:
            await pool.dispatcher.drain(worker)
            drained.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drain, "one")
            nursery.start_soon(drain, "two")
            for lease in leases:
                await settled()
                assert drained == []
                lease.release()
        assert sorted(drained) == ["one", "two"]

    run(main)


@pytest.mark.parametrize("kind", [HoldKind.JOB, HoldKind.GHOST])
def test_a_drain_waits_for_jobs_and_ghosts(kind: HoldKind) -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        hold = pool.registry.keep(lease, kind)
        assert hold is not None
        lease.release()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.dispatcher.drain, worker)
            await settled()
            assert nursery.child_tasks
            pool.registry.drop(hold)

    run(main)


def test_a_drain_waits_on_if_somebody_was_quicker() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        with trio.move_on_after(60) as waiting:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.dispatcher.drain, worker)
                await settled()
                lease.release()
                again = await pool.lease()  # before the drain came to run
        assert waiting.cancelled_caught
        again.release()

    run(main)


def test_a_drain_is_not_held_up_by_a_process_that_is_gone() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pool.dispatcher.drain, worker)
                await settled()
                pool.registry.reincarnate(worker, "its idle connection was closed")
        lease.release()

    run(main)


def test_a_cancelled_drain_leaves_the_next_one_alone() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        lease = await pool.lease()
        with trio.move_on_after(1):
            await pool.dispatcher.drain(worker)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.dispatcher.drain, worker)
            await settled()
            lease.release()

    run(main)


def test_nothing_is_given_before_all_observers_have_heard() -> None:
    """One that subscribed after the dispatcher may make the worker unroutable."""

    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")

        def fence(event: events.SlotFreed) -> None:
            pool.registry.set_weights(worker, Weights.UPDATING, 0)

        pool.registry.subscribe(fence, events.SlotFreed)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("first")
            await asking.ask("second")
            await asking.release("first")
            assert asking.got == ["first"]
            pool.registry.set_weights(worker, Weights.CURRENT, 1)
            await settled()
            assert asking.got == ["first", "second"]

    run(main)


# Suspects.


def test_what_a_suspect_cannot_take_waits_until_it_is_absolved() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", slots=4)
        pool.registry.set_weights(worker, Weights.CURRENT, 3)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("before")
            pool.registry.suspect(worker, "its idle connection was closed")
            await asking.ask("job", Facts(need=Need.JOB))
            await asking.ask("slot")
            await asking.ask("other", Facts(need=Need.NOTHING))
            assert (asking.got, asking.errors) == (["before"], {})
            pool.registry.absolve(worker)
            await settled()
            assert sorted(asking.got) == ["before", "job", "other", "slot"]
            for name in list(asking.leases):
                await asking.release(name)

    run(main)


def test_what_waits_for_a_suspect_is_not_given_to_another_process() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        pool.registry.set_weights(worker, Weights.CURRENT, 3)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            pool.registry.suspect(worker, "its idle connection was closed")
            await asking.ask("one")
            pool.registry.reincarnate(worker, "its idle connection was closed")
            pool.registry.learned(worker, Capabilities(models=("m",), task_types=("T2I",)))
            pool.registry.probed(worker, Probe.OK)
            await settled()
            assert asking.got == []
            pool.registry.set_weights(worker, Weights.UPDATING, worker.weight_version)
            pool.registry.set_weights(worker, Weights.CURRENT, worker.weight_version)
            await settled()
            assert asking.got == ["one"]
            await asking.release("one")

    run(main)


def test_others_serve_while_one_is_a_suspect() -> None:
    async def main() -> None:
        pool = Pool()
        a, b = pool.add("a"), pool.add("b")
        for worker in (a, b):
            pool.registry.set_weights(worker, Weights.CURRENT, 3)
        pool.registry.suspect(a, "its idle connection was closed")
        assert {await pool.chosen() for _ in range(4)} == {b}
        pool.registry.absolve(a)
        assert {await pool.chosen() for _ in range(4)} == {a, b}

    run(main)


def test_optimism_does_not_try_a_suspect_once_weights_were_changed() -> None:
    async def main() -> None:
        pool = Pool()
        restored = pool.registry.add("http://restored", Origin.REGISTERED)
        pool.fail(restored, 1)
        pool.registry.suspect(restored, "the router was restarted")
        assert await pool.chosen() is restored
        pool.registry.set_weights(restored, Weights.CURRENT, 3)
        await pool.refusal()

    run(main)


def test_who_waits_and_who_is_refused_is_told() -> None:
    async def main() -> None:
        pool = Pool(patience=30)
        told: list[events.Queued | events.Refused] = []
        pool.registry.bus.subscribe(told.append, events.Queued, events.Refused)
        pool.add("a")
        taken = await pool.lease()
        assert told == []  # it was given one at once
        error = await pool.refusal()
        queued, refused = told
        assert queued == events.Queued(ANYTHING, 1)
        assert refused == events.Refused(ANYTHING, error, 30)
        taken.release()
        pool.dispatcher.close()
        error = await pool.refusal()
        assert told[2:] == [events.Refused(ANYTHING, error, 0)]

    run(main)
