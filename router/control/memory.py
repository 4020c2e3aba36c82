"""Sleep and wake: workers give their GPU memory back, and take it again. DESIGN section 6."""

from __future__ import annotations

from typing import Any

from attrs import define

from ..pool.lifecycle import MemoryEvent
from ..pool.registry import Registry
from ..pool.targets import Targets, asleep_targets, awake_targets, no_workers
from ..pool.worker import Worker
from .broadcast import Call, Row, answer, broadcast
from .client import ControlClient


@define(eq=False)
class MemoryControl:
    """Puts workers to sleep and wakes them. Both are idempotent; what is not known to be awake
    counts as asleep."""

    registry: Registry
    client: ControlClient

    async def sleep(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Put the chosen workers to sleep; status and body of the answer."""
        if all(worker.is_sleeping for worker in chosen):
            message = "All workers are already sleeping"
            return 200, {"message": message, "sleeping_workers": len(chosen)}
        targets = awake_targets(worker for worker in chosen if not worker.is_sleeping)
        return await self._change(targets, call, MemoryEvent.SLEEP, MemoryEvent.SLEPT)

    async def wake(self, chosen: list[Worker], call: Call) -> tuple[int, dict[str, Any]]:
        """Wake the chosen workers; status and body of the answer."""
        if not any(worker.is_sleeping for worker in chosen):
            message = "All workers are already active"
            return 200, {"message": message, "active_workers": len(chosen)}
        targets = asleep_targets(chosen)
        return await self._change(targets, call, MemoryEvent.WAKE, MemoryEvent.WOKE)

    async def _change(
        self, targets: Targets, call: Call, begin: MemoryEvent, done: MemoryEvent
    ) -> tuple[int, dict[str, Any]]:
        if not targets.eligible:
            raise no_workers()
        under_way = list(targets.eligible)
        for worker in under_way:
            self.registry.remember(worker, begin, "by request")
        try:
            rows = await broadcast(self.client, targets.eligible, call)
            for row in rows:
                self.registry.remember(row.worker, _outcome(row, done))
                under_way.remove(row.worker)
        finally:
            for worker in under_way:  # cancelled: nobody knows what the worker did
                self.registry.remember(worker, MemoryEvent.LOST, "the call was broken off")
        return answer(rows, targets)


def _outcome(row: Row, done: MemoryEvent) -> MemoryEvent:
    if row.success:
        return done
    if not row.sent:  # it was never asked, and is what it was
        return MemoryEvent.SLEPT if done is MemoryEvent.WOKE else MemoryEvent.WOKE
    said = row.body.get("sleeping") if isinstance(row.body, dict) else None
    if isinstance(said, bool):
        return MemoryEvent.SLEPT if said else MemoryEvent.WOKE
    return MemoryEvent.LOST
