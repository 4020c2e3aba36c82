"""Which weights a request accepts, and what becomes of a request that none meet."""

from __future__ import annotations

import pytest

from router.errors import BadRequest
from router.pool.lifecycle import MemoryEvent
from router.pool.match import Facts, Need, refusal
from router.pool.versions import Asked, Bounds, NeverIssued
from router.pool.worker import Weights
from tests.unit.pool.test_queue import Pool

LABELS = {"step 2": 2, "new": 3, "odd": 9}


@pytest.mark.parametrize(
    ("bounds", "version", "lag", "met"),
    [
        (Bounds(2), 1, 2, False),
        (Bounds(2), 2, 1, True),
        (Bounds(2), 3, None, True),
        (Bounds(exact=2), 1, 1, False),
        (Bounds(exact=2), 2, 0, True),
        (Bounds(exact=2), 3, 0, False),
        (Bounds(exact=2), 2, 1, True),  # a worker that the refit has not reached
        (Bounds(exact=0), 0, 0, True),
        (Bounds(lag=0), 30, 0, True),
        (Bounds(lag=0), 29, 1, False),
        (Bounds(lag=1), 20, 1, True),
        (Bounds(lag=1), 10, 2, False),
        (Bounds(2, lag=5), 1, 2, False),
        (Bounds(lag=9), 29, None, False),  # not known
    ],
)
def test_what_meets_the_bounds(bounds: Bounds, version: int, lag: int | None, met: bool) -> None:
    assert bounds.met(version, lag) is met


@pytest.mark.parametrize(
    ("asked", "bounds"),
    [
        (Asked(), None),
        (Asked(oldest=(0,)), None),
        (Asked(oldest=(2,)), Bounds(2)),
        (Asked(oldest=("step 2", 1, "new")), Bounds(3)),  # the stricter one
        (Asked(exact=("step 2", 2)), Bounds(exact=2)),
        (Asked((1,), (3,), 0), Bounds(1, 3, 0)),
        (Asked(exact=(0,)), Bounds(exact=0)),
    ],
)
def test_what_is_asked_for_in_numbers(asked: Asked, bounds: Bounds | None) -> None:
    assert asked.bounds(LABELS.get, 3) == bounds


@pytest.mark.parametrize(
    "asked", [Asked(exact=(1, 2)), Asked((3,), (2,)), Asked(("new",), ("step 2",))]
)
def test_what_contradicts_itself_is_refused(asked: Asked) -> None:
    with pytest.raises(BadRequest, match="contradict one another"):
        asked.bounds(LABELS.get, 3)


@pytest.mark.parametrize(
    "asked", [Asked((4,)), Asked(exact=(4,)), Asked(("gone",)), Asked((1, 4)), Asked(("odd",))]
)
def test_what_was_never_issued_may_yet_be(asked: Asked) -> None:
    with pytest.raises(NeverIssued) as error:
        asked.bounds(LABELS.get, 3)
    assert error.value.details == {"weight_version": 3, "retryable": True}


def test_the_bounds_in_words() -> None:
    assert str(Bounds(exact=4)) == "version 4"
    assert str(Bounds(4)) == "version 4 or later"
    assert str(Bounds(4, lag=2)) == "version 4 or later, at most 2 behind the newest"
    assert str(Bounds(lag=0)) == "any version, at most 0 behind the newest"


def exactly(version: int, need: Need = Need.SLOT) -> Facts:
    return Facts(need=need, kind="rollout", bounds=Bounds(exact=version))


@pytest.mark.parametrize("need", Need)
def test_an_exact_version_that_passes_by_is_refused(need: Need) -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    for worker in (a, b):
        pool.registry.set_weights(worker, Weights.UPDATING, 1, newest=1)
    current, coming = pool.ask(exactly(1, need)), pool.ask(exactly(2, need))
    past = pool.ask(exactly(0, need))
    assert [waiting for waiting, _ in pool.refused] == [past]
    # The first worker is at the next version; the other may still turn out to keep its own.
    for worker in (b, a):
        pool.registry.set_weights(worker, Weights.UPDATING, 1, newest=2)
    pool.registry.set_weights(a, Weights.CURRENT, 2, newest=2)
    assert pool.grants == [coming]
    assert current not in [waiting for waiting, _ in pool.refused]
    pool.registry.set_weights(b, Weights.CURRENT, 2, newest=2)
    assert [waiting for waiting, _ in pool.refused] == [past, current]
    told = refusal([a, b], [a, b], exactly(1))
    assert (told.status, told.code) == (409, "weight_version_passed")
    assert told.details == {"retryable": False}
    assert "weights of version 1, and none will" in told.message


def test_sleep_does_not_bring_a_past_version_back() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    for worker in (a, b):
        pool.registry.set_weights(worker, Weights.CURRENT, 2, newest=2)
    for event in (MemoryEvent.SLEEP, MemoryEvent.SLEPT):
        pool.registry.apply_memory_event(b, event)
    assert refusal([a, b], [a, b], exactly(1)).code == "weight_version_passed"
    assert refusal([b], [b], exactly(1)).code == "weight_version_passed"
    assert refusal([b], [b], exactly(2)).code == "pool_asleep"


def test_a_version_of_before_a_reset_comes_no_more() -> None:
    pool = Pool()
    a = pool.worker("a")
    pool.registry.set_weights(a, Weights.CURRENT, 0, newest=0)
    assert refusal([a], [a], exactly(3)).code == "weight_version_passed"
    pool.registry.set_weights(a, Weights.FAILED, 0, newest=3)
    assert refusal([a], [a], exactly(3)).code == "weights_unavailable"


def test_a_worker_that_lags_too_far_behind_waits_for_its_turn() -> None:
    pool = Pool()
    a, b = pool.worker("a"), pool.worker("b")
    pool.registry.set_weights(a, Weights.UPDATING, 1, newest=2, lag=1)
    pool.registry.set_weights(b, Weights.CURRENT, 1, newest=2, lag=1)  # as in a refit that rolls
    strict = pool.ask(Facts(kind="rollout", bounds=Bounds(lag=0)))
    loose = pool.ask(Facts(kind="rollout", bounds=Bounds(lag=1)))
    assert (pool.grants, list(pool.running)) == ([loose], [b])
    pool.registry.set_weights(a, Weights.CURRENT, 2, newest=2, lag=0)
    assert pool.grants == [loose, strict]


def test_the_others_notice_that_there_is_a_newer_version() -> None:
    """A worker whose own facet stays as it is."""
    pool = Pool()
    a = pool.worker("a")
    pool.registry.set_weights(a, Weights.UPDATING, 0, newest=1)
    waiting = pool.ask(exactly(1))
    assert not pool.refused
    pool.registry.set_weights(a, Weights.UPDATING, 0, newest=2)
    assert [waiting for waiting, _ in pool.refused] == [waiting]
