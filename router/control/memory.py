"""Sleep and wake by request: workers give their GPU memory back, and take it again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import trio
from attrs import define, field, frozen

from ..errors import Conflict, RouterError
from ..pool.lifecycle import MemoryEvent, reachable
from ..pool.match import Targets, model_of, no_workers
from ..pool.worker import Memory, Origin, Weights, Worker
from .agent import Agents
from .calls import Claim, Outcome, Row, answer
from .client import Call
from .operations import Operation
from .worker_memory import WorkerMemory, said

_PATIENCE = 30.0  # seconds that a statement waits for its turn


class WorkerBusy(Conflict):
    """Another operation has the worker."""

    default_code = "worker_busy"


@frozen
class _Part:
    """What came of a sleep or wake on the workers of one model. `settled`: how many needed no
    call."""

    rows: list[Row]
    targets: Targets
    settled: int = 0


_Work: TypeAlias = Callable[[list[Worker], Operation[Any]], Awaitable[_Part]]


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
        part = await self._do(partial(self._sleep, chosen, call), chosen)
        if part.targets.eligible:
            return _answer(part, aim=True)
        message = "All workers are already sleeping"
        return 200, {"message": message, "sleeping_workers": part.settled, **_left_out(part)}

    async def wake(self, chosen: list[Worker], call: Call) -> Outcome:
        """Wake the chosen workers, like `sleep`; the answer comes when they are awake. Workers that
        still lack a weight change are among the `deferred`."""
        part = await self._do(partial(self._wake, chosen, call), chosen)
        if part.targets.eligible or not part.settled:
            return _answer(part, aim=False)
        message = "All workers are already active"
        return 200, {"message": message, "active_workers": part.settled, **_left_out(part)}

    async def believe(self, workers: list[Worker], *, sleeping: bool) -> None:
        """Take a client's word that these workers sleep, or are awake, once their turn has come. No
        worker is called. Raises WorkerBusy, StateUnavailable."""
        self.worker_memory.store.check()
        with trio.move_on_after(_PATIENCE):
            async with self.agents.operations.take(workers):
                await self.worker_memory.believe(workers, sleeping=sleeping)
            return
        raise WorkerBusy("A change, a sleep or a wake has some of these workers: try again")

    async def _do(self, work: _Work, chosen: list[Worker]) -> _Part:
        """Do it on the workers of each model, in the line of that model: whatever holds one model
        up holds up no other. The call fails if it fails for all models; otherwise the workers of a
        model for which it fails have rows that say why."""
        self.worker_memory.store.check()
        groups: dict[str | None, list[Worker]] = {}
        for worker in chosen:
            groups.setdefault(model_of(worker), []).append(worker)
        found: list[_Part] = []
        failed: list[RouterError] = []

        async def one(group: list[Worker], operation: Operation[_Part]) -> None:
            try:
                found.append(await operation.result())
            except RouterError as error:
                failed.append(error)
                rows = [
                    Row.failed(worker, error.message, error.code, sent=False)
                    for worker in group
                    if not worker.removed
                ]
                found.append(_Part(rows, Targets([row.worker for row in rows], ())))

        start = self.agents.operations.start
        begun = [(g, start(partial(work, g), g, begun=False)) for g in groups.values()]
        async with trio.open_nursery() as nursery:
            for group, operation in begun:
                nursery.start_soon(one, group, operation)
        if len(failed) == len(begun):
            raise failed[0]
        return _together(found, chosen)

    async def _sleep(
        self, chosen: list[Worker], call: Call, group: list[Worker], operation: Operation[_Part]
    ) -> _Part:
        await operation.begin()
        sleeps = self.worker_memory.sleeps
        present = [worker for worker in group if not worker.removed]
        late = [w for w in present if not sleeps(w)]
        sleeping = [w for w in present if w not in late and not w.is_dead]
        if not any(reachable(w) or (sleeps(w) and not w.is_dead and not w.removed) for w in chosen):
            raise no_workers()
        targets = Targets.of(late)
        intents = dict.fromkeys(late, Memory.FALLING_ASLEEP)
        rows = await self._bring(operation, targets.eligible, intents, MemoryEvent.SLEEP, call)
        return _Part(rows, targets, len(sleeping))

    async def _wake(
        self, chosen: list[Worker], call: Call, group: list[Worker], operation: Operation[_Part]
    ) -> _Part:
        await operation.begin()
        present = [worker for worker in group if not worker.removed]
        asleep = [w for w in present if w.is_sleeping or w.dozing]
        targets = Targets.of(asleep)
        eligible, deferred = targets.eligible, targets.deferred
        awake = [w for w in present if w not in asleep and not w.is_dead]
        if not any(_may_wake(worker) for worker in chosen if not worker.removed):
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
        return _Part(rows, Targets(eligible, [*deferred, *behind]), len(awake))

    async def _bring(
        self,
        operation: Operation[_Part],
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


def _may_wake(worker: Worker) -> bool:
    """Whether a wake may have an effect on the worker, or needs none. A launched worker that died
    asleep is started again, because it may wake now."""
    if worker.is_sleeping:
        return reachable(worker) or worker.origin is Origin.LAUNCHED
    return not worker.is_dead


def _together(found: list[_Part], chosen: list[Worker]) -> _Part:
    """The parts as one, in the order of the chosen workers."""
    at = {worker: number for number, worker in enumerate(chosen)}
    rows = sorted((row for part in found for row in part.rows), key=lambda row: at[row.worker])
    targets = Targets(
        sorted((w for part in found for w in part.targets.eligible), key=at.__getitem__),
        sorted((w for part in found for w in part.targets.deferred), key=at.__getitem__),
    )
    return _Part(rows, targets, sum(part.settled for part in found))


def _answer(part: _Part, *, aim: bool) -> Outcome:
    """Status and body. A worker whose answer denies the wanted state has not succeeded."""
    if not part.rows and part.targets.eligible:
        raise no_workers()  # all workers were removed
    status, body = answer(part.rows, part.targets)
    if status == 200 and any(said(row, aim=aim) is not aim for row in part.rows):
        status, body["success"] = 502, False
    return status, body


def _left_out(part: _Part) -> dict[str, Any]:
    """Partial success must not look like success: name the workers that could not be called."""
    return {"deferred": part.targets.deferred_rows()} if part.targets.deferred else {}
