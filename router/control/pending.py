"""Makes the changes that wait for their workers: all of these slept when they were asked for."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import trio
from attrs import define, field

from ..backoff import Backoff
from ..errors import StateUnavailable
from ..pool import events
from ..pool.registry import Registry
from ..pool.targets import is_up
from ..pool.weights import Change, Ledgers
from ..pool.worker import Health, Worker
from .refit import WeightControl
from .turns import Turns

logger = logging.getLogger("router.control")

# Seconds until a waiting task looks again by itself: a missed wake-up costs no more.
_LOOK_AGAIN = 5.0
# After a start, seconds that a pending change waits for the first probe of all its workers.
_FIRST_PROBES = 10.0


@define(eq=False)
class PendingChanges:
    """One task for each model with pending changes, which makes them in order."""

    registry: Registry
    ledgers: Ledgers
    turns: Turns
    weights: WeightControl
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _probed: float = field(init=False, default=0.0)  # when the first probes are over
    # The tasks, by model; the event ends a pause.
    _tasks: dict[str, trio.Event] = field(init=False, factory=dict)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make what waits once a worker can be called; never returns."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._probed = nursery, trio.current_time() + _FIRST_PROBES
            try:
                self.registry.subscribe(
                    self._observe,
                    *(events.FacetChanged, events.WorkerAdded, events.WorkerRemoved),
                    *(events.Absolved, events.Reincarnated, events.CapabilitiesLearned),
                )
                self.turns.ended.append(self.look)
                self.look(self.registry)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # at a stop it takes no more, though others are not done yet

    def look(self, workers: Iterable[Worker]) -> None:
        """Something about these workers has changed: perhaps one can be given what waits."""
        for worker in workers:
            ledger = self.ledgers.ledger_of(worker)
            if ledger is None or not ledger.pending or self._nursery is None:
                continue
            if ledger.model in self._tasks:
                self._tasks[ledger.model].set()
            else:
                self._tasks[ledger.model] = trio.Event()
                self._nursery.start_soon(self._make, ledger.model)

    def _observe(self, event: events.Event) -> None:
        self.look([event.worker])  # type: ignore[union-attr]

    async def _make(self, model: str) -> None:
        ledger = self.ledgers.ledger(model)
        backoff = Backoff()
        try:
            with trio.move_on_at(self._probed):
                while any(_unprobed(worker) for worker in self.registry):
                    woken = self._tasks[model] = trio.Event()
                    await woken.wait()
            while ledger.pending:
                woken = self._tasks[model] = trio.Event()
                change = ledger.pending[0]
                if not self._can_make(change):
                    with trio.move_on_after(_LOOK_AGAIN):
                        await woken.wait()
                    backoff.reset()
                    continue
                try:
                    done = await self.weights.make_pending(change)
                except StateUnavailable as error:
                    logger.warning("%s waits: %s", change.name, error)
                    done = False
                if not done:
                    # Another event: the end of the attempt has set this one.
                    woken = self._tasks[model] = trio.Event()
                    await backoff.pause(woken)
        finally:
            del self._tasks[model]

    def _can_make(self, change: Change) -> bool:
        return any(
            is_up(worker) and worker.suspicion is None and self.weights.is_ready_for(change, worker)
            for worker in self.ledgers.workers_of(change.model)
        )


def _unprobed(worker: Worker) -> bool:
    return worker.health is Health.UNKNOWN and worker.consecutive_failures == 0
