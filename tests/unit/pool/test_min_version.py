"""Requests that want weights of some version or later wait for them, and for nothing else."""

from __future__ import annotations

import pytest

from router.pool.lifecycle import AdminEvent, Probe
from router.pool.match import Facts, Need, refusal
from router.pool.versions import Bounds
from router.pool.worker import Capabilities, Origin, Weights, Worker
from tests.unit.pool.test_queue import IMAGE, Pool


def fence(pool: Pool, *workers: Worker) -> None:
    for worker in workers:
        pool.registry.set_weights(worker, Weights.UPDATING, worker.weight_version)


def refit(pool: Pool, worker: Worker, version: int) -> None:
    worker.weight_version = version
    pool.registry.set_weights(worker, Weights.CURRENT, worker.weight_version)


def at_least(version: int, need: Need = Need.SLOT) -> Facts:
    return Facts(need=need, kind="rollout", bounds=Bounds(version))


@pytest.mark.parametrize("need", Need)
def test_it_waits_until_a_worker_has_them(need: Need) -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    fence(pool, a, b)
    late = pool.ask(at_least(2, need))
    early = pool.ask(at_least(1, need))
    refit(pool, a, 1)
    assert (pool.grants, pool.running.keys()) == ([early], {a})
    refit(pool, b, 2)
    assert (pool.grants, pool.running.keys()) == ([early, late], {a, b})
    assert not pool.refused


def test_the_others_are_not_held_up_by_it() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    fence(pool, b)
    late = pool.ask(at_least(1), "p")
    others = [pool.ask(IMAGE, "p") for _ in range(3)]
    assert pool.end(a) is others[1]
    assert pool.end(a) is others[2]
    refit(pool, b, 1)
    assert pool.grants[-1] is late
    assert pool.running[b]


def test_a_worker_with_them_serves_all() -> None:
    pool = Pool()
    a = pool.worker("a")
    fence(pool, a)
    first, second = pool.ask(at_least(1), "p"), pool.ask(IMAGE, "q")
    third, fourth = pool.ask(at_least(1), "r"), pool.ask(IMAGE, "q")
    refit(pool, a, 1)
    served = [pool.grants[0], *(pool.end(a) for _ in range(3))]
    assert set(served) == {first, second, third, fourth}
    assert served.index(third) < served.index(fourth)  # q had its turn


@pytest.mark.parametrize("need", Need)
def test_without_hope_it_is_refused(need: Need) -> None:
    """All have what is current for them, and that is older: another model, say."""
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    pool.ask(at_least(1, need))
    assert len(pool.refused) == 1

    fence(pool, a)
    pool.ask(at_least(1, need))
    assert len(pool.refused) == 1
    pool.registry.set_weights(a, Weights.CURRENT, a.weight_version)  # that would have been it
    assert len(pool.refused) == 2
    assert not pool.grants
    told = refusal([a, b], [a, b], at_least(1, need))
    assert told.code == "weights_unavailable"
    assert "version 1 or later" in told.message


def test_it_is_refused_when_the_last_worker_that_had_them_goes() -> None:
    pool = Pool()
    new, _old = pool.worker("new"), pool.worker("old")
    fence(pool, new)
    refit(pool, new, 1)
    served, waiting = pool.ask(at_least(1)), pool.ask(at_least(1))
    assert pool.grants == [served]
    pool.registry.administer(new, AdminEvent.DRAIN)
    assert [waiting for waiting, _ in pool.refused] == [waiting]


def test_who_has_not_said_what_it_serves_may_have_them() -> None:
    pool = Pool()
    pool.worker("old")
    unread = pool.registry.add("http://unread", Origin.STATIC)
    waiting = pool.ask(at_least(1))
    assert not pool.refused
    pool.registry.learned(unread, Capabilities(models=("m",), task_types=("T2I",)))
    pool.registry.probed(unread, Probe.OK)
    assert [waiting for waiting, _ in pool.refused] == [waiting]


def test_what_was_tried_before_waits_for_them_too() -> None:
    pool = Pool()
    a, b, _c = pool.worker("a"), pool.worker("b"), pool.worker("c")
    fence(pool, a, b)
    waiting = pool.ask(at_least(1), "", 0, a)
    refit(pool, a, 1)
    assert not pool.grants
    refit(pool, b, 1)
    assert (pool.grants, list(pool.running)) == ([waiting], [b])


def test_what_was_asked_for_long_ago_is_forgotten() -> None:
    pool = Pool()
    worker = pool.worker("a")
    for version in range(1, 300):
        fence(pool, worker)
        refit(pool, worker, version)
        pool.ask(at_least(version))
        assert pool.end(worker) is None
    queue = pool.queue
    assert len(queue._lines) == len(queue._of_wants) == len(queue._of_worker[worker].due) == 1
    assert len(pool.grants) == 299
