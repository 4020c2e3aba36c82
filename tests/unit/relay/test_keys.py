"""What came of each Idempotency-Key, and for how long it is known."""

from __future__ import annotations

import trio
import trio.testing

from router.pool.registry import Registry
from router.pool.worker import Origin
from router.relay.keys import Answer, Entry, KeyLimits, Keys
from router.store.store import Store


def over(keys: Keys, name: str, *, job: bool = False) -> Entry:
    """A key that is over, with an answer of a byte."""
    entry = Entry(name, "digest", job)
    keys.begin(entry)
    assert keys.keep(1)
    entry.answer = Answer(200, [], b"x")
    keys.settle(entry, trio.current_time())
    return entry


def test_an_outcome_is_known_for_an_hour_and_that_of_a_job_for_a_day() -> None:
    async def main() -> None:
        keys = Keys(Registry(), Store())
        generation, job = over(keys, "g"), over(keys, "j", job=True)
        await trio.sleep(3599)
        assert await keys.find("g", "digest") is generation
        await trio.sleep(1)
        assert await keys.find("g", "digest") is None
        await trio.sleep(23 * 3600 - 1)
        assert await keys.find("j", "digest") is job
        await trio.sleep(1)
        assert await keys.find("j", "digest") is None
        assert keys.keep(1)  # and their memory is free again

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_generations_do_not_push_out_jobs() -> None:
    async def main() -> None:
        keys = Keys(Registry(), Store(), KeyLimits(count=2))
        job = over(keys, "j", job=True)
        for number in range(5):
            over(keys, str(number))
        assert await keys.find("j", "digest") is job
        assert [await keys.find(str(number), "digest") is None for number in range(5)] == [
            *(True, True, True),
            *(False, False),
        ]

    trio.run(main)


def test_a_job_is_lost_with_its_process_only() -> None:
    async def main() -> None:
        registry = Registry()
        keys = Keys(registry, Store())
        worker = registry.add("http://w:1", Origin.REGISTERED)
        entry = over(keys, "j", job=True)
        entry.worker, entry.incarnation = worker, worker.incarnation
        registry.suspect(worker, "it refused a connection")
        assert await keys.find("j", "digest") is entry  # a doubt is no proof
        registry.reincarnate(worker, "another process")
        assert await keys.find("j", "digest") is None

    trio.run(main)


def test_a_launched_process_that_has_ended_took_its_job_along() -> None:
    async def main() -> None:
        registry = Registry()
        keys = Keys(registry, Store())
        worker = registry.add("http://w:1", Origin.LAUNCHED)
        entry = over(keys, "j", job=True)
        entry.worker, entry.incarnation = worker, worker.incarnation
        registry.expect(worker, "it is restarted", ending=True)
        assert await keys.find("j", "digest") is entry  # it may still make the job
        registry.expect(worker, "it has ended, and starts again")
        assert await keys.find("j", "digest") is None

    trio.run(main)


def test_who_asks_while_the_request_is_being_taken_back_waits() -> None:
    async def main() -> None:
        keys = Keys(Registry(), Store())
        entry = Entry("k", "digest", job=False)
        keys.begin(entry)
        entry.left = True
        entry.forsaken()
        assert entry.doomed
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                assert await keys.find("k", "digest") is None

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            keys.forget(entry)

    trio.run(main)
