"""Sleep and wake: workers give their GPU memory back, and take it again. DESIGN section 6."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

import trio
from attrs import define, field

from ..pool.lifecycle import MemoryEvent
from ..pool.registry import Registry
from ..pool.targets import Targets, asleep_targets, awake_targets, no_workers
from ..pool.worker import Worker
from ..store.store import Store
from .broadcast import Call, Row, answer, broadcast
from .client import ControlClient


@define(eq=False)
class MemoryControl:
    """Puts workers to sleep and wakes them, one call at a time for each worker, in order of
    arrival. Both are idempotent; what is not known to be awake counts as asleep."""

    registry: Registry
    client: ControlClient
    store: Store
    _locks: WeakKeyDictionary[Worker, trio.Lock] = field(init=False, factory=WeakKeyDictionary)

    async def sleep(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Put the chosen workers to sleep; status and body of the answer."""
        async with self._alone_with(chosen):
            targets = awake_targets(w for w in chosen if not w.is_sleeping and not w.removed)
            sleeping = [w for w in chosen if w.is_sleeping and not w.is_dead and not w.removed]
            if not targets.eligible and sleeping:
                message = "All workers are already sleeping"
                return 200, {
                    "message": message,
                    "sleeping_workers": len(sleeping),
                    **_left_out(targets),
                }
            return await self._change(targets, call, MemoryEvent.SLEEP, MemoryEvent.SLEPT)

    async def wake(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Wake the chosen workers; status and body of the answer."""
        async with self._alone_with(chosen):
            targets = asleep_targets(w for w in chosen if not w.removed)
            awake = [w for w in chosen if not w.is_sleeping and not w.is_dead and not w.removed]
            if not targets.eligible and awake:
                message = "All workers are already active"
                return 200, {
                    "message": message,
                    "active_workers": len(awake),
                    **_left_out(targets),
                }
            return await self._change(targets, call, MemoryEvent.WAKE, MemoryEvent.WOKE)

    @asynccontextmanager
    async def _alone_with(self, workers: Iterable[Worker]) -> AsyncIterator[None]:
        """Wait until no other sleep or wake of these workers is under way, and keep it so."""
        async with AsyncExitStack() as stack:
            # Always in the same order, lest two calls wait for one another.
            for worker in sorted(workers, key=lambda worker: worker.url):
                await stack.enter_async_context(self._locks.setdefault(worker, trio.Lock()))
            yield

    async def _change(
        self, targets: Targets, call: Call, begin: MemoryEvent, done: MemoryEvent
    ) -> tuple[int, dict[str, Any]]:
        if not targets.eligible:
            raise no_workers()
        self.store.check()
        under_way: list[Worker] = []
        try:
            for worker in targets.eligible:
                self.registry.remember(worker, begin, "by request")
                under_way.append(worker)
            await self.store.commit()
            rows = await broadcast(self.client, targets.eligible, call)
            for row in rows:
                self.registry.remember(row.worker, _outcome(row, done))
                under_way.remove(row.worker)
            await self.store.commit()
        finally:
            for worker in under_way:  # cancelled: nobody knows what the worker did
                self.registry.remember(worker, MemoryEvent.LOST, "the call was broken off")
        return answer(rows, targets)


def _left_out(targets: Targets) -> dict[str, Any]:
    """Partial success must not look like success: name those that could not be asked."""
    return {"deferred": targets.deferred_rows()} if targets.deferred else {}


def _outcome(row: Row, done: MemoryEvent) -> MemoryEvent:
    if row.success:
        return done
    if not row.sent:  # it was never asked, and is what it was
        return MemoryEvent.SLEPT if done is MemoryEvent.WOKE else MemoryEvent.WOKE
    said = row.body.get("sleeping") if isinstance(row.body, dict) else None
    if isinstance(said, bool):
        return MemoryEvent.SLEPT if said else MemoryEvent.WOKE
    return MemoryEvent.LOST
