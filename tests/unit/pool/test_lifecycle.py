"""Every transition of every facet, the judging of probes, and what makes a worker routable."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from itertools import product
from typing import Any

import pytest

from router.pool import events
from router.pool.lifecycle import (
    ADMIN,
    MEMORY,
    AdminEvent,
    IllegalTransition,
    Lack,
    MemoryEvent,
    Probe,
    judge,
    lack,
    reasons,
    routable,
    step,
)
from router.pool.match import Facts, refusal
from router.pool.registry import Registry
from router.pool.worker import Admin, Health, Memory, Origin, Weights, Worker

# The transition tables, written out a second time: state, event, state after it.
LEGAL: dict[str, str] = {
    "admin": """
        enabled drain draining         enabled undrain enabled
        enabled quarantine quarantined enabled clear enabled
        draining drain draining        draining undrain enabled
        draining quarantine quarantined draining clear draining
        quarantined quarantine quarantined quarantined clear enabled
    """,
    "memory": """
        awake sleep falling_asleep            awake replaced awake
        falling_asleep sleep falling_asleep   falling_asleep slept asleep
        falling_asleep woke awake             falling_asleep lost asleep
        falling_asleep wake waking            falling_asleep replaced falling_asleep
        asleep sleep falling_asleep           asleep wake waking
        asleep replaced falling_asleep
        waking sleep falling_asleep
        waking woke awake                     waking lost asleep
        waking wake waking                    waking replaced waking
    """,
}
TABLES: dict[str, tuple[Mapping[Any, Mapping[Any, Any]], type[StrEnum], type[StrEnum]]] = {
    "admin": (ADMIN, Admin, AdminEvent),
    "memory": (MEMORY, Memory, MemoryEvent),
}


def legal(facet: str) -> dict[tuple[str, str], str]:
    words = LEGAL[facet].split()
    return {(words[i], words[i + 1]): words[i + 2] for i in range(0, len(words), 3)}


PAIRS = [
    (facet, state, event)
    for facet, (_, states, happenings) in TABLES.items()
    for state, event in product(states, happenings)
]


@pytest.mark.parametrize(("facet", "state", "event"), PAIRS)
def test_each_event_in_each_state(facet: str, state: StrEnum, event: StrEnum) -> None:
    table = TABLES[facet][0]
    expected = legal(facet).get((state, event))
    if expected is None:
        with pytest.raises(IllegalTransition) as caught:
            step(table, state, event)
        assert caught.value.status == 409
        assert caught.value.message == f"A worker that is {state} cannot {event}"
    else:
        assert step(table, state, event) == expected


@pytest.mark.parametrize("facet", ["admin", "memory"])
def test_an_illegal_event_changes_nothing_and_tells_nobody(facet: str) -> None:
    _, states, happenings = TABLES[facet]
    for state, event in product(states, happenings):
        told: list[events.Event] = []
        registry = Registry()
        worker = registry.add("http://w", Origin.STATIC)
        setattr(worker, facet, state)
        registry.subscribe(told.append)
        apply = {"admin": registry.administer, "memory": registry.apply_memory_event}[facet]
        expected = legal(facet).get((state, event))
        if expected is None:
            with pytest.raises(IllegalTransition):
                apply(worker, event)  # type: ignore[operator]
            assert getattr(worker, facet) is state
        else:
            apply(worker, event, "why")  # type: ignore[operator]
            assert getattr(worker, facet) == expected
        changed = expected is not None and expected != state
        assert told == (
            [events.FacetChanged(worker, facet, state, str(expected), "why")] if changed else []
        )


def a_worker(**facets: Any) -> Worker:
    return Worker(url="http://w", origin=Origin.STATIC, **facets)


OK, WARMING, FAILED = Probe.OK, Probe.WARMING, Probe.FAILED
REFUSED, BACKEND_DEAD = Probe.REFUSED, Probe.BACKEND_DEAD
UNKNOWN, WARM = Health.UNKNOWN, Health.WARMING
HEALTHY, UNHEALTHY = Health.HEALTHY, Health.UNHEALTHY


@pytest.mark.parametrize(
    ("health", "probe", "in_a_row", "after"),
    [
        (UNKNOWN, OK, 1, HEALTHY),
        (WARM, OK, 1, HEALTHY),
        (HEALTHY, OK, 1, HEALTHY),
        (HEALTHY, OK, 9, HEALTHY),
        (UNHEALTHY, OK, 1, UNHEALTHY),
        (UNHEALTHY, OK, 2, HEALTHY),
        *((health, WARMING, 0, WARM) for health in Health),
        *((health, BACKEND_DEAD, 1, UNHEALTHY) for health in Health),
        *(
            (health, probe, count, UNHEALTHY if count >= 3 else health)
            for health in Health
            for probe in (FAILED, REFUSED)
            for count in (1, 2, 3, 4)
        ),
    ],
)
def test_what_a_probe_means(health: Health, probe: Probe, in_a_row: int, after: Health) -> None:
    counts = {"consecutive_failures": in_a_row}
    if probe is OK:
        counts = {"consecutive_successes": in_a_row}
    worker = a_worker(health=health, **counts)
    assert judge(worker, probe, failure_threshold=3) is after


def test_the_threshold_is_a_setting() -> None:
    worker = a_worker(health=HEALTHY, consecutive_failures=1)
    assert judge(worker, FAILED, failure_threshold=1) is UNHEALTHY
    assert judge(worker, FAILED, failure_threshold=2) is HEALTHY


ALL_FACETS = list(product(Health, Admin, Memory, Weights, (False, True)))


def test_routable_is_having_no_reason_against_it() -> None:
    for health, admin, memory, weights, removed in ALL_FACETS:
        worker = a_worker(
            health=health, admin=admin, memory=memory, weights=weights, removed=removed
        )
        why = reasons(worker)
        assert routable(worker) == (not why)
        assert len(set(why)) == len(why)
        # Each facet has its own word, whatever the others are.
        assert (health is HEALTHY) == (not {"not_probed_yet", "warming", "unhealthy"} & set(why))
        assert (admin is Admin.ENABLED) == (not {"draining", "quarantined"} & set(why))
        assert (memory is Memory.AWAKE) == (not {"falling_asleep", "asleep", "waking"} & set(why))
        assert (weights is Weights.CURRENT) == (
            not {"weights_updating", "weights_behind", "weights_failed"} & set(why)
        )
        assert removed == ("removed" in why)
    assert (
        sum(
            routable(a_worker(health=h, admin=a, memory=m, weights=w))
            for h, a, m, w, _ in ALL_FACETS
        )
        == 2
    )  # the one combination, once per value of `removed`


def test_one_whose_first_probe_failed_is_neither_dead_nor_asleep() -> None:
    new, asleep = a_worker(consecutive_failures=1), a_worker(health=HEALTHY, memory=Memory.ASLEEP)
    assert [lack(w) for w in (new, asleep)] == [Lack.CONTACT, Lack.MEMORY]
    assert refusal([new, asleep], [new, asleep], Facts()).code == "no_routable_worker"
    told = refusal([asleep], [asleep], Facts())
    assert (told.code, "/resume_memory_occupation" in told.message) == ("pool_asleep", True)
