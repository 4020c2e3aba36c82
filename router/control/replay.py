"""Brings workers up to their ledgers, in the background, before they are routable.

Joiners, new processes, sleepers that woke, those that missed a change or failed one: whoever is
not current and can be called gets what it lacks. DESIGN section 6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio
from attrs import define, field

from ..boundary import contained
from ..dispatch import Dispatcher
from ..errors import StateUnavailable
from ..pool import events
from ..pool.registry import Registry
from ..pool.weights import Change, Ledgers, Meaning, Step, meaning
from ..pool.weights.answers import words
from ..pool.weights.recipe import FRESH
from ..pool.worker import Admin, Health, Memory, Origin, Weights, Worker
from ..store.store import Store
from ..text import words as words_of
from .broadcast import Row, call_one
from .client import ControlClient, Unreachable
from .gate import Gate
from .refit import WeightControl
from .turns import Turns

logger = logging.getLogger("router.control")

# Replays side by side: storage is shared. One that takes longer than this many seconds may hang,
# and no longer counts.
_AT_ONCE, _COUNTED = 8, 60.0
# Seconds until a waiting task looks again by itself: a missed wake-up costs no more.
_LOOK_AGAIN = 5.0
_RETRY_FIRST, _RETRY_MOST = 1.0, 15.0
# After a start, seconds that a pending change waits for the first probe of all its workers.
_FIRST_PROBES = 10.0


@define(eq=False)
class _Tending:
    """The task that brings one worker up."""

    woken: trio.Event = field(factory=trio.Event)
    # Of the calls that are under way.
    scope: trio.CancelScope | None = None
    restarted: bool = False  # by us: once must be enough


@define(eq=False)
class Replayer:
    """Replays ledgers on workers that lack something, and makes changes that were pending.

    `restart`: starts a worker of ours again, which is tried where it can be helped in no other way.
    """

    registry: Registry
    dispatcher: Dispatcher
    client: ControlClient
    ledgers: Ledgers
    turns: Turns
    store: Store
    weights: WeightControl
    drain_timeout: float = 1800.0
    restart: Callable[[Worker], None] | None = None
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _gate: Gate = field(init=False, factory=lambda: Gate(_AT_ONCE, _COUNTED))
    _tended: dict[Worker, _Tending] = field(init=False, factory=dict)
    # Tasks that make pending changes, by model; the event ends a pause.
    _pending: dict[str, trio.Event] = field(init=False, factory=dict)
    _moved: trio.Event = field(init=False, factory=trio.Event)  # something about a worker has

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring up whoever lags behind; never returns."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.registry.subscribe(
                    self._observe,
                    *(events.FacetChanged, events.ProspectsChanged, events.CapabilitiesLearned),
                    *(events.WorkerAdded, events.WorkerRemoved),
                    *(events.Suspected, events.Absolved, events.Reincarnated),
                )
                self.turns.began.append(self._give_way)
                self.turns.ended.append(self.look)
                self.look(self.registry)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # at a stop it takes no more, though others are not done yet

    def look(self, workers: Iterable[Worker]) -> None:
        """Something about these workers has changed: see at once what they need."""
        for worker in workers:
            tending = self._tended.get(worker)
            if tending is not None:
                tending.woken.set()
            elif self._nursery is not None and _lags(worker):
                tending = self._tended[worker] = _Tending()
                self._nursery.start_soon(self._tend, worker, tending)
            ledger = self.ledgers.ledger_of(worker)
            if ledger is not None and ledger.pending and self._nursery is not None:
                waiting = self._pending.get(ledger.model)
                if waiting is not None:
                    waiting.set()
                else:
                    self._pending[ledger.model] = trio.Event()
                    self._nursery.start_soon(self._make_pending, ledger.model)

    async def sync(self, workers: list[Worker], within: float) -> bool:
        """Bring all of these up that can be called; whether they are current, after so many
        seconds at most."""
        self.look(workers)
        with trio.move_on_after(within):
            while not all(w.weights is Weights.CURRENT for w in workers if _callable(w)):
                await self._moved.wait()
        return all(worker.weights is Weights.CURRENT for worker in workers if _callable(worker))

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.FacetChanged(worker, facet="weights"):
                tending = self._tended.get(worker)
                if tending is None or not _lags(worker):
                    self.look([worker])
                # Else it is its own doing.
            case events.FacetChanged(worker) | events.Reincarnated(worker):
                if isinstance(event, events.Reincarnated) or not _callable(worker):
                    self._stop(worker)
                self.look([worker])
            case events.WorkerRemoved(worker) | events.Suspected(worker):
                self._stop(worker)  # the next call might reach another process
                self.look([worker])
            case (
                events.WorkerAdded(worker)
                | events.Absolved(worker)
                | events.CapabilitiesLearned(worker)
            ):
                self.look([worker])
        self._moved.set()
        self._moved = trio.Event()

    def _give_way(self, workers: Iterable[Worker]) -> None:
        """Something else has the workers now: what they were being sent is not waited for."""
        for worker in workers:
            self._stop(worker)

    def _stop(self, worker: Worker) -> None:
        tending = self._tended.get(worker)
        if tending is not None and tending.scope is not None:
            tending.scope.cancel()

    def _ready(self, worker: Worker) -> bool:
        """Whether the worker can be sent what it lacks."""
        ledger = self.ledgers.ledger_of(worker)
        if ledger is None or not _lags(worker) or not _callable(worker):
            return False
        if self.turns.working(worker) or worker.suspicion is not None:
            return False
        if ledger.pending and self.weights.is_ready_for(ledger.pending[0], worker):
            return False  # that comes first
        return self.ledgers.needs_replay(worker)

    async def _tend(self, worker: Worker, tending: _Tending) -> None:
        pause = _RETRY_FIRST
        try:
            while _lags(worker):
                tending.woken = trio.Event()
                if not self._ready(worker):
                    with trio.move_on_after(_LOOK_AGAIN):
                        await tending.woken.wait()
                    pause = _RETRY_FIRST
                    continue
                what = f"bringing worker {worker.url} up"
                with trio.CancelScope() as tending.scope, contained("worker", what) as attempt:
                    if await self.dispatcher.idle(worker, self.drain_timeout):
                        async with self._gate.turn():
                            if self._ready(worker):
                                await self._bring_up(worker)
                    else:
                        self.ledgers.delayed(worker, "its work did not end")
                tending.scope = None
                if attempt.error is not None:
                    self.ledgers.delayed(worker, f"{what} failed: {words_of(attempt.error)}")
                if _lags(worker):
                    with trio.move_on_after(pause):
                        await tending.woken.wait()
                    pause = _RETRY_FIRST if tending.woken.is_set() else min(_RETRY_MOST, pause * 2)
        finally:
            del self._tended[worker]

    async def _bring_up(self, worker: Worker) -> None:
        ledger = self.ledgers.ledger_of(worker)
        assert ledger is not None
        plan, recipe, version = self.ledgers.plan(worker), ledger.recipe, ledger.version
        incarnation = worker.incarnation
        logger.info("worker %s: replaying weight version %d", worker.url, version)
        last_base = max((i for i, step in enumerate(plan.steps) if not step.is_lora), default=None)
        for number, step in enumerate(plan.steps):
            if not await self._send(worker, step, incarnation):
                await self._save()
                return
            if number == last_base:
                self.ledgers.base_replayed(worker, recipe)
        if not _is(worker, incarnation):
            return
        lora = any(step.is_lora and not step.optional for step in plan.steps)
        self.ledgers.replayed(
            worker, recipe, lora=lora, reason=f"version {version} was replayed on it"
        )
        await self._save()

    async def _send(self, worker: Worker, step: Step, incarnation: int) -> bool:
        """Send one call of a plan; whether the next one may follow."""
        before = self.ledgers.standing(worker)
        if not step.optional:
            self.ledgers.sending(worker, lora=step.is_lora)
            await self._save()
            if not _is(worker, incarnation):
                return False
        body = step.body.encode()
        rows: dict[Worker, Row] = {}
        await call_one(self.client, worker, self.weights.call_of(step.path, body), body, rows)
        if not _is(worker, incarnation):
            return False
        row = rows[worker]
        what = meaning(step.path, row.status, row.body, sent=row.sent)
        if what is Meaning.APPLIED:
            return True
        if step.optional and row.answered and await self._acts_no_lora(worker):
            return True
        if what is Meaning.UNCHANGED:
            self.ledgers.returned(worker, before)
        reason = f"{step.path}: {words(row.body)}"
        if not row.answered:
            self.ledgers.delayed(worker, reason)
            return False
        tending = self._tended.get(worker)
        ours = worker.origin is Origin.LAUNCHED and self.restart is not None
        # A process that nothing was done to yet would refuse it again.
        if ours and tending and not tending.restarted and before != FRESH:
            assert self.restart is not None
            tending.restarted = True
            self.ledgers.delayed(worker, f"{reason}; it is restarted")  # requests may wait for it
            self.restart(worker)
        else:
            self.ledgers.failed(worker, reason)
        return False

    async def _acts_no_lora(self, worker: Worker) -> bool:
        """Whether the worker says that no LoRA has an effect on it."""
        try:
            answer = await self.client.call(
                "GET", worker.url, "/v1/list_loras", within=self.weights.call_timeout
            )
        except Unreachable:
            return False
        said = answer.json()
        return answer.status == 200 and isinstance(said, dict) and not said.get("active")

    async def _save(self) -> None:
        try:
            await self.store.commit()
        except StateUnavailable as error:
            logger.warning("what was replayed is not on the disk: %s", error)

    async def _make_pending(self, model: str) -> None:
        """Make the changes that wait for workers of the model, in order."""
        ledger = self.ledgers.ledger(model)
        pause = _RETRY_FIRST
        with trio.move_on_after(_FIRST_PROBES):
            while any(_unprobed(worker) for worker in self.registry):
                await self._moved.wait()
        try:
            while ledger.pending:
                woken = self._pending[model] = trio.Event()
                change = ledger.pending[0]
                if not self._can_make(change):
                    with trio.move_on_after(_LOOK_AGAIN):
                        await woken.wait()
                    pause = _RETRY_FIRST
                    continue
                try:
                    done = await self.weights.make_pending(change)
                except StateUnavailable as error:
                    logger.warning("%s waits: %s", change.name, error)
                    done = False
                if not done:
                    with trio.move_on_after(pause):
                        await woken.wait()
                    pause = _RETRY_FIRST if woken.is_set() else min(_RETRY_MOST, pause * 2)
        finally:
            del self._pending[model]
            # Workers that joined meanwhile are not among those of the change.
            self.look(self.ledgers.workers_of(model))

    def _can_make(self, change: Change) -> bool:
        return any(
            _callable(worker)
            and worker.suspicion is None
            and self.weights.is_ready_for(change, worker)
            for worker in self.ledgers.workers_of(change.model)
        )


def _lags(worker: Worker) -> bool:
    return worker.weights in (Weights.BEHIND, Weights.FAILED) and not worker.removed


def _callable(worker: Worker) -> bool:
    return (
        worker.health is Health.HEALTHY
        and worker.memory is Memory.AWAKE
        and worker.admin is not Admin.QUARANTINED
        and worker.capabilities is not None
        and not worker.removed
    )


def _unprobed(worker: Worker) -> bool:
    return worker.health is Health.UNKNOWN and worker.consecutive_failures == 0


def _is(worker: Worker, incarnation: int) -> bool:
    """Whether it is still the same registration of the same process."""
    return worker.incarnation == incarnation and not worker.removed
