"""Sleep and wake by request: workers give their GPU memory back, and take it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from attrs import define, field

from ..pool.lifecycle import MemoryEvent, reachable
from ..pool.match import Targets, no_workers
from ..pool.worker import Memory, Origin, Weights, Worker
from .agent import Agents
from .calls import Claim, Outcome, Row, answer
from .client import Call
from .operations import Operation, Work
from .worker_memory import WorkerMemory, said


@define(eq=False)
class MemoryControl:
    """Puts workers to sleep and wakes them, in order of arrival. Both are idempotent.

    If a chosen worker cannot be called, its agent sleeps or wakes it later: until then it is
    `falling_asleep` or `waking`, and not routable. The same holds for a new process in the place of
    a sleeping one: it must give its GPU back before anything else.
    """

    agents: Agents
    worker_memory: WorkerMemory = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.worker_memory = self.agents.worker_memory

    async def sleep(self, chosen: list[Worker], call: Call) -> Outcome:
        """Put the chosen workers to sleep; returns status and body of the answer.

        The work goes on if the caller is cancelled, unless its turn has not come. Raises
        PoolUnavailable if no worker can be called, StateUnavailable.
        """
        return await self._do(partial(self._sleep, chosen, call), chosen)

    async def wake(self, chosen: list[Worker], call: Call) -> Outcome:
        """Wake the chosen workers, like `sleep`; the answer comes when they are awake. Workers that
        still lack a weight change are among the `deferred`."""
        return await self._do(partial(self._wake, chosen, call), chosen)

    async def _do(self, work: Work[Outcome], chosen: list[Worker]) -> Outcome:
        self.worker_memory.store.check()
        return await self.agents.operations.start(work, chosen, begun=False).result()

    async def _sleep(
        self, chosen: list[Worker], call: Call, operation: Operation[Outcome]
    ) -> Outcome:
        await operation.begin()
        present = [worker for worker in chosen if not worker.removed]
        late = [w for w in present if not self.worker_memory.sleeps(w)]
        sleeping = [w for w in present if w not in late and not w.is_dead]
        eligible = [w for w in late if reachable(w)]
        targets = Targets(eligible, [w for w in late if w not in eligible])
        if not eligible and not sleeping:
            raise no_workers()
        intents = dict.fromkeys(late, Memory.FALLING_ASLEEP)
        rows = await self._bring(operation, eligible, intents, MemoryEvent.SLEEP, call)
        if eligible:
            return _answer(rows, targets, aim=True)
        message = "All workers are already sleeping"
        return 200, {
            "message": message,
            "sleeping_workers": len(sleeping),
            **_left_out(targets),
        }

    async def _wake(
        self, chosen: list[Worker], call: Call, operation: Operation[Outcome]
    ) -> Outcome:
        await operation.begin()
        present = [worker for worker in chosen if not worker.removed]
        targets = Targets.of(w for w in present if w.is_sleeping)
        eligible, deferred = targets.eligible, targets.deferred
        awake = [w for w in present if not w.is_sleeping and not w.is_dead]
        # A launched worker that died asleep is started again, because it may wake now.
        launched = any(worker.origin is Origin.LAUNCHED for worker in deferred)
        if not eligible and not awake and not launched:
            raise no_workers()
        # A wake is stored as a sleep until it has an outcome: the GPU is not the worker's yet.
        intents = {
            worker: Memory.FALLING_ASLEEP
            if worker in eligible and worker.memory is not Memory.WAKING
            else Memory.WAKING
            for worker in (*deferred, *eligible)
        }
        rows = await self._bring(operation, eligible, intents, MemoryEvent.WAKE, call)
        up = [w for w in present if not w.is_sleeping and not w.is_dead and not w.removed]
        behind = [worker for worker in up if worker.weights is not Weights.CURRENT]
        targets = Targets(eligible, [*deferred, *behind])
        if eligible or not awake:
            return _answer(rows, targets, aim=False)
        message = "All workers are already active"
        return 200, {"message": message, "active_workers": len(awake), **_left_out(targets)}

    async def _bring(
        self,
        operation: Operation[Outcome],
        eligible: Sequence[Worker],
        intents: Mapping[Worker, Memory],
        event: MemoryEvent,
        call: Call,
    ) -> list[Row]:
        """Have agents sleep or wake the eligible workers now, and the other workers of the intents
        once they can be called. Returns the rows of workers that were not removed."""
        operations, before = self.agents.operations, {w: w.memory for w in eligible}
        await self._intend(intents)

        async def record(claim: Claim) -> None:
            await self.worker_memory.record(claim, before[claim.worker])
            self.agents.drop([claim])
            operations.release(operation, claim.worker)  # this worker does not wait for the others

        claims = [Claim(worker, record, self.agents.drain_timeout, call) for worker in eligible]
        if event is MemoryEvent.WAKE:
            for claim in claims:
                claim.idle.set()
        operations.release(operation, *operation.workers.difference(eligible))
        with self.agents.having(claims):
            self.worker_memory.begin(intents, event)
            for claim in claims:
                await claim.over.wait()
        await self.worker_memory.store.commit()
        rows = [claim.row for claim in claims if claim.row is not None]
        return [row for row in rows if row.sent or not row.worker.removed]

    async def _intend(self, intents: Mapping[Worker, Memory]) -> None:
        """Make the intents durable. If that fails, nothing is intended."""
        for worker, memory in intents.items():
            self.worker_memory.note(worker, memory)
        try:
            await self.worker_memory.store.commit()
        except BaseException:
            for worker in intents:
                self.worker_memory.note(worker)
            raise


def _answer(rows: list[Row], targets: Targets, *, aim: bool) -> Outcome:
    """Status and body. A worker whose answer denies the wanted state has not succeeded."""
    if not rows and targets.eligible:
        raise no_workers()  # all workers were removed
    status, body = answer(rows, targets)
    if status == 200 and any(said(row, aim=aim) is not aim for row in rows):
        status, body["success"] = 502, False
    return status, body


def _left_out(targets: Targets) -> dict[str, Any]:
    """Partial success must not look like success: name the workers that could not be called."""
    return {"deferred": targets.deferred_rows()} if targets.deferred else {}
