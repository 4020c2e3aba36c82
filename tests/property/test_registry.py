"""The registry under any order of events, against a simple model of it."""

from __future__ import annotations

from typing import Any

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from router.pool import events
from router.pool.lifecycle import (
    AdminEvent,
    IllegalTransition,
    MemoryEvent,
    Probe,
    census,
    reasons,
    routable,
)
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Health, Lease, Origin, Weights, Worker

_URLS = st.sampled_from(["http://a:1", "http://b:1", "http://c:1"])
_FACETS = ("health", "admin", "memory", "weights")


@define(eq=False)
class Told:
    """What an observer that only listens knows of one worker."""

    facets: dict[str, str]
    leases: int = 0
    incarnation: int = 1
    removed: bool = False


@define(eq=False)
class Listener:
    """Rebuilds the registry from its events alone."""

    workers: dict[Worker, Told] = field(factory=dict)
    events: int = 0

    def __call__(self, event: events.Event) -> None:
        self.events += 1
        match event:
            case events.WorkerAdded(worker):
                assert worker not in self.workers
                self.workers[worker] = Told({f: getattr(worker, f) for f in _FACETS})
            case events.WorkerRemoved(worker):
                assert not self.workers[worker].removed
                self.workers[worker].removed = True
            case events.FacetChanged(worker, facet, old, new, _):
                told = self.workers[worker].facets
                assert old != new
                assert told[facet] == old, "a change was not told, or told twice"
                assert getattr(worker, facet) == new, "told before it happened"
                told[facet] = new
            case events.LeaseGranted(lease):
                self.workers[lease.worker].leases += 1
            case events.LeaseEnded(lease):
                if lease.incarnation == self.workers[lease.worker].incarnation:
                    self.workers[lease.worker].leases -= 1
            case events.Reincarnated(worker, _):
                self.workers[worker].incarnation += 1
                self.workers[worker].leases = 0


class RegistryMachine(RuleBasedStateMachine):
    workers: Bundle[Worker] = Bundle("workers")
    leases: Bundle[Lease] = Bundle("leases")

    def __init__(self) -> None:
        super().__init__()
        self.listener = Listener()
        self.registry = Registry(failure_threshold=3)
        self.registry.subscribe(self.listener)
        self.registered: dict[str, Worker] = {}
        self.outstanding: list[tuple[Lease, int]] = []
        self.seen: list[Worker] = []

    @rule(target=workers, url=_URLS, slots=st.none() | st.integers(1, 5))
    def add(self, url: str, slots: int | None) -> Any:
        worker = self.registry.add(url, Origin.REGISTERED, concurrency=slots)
        if url in self.registered:
            assert worker is self.registered[url]
            return multiple()
        assert worker not in self.seen
        self.registered[url] = worker
        self.seen.append(worker)
        return worker

    @rule(worker=workers)
    def remove(self, worker: Worker) -> None:
        self.registry.remove(worker)
        if self.registered.get(worker.url) is worker:
            del self.registered[worker.url]

    @rule(target=leases, worker=workers)
    def lease(self, worker: Worker) -> Lease:
        lease = self.registry.lease(worker)
        self.outstanding.append((lease, worker.incarnation))
        return lease

    @rule(lease=consumes(leases))
    def release(self, lease: Lease) -> None:
        lease.release()
        self.outstanding = [entry for entry in self.outstanding if entry[0] is not lease]

    @rule(worker=workers, probes=st.lists(st.sampled_from(Probe), min_size=1, max_size=4))
    def probe(self, worker: Worker, probes: list[Probe]) -> None:
        for probe in probes:
            before = worker.health, worker.consecutive_successes
            self.registry.probed(worker, probe, None if probe is Probe.OK else "why")
            if worker.removed:
                assert (worker.health, worker.consecutive_successes) == before
            elif worker.health is not before[0] and worker.health is Health.HEALTHY:
                assert probe is Probe.OK
                assert before[0] is not Health.UNHEALTHY or before[1] >= 1

    @rule(worker=workers, event=st.sampled_from([*AdminEvent, *MemoryEvent, *Weights]))
    def happen(self, worker: Worker, event: AdminEvent | MemoryEvent | Weights) -> None:
        before = {facet: getattr(worker, facet) for facet in _FACETS}, self.listener.events
        try:
            match event:
                case AdminEvent():
                    self.registry.administer(worker, event)
                case MemoryEvent():
                    self.registry.apply_memory_event(worker, event)
                case Weights():
                    self.registry.set_weights(worker, event, worker.weight_version)
        except IllegalTransition:
            after = {facet: getattr(worker, facet) for facet in _FACETS}, self.listener.events
            assert after == before

    @rule(worker=workers)
    def forgive(self, worker: Worker) -> None:
        self.registry.forgive(worker)
        assert not worker.is_dead

    @rule(worker=workers, replaced=st.booleans())
    def doubt(self, worker: Worker, replaced: bool) -> None:
        incarnation = worker.incarnation
        self.registry.suspect(worker, "why")
        if replaced:
            self.registry.reincarnate(worker, "why")
            assert worker.incarnation == incarnation + (not worker.removed)
        else:
            self.registry.absolve(worker)
        assert worker.suspicion is None or worker.removed

    @rule(worker=workers, models=st.lists(st.sampled_from("xy"), max_size=2))
    def learn(self, worker: Worker, models: list[str]) -> None:
        self.registry.learned(worker, Capabilities(models=tuple(models)))

    @invariant()
    def the_members_are_those_registered(self) -> None:
        assert list(self.registry) == list(self.registered.values())
        for url, worker in self.registered.items():
            assert self.registry.find(url) is worker
            assert self.registry.get(worker.worker_id) is worker
            assert not worker.removed

    @invariant()
    def requests_are_the_leases_of_the_present_process(self) -> None:
        for worker in self.seen:
            mine = [
                lease
                for lease, incarnation in self.outstanding
                if lease.worker is worker and incarnation == worker.incarnation
            ]
            assert worker.active_requests == len(mine)
            assert worker.leases == set(mine)

    @invariant()
    def whoever_listens_knows_all(self) -> None:
        for worker in self.seen:
            told = self.listener.workers[worker]
            assert told.facets == {facet: getattr(worker, facet) for facet in _FACETS}
            assert told.leases == worker.active_requests
            assert told.incarnation == worker.incarnation
            assert told.removed == worker.removed

    @invariant()
    def each_record_agrees_with_itself(self) -> None:
        for worker in self.seen:
            assert not (worker.consecutive_failures and worker.consecutive_successes)
            assert min(worker.consecutive_failures, worker.consecutive_successes) >= 0
            assert routable(worker) == (not reasons(worker))
            assert worker.max_concurrency >= 1
            if worker.health is Health.HEALTHY:
                assert worker.health_reason is None

    @invariant()
    def each_worker_is_counted_once(self) -> None:
        count = census(self.registry)
        assert count.total == len(self.registered)
        assert count.dead + count.sleeping + count.routable <= count.total


RegistryMachine.TestCase.settings = settings(
    settings.get_profile("router"), max_examples=60, stateful_step_count=40
)
TestRegistry = RegistryMachine.TestCase
