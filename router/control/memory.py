"""Sleep and wake: workers give their GPU memory back, and take it again."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio
from attrs import define, field

from ..dispatch import Dispatcher
from ..pool import events
from ..pool.lifecycle import MemoryEvent
from ..pool.registry import Registry
from ..pool.targets import Targets, asleep_targets, no_workers, reachable
from ..pool.worker import Memory, Origin, Weights, Worker
from ..store.store import Store
from .broadcast import Call, Row, answer
from .client import ControlClient
from .errands import Begin
from .slumber import SleepRecord, Slumber, said, why
from .turns import Turn, Turns

logger = logging.getLogger("router.control")

Answer: TypeAlias = tuple[int, dict[str, Any]]

_RELEASE, _RESUME = "/release_memory_occupation", "/resume_memory_occupation"
_SETTLE = 1.0  # seconds for a worker that was idle a moment ago to be so again


@define(eq=False)
class MemoryControl:
    """Puts workers to sleep and wakes them, in order of arrival. Both are idempotent.

    A worker that was named but could not be called is brought there by its agent: it is
    `falling_asleep` or `waking` until then, and not routable. So is another process in the place
    of a sleeper, which must give its GPU back before anything else.
    `call_timeout`: seconds for an answer; `drain_timeout`: seconds until a worker is idle.
    """

    registry: Registry
    dispatcher: Dispatcher
    client: ControlClient
    turns: Turns
    store: Store
    call_timeout: float = 1800.0
    drain_timeout: float = 1800.0
    _slumber: Slumber = field(init=False)
    # The workers of requests under way: their agents leave them alone.
    claimed: set[Worker] = field(init=False, factory=set)
    # Workers that slept before a restart of the router: whether they still do is not known.
    _doubted: set[Worker] = field(init=False, factory=set)
    _restored: dict[str, SleepRecord] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._slumber = Slumber(self.registry, self.dispatcher, self.client, self.store)

    def restore(self) -> None:
        """Take up who sleeps by the store; before any worker is probed."""
        self._restored = self.store.restored(SleepRecord)
        for worker in self.registry:
            self._restore(worker)
        # Launched workers may still be added. Any other, should it be added one day, must not be
        # put to sleep for a request that is long forgotten.
        if not self.store.rows("launches"):
            for url in self._restored.keys() - self.registry.past.keys():
                del self._restored[url]
                self.store.delete(SleepRecord, url)
        self.registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.WorkerRemoved),
            *(events.FacetChanged, events.Reincarnated),
        )

    async def sleep(
        self, chosen: list[Worker], call: Call, begin: Begin = trio.lowlevel.checkpoint
    ) -> Answer:
        """Put the chosen workers to sleep; status and body of the answer.

        `begin` is awaited when their turn has come. Raises PoolUnavailable if there is nobody to
        call, StateUnavailable.
        """
        self.store.check()
        async with self._alone_with(chosen, begin) as (turn, present):
            late = [w for w in present if not self._slumber.sleeps(w)]
            sleeping = [w for w in present if w not in late and not w.is_dead]
            eligible = [w for w in late if reachable(w)]
            targets = Targets(eligible, [w for w in late if w not in eligible])
            if not eligible and not sleeping:
                raise no_workers()
            before = {worker: worker.memory for worker in late}
            await self._intend(dict.fromkeys(late, Memory.FALLING_ASLEEP))
            self._doubted.difference_update(late)
            self._remember(late, MemoryEvent.SLEEP)
            patience = self.drain_timeout

            async def put_to_sleep(worker: Worker) -> Row | None:
                was = before[worker]
                return await self._slumber.put_to_sleep(worker, call, was, patience=patience)

            rows = await self._each(eligible, turn, put_to_sleep)
            await self.store.commit()
            if eligible:
                return _answer(rows, targets, aim=True)
            message = "All workers are already sleeping"
            return 200, {
                "message": message,
                "sleeping_workers": len(sleeping),
                **_left_out(targets),
            }

    async def wake(
        self, chosen: list[Worker], call: Call, begin: Begin = trio.lowlevel.checkpoint
    ) -> Answer:
        """Wake the chosen workers; status and body of the answer, which comes when they are awake.
        Those that still miss a weight change are among the `deferred`.

        `begin` is awaited when their turn has come. Raises PoolUnavailable if there is nobody to
        call, StateUnavailable.
        """
        self.store.check()
        async with self._alone_with(chosen, begin) as (turn, present):
            targets = asleep_targets(present)
            eligible, deferred = targets.eligible, targets.deferred
            awake = [w for w in present if not w.is_sleeping and not w.is_dead]
            # A launched worker that died asleep is started again, now that it may wake.
            launched = any(worker.origin is Origin.LAUNCHED for worker in deferred)
            if not eligible and not awake and not launched:
                raise no_workers()
            before = {worker: worker.memory for worker in eligible}
            # Until it has an outcome it counts as a sleep: the GPU is not the worker's yet.
            intents = dict.fromkeys(deferred, Memory.WAKING)
            intents |= {
                worker: Memory.WAKING if memory is Memory.WAKING else Memory.FALLING_ASLEEP
                for worker, memory in before.items()
            }
            await self._intend(intents)
            self._doubted.difference_update(intents)
            self._remember(intents, MemoryEvent.WAKE)

            async def wake(worker: Worker) -> Row | None:
                return await self._slumber.wake(worker, call, before[worker])

            rows = await self._each(eligible, turn, wake)
            await self.store.commit()
            up = [w for w in present if not w.is_sleeping and not w.is_dead and not w.removed]
            behind = [worker for worker in up if worker.weights is not Weights.CURRENT]
            targets = Targets(eligible, [*deferred, *behind])
            if eligible or not awake:
                return _answer(rows, targets, aim=False)
            message = "All workers are already active"
            return 200, {"message": message, "active_workers": len(awake), **_left_out(targets)}

    @asynccontextmanager
    async def _alone_with(
        self, chosen: list[Worker], begin: Begin
    ) -> AsyncIterator[tuple[Turn, list[Worker]]]:
        """Wait for the turn of the workers; gives it, and those that are still there."""
        async with self.turns.take(chosen) as turn:
            await begin()
            self.claimed.update(chosen)
            try:
                yield turn, [worker for worker in chosen if not worker.removed]
            finally:
                for worker in chosen:
                    self._let_go(turn, worker)

    def _let_go(self, turn: Turn, worker: Worker) -> None:
        """A worker that is done does not wait for the others."""
        if worker in turn.workers:
            self.claimed.discard(worker)
            turn.release(worker)

    async def _intend(self, intents: Mapping[Worker, Memory]) -> None:
        """Make durable what is about to be done. If that fails, nothing is intended."""
        for worker, memory in intents.items():
            self._slumber.note(worker, memory)
        try:
            await self.store.commit()
        except BaseException:
            for worker in intents:
                self._slumber.note(worker)
            raise

    def _remember(self, workers: Iterable[Worker], event: MemoryEvent) -> None:
        for worker in workers:
            if not worker.removed:
                self.registry.remember(worker, event, "by request")

    async def _each(
        self,
        workers: Iterable[Worker],
        turn: Turn,
        work: Callable[[Worker], Awaitable[Row | None]],
    ) -> list[Row]:
        """The work at all of them side by side, each as soon as it can be done."""
        rows: dict[Worker, Row | None] = {}

        async def one(worker: Worker) -> None:
            if not worker.removed:
                rows[worker] = await work(worker)
            self._let_go(turn, worker)

        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(one, worker)
        return [row for worker in workers if (row := rows.get(worker)) is not None]

    # What goes on in the background.

    def _restore(self, worker: Worker) -> None:
        record = self._restored.pop(worker.url, None)
        if record is not None:
            self._slumber.restore(worker, record.memory)
        if worker.memory is Memory.ASLEEP:
            self._doubted.add(worker)

    def doubts(self, worker: Worker) -> bool:
        """Whether it counts as asleep by what was known before a restart of the router alone."""
        return worker in self._doubted and not self._slumber.sleeps(worker)

    def _observe(self, event: events.Event) -> None:
        self._slumber.told(event)
        match event:
            case events.WorkerAdded(worker):
                if worker.origin is not Origin.REGISTERED:  # else nobody knew of it in between
                    self._restore(worker)
            case events.WorkerRemoved(worker):
                self._doubted.discard(worker)

    async def bring(self, worker: Worker) -> None:
        """Call a worker that falls asleep or is waking, in its turn. What came of it is in its
        facet."""
        headers = [("content-type", "application/json")]
        if worker.memory is Memory.WAKING:
            call = Call(_RESUME, headers, b"{}", self.call_timeout)
            row = await self._slumber.wake(worker, call, Memory.WAKING)
        else:
            call = Call(_RELEASE, headers, b"{}", self.call_timeout)
            row = await self._slumber.put_to_sleep(
                worker, call, Memory.FALLING_ASLEEP, patience=_SETTLE
            )
        if row is not None and worker.is_sleeping and not self._slumber.sleeps(worker):
            what = "woken" if call.path == _RESUME else "put to sleep"
            logger.warning("%s cannot be %s: %s; trying again", worker.url, what, why(row))


def _answer(rows: list[Row], targets: Targets, *, aim: bool) -> Answer:
    """Status and body; a worker that says that it is not what it should be has not succeeded."""
    if not rows and targets.eligible:
        raise no_workers()  # all were removed
    status, body = answer(rows, targets)
    if status == 200 and any(said(row, aim=aim) is not aim for row in rows):
        status, body["success"] = 502, False
    return status, body


def _left_out(targets: Targets) -> dict[str, Any]:
    """Partial success must not look like success: name those that could not be asked."""
    return {"deferred": targets.deferred_rows()} if targets.deferred else {}
