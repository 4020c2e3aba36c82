"""Suspects: workers whose process may be another one by now."""

from __future__ import annotations

import pytest

from router.pool import events
from router.pool.lifecycle import Probe, hopeful, reasons, routable
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Lease, Origin, Weights, Worker

CLOSED = "its idle connection was closed"


def healthy(registry: Registry, *, version: int = 0) -> Worker:
    worker = registry.add("http://a:1", Origin.REGISTERED)
    registry.probed(worker, Probe.OK)
    registry.set_weights(worker, Weights.CURRENT, version)
    return worker


@pytest.fixture
def registry() -> Registry:
    return Registry()


def test_a_suspect_is_kept_back_once_weights_were_changed(registry: Registry) -> None:
    worker = healthy(registry, version=1)
    registry.suspect(worker, CLOSED)
    assert (routable(worker), reasons(worker)) == (False, ["suspect"])
    assert hopeful(worker)  # nobody needs to act
    registry.absolve(worker)
    assert (routable(worker), reasons(worker)) == (True, [])


def test_before_any_change_it_is_not(registry: Registry) -> None:
    worker = healthy(registry)
    registry.suspect(worker, CLOSED)
    assert (routable(worker), reasons(worker)) == (True, [])


def test_a_change_that_comes_while_it_is_one_gates_it(registry: Registry) -> None:
    """The answer to a weight call may come after the end of the connection."""
    worker = healthy(registry)
    registry.set_weights(worker, Weights.UPDATING, worker.weight_version)
    registry.suspect(worker, CLOSED)
    registry.set_weights(worker, Weights.CURRENT, 1)
    registry.set_weights(worker, Weights.CURRENT, worker.weight_version)
    assert reasons(worker) == ["suspect"]


def test_nor_where_somebody_else_sees_to_the_weights() -> None:
    registry = Registry(trust_weights=True)
    worker = healthy(registry, version=1)
    registry.suspect(worker, CLOSED)
    assert (routable(worker), reasons(worker)) == (True, [])


def test_to_absolve_one_is_told_once(registry: Registry) -> None:
    worker = healthy(registry, version=1)
    told: list[events.Event] = []
    registry.subscribe(told.append)
    registry.absolve(worker)
    registry.suspect(worker, CLOSED)
    registry.absolve(worker)
    registry.absolve(worker)
    assert told == [events.Suspected(worker, CLOSED), events.Absolved(worker, CLOSED)]


@pytest.mark.parametrize("suspected", [True, False])
def test_another_process_has_the_weights_of_its_start(registry: Registry, suspected: bool) -> None:
    worker = healthy(registry, version=3)
    if suspected:
        registry.suspect(worker, CLOSED)
    seen: list[bool] = []
    registry.subscribe(lambda _: seen.append(routable(worker)))
    registry.reincarnate(worker, CLOSED)
    assert (worker.weights, worker.weight_version) == (Weights.BEHIND, 0)
    assert seen
    assert not any(seen)


def test_another_process_is_current_where_weights_were_never_changed(registry: Registry) -> None:
    worker = healthy(registry)
    registry.reincarnate(worker, CLOSED)
    registry.probed(worker, Probe.OK)
    assert worker.weights is Weights.CURRENT
    assert routable(worker)


def grant(registry: Registry, worker: Worker) -> Lease:
    return registry.lease(worker, Hold(worker, worker.incarnation, HoldKind.GENERATION))


def test_what_a_suspect_was_given_keeps_the_slots_of_the_new_process(registry: Registry) -> None:
    worker = healthy(registry)
    before = grant(registry, worker)
    registry.suspect(worker, CLOSED)
    since = grant(registry, worker)
    registry.reincarnate(worker, CLOSED)
    assert (worker.leases, list(worker.holds)) == ({since}, [since.hold])
    assert since.hold is not None
    assert since.incarnation < since.hold.incarnation == worker.incarnation
    before.release()
    assert list(worker.holds) == [since.hold]
    since.release()
    assert worker.is_idle


@pytest.mark.parametrize("kind", [HoldKind.JOB, HoldKind.GHOST])
def test_what_outlives_its_lease_is_kept_like_a_lease(registry: Registry, kind: HoldKind) -> None:
    worker = healthy(registry)
    before = registry.keep(grant(registry, worker), kind)
    registry.suspect(worker, CLOSED)
    since = registry.keep(grant(registry, worker), kind)
    found = Hold(worker, worker.incarnation, kind, doubtful=True)
    registry.occupy(found)
    freed: list[Hold] = []
    registry.subscribe(
        lambda event: freed.append(event.hold) if isinstance(event, events.SlotFreed) else None
    )
    registry.reincarnate(worker, CLOSED)
    assert list(worker.holds) == [since, found]
    assert {hold.incarnation for hold in worker.holds} == {worker.incarnation}
    assert freed == [before]
    registry.reincarnate(worker, CLOSED)  # the next one was given nothing
    assert not worker.holds


def test_what_the_same_process_was_given_goes_with_it(registry: Registry) -> None:
    worker = healthy(registry)
    registry.suspect(worker, CLOSED)
    lease = grant(registry, worker)
    registry.absolve(worker)
    registry.reincarnate(worker, CLOSED)
    assert not worker.leases
    assert not worker.holds
    lease.release()
