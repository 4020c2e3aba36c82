"""The scheduler process of a worker: one loop, first in first out, no abort, no bound.

A generation takes one data-parallel copy; up to `batching_max_size` waiting generations of equal
shape that come before any control call run together. A control call waits until every copy is
idle and holds up what comes after it. Nobody who waits for an answer can stop the work.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from .config import WorkerConfig
from .cost import Shape
from .faults import Faults
from .loras import Loras
from .messages import wall_seconds
from .record import Record, WorkEntry, now
from .weights import Weights, WeightsError, module_names

DEAD = "Scheduler worker exited; restart the server."
ASLEEP = "Server is sleeping. Call resume_memory_occupation first."


class SchedulerError(Exception):
    """The scheduler refused or failed; the text is its message."""


@define(eq=False)
class Work:
    """One thing to do. `shape` is None for control calls, which `act` instead."""

    entry: WorkEntry
    shape: Shape | None = None
    outputs: int = 1
    act: Callable[[], Any] | None = None
    seconds: float = 0.0
    """How long it takes once begun; known for generations when they begin."""
    result: Any = None
    error: SchedulerError | WeightsError | None = None
    reached: float = 0.0
    """How far it had come when it ended, 0..1."""
    hurried: trio.Event = field(factory=trio.Event)
    finished: trio.Event = field(factory=trio.Event)
    finished_at: int | None = None
    """Wall clock of the end, in whole seconds."""

    @property
    def done_share(self) -> float:
        """0 before it began, 1 when it is over, and in between the share of its time."""
        if self.entry.end is not None:
            return 1.0
        if self.entry.start is None or self.seconds <= 0:
            return 0.0
        return min(1.0, (now() - self.entry.start) / self.seconds)

    def finish(
        self, error: SchedulerError | WeightsError | None = None, result: Any = None
    ) -> None:
        """The end of the work; a second end changes nothing."""
        if self.finished.is_set():
            return
        self.reached = self.done_share
        self.entry.end, self.finished_at = now(), wall_seconds()
        self.entry.outcome = "done" if error is None else f"failed: {error}"
        self.error, self.result = error, result
        self.finished.set()


@define(eq=False)
class Scheduler:
    """Runs the work of one worker; owns its weights, its LoRA state and whether it sleeps."""

    config: WorkerConfig
    record: Record
    faults: Faults
    weights: Weights
    loras: Loras = field(factory=Loras)
    asleep: bool = False
    dead: bool = False
    running: list[Work] = field(factory=list)
    queue: deque[Work] = field(factory=deque)
    _changed: trio.Event = field(factory=trio.Event)
    _next_copy: int = 0
    _hurry_next: bool = False

    @classmethod
    def start(cls, config: WorkerConfig, record: Record, faults: Faults) -> Scheduler:
        """With the weights of the model path. Raises `WeightsError` if they cannot be loaded."""
        weights = Weights.load(config.model_path, module_names(config.task))
        scheduler = cls(config, record, faults, weights)
        if config.lora_path:
            scheduler.loras.set(["default"], [config.lora_path], ["all"], [1.0], None)
        return scheduler

    @property
    def failure(self) -> str | None:
        """Why the backend is dead, or None."""
        return DEAD if self.dead or self.faults.peek("kill_scheduler") else None

    def submit_generation(
        self, kind: str, id: str, shape: Shape, outputs: int, *, request_id: str, **facts: Any
    ) -> Work:
        """Queues a generation; await its `finished`."""
        facts["outputs"] = outputs
        entry = WorkEntry(kind, id, now(), request_id=request_id, facts=facts)
        return self._submit(Work(entry, shape, outputs))

    async def control(
        self,
        kind: str,
        act: Callable[[], Any],
        seconds: float,
        *,
        request_id: str = "",
        facts: dict[str, Any] | None = None,
    ) -> Any:
        """Runs `act` in its turn, after `seconds` (scaled).

        Raises `SchedulerError` (the scheduler failed) or what `act` raised: `WeightsError`.
        """
        entry = WorkEntry(kind, kind, now(), request_id=request_id)
        if facts is not None:
            entry.facts = facts
        scaled = seconds * self.config.time_scale
        work = self._submit(Work(entry, act=act, seconds=scaled))
        await work.finished.wait()
        if work.error is not None:
            raise work.error
        return work.result

    async def run(self) -> None:
        """The loop. Ends only by cancellation; what is unfinished then is lost."""
        async with trio.open_nursery() as nursery:
            while True:
                self._fail_if_dead()
                work = self.queue[0] if self.queue else None
                if work is None:
                    await self._change()
                elif work.act is not None:
                    if self.running:
                        await self._change()
                    else:
                        self.running.append(self.queue.popleft())
                        self._hurry_if_asked()
                        nursery.start_soon(self._control, work)
                elif self._full:
                    await self._change()
                else:
                    batch = self._batch()
                    self.running.extend(batch)
                    self._hurry_if_asked()
                    nursery.start_soon(self._generate, batch)

    def die(self) -> None:
        """The backend process ends: everything unfinished fails."""
        self.dead = True
        self._wake()

    def poke(self) -> None:
        """Look again: a fault came or went."""
        self._wake()

    @property
    def _full(self) -> bool:
        """No copy is free for a generation."""
        if any(work.act is not None for work in self.running):
            return True
        return len({work.entry.copy for work in self.running}) >= self.config.dp_size

    def _submit(self, work: Work) -> Work:
        self.record.work.append(work.entry)
        self.queue.append(work)
        self._wake()
        return work

    def _wake(self) -> None:
        self._changed.set()

    async def _change(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    def _fail_if_dead(self) -> None:
        if self.failure is None:
            return
        for work in (*self.running, *self.queue):
            work.finish(SchedulerError(DEAD))
        self.queue.clear()

    def _batch(self) -> list[Work]:
        """The first generation and those that may run with it, taken from the queue."""
        head = self.queue.popleft()
        batch = [head]
        for work in list(self.queue):
            if work.act is not None or len(batch) >= self.config.batching_max_size:
                break
            if work.shape == head.shape:
                self.queue.remove(work)
                batch.append(work)
        busy = {work.entry.copy for work in self.running}
        free = [copy for copy in range(self.config.dp_size) if copy not in busy]
        copy = next((c for c in free if c >= self._next_copy), free[0])
        self._next_copy = (copy + 1) % self.config.dp_size
        for work in batch:
            work.entry.copy, work.entry.batch = copy, len(batch)
        return batch

    def hurry(self) -> None:
        """End what is running now, or else what runs next: generations or a control call. For
        tests, which make it slow first."""
        for work in self.running:
            work.hurried.set()
        self._hurry_next = not self.running

    def _hurry_if_asked(self) -> None:
        if self._hurry_next:
            self.hurry()

    async def _generate(self, batch: list[Work]) -> None:
        try:
            seconds = self._begin(batch)
            if seconds is not None:
                with trio.move_on_after(seconds):
                    await batch[0].hurried.wait()
                for work in batch:
                    if work.finished.is_set():
                        continue
                    failure = self.faults.take("fail_next_generation")
                    message = failure.text("message", "CUDA error") if failure else ""
                    work.finish(SchedulerError(message) if failure else None)
        finally:
            for work in batch:
                self.running.remove(work)
            self._wake()

    def _begin(self, batch: list[Work]) -> float | None:
        """Marks the batch as running; how long it takes, or None if it was refused."""
        moment = now()
        lora = self.loras.identity
        for work in batch:
            work.entry.start, work.entry.outcome = moment, "running"
            work.entry.weights, work.entry.model_path = self.weights.identity, self.weights.path
            work.entry.lora = lora
        if self.asleep:
            for work in batch:
                work.finish(SchedulerError(ASLEEP))
            return None
        shape = batch[0].shape
        assert shape is not None
        slow = self.faults.take("slow")
        factor = slow.number("factor", 10) if slow else 1.0
        seconds = max(shape.seconds(work.outputs) for work in batch) * factor
        seconds *= self.config.time_scale / self.config.speed
        for work in batch:
            work.seconds = seconds
        return seconds

    async def _control(self, work: Work) -> None:
        assert work.act is not None
        work.entry.start, work.entry.outcome = now(), "running"
        try:
            with trio.move_on_after(work.seconds):
                await work.hurried.wait()
            if not work.finished.is_set():
                work.finish(result=work.act())
        except (SchedulerError, WeightsError) as error:
            work.finish(error)
        finally:
            work.entry.weights, work.entry.model_path = self.weights.identity, self.weights.path
            work.entry.lora = self.loras.identity
            self.running.remove(work)
            self._wake()
