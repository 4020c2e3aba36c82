"""Gives requests their workers: the trio side of `pool.queue`.

The only place that grants leases and wakes waiting tasks. The queue decides, synchronously, on
every event of the pool; here its decisions become leases, errors and woken tasks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

import trio
from attrs import define, field, frozen

from .errors import BadRequest, PoolUnavailable
from .pool import events
from .pool.candidates import Facts, Need, fitting
from .pool.cost import Costs, Speeds
from .pool.lifecycle import hopeful, routable
from .pool.policies import Policy
from .pool.policies.least_work import LeastWork
from .pool.queue import Effect, Grant, Queue, Refusal, Waiting
from .pool.registry import Registry
from .pool.worker import Admin, Health, Hold, HoldKind, Lease, Memory, Weights, Worker

# Where the longest goes first, a second of waiting outweighs so many seconds of expected work.
_AGEING = 0.2
_JOB_ENDPOINTS = ("video", "mesh")
_RATE_WINDOW = 60.0  # seconds over which the drain rate is measured
_SESSION_PATIENCE = 5.0  # seconds that a WebSocket waits for a slot


@frozen
class QueueLimits:
    """Bounds of waiting. `longest_first`: by expected work, with ageing, instead of arrival."""

    size: int = 10_000
    patience: float = 1800.0  # seconds
    longest_first: bool = False
    jobs_per_worker: int = 100


@define(eq=False)
class _Parked:
    """A task that waits for a worker."""

    decided: trio.Event = field(factory=trio.Event)
    lease: Lease | None = None
    error: PoolUnavailable | None = None


class Dispatcher:
    """Gives each exchange a worker, or lets it wait for one."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        *,
        limits: QueueLimits | None = None,
        speeds: Speeds | None = None,
        failure_threshold: int = 3,
    ) -> None:
        self.limits = limits or QueueLimits()
        self.speeds = speeds or Speeds()
        self.costs = Costs()
        self._registry = registry
        self._failure_threshold = failure_threshold
        self._queue = Queue(policy, LeastWork(self.speeds), lambda: list(registry), self._take)
        self._parked: dict[Waiting, _Parked] = {}
        self._drained: dict[Worker, trio.Event] = {}
        self._grants: deque[float] = deque()
        self._jobs: dict[str, Hold] = {}
        self._job_ends: dict[Worker, float] = {}
        registry.subscribe(self._observe)

    @property
    def queue(self) -> Queue:
        """What waits, to look at."""
        return self._queue

    def serves(self) -> bool:
        """Whether a request that any worker can do would be served or queued, not refused."""
        return any(map(hopeful, self._registry))

    def drain_rate(self) -> float:
        """Requests that were given a worker, per second, over the last minute."""
        now = trio.current_time()
        while self._grants and self._grants[0] < now - _RATE_WINDOW:
            self._grants.popleft()
        if not self._grants:
            return 0.0
        return len(self._grants) / max(1.0, min(_RATE_WINDOW, now - self._grants[0]))

    def oldest_wait(self) -> float:
        """Seconds that the longest waiting request has waited."""
        waiting = [w.since for w, parked in self._parked.items() if not parked.decided.is_set()]
        return trio.current_time() - min(waiting) if waiting else 0.0

    async def lease(self, facts: Facts, *, tried: Collection[Worker] = ()) -> Lease:
        """A lease on a fitting worker that was not tried yet, once one has room.

        Waits only if one may become able without anyone acting. Raises PoolUnavailable
        (`no_workers`, `pool_asleep`, `no_routable_worker`, `weights_unavailable`, `queue_full`,
        `queue_timeout`, `too_many_jobs`), or BadRequest where no registered worker can do a job.
        The caller releases the lease.
        """
        now = trio.current_time()
        optimistic = self._first_contact(facts, tried)
        if optimistic is not None:
            return self._registry.lease(optimistic, self._new_hold(facts, optimistic))
        if facts.need is Need.JOB:
            self._check_job(facts)
        waiting = Waiting(facts, self._rank(facts, now), now, frozenset(tried))
        parked = self._parked[waiting] = _Parked()
        try:
            self._apply(self._queue.add(waiting))
            if not parked.decided.is_set():
                if self._queue.waiting > self.limits.size:
                    raise self._crowded("queue_full", f"{self.limits.size} requests wait already")
                session = facts.need is Need.SESSION
                patience = _SESSION_PATIENCE if session else self.limits.patience
                with trio.move_on_after(patience):
                    await parked.decided.wait()
                if not parked.decided.is_set():
                    why = f"no worker was free within {patience:g} s"
                    raise self._crowded("queue_timeout", why)
        except BaseException:
            if parked.lease is not None:
                parked.lease.release()
            raise
        finally:
            self._queue.drop(waiting)
            del self._parked[waiting]
        if parked.error is not None:
            raise parked.error
        assert parked.lease is not None
        return parked.lease

    def answered(self, lease: Lease, *, ok: bool) -> None:
        """The head of the answer has come: the GPU is free, whatever the transfer still takes."""
        hold = lease.hold
        if hold is None or hold.kind is not HoldKind.GENERATION:
            return
        # With more than it has slots for, it waited behind others.
        if ok and lease.worker.free_slots >= 0:
            seconds = trio.current_time() - hold.since
            self.speeds.learn(lease.worker.url, hold.endpoint, hold.work, seconds)
        if hold.job_id is None and hold.endpoint not in _JOB_ENDPOINTS:
            self._registry.free(lease)

    def abandon(self, lease: Lease) -> None:
        """Nobody waits for the answer any more, but the worker goes on: its slot stays taken."""
        if lease.hold is not None and lease.hold.kind is HoldKind.GENERATION:
            self._registry.keep(lease, HoldKind.GHOST)

    def job_began(self, lease: Lease, job_id: str) -> None:
        """The worker took a job: it holds its slot until it has ended."""
        if lease.hold is not None:
            lease.hold.job_id = job_id
        hold = self._registry.keep(lease, HoldKind.JOB)
        if hold is not None:
            self._jobs[job_id] = hold

    def job_ended(self, job_id: str, *, ok: bool) -> None:
        """The job has ended, or its worker no longer knows it."""
        hold = self._jobs.pop(job_id, None)
        if hold is None:
            return
        now = trio.current_time()
        begun = max(hold.since, self._job_ends.get(hold.worker, 0.0))
        self._job_ends[hold.worker] = now
        if ok:
            self.speeds.learn(hold.worker.url, hold.endpoint, hold.work, now - begun)
        self._registry.drop(hold)

    def job_deleted(self, job_id: str) -> None:
        """The job was deleted; if it was running, the worker goes on with it."""
        hold = self._jobs.pop(job_id, None)
        if hold is not None:
            self._registry.haunt(hold)

    async def drain(self, worker: Worker) -> None:
        """Wait until neither an exchange nor a job is under way at the worker. Whoever wants it
        to stay so has made it unroutable before."""
        while worker.leases or worker.jobs:
            changed = self._drained.setdefault(worker, trio.Event())
            await changed.wait()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.LeaseEnded(lease):
                self._wake_drains(lease.worker)
            case events.SlotFreed(hold):
                self._wake_drains(hold.worker)
                self._apply(self._queue.touched(hold.worker))
            case events.SlotsChanged(worker):
                self._apply(self._queue.touched(worker))
            case events.FacetChanged(worker):
                # What is not known of it yet decides where requests for unknown models go.
                unread = worker.capabilities is None
                self._apply(self._queue.rebuilt() if unread else self._queue.touched(worker))
            case events.Reincarnated(worker):
                self._wake_drains(worker)
                self._forget_jobs(worker)
                self._apply(self._queue.rebuilt())
            case events.WorkerRemoved(worker):
                self._forget_jobs(worker)
                self.speeds.forget(worker.url)
                self._job_ends.pop(worker, None)
                self._apply(self._queue.rebuilt())
            case events.WorkerAdded() | events.CapabilitiesLearned():
                self._apply(self._queue.rebuilt())

    def _wake_drains(self, worker: Worker) -> None:
        if not worker.leases and not worker.jobs:
            waiting = self._drained.pop(worker, None)
            if waiting is not None:
                waiting.set()

    def _forget_jobs(self, worker: Worker) -> None:
        for job_id in [j for j, hold in self._jobs.items() if hold.worker is worker]:
            del self._jobs[job_id]

    def _take(self, grant: Grant) -> None:
        facts, worker = grant.waiting.facts, grant.worker
        parked = self._parked[grant.waiting]
        parked.lease = self._registry.lease(worker, self._new_hold(facts, worker))
        parked.decided.set()
        self._grants.append(trio.current_time())

    def _new_hold(self, facts: Facts, worker: Worker) -> Hold | None:
        if facts.need is Need.NOTHING:
            return None
        kind = HoldKind.SESSION if facts.need is Need.SESSION else HoldKind.GENERATION
        now = trio.current_time()
        return Hold(worker, worker.incarnation, kind, facts.kind, facts.work, now)

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Refusal):
                parked = self._parked[effect.waiting]
                facts = effect.waiting.facts
                parked.error = self._refusal(facts, fitting(self._registry, facts))
                parked.decided.set()

    def _rank(self, facts: Facts, now: float) -> float:
        if not self.limits.longest_first:
            return now
        # All age alike, so the order among them never changes while they wait.
        return now * _AGEING - self.speeds.expected("", facts.kind, facts.work)

    def _crowded(self, code: str, why: str) -> PoolUnavailable:
        rate = self.drain_rate()
        seconds = self._queue.waiting / rate if rate else 30.0
        after = str(max(1, min(300, math.ceil(seconds))))
        return PoolUnavailable(
            f"The pool is busy: {why}", code=code, headers=[("Retry-After", after)]
        )

    def _check_job(self, facts: Facts) -> None:
        """Refuse a job that no registered worker can do, or that none has room for."""
        able = fitting(self._registry, facts)
        if not able and len(self._registry) and facts.task is not None:
            raise BadRequest(
                f"No {facts.task}-capable workers available in current worker pool.",
                code="no_capable_worker",
            )
        open_to = [worker for worker in able if routable(worker)]
        if open_to and all(w.jobs >= self.limits.jobs_per_worker for w in open_to):
            raise self._crowded(
                "too_many_jobs", f"every worker has {self.limits.jobs_per_worker} unfinished jobs"
            )

    def _first_contact(self, facts: Facts, tried: Collection[Worker]) -> Worker | None:
        """Optimistic first contact (DESIGN section 7): the 502 it may get is the truth."""
        if any(map(routable, self._registry)):
            return None
        for worker in fitting(self._registry, facts):
            if (
                worker not in tried
                and worker.health is Health.UNKNOWN
                and not worker.met
                and worker.admin is Admin.ENABLED
                and worker.memory is Memory.AWAKE
                and 0 < worker.consecutive_failures < self._failure_threshold
            ):
                return worker
        return None

    def _refusal(self, facts: Facts, candidates: list[Worker]) -> PoolUnavailable:
        if not len(self._registry):
            return PoolUnavailable("No workers are registered", code="no_workers")
        if not candidates:
            return PoolUnavailable(
                f"No registered worker can do this ({facts.task or facts.model})",
                code="no_routable_worker",
            )
        if all(worker.weights is Weights.FAILED for worker in candidates):
            return PoolUnavailable(
                "No fitting worker has the weights it needs", code="weights_unavailable"
            )
        awake = [w for w in candidates if not w.is_dead and not w.is_sleeping]
        if not awake and any(w.is_sleeping and not w.is_dead for w in candidates):
            return PoolUnavailable("All fitting workers are asleep", code="pool_asleep")
        return PoolUnavailable(
            "No fitting worker is routable at present", code="no_routable_worker"
        )
