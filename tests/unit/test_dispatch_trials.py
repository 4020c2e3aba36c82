"""What waits while workers are on trial or paused: with a clock that jumps."""

from __future__ import annotations

import pytest
import trio

from router.pool.lifecycle import AdminEvent, Probe
from router.pool.match import Facts, Need
from router.pool.worker import Weights, Worker
from tests.unit.test_dispatch import ANYTHING, VIDEO, Asking, Pool, run, settled

CALL = Facts(need=Need.CALL)


async def eject(pool: Pool, worker: Worker) -> None:
    """Fail requests of the worker until it is on trial."""
    while worker.trial is None:
        lease = await pool.lease()
        hold = lease.hold
        assert hold is not None
        pool.dispatcher.answered(lease, 500 if lease.worker is worker else 200)
        if lease.worker is not worker:
            pool.dispatcher.succeeded(hold)
        lease.release()


def test_what_waits_waits_for_the_sound_one() -> None:
    async def main() -> None:
        pool = Pool()
        broken, sound = pool.add("a"), pool.add("b")
        await eject(pool, broken)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("first")
            await asking.ask("second")
            assert asking.got == ["first"]
            assert asking.leases["first"].worker is sound
            await asking.release("first")
            assert asking.leases["second"].worker is sound
            await asking.release("second")

    run(main)


def test_the_end_of_a_pause_wakes_one_that_waits() -> None:
    async def main() -> None:
        pool = Pool()
        broken, sound = pool.add("a"), pool.add("b")
        await eject(pool, broken)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.dispatcher.run)
            asking = Asking(pool, nursery)
            for name in ("first", "second", "third"):
                await asking.ask(name)
            await trio.sleep(19)
            assert asking.got == ["first"]
            await trio.sleep(2)
            assert asking.got == ["first", "second"]  # and one only
            assert asking.leases["second"].worker is broken
            hold = asking.leases["second"].hold
            assert hold is not None
            pool.dispatcher.answered(asking.leases["second"], 200)
            await settled()
            assert asking.got == ["first", "second"]  # the answer may still break off
            pool.dispatcher.succeeded(hold)
            await settled()
            assert asking.leases["third"].worker is broken  # it is free again
            for name in ("first", "second", "third"):
                await asking.release(name)
            nursery.cancel_scope.cancel()
        assert broken.trial is None
        assert sound.trial is None

    run(main)


def test_successes_elsewhere_shorten_the_wait_for_a_trial() -> None:
    async def main() -> None:
        pool = Pool()
        broken, sound = pool.add("a"), pool.add("b")
        await eject(pool, broken)
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.dispatcher.run)
            asking = Asking(pool, nursery)
            await asking.ask("first")
            await asking.ask("second")
            hold = asking.leases["first"].hold
            assert hold is not None
            for _ in range(100):  # before the pause is over
                pool.dispatcher.succeeded(hold)
            await trio.sleep(2)
            assert asking.leases["second"].worker is broken
            for name in ("first", "second"):
                await asking.release(name)
            nursery.cancel_scope.cancel()
        assert sound.trial is None

    run(main)


@pytest.mark.parametrize("facts", [ANYTHING, CALL, VIDEO], ids=["slot", "call", "job"])
def test_the_one_on_trial_serves_once_there_is_no_hope_for_another(facts: Facts) -> None:
    """One that is about to come back is waited for; one that is gone is not."""

    async def main() -> None:
        pool = Pool()
        broken, other = pool.add("a", tasks=("T2I", "T2V")), pool.add("b", tasks=("T2I", "T2V"))
        await eject(pool, broken)
        pool.registry.set_weights(other, Weights.UPDATING, other.weight_version)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("asks", facts)
            assert not asking.got
            pool.registry.administer(other, AdminEvent.QUARANTINE)
            await settled()
            assert asking.leases["asks"].worker is broken
            await asking.release("asks")

    run(main)


def test_trouble_is_better_than_a_trial() -> None:
    async def main() -> None:
        pool = Pool()
        broken, other = pool.add("a"), pool.add("b")
        await eject(pool, broken)
        pool.registry.trouble(other, "refused")
        assert {await pool.chosen() for _ in range(3)} == {other}
        with await pool.lease(CALL) as lease:
            assert lease.worker is other

    run(main)


def test_a_failure_is_known_before_its_slot_is_given_away() -> None:
    async def main() -> None:
        pool = Pool()
        broken, sound = pool.add("a"), pool.add("b")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for number in range(6):
                await asking.ask(str(number))
            for name in ("0", "2"):
                assert asking.leases[name].worker is broken
                pool.dispatcher.answered(asking.leases[name], 500)
                await asking.release(name)
            assert asking.got == ["0", "1", "2"]  # the rest waits for the sound one
            assert asking.leases["1"].worker is sound
            for name in list(asking.scopes):
                asking.scopes[name].cancel()
            await asking.release("1")

    run(main)


def test_a_pause_that_all_ask_for_is_waited_for() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a")
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.dispatcher.run)
            lease = await pool.lease()
            pool.dispatcher.answered(lease, 503, retry_after=7)
            lease.release()
            assert worker.paused
            began = trio.current_time()
            assert await pool.chosen() is worker
            assert 6.9 < trio.current_time() - began < 7.1
            assert worker.trial is None
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.parametrize(
    ("status", "after", "counts"),
    [("failed", 0.5, True), ("failed", 200.0, False), (None, 0.5, False)],
)
def test_jobs_count_that_fail_at_once(status: object, after: float, counts: bool) -> None:
    """Not those that fail late, nor those that the worker does not know any more."""

    async def main() -> None:
        pool = Pool("least-work")
        tasks = ("T2V",)
        broken, other = pool.add("a", tasks=tasks), pool.add("b", tasks=tasks)
        pool.registry.administer(other, AdminEvent.DRAIN)
        for number in range(3):
            lease = await pool.lease(VIDEO)
            assert lease.worker is broken
            pool.dispatcher.answered(lease, 200)
            pool.dispatcher.job_began(lease, str(number))
            lease.release()
            if number == 2:
                pool.registry.administer(other, AdminEvent.UNDRAIN)
            await trio.sleep(after)
            pool.dispatcher.job_ended(str(number), status)
        assert (broken.trial is not None) == counts

    run(main)


def test_a_job_that_has_failed_in_the_answer_to_its_submission_counts() -> None:
    async def main() -> None:
        pool = Pool("least-work")
        broken, _ = pool.add("a", tasks=("T2V",)), pool.add("b", tasks=("T2V",))
        while broken.trial is None:
            lease = await pool.lease(VIDEO)
            pool.dispatcher.answered(lease, 200)
            failed = lease.worker is broken
            pool.dispatcher.job_went(lease.hold, "failed" if failed else "completed")
            lease.release()
        assert broken.free_slots == 1

    run(main)


def test_what_a_process_did_before_does_not_count_for_the_next() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", slots=5)
        pool.add("b")
        leases = [await pool.lease() for _ in range(4)]
        old = [lease for lease in leases if lease.worker is worker]
        pool.registry.reincarnate(worker, "why")
        pool.registry.probed(worker, Probe.OK)
        for lease in old:
            pool.dispatcher.failed(lease.hold, "why")
        assert len(old) >= 2
        assert worker.trial is None
        for lease in leases:
            lease.release()

    run(main)
