"""Puts single workers to sleep and wakes them, and keeps what must be known of that.

While a worker sleeps, its GPU belongs to whoever put it to sleep: whatever is
not known for sure counts as a worker that has yet to give it back.
"""

from __future__ import annotations

import math
from typing import ClassVar

import trio
from attrs import define, field, frozen

from ..dispatch import Dispatcher
from ..pool import events
from ..pool.lifecycle import MemoryEvent, reasons
from ..pool.registry import Registry
from ..pool.targets import reachable
from ..pool.worker import Health, Memory, Worker
from ..store.store import Store
from ..text import words
from .broadcast import Call, Row, call_one
from .client import ControlClient

_LOST = "its health was lost before it answered"


@frozen
class SleepRecord:
    """What is to become of a worker that is not simply awake.

    `asleep`: nothing, it said that it is. `falling_asleep`: it is to be put to sleep, be it that a
    call had no outcome yet, of a wake too. `waking`: it is to be woken once it can be called.
    """

    table: ClassVar[str] = "sleeps"
    url: str
    memory: Memory

    @property
    def key(self) -> str:
        return self.url


@define(eq=False)
class Slumber:
    """Sleep and wake of single workers. Whoever calls has the worker for himself (Turns)."""

    registry: Registry
    dispatcher: Dispatcher
    client: ControlClient
    store: Store
    # The incarnation that said that it sleeps.
    _said: dict[Worker, int] = field(init=False, factory=dict)
    # What ends once the worker cannot be expected to do it any more.
    _drains: dict[Worker, trio.CancelScope] = field(init=False, factory=dict)
    _calls: dict[Worker, trio.CancelScope] = field(init=False, factory=dict)

    def sleeps(self, worker: Worker) -> bool:
        """Whether its process said so itself."""
        said = self._said.get(worker) == worker.incarnation
        return worker.memory is Memory.ASLEEP and said

    def note(self, worker: Worker, memory: Memory | None = None) -> None:
        """Record what a restarted router is to make of the worker: `memory`, else what it is."""
        if worker.removed:
            return
        if memory is None:
            unsure = worker.memory is Memory.ASLEEP and not self.sleeps(worker)
            memory = Memory.FALLING_ASLEEP if unsure else worker.memory
        if memory is Memory.AWAKE:
            self.store.delete(SleepRecord, worker.url)
        else:
            self.store.put(SleepRecord(worker.url, memory))

    def restore(self, worker: Worker, memory: Memory) -> None:
        """Make the worker what its record says."""

        def remember(event: MemoryEvent) -> None:
            self.registry.remember(worker, event, "restored")

        if worker.memory is Memory.AWAKE or memory is Memory.FALLING_ASLEEP:
            remember(MemoryEvent.SLEEP)
        if memory is Memory.WAKING:
            remember(MemoryEvent.WAKE)
        elif memory is Memory.ASLEEP and worker.memory is not Memory.ASLEEP:
            remember(MemoryEvent.LOST)

    def told(self, event: events.Event) -> None:
        """Something has happened in the registry."""
        match event:
            case events.FacetChanged(worker, facet="health" | "admin"):
                if not reachable(worker):
                    _break_off(self._drains, worker)
                if worker.health is not Health.HEALTHY:
                    _break_off(self._calls, worker)
            case events.Reincarnated(worker) if worker.memory is Memory.ASLEEP:
                self.note(worker)  # it is not the process that said so
            case events.WorkerRemoved(worker):
                self._said.pop(worker, None)
                _break_off(self._drains, worker)
                self.store.delete(SleepRecord, worker.url)

    async def put_to_sleep(
        self, worker: Worker, call: Call, before: Memory, *, patience: float = math.inf
    ) -> Row | None:
        """Drain a worker that falls asleep, within `patience` seconds, then have it give back its
        memory. Its row; None if it was removed meanwhile.

        Where that fails it is again what it was `before`, or else what it says.
        """
        row = await self._drain(worker, patience)
        if row is None and _is_away(worker):
            row = _left(worker)
        if row is not None and row.status != 504:
            return None if worker.removed else row  # it falls asleep when it is back
        sleeps: bool | None = None
        incarnation = worker.incarnation
        if row is None:
            row = await self._ask(worker, call)
            sleeps = said(row, aim=True)
        if worker.removed:
            return row if row.sent else None
        if worker.incarnation != incarnation:
            return _replaced(worker)  # the new process falls asleep next
        self._hear(worker, sleeps)
        if sleeps and worker.memory is not Memory.ASLEEP:
            self.registry.remember(worker, MemoryEvent.SLEPT)
        elif not sleeps and before is not Memory.FALLING_ASLEEP:
            # It was not asked, or does not know the call.
            untouched = not row.sent or row.refused or row.status in (404, 405)
            awake = sleeps is False or (untouched and before is Memory.AWAKE)
            event = MemoryEvent.WOKE if awake else MemoryEvent.LOST
            self.registry.remember(worker, event, why(row))
        self.note(worker)
        return row

    async def wake(self, worker: Worker, call: Call, before: Memory) -> Row | None:
        """Have a worker that is waking take its memory again. Its row; None if it was removed.

        Where that fails it is again what it was `before`, or else what it says.
        """
        incarnation = worker.incarnation
        row = await self._ask(worker, call)
        if worker.removed:
            return row if row.sent else None
        sleeps = said(row, aim=False)
        replaced = worker.incarnation != incarnation
        if row.sent:  # else it is still as it said before
            self._hear(worker, None if replaced else sleeps)
        if sleeps is False and not replaced:
            self.registry.remember(worker, MemoryEvent.WOKE)
        elif before is Memory.WAKING:
            pass  # it is tried again
        elif replaced or before is Memory.FALLING_ASLEEP:
            self.registry.remember(worker, MemoryEvent.SLEEP, why(row))
        else:
            self.registry.remember(worker, MemoryEvent.LOST, why(row))
        self.note(worker)
        return _replaced(worker) if replaced else row

    def _hear(self, worker: Worker, sleeps: bool | None) -> None:
        """Keep the worker's word."""
        if sleeps:
            self._said[worker] = worker.incarnation
        else:
            self._said.pop(worker, None)

    async def _drain(self, worker: Worker, patience: float) -> Row | None:
        """Wait until the worker is idle; a row that says why not, if it does not come to be."""
        scope = self._drains[worker] = trio.CancelScope()
        try:
            with scope:
                if await self.dispatcher.idle(worker, patience):
                    return None
        finally:
            del self._drains[worker]
        if scope.cancel_called:
            return _left(worker)
        late = f"it was not idle within {patience:g} s"
        return _row(worker, 504, late, "drain_timeout", sent=False)

    async def _ask(self, worker: Worker, call: Call) -> Row:
        if worker.health is not Health.HEALTHY:
            return _left(worker)
        rows: dict[Worker, Row] = {}
        scope = self._calls[worker] = trio.CancelScope()
        try:
            with scope:
                await call_one(self.client, worker, call, call.body, rows)
        finally:
            del self._calls[worker]
        return rows.get(worker) or _row(worker, 502, _LOST, "worker_failed")


def said(row: Row, *, aim: bool) -> bool | None:
    """Whether the worker sleeps, by its answer to a call that should make it so (`aim`) or end it;
    None if that is not known."""
    word = row.body.get("sleeping") if isinstance(row.body, dict) else None
    if isinstance(word, bool):
        return word
    return aim if row.success else None


def why(row: Row) -> str:
    """What went wrong, in one sentence for people."""
    body = row.body if isinstance(row.body, dict) else {}
    said = body.get("error") or body.get("message") or f"it answered {row.status}"
    return words(said)


def _break_off(scopes: dict[Worker, trio.CancelScope], worker: Worker) -> None:
    if worker in scopes:
        scopes[worker].cancel()


def _is_away(worker: Worker) -> bool:
    return worker.removed or not reachable(worker)


def _left(worker: Worker) -> Row:
    return _row(worker, 502, f"it is {', '.join(reasons(worker))}", "worker_failed", sent=False)


def _replaced(worker: Worker) -> Row:
    return _row(worker, 502, "another process took its place meanwhile", "worker_failed")


def _row(worker: Worker, status: int, why: str, code: str, *, sent: bool = True) -> Row:
    return Row(worker, status, {"error": why, "code": code, "success": False}, sent, False)
