"""Who goes first by priority, and that nobody starves; on virtual time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial

import pytest
import trio
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from router.errors import BadRequest
from router.front.priority import Priority
from router.pool.match import Facts, Need
from router.pool.worker import Task, Weights
from router.relay.body import wishes
from router.relay.headers import for_worker
from tests.unit.test_dispatch import VIDEO, Asking, Pool, run, settled

HIGH, NORMAL, LOW = Priority
AGEING = 300.0
WORK = 10.0  # seconds of one request


def facts(priority: Priority, client: str = "", **more: object) -> Facts:
    return Facts(priority=priority, client=client, **more)  # type: ignore[arg-type]


def test_the_highest_goes_first_whoever_came_first() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("running", facts(LOW))
            for name in ("low", "normal", "high", "high too", "low too"):
                await asking.ask(name, facts(Priority(name.split()[0])))
            for name in ("running", "high", "high too", "normal", "low"):
                await asking.release(name)
            assert asking.got == ["running", "high", "high too", "normal", "low", "low too"]
            await asking.release("low too")

    run(main)


@pytest.mark.parametrize("priority", [NORMAL, LOW])
def test_it_rises_once_it_has_waited_long_enough(priority: Priority) -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a")
        levels = priority.level
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("running", facts(HIGH))
            await asking.ask("old", facts(priority, "x"))
            await trio.sleep(AGEING * levels - 1)
            await asking.ask("early", facts(HIGH, "y"))
            await asking.release("running")
            assert asking.got[1:] == ["early"]  # one second before it was too early
            await asking.ask("late", facts(HIGH, "y"))
            await asking.ask("later", facts(HIGH, "x"))
            await trio.sleep(1)
            await asking.release("early")
            await asking.release("late")
            # Among equals clients take turns, and the oldest request of a client goes first.
            assert asking.got[1:] == ["early", "late", "old"]
            await asking.release("old")
            await asking.release("later")

    run(main)


def test_it_rises_one_level_at_a_time() -> None:
    async def main() -> None:
        pool = Pool()
        pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("running", facts(HIGH))
            await asking.ask("old", facts(LOW))
            await trio.sleep(AGEING)
            await asking.ask("high", facts(HIGH))
            await asking.ask("normal", facts(NORMAL))
            for name in ("running", "high", "old", "normal"):
                await asking.release(name)
            assert asking.got == ["running", "high", "old", "normal"]

    run(main)


def test_requests_for_other_weights_or_pools_compete_too() -> None:
    """They stand in other lines, but want the same worker."""

    async def main() -> None:
        pool = Pool()
        pool.add("a")
        pool.add("b", model="other")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("b's", facts(LOW, model="other"))
            await asking.ask("a's", facts(LOW, model="m"))
            image = partial(facts, task=Task.IMAGE)
            await asking.ask("low", image(LOW, model="m"))
            await asking.ask("normal", facts(NORMAL, model="m"))
            await asking.ask("high", facts(HIGH, need=Need.SESSION, model="m"))
            await asking.ask("other", facts(LOW, model="other"))
            await asking.release("b's")
            assert asking.got[2:] == ["other"]  # no rival of those that want the model m
            for name in ("a's", "high", "normal"):
                await asking.release(name)
            assert asking.got[2:] == ["other", "high", "normal", "low"]
            for name in ("low", "other"):
                await asking.release(name)

    run(main)


def test_jobs_that_wait_are_submitted_in_order_of_priority() -> None:
    async def main() -> None:
        pool = Pool()
        worker = pool.add("a", tasks=("T2V",))
        pool.registry.set_weights(worker, Weights.UPDATING, 0)
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            for work, priority in enumerate((LOW, NORMAL, HIGH)):
                await asking.ask(priority, evolve(VIDEO, priority=priority, work=work))
            assert asking.got == []
            pool.registry.set_weights(worker, Weights.CURRENT, 1)
            assert [hold.work for hold in worker.holds] == [2, 1, 0]
            await settled()
            for name in list(asking.leases):
                await asking.release(name)

    run(main)


def test_clients_of_one_priority_share_alike_in_spite_of_others() -> None:
    """The many clients of one line and the one of another, while a third is always before them."""

    async def main() -> None:
        pool = Pool()
        pool.add("a")
        async with trio.open_nursery() as nursery:
            asking = Asking(pool, nursery)
            await asking.ask("running", facts(HIGH))
            for index in range(12):
                for client in "abc":
                    await asking.ask(f"{client}{index}", facts(NORMAL, client))
                await asking.ask(f"d{index}", facts(NORMAL, "d", task=Task.IMAGE))
                await asking.ask(f"h{index}", facts(HIGH, "h", model="m"))
            count: Counter[str] = Counter()
            for _ in range(12 + 24):
                await asking.release(asking.got[-1])
                count[asking.got[-1][0]] += 1
            assert count["h"] == 12
            assert {count[client] for client in "abcd"} == {6}
            nursery.cancel_scope.cancel()

    run(main)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sampled_from("abcd"), min_size=1, max_size=6),
    st.sampled_from([NORMAL, LOW]),
    st.integers(1, 3),
)
def test_nobody_starves(clients: list[str], priority: Priority, slots: int) -> None:
    """However many urgent requests come: it waits no longer than it takes to rise, and for a turn
    of each client."""

    async def main() -> None:
        pool = Pool()
        pool.add("a", slots=slots)
        served = trio.Event()

        async def work(some: Facts, done: Callable[[], None] = lambda: None) -> None:
            with await pool.lease(some):
                done()
                await trio.sleep(WORK)

        async def urgent(client: str) -> None:
            # Twice what the worker can do.
            while not served.is_set():
                for _ in range(2 * slots):
                    nursery.start_soon(work, facts(HIGH, client))
                await trio.sleep(WORK)

        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(urgent, client)
            await trio.sleep(1)
            began = trio.current_time()
            nursery.start_soon(work, facts(priority, "patient"), served.set)
            await served.wait()
            waited = trio.current_time() - began
            turns = len(set(clients)) + 1
            assert AGEING * priority.level <= waited <= AGEING * priority.level + turns * WORK
            nursery.cancel_scope.cancel()

    run(main)


def headers(*values: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"X-Priority", value) for value in values]


@pytest.mark.parametrize("word", list(Priority))
@pytest.mark.parametrize("most", list(Priority))
def test_a_client_gets_what_it_asks_for_within_what_it_may(word: Priority, most: Priority) -> None:
    told = wishes(headers(word.encode(), b"low"), most)[-1]
    assert told is (word if word.level >= most.level else most)
    assert wishes([], most)[-1] is (LOW if most is LOW else NORMAL)


@pytest.mark.parametrize("word", [b"", b"High", b"urgent", b"0", b"high, low", b"\xff"])
def test_a_wrong_word_is_refused(word: bytes) -> None:
    with pytest.raises(BadRequest, match="X-Priority must be high, normal or low") as caught:
        wishes(headers(word), Priority.HIGH)
    assert caught.value.code == "invalid_header"


def test_workers_do_not_see_it() -> None:
    passed = for_worker(
        headers(b"high"), host=b"w", request_id=b"r", peer=None, scheme=b"http", framing=None
    )
    assert not any(name.lower() == b"x-priority" for name, _ in passed)
