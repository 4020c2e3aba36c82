"""The sole owner of the workers: applies events to them and tells observers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import StrEnum

from ..bus import Bus, Observer
from ..errors import BadRequest, NotFound
from . import events, ids
from .ejection import EjectionLimits
from .lifecycle import ADMIN, MEMORY, AdminEvent, MemoryEvent, Probe, hopeful, judge, step
from .pools import DEFAULT, USUAL, Role
from .slots import Slots
from .worker import (
    Admin,
    Capabilities,
    Health,
    Origin,
    Weights,
    Worker,
    WorkerRecord,
)


class UnknownWorker(NotFound):
    default_code = "unknown_worker"


class AmbiguousWorker(BadRequest):
    default_code = "ambiguous_worker"


_MOST_ALIASES = 16  # per worker


class Registry(Slots):
    """The workers by normalised URL, in order of registration.

    Every change happens here, synchronously, and every observer hears of it before the call
    returns. Reports about a removed worker change nothing.
    """

    def __init__(
        self,
        *,
        failure_threshold: int = 3,
        concurrency: int | None = None,
        trust_weights: bool = False,
        ejection: EjectionLimits | None = None,
        roles: Mapping[str, Role] | None = None,
        pools: Iterable[str] = (),
    ) -> None:
        self.bus = Bus()
        super().__init__(self.bus.publish, ejection or EjectionLimits())
        self._workers: dict[str, Worker] = {}
        self._last = 0  # the number of the newest worker
        self.failure_threshold = failure_threshold
        self.concurrency = concurrency  # for workers without a limit of their own
        self.roles = dict(roles or {})  # those that the settings give, by URL
        self._configured = frozenset((DEFAULT, *pools))
        self.has_weights: Callable[[str], bool] = lambda pool: False  # whether its ledgers have any
        # The pools of plain HTTP workers.
        self.plain_pools: frozenset[str] = frozenset()
        # Records of recalled workers that were not added yet, by URL.
        self.past: dict[str, WorkerRecord] = {}
        self._doubt: str | None = None
        self._trust_weights = trust_weights

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers.values()))

    def __len__(self) -> int:
        return len(self._workers)

    def knows(self, pool: str) -> bool:
        """Whether the pool is known even if it has no workers now."""
        return pool in self._configured or self.has_weights(pool)

    def subscribe(self, observer: Observer, *types: type[events.Event]) -> Callable[[], None]:
        """Like `Bus.subscribe`; without types, hears every event of a worker."""
        return self.bus.subscribe(observer, *(types or (events.Event,)))

    def find(self, url: str) -> Worker | None:
        """The registered worker of a normalised URL, or None."""
        return self._workers.get(url)

    def get(self, named: str) -> Worker:
        """The worker of an id or URL in any spelling, an alias, `host:port`, or a name.

        Raises UnknownWorker, AmbiguousWorker if several workers match, or BadWorkerURL.
        """
        if ids.names_url(named):
            url = ids.url_of(named)
            worker = self._workers.get(url) or next((w for w in self if url in w.aliases), None)
            if worker is None:
                raise UnknownWorker(f"No worker is registered at {url}")
            return worker
        names = ids.names_of(named)
        found = [w for w in self if w.name in names or w.display_id in names]
        if len(found) > 1:
            raise AmbiguousWorker(
                f"{named!r} may be any of {', '.join(w.url for w in found)}; give a URL",
                details={"workers": [w.worker_id for w in found]},
            )
        if not found:
            raise UnknownWorker(f"No worker is called {named!r}")
        return found[0]

    def alias(self, url: str, worker: Worker) -> None:
        """Note that another normalised URL leads to this worker and to no other. The latest aliases
        are kept."""
        for other in self:
            if url in other.aliases and other is not worker:
                other.aliases = tuple(alias for alias in other.aliases if alias != url)
                self._tell(events.AliasesChanged(other))
        if url not in worker.aliases:
            worker.aliases = (*worker.aliases, url)[-_MOST_ALIASES:]
            self._tell(events.AliasesChanged(worker))

    def add(
        self,
        url: str,
        origin: Origin,
        *,
        concurrency: int | None = None,
        batching: int = 1,
        starting: bool = False,
        label: str | None = None,
        role: Role | None = None,
    ) -> Worker:
        """Register a normalised URL. A known URL keeps its record.

        `concurrency` and `role` come from the request for a registered worker, else from the
        settings.
        """
        registered = origin is Origin.REGISTERED
        known = self._workers.get(url)
        if known is not None:
            known.label = label or known.label
            if registered and not known.registered:
                known.registered = True
                self._tell(events.WorkerRegistered(known))
            if concurrency is not None:
                if not registered:
                    known.concurrency_default = concurrency
                self.set_concurrency(known, concurrency)
            if role is not None:
                self.assign(known, role)
            return known
        past = self.past.pop(url, None)
        default = self.concurrency if registered or concurrency is None else concurrency
        limit = default
        if registered and concurrency is not None:
            limit = concurrency
        elif past is not None and past.concurrency_set:
            limit = past.concurrency
        usual = self.roles.get(url, USUAL)
        if role is not None and not registered:
            usual, role = role, None
        if role is None:
            role = (past.role if past is not None else None) or usual
        self._last += past is None
        worker = Worker(
            url=url,
            origin=origin,
            number=self._last if past is None else past.number,
            concurrency_limit=limit,
            concurrency_default=default,
            batching=batching,
            starting=starting,
            label=label,
            role=role,
            role_default=usual,
            trusted=self._trust_weights,
            registered=registered,
        )
        if past is not None:
            worker.registered = registered or past.registered
            worker.admin, worker.memory = past.admin, past.memory
            worker.incarnation = past.incarnation
            worker.aliases, worker.leaving = past.aliases, past.leaving
            worker.met = past.capabilities is not None
        self._workers[url] = worker
        self._note_plain(worker)
        self._tell(events.WorkerAdded(worker, past))
        if past is not None and past.capabilities is not None:
            self.learned(worker, past.capabilities)
            if self._doubt is not None:
                self.suspect(worker, self._doubt)
        return worker

    def recall(self, past: Iterable[WorkerRecord], *, doubt: str | None) -> None:
        """Remember the records from before a restart of the router; `add` takes them over. Workers
        that were met become suspects, for the reason `doubt`, unless it is None."""
        self.past = {record.url: record for record in past}
        self._last = max((record.number for record in self.past.values()), default=0)
        self._doubt = doubt

    def retire(self, worker: Worker, reason: str) -> None:
        """Drain the worker, then remove it, unless an operator enables it first."""
        if worker.removed or worker.leaving is not None:
            return
        worker.leaving = reason
        if worker.admin is Admin.ENABLED:
            self.administer(worker, AdminEvent.DRAIN, f"it is being removed: {reason}")
        else:
            self._tell(events.ProspectsChanged(worker))

    def stay(self, worker: Worker, reason: str) -> None:
        """Call off the removal of the worker. A worker in quarantine leaves all the same."""
        if worker.leaving is not None and worker.admin is Admin.DRAINING:
            self.administer(worker, AdminEvent.UNDRAIN, reason)

    def remove(self, worker: Worker) -> None:
        """Forget the worker. Its leases stay valid until their exchanges end; its slots no longer
        count."""
        if worker.removed:
            return
        del self._workers[worker.url]
        worker.removed = True
        self._note_plain(worker)
        self.ejection.forget(worker)
        holds, worker.holds = worker.holds, {}
        for hold in holds:
            hold.orphaned = worker.origin is not Origin.LAUNCHED  # whose process ends as well
        self._tell(events.WorkerRemoved(worker), *map(events.SlotFreed, holds))

    def set_concurrency(self, worker: Worker, limit: int | None) -> None:
        """Set the worker's slots; None returns to the worker's own capability."""
        worker.concurrency_limit = limit
        self._tell(events.SlotsChanged(worker))

    def assign(self, worker: Worker, role: Role) -> None:
        """Give the worker another role. The caller makes sure that no change of weights or memory
        is under way at the worker."""
        if worker.role != role:
            worker.role = role
            self._note_plain(worker)
            self._tell(events.RoleChanged(worker))

    def probed(
        self, worker: Worker, probe: Probe, reason: str | None = None, *, seconds: float = 0.0
    ) -> None:
        """Record the finding of a health probe that took `seconds`, and what follows from it."""
        if worker.removed:
            return
        self._tell(events.Probed(worker, probe, seconds, reason))
        before = hopeful(worker), worker.troubled
        worker.unauthorized = probe is Probe.UNAUTHORIZED
        if worker.ending or (worker.starting and probe in (Probe.FAILED, Probe.REFUSED)):
            probe = Probe.WARMING  # its process is known to live, or to start soon
        if probe is Probe.OK:
            worker.starting = False
            worker.troubled = False
            worker.consecutive_failures = 0
            worker.consecutive_successes += 1
        else:
            worker.consecutive_successes = 0
            failed = probe is not Probe.WARMING
            worker.consecutive_failures = worker.consecutive_failures + 1 if failed else 0
            worker.health_reason = reason
        if worker.met and probe is Probe.WARMING and worker.health is Health.HEALTHY:
            self.suspect(worker, "it warms up again after it was healthy")
        elif worker.met and probe is Probe.REFUSED:
            self.suspect(worker, "it refused a connection")
        health = judge(worker, probe, failure_threshold=self.failure_threshold)
        self._facet(worker, "health", health, reason)
        if worker.health is Health.HEALTHY:
            worker.health_reason = None
            worker.met = True
        if (hopeful(worker), worker.troubled) != before:
            self._tell(events.ProspectsChanged(worker))

    def expect(self, worker: Worker, reason: str, *, ending: bool = False) -> None:
        """The worker's process was started, or will be without outside action: it warms up until it
        serves. `ending`: the process that still runs is about to end, whatever it answers."""
        if worker.removed:
            return
        worker.starting, worker.ending = True, ending
        worker.consecutive_failures = worker.consecutive_successes = 0
        worker.health_reason = reason
        self._facet(worker, "health", Health.WARMING, reason)

    def give_up(self, worker: Worker, reason: str) -> None:
        """The worker's process has ended, and will not come back without outside action."""
        if worker.removed:
            return
        worker.starting = worker.ending = False
        worker.health_reason = reason
        self._facet(worker, "health", Health.UNHEALTHY, reason)

    def identify(self, worker: Worker, process: str | None) -> None:
        """Record the proof of which process runs; None if there is none."""
        worker.process = process

    def learned(self, worker: Worker, capabilities: Capabilities) -> None:
        """Record the capabilities that the worker tells."""
        if worker.removed or worker.capabilities == capabilities:
            return
        worker.capabilities = capabilities
        self._tell(events.CapabilitiesLearned(worker))

    def administer(self, worker: Worker, event: AdminEvent, reason: str | None = None) -> None:
        """Apply an operator's wish. Raises IllegalTransition, and then changes nothing."""
        admin = step(ADMIN, worker.admin, event)
        if admin is Admin.ENABLED:
            worker.leaving = None
        self._facet(worker, "admin", admin, reason)

    def forgive(self, worker: Worker) -> None:
        """Clear quarantine, ill health and trial (`PUT {"is_dead": false}`); judge all anew."""
        self.administer(worker, AdminEvent.CLEAR)
        if worker.trial is not None or worker.paused:
            self.ejection.forget(worker)
            self._tell(events.ProspectsChanged(worker))
        if worker.health is Health.UNHEALTHY:
            worker.consecutive_failures = worker.consecutive_successes = 0
            worker.health_reason = None
            self._facet(worker, "health", Health.UNKNOWN, "cleared by an operator")

    def apply_memory_event(
        self, worker: Worker, event: MemoryEvent, reason: str | None = None
    ) -> None:
        """Apply an event of sleep or wake. Raises IllegalTransition, and then changes nothing."""
        self._facet(worker, "memory", step(MEMORY, worker.memory, event), reason)
        self.ejection.told(worker)

    def set_weights(
        self,
        worker: Worker,
        weights: Weights,
        version: int,
        reason: str | None = None,
        *,
        why: str | None = None,
        stuck: bool = False,
        newest: int = 0,
        lag: int | None = None,
    ) -> None:
        """Record where the worker stands against its ledger. `why`: why it is not current; `stuck`:
        it stays so until somebody acts; `newest`: the newest version of its model; `lag`: how many
        were issued after its own; `reason`: the cause of this change. Only for the code that keeps
        the ledgers."""
        hoped = hopeful(worker), worker.weight_version, worker.newest_version
        old, worker.newest_version, worker.weight_lag = worker.weights, newest, lag
        worker.weight_version, worker.weights_reason, worker.stuck = version, why, stuck
        self._facet(worker, "weights", weights, reason)
        if old is weights and (hopeful(worker), version, newest) != hoped and not worker.removed:
            self._tell(events.ProspectsChanged(worker))

    def suspect(self, worker: Worker, reason: str) -> None:
        """Doubt that the process is the same; the first reason stays until the doubt is cleared."""
        if worker.removed or worker.suspicion is not None:
            return
        worker.suspicion = reason
        self._tell(events.Suspected(worker, reason))

    def trouble(self, worker: Worker, reason: str) -> None:
        """The relay could not talk to the worker. This does not judge its health, but the worker is
        probed at once, and other workers are preferred until a probe succeeds."""
        if not worker.removed:
            worker.troubled = True
            self._tell(events.Trouble(worker, reason))

    def absolve(self, worker: Worker) -> None:
        """The process is proven to be the same."""
        reason = worker.suspicion
        self._end_doubt(worker)
        if reason is not None:
            self._tell(events.Absolved(worker, reason))

    def reincarnate(self, worker: Worker, reason: str) -> None:
        """Another process answers at this URL: forget all knowledge about the old process.

        Leases on the old process end without effect. A worker that slept must sleep again: its GPU
        was given away.
        """
        if worker.removed:
            return
        if worker.weight_version:
            # Before any event: otherwise an observer may find the worker routable.
            self.set_weights(worker, Weights.BEHIND, 0, reason)
        worker.incarnation += 1
        worker.capabilities = None
        worker.met = False
        worker.troubled = False
        self.ejection.forget(worker)
        # Work sent since the doubt arose has gone to the new process and keeps its slots, also as a
        # job or a ghost. A lease that is not used yet is withdrawn through its incarnation.
        worker.leases = {lease for lease in worker.leases if lease.doubtful}
        gone = [hold for hold in worker.holds if not hold.doubtful]
        worker.holds = {hold: None for hold in worker.holds if hold.doubtful}
        for hold in worker.holds:
            hold.incarnation = worker.incarnation
        self._end_doubt(worker)
        self._tell(events.Reincarnated(worker, reason), *map(events.SlotFreed, gone))
        self.apply_memory_event(worker, MemoryEvent.REPLACED, reason)

    def _end_doubt(self, worker: Worker) -> None:
        """It is certain again which process runs."""
        worker.suspicion = None
        for lease in worker.leases:
            lease.doubtful = False
        for hold in worker.holds:
            hold.doubtful = False

    def _note_plain(self, worker: Worker) -> None:
        if worker.is_plain:
            self.plain_pools = frozenset(w.pool for w in self if w.is_plain)

    def _facet(self, worker: Worker, facet: str, new: StrEnum, reason: str | None) -> None:
        old = getattr(worker, facet)
        setattr(worker, facet, new)
        if old is not new:
            self._tell(events.FacetChanged(worker, facet, old, new, reason))
