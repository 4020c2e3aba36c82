"""Which workers sleep, how the router knows, and what a restarted router makes of it.

While a worker sleeps, its GPU belongs to the client that put it to sleep. A worker whose state is
not known for sure therefore counts as one that must still give its GPU back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from functools import partial
from typing import ClassVar

from attrs import define, field, frozen

from ..pool import events
from ..pool.lifecycle import MemoryEvent, reachable
from ..pool.registry import Registry
from ..pool.weights.answers import Meaning, meaning, words
from ..pool.worker import Memory, Origin, Worker
from ..store.store import Store
from .calls import Claim, Row
from .client import Call

logger = logging.getLogger("router.control")

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"


# By the wanted state, then the present one: the events that lead from this one to that one.
_STATED = {
    True: {
        Memory.AWAKE: (MemoryEvent.SLEEP, MemoryEvent.SLEPT),
        Memory.FALLING_ASLEEP: (MemoryEvent.SLEPT,),
        Memory.WAKING: (MemoryEvent.SLEEP, MemoryEvent.SLEPT),
    },
    False: {
        Memory.FALLING_ASLEEP: (MemoryEvent.WOKE,),
        Memory.ASLEEP: (MemoryEvent.WAKE, MemoryEvent.WOKE),
        Memory.WAKING: (MemoryEvent.WOKE,),
    },
}


@frozen
class SleepRecord:
    """The intent for a worker that is not simply awake.

    `asleep`: none, the worker said that it sleeps. `falling_asleep`: put the worker to sleep; also
    stored for a call, even a wake, that has no outcome yet. `waking`: wake the worker once it can
    be called.
    """

    table: ClassVar[str] = "sleeps"
    url: str
    memory: Memory

    @property
    def key(self) -> str:
        return self.url


@define(eq=False)
class WorkerMemory:
    """Drives the facet `memory`, and stores what a restarted router must know of it.

    `call_timeout`: seconds for the answer to a call of the router itself.
    """

    registry: Registry
    store: Store
    call_timeout: float = 1800.0
    # The incarnation that said that it sleeps.
    _said: dict[Worker, int] = field(init=False, factory=dict)
    # Workers that slept before a restart of the router and may be awake now.
    _doubted: set[Worker] = field(init=False, factory=set)
    _restored: dict[str, SleepRecord] = field(init=False, factory=dict)

    def restore(self) -> None:
        """Restore the sleepers from the store, before any worker is probed."""
        self._restored = self.store.restored(SleepRecord)
        for worker in self.registry:
            self._restore(worker)
        # Launched workers may still be added. Any other worker added later must not be put to sleep
        # for a request that is long forgotten.
        if not self.store.rows("launches"):
            for url in self._restored.keys() - self.registry.past.keys():
                del self._restored[url]
                self.store.delete(SleepRecord, url)
        self.registry.subscribe(
            self._observe, events.WorkerAdded, events.WorkerRemoved, events.Reincarnated
        )

    def sleeps(self, worker: Worker) -> bool:
        """Whether the worker's process itself said that it sleeps."""
        said = self._said.get(worker) == worker.incarnation
        return worker.memory is Memory.ASLEEP and said

    def doubts(self, worker: Worker) -> bool:
        """Whether the worker counts as asleep only because it did before a restart of the
        router."""
        asleep = worker.memory is Memory.ASLEEP
        return asleep and worker in self._doubted and not self.sleeps(worker)

    def note(self, worker: Worker, memory: Memory | None = None) -> None:
        """Record the worker's state for a restarted router: `memory`, else its present state."""
        if worker.removed:
            return
        if memory is None:
            unsure = worker.memory is Memory.ASLEEP and not self.sleeps(worker)
            memory = Memory.FALLING_ASLEEP if unsure else worker.memory
        if memory is Memory.AWAKE:
            self.store.delete(SleepRecord, worker.url)
        else:
            self.store.put(SleepRecord(worker.url, memory))

    def begin(self, workers: Iterable[Worker], event: MemoryEvent) -> None:
        """A request puts the workers to sleep or wakes them; its intents are durable."""
        for worker in workers:
            self._doubted.discard(worker)
            if not worker.removed:
                if event is MemoryEvent.WAKE and worker.dozing:
                    self.registry.apply_memory_event(worker, MemoryEvent.SLEEP, "it seems to sleep")
                self.registry.apply_memory_event(worker, event, "by request")

    async def believe(self, workers: Iterable[Worker], *, sleeping: bool) -> None:
        """Take a client's word for the workers' state. Raises StateUnavailable; if the
        intent cannot be made durable, nothing changes."""
        present = [worker for worker in workers if not worker.removed]
        try:
            for worker in present:
                self.note(worker, Memory.ASLEEP if sleeping else Memory.AWAKE)
            await self.store.commit()
        except BaseException:
            for worker in present:
                self.note(worker)
            raise
        for worker in present:
            if worker.removed:
                continue
            self._doubted.discard(worker)
            self._said.pop(worker, None)
            if sleeping:
                self._said[worker] = worker.incarnation
            for event in _STATED[sleeping].get(worker.memory, ()):
                self.registry.apply_memory_event(worker, event, "by a statement")
            self.registry.ejection.told(worker)
            self.note(worker)
        await self.store.commit()

    def wake_again(self, worker: Worker) -> None:
        """Wake a worker that was registered again during a sleep or wake call."""
        for event in (MemoryEvent.SLEEP, MemoryEvent.WAKE):
            self.registry.apply_memory_event(
                worker, event, "it fell asleep or woke up when it left the pool"
            )
        self.note(worker)

    def own_claim(self, worker: Worker) -> Claim:
        """The claim for the facet's wish while no request is under way."""
        waking = worker.memory is Memory.WAKING
        before = Memory.WAKING if waking else Memory.FALLING_ASLEEP
        call = Call.of_json(RESUME if waking else RELEASE, self.call_timeout, b"{}")
        return Claim(worker, partial(self.record, before=before), math.inf, call)

    async def record(self, claim: Claim, before: Memory) -> None:
        """Record the outcome of a call. After a failure the worker's state is `before` again, or
        the state that the worker tells."""
        worker, row = claim.worker, claim.row
        assert row is not None
        assert claim.call is not None
        aim = claim.call.path == RELEASE
        if worker.removed or (aim and not row.sent and not reachable(worker)):
            return  # the agent puts it to sleep when it is back
        replaced = claim.called not in (None, worker.incarnation)
        if replaced and row.answered:
            claim.fail()
        sleeps = None if replaced else said(row, aim=aim)
        if sleeps:
            self._said[worker] = worker.incarnation
        elif row.sent or aim:
            self._said.pop(worker, None)
        if sleeps is aim:
            event: MemoryEvent | None = MemoryEvent.SLEPT if aim else MemoryEvent.WOKE
        else:
            event = _after_failure(row, before, sleeps, aim=aim, replaced=replaced)
        reason = None if sleeps is aim else words(row.body)
        if event is None:
            what = "put to sleep" if aim else "woken"
            logger.warning("%s cannot be %s: %s; trying again", worker.url, what, reason)
        elif worker.memory is not Memory.ASLEEP:  # else the facet is right already
            self.registry.apply_memory_event(worker, event, reason)
        self.note(worker)

    def _restore(self, worker: Worker) -> None:
        """Set the worker's facet by its record."""
        record = self._restored.pop(worker.url, None)
        if record is not None:
            found: list[MemoryEvent] = []
            if worker.memory is Memory.AWAKE or record.memory is Memory.FALLING_ASLEEP:
                found.append(MemoryEvent.SLEEP)
            if record.memory is Memory.WAKING:
                found.append(MemoryEvent.WAKE)
            elif record.memory is Memory.ASLEEP and worker.memory is not Memory.ASLEEP:
                found.append(MemoryEvent.LOST)
            for event in found:
                self.registry.apply_memory_event(worker, event, "restored")
        if worker.memory is Memory.ASLEEP:
            self._doubted.add(worker)

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker) if worker.origin is not Origin.REGISTERED:
                self._restore(worker)  # else it was not in the pool before
            case events.Reincarnated(worker) if worker.memory is Memory.ASLEEP:
                self.note(worker)  # this process did not say that it sleeps
            case events.WorkerRemoved(worker):
                self._said.pop(worker, None)
                self._doubted.discard(worker)
                self.store.delete(SleepRecord, worker.url)


def said(row: Row, *, aim: bool) -> bool | None:
    """Whether the worker sleeps, by its answer to a sleep call (`aim` is True) or a wake call; None
    if unknown."""
    word = row.body.get("sleeping") if isinstance(row.body, dict) else None
    if isinstance(word, bool):
        return word
    return aim if row.success else None


def _after_failure(
    row: Row, before: Memory, sleeps: bool | None, *, aim: bool, replaced: bool
) -> MemoryEvent | None:
    """The event for a worker whose call failed; None: call it again."""
    if before is (Memory.FALLING_ASLEEP if aim else Memory.WAKING) or (aim and replaced):
        return None
    if not aim:
        back = replaced or before is Memory.FALLING_ASLEEP
        return MemoryEvent.SLEEP if back else MemoryEvent.LOST
    untouched = meaning(RELEASE, row.status, row.body, sent=row.sent) is Meaning.UNCHANGED
    awake = sleeps is False or (untouched and before is Memory.AWAKE)
    return MemoryEvent.WOKE if awake else MemoryEvent.LOST
