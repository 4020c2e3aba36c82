"""Gives requests their workers: the trio side of `pool.queue`.

Only this module grants leases and wakes waiting tasks. The queue decides, synchronously, on every
event of the pool; the dispatcher turns the decisions into leases, errors and woken tasks.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial

import trio
from attrs import define, field

from .errors import PoolUnavailable, RouterError
from .front.record import served_id
from .pool import events
from .pool.cost import Costs, Rate, Speeds
from .pool.lifecycle import able, hopeful, meets, reasons
from .pool.lines import Ageing, Waiting
from .pool.match import Facts, Need
from .pool.policies import LeastWork, Policy
from .pool.pools import absent, members
from .pool.queue import Queue, QueueLimits
from .pool.registry import Registry
from .pool.worker import Health, Hold, HoldKind, Lease, Worker

# With `longest_first`, one second of waiting outweighs this many seconds of expected work.
_AGEING = 0.2
_SESSION_PATIENCE = 5.0  # seconds that a WebSocket waits for a slot
_SESSION_GRACE = 10.0  # seconds that a session may take to end before its worker is idle
_SLOWEST_RETRY, _UNMEASURED_RETRY = 300, 30  # seconds in Retry-After
# A job has failed at once if it fails within this many seconds, or within this share of its
# expected time.
_AT_ONCE, _OF_EXPECTED = 1.0, 0.5
# Reasons that do not prevent a first contact.
_UNMET = {"not_probed_yet", "unauthorized", "backpressure", "on_trial"}


class Cancelled(PoolUnavailable):
    """A client has cancelled what waited; no worker has seen it."""

    default_status = 409
    default_code = "cancelled"

    @property
    def should_retry(self) -> bool:
        return False  # a client library that asks again by itself would undo the cancellation


@define(eq=False)
class _Parked(Waiting):
    """A task that waits for a worker, and its outcome: a lease or an error."""

    decided: trio.Event = field(factory=trio.Event)
    lease: Lease | None = None
    error: RouterError | None = None


class Dispatcher:
    """Gives each exchange a worker, or lets it wait for one."""

    def __init__(
        self,
        registry: Registry,
        policy: Policy,
        *,
        limits: QueueLimits | None = None,
        speeds: Speeds | None = None,
    ) -> None:
        self.limits = limits or QueueLimits()
        self.speeds = speeds or Speeds(trio.current_time)
        self.costs = Costs()
        self._registry = registry
        self.queue = Queue(
            policy,
            LeastWork(self.speeds),
            lambda: registry,
            self._give,
            self._refuse,
            most_jobs=self.limits.jobs_per_worker,
            strict_model=self.limits.strict_model,
            ageing=Ageing(clock=trio.current_time),
        )
        self._undecided: deque[Callable[[], None]] = deque()
        self._deciding = False
        self._closed = False
        self._ended: dict[Worker, trio.Event] = {}  # set at the next event of the worker
        self._rate = Rate()
        self._held = 0  # bytes of the bodies of waiting requests
        self._jobs: dict[str, Hold] = {}
        self._ejection = registry.ejection
        self._look = trio.Event()  # set when the pause of a worker begins or shortens
        registry.subscribe(self._observe, events.OfWorker, events.OfHold, events.LeaseEnded)
        # Decide only after all observers: an observer of the same event may make a worker
        # unroutable.
        registry.bus.when_settled(self._decide)

    def serves(self, pool: str | None = None) -> bool:
        """Whether the pool would serve or queue a request that any worker can do."""
        return any(map(hopeful, members(self._registry, pool)))

    def drain_rate(self) -> float:
        """Generations per second that got a worker, over the last minute."""
        return self._rate.per_second(trio.current_time())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Revisit the waiting requests each time the pause of a worker is over; never returns."""
        task_status.started()
        while True:
            self._look = trio.Event()
            with trio.move_on_at(self._ejection.next_look()):
                await self._look.wait()
            self._ejection.look(trio.current_time())

    async def lease(self, facts: Facts, *, tried: Collection[Worker] = (), held: int = 0) -> Lease:
        """A lease on a fitting worker that is not in `tried`, once the worker has room.

        Waits only if a worker may become able by itself. `held` is the number of bytes of the
        request's body that stay in memory meanwhile. Raises PoolUnavailable (`no_workers`,
        `pool_asleep`, `no_routable_worker`, `weights_unavailable`, `queue_full`, `queue_timeout`,
        `too_many_jobs`, `shutting_down`), NoCapableWorker if no registered worker can do a job,
        AmbiguousModel or UnknownModel. The caller releases the lease.
        """
        if self._closed:
            error = _closing()
            self._note_refusal(facts, error, 0.0)
            raise error
        now = trio.current_time()
        if self._ejection.next_look() <= now:
            self._ejection.look(now)
        if not tried and (worker := self.queue.at_once(facts)):
            return self._take(facts, worker, now)
        rank, request_id = self._rank(facts, now), served_id()
        parked = _Parked(facts, rank, now, frozenset(tried), request_id=request_id)
        self._held += held
        try:
            ahead = self.queue.waiting
            self._undecided.append(partial(self.queue.add, parked))
            self._decide()
            full = None
            if not tried:  # a retry had its place in the queue before
                if ahead >= self.limits.size:
                    full = f"{ahead} requests are waiting already"
                elif held and self._held > self.limits.bytes:
                    full = f"waiting requests hold {self._held - held} bytes already"
            patience = self.limits.patience
            if facts.need is Need.SESSION:
                patience = min(patience, _SESSION_PATIENCE)
            if full is None and not parked.over:
                self._registry.bus.publish(events.Queued(facts, self.queue.waiting))
                with trio.move_on_after(patience):
                    await parked.decided.wait()
            if not parked.over:
                self.queue.drop(parked)
                if full is not None:
                    raise self._crowded("queue_full", full)
                raise self._crowded("queue_timeout", f"no worker was free within {patience:g} s")
            if parked.error is not None:
                raise parked.error
        except RouterError as error:
            self._note_refusal(facts, error, trio.current_time() - now)
            raise
        except BaseException:
            # Cancelled at the moment of the grant.
            if parked.lease is not None:
                parked.lease.release()
            raise
        finally:
            self._held -= held
            self.queue.drop(parked)
        assert parked.lease is not None
        return parked.lease

    def beside(self, facts: Facts, leases: Sequence[Lease]) -> Lease | None:
        """One more lease beside these for the same request: on another worker that is free now and
        has the same weights. It overtakes no request, because none waits while a worker is usable.
        """
        taken = {lease.worker for lease in leases}
        worker = self.queue.another(facts, taken, leases[0].weight_version)
        if worker is None or self._closed:
            return None
        return self._take(facts, worker, trio.current_time())

    def _take(self, facts: Facts, worker: Worker, now: float) -> Lease:
        lease = self._registry.lease(worker, _new_hold(facts, worker, now))
        self.queue.taken(worker)
        self._rate.count(now)
        return lease

    def _note_refusal(self, facts: Facts, error: RouterError, waited: float) -> None:
        self._registry.bus.publish(events.Refused(facts, error, waited))

    def cancel(self, meant: Callable[[Facts], bool]) -> int:
        """Refuse the waiting requests that are meant; returns how many there were. Requests that
        have a worker go on."""
        cancelled = [waiting for waiting in self.queue.all() if meant(waiting.facts)]
        for waiting in cancelled:
            self.queue.drop(waiting)
            error = Cancelled("The request was cancelled while it waited for a worker")
            error.details["retry_safe"] = True
            _tell(waiting, error=error)
        return len(cancelled)

    def close(self) -> None:
        """Refuse all waiting and later requests: the router is stopping. Leases go on."""
        self._closed = True
        for waiting in self.queue.all():
            self.queue.drop(waiting)
            _tell(waiting, error=_closing())

    def delivered(self, lease: Lease) -> None:
        """The worker has the whole request: its work begins now."""
        if lease.hold is not None and lease.hold.begun is not None:
            lease.hold.begun = trio.current_time()

    def answered(self, lease: Lease, status: int, *, retry_after: float | None = None) -> None:
        """The head of the answer has come: free the slot, unless the worker took a job, which
        begins now. `retry_after`: the seconds for which the worker asks for no requests."""
        hold = lease.hold
        if hold is None or hold.kind is not HoldKind.GENERATION:
            return
        ok = 200 <= status < 300
        # Judge the worker before its slot is free: otherwise the next request goes there.
        if status in (429, 503) and retry_after is not None:
            self._ejection.hold_off(hold.worker, retry_after, trio.current_time())
        elif status >= 500:
            self.failed(hold, f"it answered {status}")
        elif ok and not hold.job:
            self._learn(hold)
        if not hold.job or not ok:
            self._registry.free(lease)

    def succeeded(self, hold: Hold) -> None:
        """The work of this slot is done: a job has completed, or a good answer has come whole."""
        if hold.incarnation == hold.worker.incarnation:
            self._ejection.succeeded(hold.worker, trio.current_time())
            if self._ejection.next_look() < math.inf:
                self._look.set()  # successes shorten the pause of a trial

    def failed(self, hold: Hold | None, why: str) -> None:
        """The worker has failed the work of this slot; `answered` reports 5xx answers itself."""
        if hold is None or hold.kind is HoldKind.SESSION or hold.wants is None:
            return
        if hold.incarnation == hold.worker.incarnation:
            meant = self.queue.fitting(hold.wants)
            self._ejection.failed(hold, meant, trio.current_time(), why)

    def abandon(self, lease: Lease) -> None:
        """The client has left, but the worker goes on: the slot stays taken, by a ghost."""
        if lease.hold is not None and lease.hold.kind is HoldKind.GENERATION:
            self._registry.keep(lease, HoldKind.GHOST)

    def job_began(self, lease: Lease, job_id: str) -> None:
        """The worker took a job: the job holds its slot until it ends."""
        self.job_ended(job_id, None)  # the worker may have given the same id before
        if lease.hold is not None:
            lease.hold.job_id = job_id
        hold = self._registry.keep(lease, HoldKind.JOB)
        if hold is not None and not hold.worker.removed:
            self._jobs[job_id] = hold

    def job_found(self, hold: Hold) -> None:
        """An unfinished job from before a restart of the router holds a slot until it ends."""
        if hold.job_id is not None and hold.job_id not in self._jobs and not hold.worker.removed:
            self._jobs[hold.job_id] = hold
            self._registry.occupy(hold)

    def job_ended(self, job_id: str, status: object) -> None:
        """The job has ended with this status; None if its worker no longer knows the job."""
        hold = self._jobs.pop(job_id, None)
        if hold is not None:
            self.job_went(hold, status)
            if status == "completed":
                self._learn(hold)
            self._registry.bus.publish(events.JobEnded(hold, status))
            self._registry.drop(hold)

    def job_went(self, hold: Hold | None, status: object) -> None:
        """Judge the worker by the outcome of a job: success, or failure at once. A job that fails
        late says nothing: the cause may be the job itself."""
        if hold is not None and status == "completed":
            self.succeeded(hold)
        elif hold is not None and status == "failed":
            begun = hold.since if hold.begun is None else hold.begun
            expected = self.speeds.typical(hold.endpoint, hold.work)
            if trio.current_time() - begun < max(_AT_ONCE, expected * _OF_EXPECTED):
                self.failed(hold, "a job failed at once")

    def job_deleted(self, job_id: str) -> None:
        """The job was deleted. If it was running, the worker goes on with it, as a ghost."""
        hold = self._jobs.pop(job_id, None)
        if hold is not None:
            self._registry.turn_into_ghost(hold)

    async def drain(self, worker: Worker) -> None:
        """Wait until nothing is under way at the worker (`Worker.is_drained`). To keep it so, the
        caller makes the worker unroutable first."""
        while not worker.is_drained:
            await self._eased(worker)

    async def idle(self, worker: Worker, within: float) -> bool:
        """Wait until the worker is idle (`Worker.is_idle`), at most `within` seconds; returns
        whether the worker is idle.

        For weight changes and sleeps, whose callers have fenced the worker. The worker's WebSocket
        sessions get 10 s, then they are closed. Ends at once if another process takes the worker's
        place. The caller checks the worker's health.
        """
        with trio.move_on_after(within):
            while not worker.is_idle:
                with trio.move_on_after(_SESSION_GRACE):
                    while not worker.is_idle:
                        await self._eased(worker)
                for lease in list(worker.leases):
                    if lease.evict is not None:
                        lease.evict()
        return worker.is_idle

    async def _eased(self, worker: Worker) -> None:
        """Wait for the next event of the worker."""
        await self._ended.setdefault(worker, trio.Event()).wait()

    def _learn(self, hold: Hold) -> None:
        # A job that waited at the worker behind others counts from the end of the others.
        if hold.begun is not None and not hold.worker.removed:
            seconds = trio.current_time() - hold.begun
            self.speeds.learn(hold.worker.url, hold.endpoint, hold.work, seconds)

    def _observe(self, event: events.Event) -> None:
        worker = event.worker
        if (waiting := self._ended.pop(worker, None)) is not None:
            waiting.set()
        if isinstance(event, events.LeaseEnded):
            return  # the slot has its own event, SlotFreed
        match event:
            case events.SlotFreed(hold):
                if hold.job_id is not None and self._jobs.get(hold.job_id) is hold:
                    del self._jobs[hold.job_id]
                if worker.trial is not None:
                    self._ejection.ended(hold, trio.current_time())
                self._registry.begin(worker, trio.current_time())
            case events.SlotsChanged() | events.CapabilitiesLearned():
                self._registry.begin(worker, trio.current_time())
            case events.WorkerRemoved():
                self.speeds.forget(worker.url)
        if worker.trial is not None or worker.paused:
            self._look.set()
        self._undecided.append(partial(self.queue.on_event, event))

    def _decide(self) -> None:
        """Let the queue decide on the changes. A change that a decision causes waits until that
        decision is carried out: the queue is never entered twice."""
        if self._deciding:
            return
        self._deciding = True
        try:
            while self._undecided:
                self._undecided.popleft()()
        finally:
            self._deciding = False

    def _give(self, waiting: Waiting, worker: Worker) -> None:
        now, need = trio.current_time(), waiting.facts.need
        hold = _new_hold(waiting.facts, worker, now)
        lease = self._registry.lease(worker, hold, request_id=waiting.request_id)
        lease.binding = need is Need.CALL
        if need in (Need.SLOT, Need.SESSION):
            self._rate.count(now)
        _tell(waiting, lease)

    def _refuse(self, waiting: Waiting, full: bool) -> None:
        if full:
            most = self.limits.jobs_per_worker
            error = self._crowded("too_many_jobs", f"each worker has {most} unfinished jobs")
            _tell(waiting, error=error)
        elif (worker := self._first_contact(waiting)) is not None:
            self._give(waiting, worker)
        else:
            missing = absent(waiting.facts.pool, self._registry)
            _tell(waiting, error=missing or self.queue.why_refused(waiting.facts))

    def _first_contact(self, waiting: Waiting) -> Worker | None:
        """If no worker is able, one that was never met: a 502 of this contact is the truth."""
        if any(map(able, members(self._registry, waiting.facts.pool))):
            return None
        for worker in self.queue.fitting(waiting.facts.wants):
            if (
                worker.health is Health.UNKNOWN
                and not worker.met
                and _UNMET.issuperset(reasons(worker))
                and worker not in waiting.tried
                and meets(worker, waiting.facts.bounds)
                and (worker.free_slots > 0 or waiting.eager)
            ):
                return worker
        return None

    def _rank(self, facts: Facts, now: float) -> float:
        if not self.limits.longest_first:
            return now
        # All requests age alike, so their order never changes while they wait.
        return now * _AGEING - self.speeds.typical(facts.kind, facts.work)

    def _crowded(self, code: str, why: str) -> PoolUnavailable:
        rate = self.drain_rate()
        seconds = self.queue.waiting / rate if rate else _UNMEASURED_RETRY
        after = str(max(1, min(_SLOWEST_RETRY, math.ceil(seconds))))
        return PoolUnavailable(
            f"The pool is busy: {why}", code=code, headers=[("Retry-After", after)]
        )


def _new_hold(facts: Facts, worker: Worker, now: float) -> Hold | None:
    if facts.need in (Need.CALL, Need.NOTHING):
        return None
    return Hold(
        worker,
        worker.incarnation,
        HoldKind.SESSION if facts.need is Need.SESSION else HoldKind.GENERATION,
        facts.kind,
        facts.work,
        since=now,
        job=facts.need is Need.JOB,
        wants=facts.wants,
    )


def _tell(waiting: Waiting, lease: Lease | None = None, error: RouterError | None = None) -> None:
    """Wake the task that waits."""
    assert isinstance(waiting, _Parked)
    waiting.lease, waiting.error = lease, error
    waiting.decided.set()


def _closing() -> PoolUnavailable:
    return PoolUnavailable("The router is stopping", code="shutting_down")
