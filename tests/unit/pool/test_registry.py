"""The registry: membership, leases, what probes and operators do, what observers hear."""

from __future__ import annotations

import pytest

from router.errors import RouterError
from router.pool import events
from router.pool.ids import BadWorkerURL
from router.pool.lifecycle import AdminEvent, MemoryEvent, Probe, census
from router.pool.registry import AmbiguousWorker, Registry, UnknownWorker
from router.pool.worker import Admin, Capabilities, Health, Origin

A, B = "http://a:1", "http://b:2"


@pytest.fixture
def registry() -> Registry:
    return Registry(failure_threshold=3)


def listen(registry: Registry) -> list[events.Event]:
    told: list[events.Event] = []
    registry.subscribe(told.append)
    return told


def test_adding_a_known_url_keeps_its_record(registry: Registry) -> None:
    told = listen(registry)
    first = registry.add(A, Origin.STATIC, concurrency=2)
    registry.probed(first, Probe.OK)
    again = registry.add(A, Origin.REGISTERED)
    assert again is first
    assert (again.origin, again.health, again.max_concurrency) == (
        Origin.STATIC,
        Health.HEALTHY,
        2,
    )
    registry.add(A, Origin.REGISTERED, concurrency=5)
    assert first.max_concurrency == 5
    assert told.count(events.WorkerAdded(first)) == 1
    assert len(registry) == 1


def test_workers_stay_in_order_of_registration(registry: Registry) -> None:
    for url in (B, A, "http://c:3"):
        registry.add(url, Origin.REGISTERED)
    first = registry.find(B)
    assert first is not None
    registry.remove(first)
    registry.add(B, Origin.REGISTERED)
    assert [worker.url for worker in registry] == [A, "http://c:3", B]


def test_the_registry_may_change_while_it_is_walked_through(registry: Registry) -> None:
    for url in (A, B):
        registry.add(url, Origin.REGISTERED)
    for worker in registry:
        registry.remove(worker)
    assert len(registry) == 0


def test_a_worker_is_found_by_any_spelling_of_its_id(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    assert registry.get(worker.worker_id) is worker
    assert registry.get("HTTP:/A:1/") is worker
    with pytest.raises(UnknownWorker) as unknown:
        registry.get(B)
    assert (unknown.value.status, unknown.value.code) == (404, "unknown_worker")
    assert registry.get("A:1") is worker
    with pytest.raises(UnknownWorker):
        registry.get("b:1")
    with pytest.raises(BadWorkerURL):
        registry.get("ftp://a:1")


def test_a_worker_is_found_by_its_names(registry: Registry) -> None:
    first = registry.add(A, Origin.LAUNCHED, label="Qwen-Image-0")
    second = registry.add("https://a:1", Origin.REGISTERED)
    assert (first.name, second.name) == ("Qwen-Image-0", "a:1")
    assert registry.get("Qwen-Image-0") is first
    with pytest.raises(UnknownWorker):
        registry.get("qwen-image-0")  # as for models, letters count
    with pytest.raises(AmbiguousWorker) as ambiguous:
        registry.get("a:1")
    assert ambiguous.value.details == {"workers": [first.worker_id, second.worker_id]}
    registry.remove(second)
    assert registry.get("a:1") is first


def test_an_alias_leads_to_its_worker_until_that_is_removed(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    registry.alias(B, worker)
    assert registry.get(B) is worker
    own = registry.add(B, Origin.REGISTERED)
    assert registry.get(B) is own
    registry.remove(own)
    registry.remove(worker)
    registry.add(A, Origin.REGISTERED)
    with pytest.raises(UnknownWorker):
        registry.get(B)


def test_the_last_aliases_of_each_worker_count(registry: Registry) -> None:
    first, second = (registry.add(url, Origin.REGISTERED) for url in (A, B))
    registry.alias("http://c", second)
    for port in range(100):
        registry.alias(f"http://b:{port + 1}", first)
    assert registry.get("http://c") is second
    assert registry.get("http://b:100") is first
    with pytest.raises(UnknownWorker):
        registry.get("http://b:1")
    registry.alias("http://b:100", second)
    assert registry.get("http://b:100") is second
    assert "http://b:100" not in first.aliases


def test_a_removed_worker_cannot_be_changed_by_late_reports(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    registry.remove(worker)
    told = listen(registry)
    registry.remove(worker)
    registry.probed(worker, Probe.OK)
    registry.learned(worker, Capabilities(models=("m",)))
    registry.suspect(worker, "late")
    registry.trouble(worker, "late")
    registry.reincarnate(worker, "late")
    assert told == []
    assert (worker.health, worker.capabilities, worker.incarnation) == (Health.UNKNOWN, None, 1)


def test_the_same_url_again_is_another_worker(registry: Registry) -> None:
    old = registry.add(A, Origin.REGISTERED)
    lease = registry.lease(old)
    registry.remove(old)
    new = registry.add(A, Origin.REGISTERED)
    own = registry.lease(new)
    assert new is not old
    lease.release()
    assert (old.active_requests, new.active_requests) == (0, 1)
    own.release()
    assert new.active_requests == 0


def test_a_lease_ends_exactly_once(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    told = listen(registry)
    with registry.lease(worker) as lease:
        assert worker.active_requests == 1
    assert told == [events.LeaseGranted(lease), events.LeaseEnded(lease)]
    with pytest.raises(RuntimeError, match="twice"):
        lease.release()
    assert worker.active_requests == 0


def test_a_lease_ends_when_its_block_fails(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    with pytest.raises(ZeroDivisionError), registry.lease(worker):
        raise ZeroDivisionError
    assert worker.active_requests == 0


def test_a_late_end_of_an_old_incarnation_changes_nothing(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    old = registry.lease(worker)
    registry.reincarnate(worker, "its idle connection was closed")
    new = registry.lease(worker)
    assert (old.incarnation, new.incarnation, worker.active_requests) == (1, 2, 1)
    old.release()
    assert worker.active_requests == 1
    new.release()
    assert worker.active_requests == 0


def test_another_process_is_unknown_in_what_it_can_do(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    registry.learned(worker, Capabilities(models=("m",), dp_size=4))
    registry.probed(worker, Probe.OK)
    registry.suspect(worker, "first")
    registry.suspect(worker, "second")
    assert worker.suspicion == "first"
    told = listen(registry)
    registry.reincarnate(worker, "first")
    assert told == [events.Reincarnated(worker, "first")]
    assert (worker.suspicion, worker.capabilities, worker.met) == (None, None, False)
    assert (worker.incarnation, worker.max_concurrency) == (2, 1)


def test_the_reason_of_ill_health_is_there_as_long_as_it_lasts(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    assert worker.health_reason is None
    registry.probed(worker, Probe.WARMING, "it is warming up")
    assert (worker.health, worker.health_reason) == (Health.WARMING, "it is warming up")
    registry.probed(worker, Probe.OK)
    assert (worker.health, worker.health_reason) == (Health.HEALTHY, None)
    registry.probed(worker, Probe.FAILED, "no answer")
    assert (worker.health, worker.health_reason) == (Health.HEALTHY, None)
    for _ in range(2):
        registry.probed(worker, Probe.FAILED, "no answer")
    assert (worker.health, worker.health_reason) == (Health.UNHEALTHY, "no answer")
    registry.probed(worker, Probe.OK)
    assert (worker.health, worker.health_reason) == (Health.UNHEALTHY, "no answer")
    registry.probed(worker, Probe.OK)
    assert (worker.health, worker.health_reason) == (Health.HEALTHY, None)


def test_successes_and_failures_are_counted_in_a_row(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    for probe in (Probe.FAILED, Probe.FAILED, Probe.OK, Probe.FAILED, Probe.REFUSED):
        registry.probed(worker, probe)
    assert (worker.consecutive_failures, worker.consecutive_successes) == (2, 0)
    assert worker.health is Health.HEALTHY
    registry.probed(worker, Probe.WARMING)
    assert (worker.consecutive_failures, worker.consecutive_successes) == (0, 0)


@pytest.mark.parametrize(
    ("before", "probe", "suspected"),
    [
        ([], Probe.REFUSED, False),  # never met: there is no process to be replaced
        ([], Probe.WARMING, False),
        ([Probe.WARMING], Probe.WARMING, False),
        ([Probe.OK], Probe.REFUSED, True),
        ([Probe.OK], Probe.WARMING, True),
        ([Probe.OK], Probe.FAILED, False),  # a flap with the connection intact
        ([Probe.OK], Probe.BACKEND_DEAD, False),
    ],
)
def test_what_makes_a_process_suspect(
    registry: Registry, before: list[Probe], probe: Probe, suspected: bool
) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    for each in before:
        registry.probed(worker, each)
    told = listen(registry)
    registry.probed(worker, probe, "why")
    assert (worker.suspicion is not None) == suspected
    assert any(isinstance(event, events.Suspected) for event in told) == suspected
    registry.absolve(worker)
    assert worker.suspicion is None


def test_forgiving_clears_quarantine_and_ill_health(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    for _ in range(3):
        registry.probed(worker, Probe.REFUSED, "refused")
    registry.administer(worker, AdminEvent.QUARANTINE)
    assert worker.is_dead
    registry.forgive(worker)
    assert not worker.is_dead
    assert (worker.health, worker.health_reason) == (Health.UNKNOWN, None)
    assert worker.consecutive_failures == 0
    registry.probed(worker, Probe.OK)  # one is enough: an operator vouches for it
    assert worker.health is Health.HEALTHY


def test_forgiving_a_well_worker_changes_nothing(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    registry.probed(worker, Probe.OK)
    registry.administer(worker, AdminEvent.DRAIN)
    told = listen(registry)
    registry.forgive(worker)
    assert (worker.health, worker.admin, told) == (Health.HEALTHY, Admin.DRAINING, [])


def test_each_worker_is_counted_once(registry: Registry) -> None:
    workers = [registry.add(f"http://w:{port}", Origin.REGISTERED) for port in range(1, 8)]
    for worker in workers[:6]:
        registry.probed(worker, Probe.OK)
    registry.administer(workers[0], AdminEvent.QUARANTINE)
    registry.apply_memory_event(workers[0], MemoryEvent.SLEEP)  # dead and asleep: dead
    registry.probed(workers[1], Probe.BACKEND_DEAD)
    registry.apply_memory_event(workers[2], MemoryEvent.SLEEP)
    registry.administer(workers[3], AdminEvent.DRAIN)  # neither dead nor asleep nor routable
    count = census(registry)
    assert (count.total, count.dead, count.sleeping, count.routable) == (7, 2, 1, 2)


def test_capabilities_are_told_when_they_change(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    told = listen(registry)
    for models in (("m",), ("m",), ("n",)):
        registry.learned(worker, Capabilities(models=models))
    assert told == [events.CapabilitiesLearned(worker)] * 2


def test_slots_are_those_of_the_operator_then_of_the_worker(registry: Registry) -> None:
    worker = registry.add(A, Origin.REGISTERED)
    assert worker.max_concurrency == 1
    registry.learned(worker, Capabilities(dp_size=4))
    assert worker.max_concurrency == 4
    registry.set_concurrency(worker, 2)
    assert worker.max_concurrency == 2
    registry.set_concurrency(worker, None)
    assert worker.max_concurrency == 4


def test_an_unknown_worker_is_the_clients_fault(registry: Registry) -> None:
    with pytest.raises(RouterError, match="No worker is registered at http://b:2"):
        registry.get(B)


def test_all_observers_hear_events_in_the_order_in_which_they_happened(registry: Registry) -> None:
    def react(event: events.Event) -> None:
        if isinstance(event, events.WorkerAdded):
            registry.suspect(event.worker, "it looks odd")

    registry.subscribe(react)
    told = listen(registry)
    worker = registry.add(A, Origin.REGISTERED)
    assert told == [events.WorkerAdded(worker, None), events.Suspected(worker, "it looks odd")]


def test_an_observer_that_fails_leaves_no_events_for_later(registry: Registry) -> None:
    def fail(event: events.Event) -> None:
        if isinstance(event, events.WorkerAdded):
            registry.suspect(event.worker, "it looks odd")
            raise ZeroDivisionError

    registry.subscribe(fail)
    with pytest.raises(ZeroDivisionError):
        registry.add(A, Origin.REGISTERED)
    told = listen(registry)
    registry.trouble(registry.get(A), "it broke off")
    assert [type(event) for event in told] == [events.Trouble]


def test_what_an_ending_process_says_counts_for_nothing(registry: Registry) -> None:
    """What waits for the worker would be refused if it counted as unhealthy meanwhile, or be given
    to the process that ends."""
    worker = registry.add(A, Origin.LAUNCHED)
    registry.probed(worker, Probe.OK)
    registry.expect(worker, "it is restarted", ending=True)
    for probe in (Probe.OK, Probe.FAILED, Probe.REFUSED, Probe.REFUSED, Probe.REFUSED):
        registry.probed(worker, probe)
        assert worker.health is Health.WARMING
    registry.expect(worker, "it starts again")
    registry.probed(worker, Probe.OK)
    assert worker.health is Health.HEALTHY
