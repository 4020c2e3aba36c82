"""One task for each worker, its agent: it brings the worker to what is wanted of it.

An agent looks at what is known and wanted, does what `plan.next_action` says, and looks again: at
once when it is told that something has changed, and every few seconds anyway. A wake-up that is
missed costs seconds. What hangs at one worker holds up no other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import trio
from attrs import define, field

from ..backoff import Backoff
from ..boundary import contained, keep_running
from ..dispatch import Dispatcher
from ..pool import events
from ..pool.registry import Registry
from ..pool.targets import is_up, reachable
from ..pool.worker import Weights, Worker
from ..text import words
from .gate import Gate
from .memory import MemoryControl
from .plan import Action, Known, goes_on, next_action
from .replay import Replayer
from .turns import Turns

# Seconds until an agent looks again though nobody has told it anything.
_LOOK_AGAIN = 5.0
# Replays side by side: storage is shared. One that takes longer than this many seconds may hang,
# and no longer counts.
_AT_ONCE, _COUNTED = 8, 60.0


@define(eq=False)
class _Agent:
    told: trio.Event = field(factory=trio.Event)  # something may have changed; replaced after that
    # What it does just now, and what was known when that began.
    action: Action = Action.REST
    begun: Known | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@define(eq=False)
class Agents:
    """The agents of all workers. `drain_timeout`: seconds until a worker is idle."""

    registry: Registry
    dispatcher: Dispatcher
    turns: Turns
    memory: MemoryControl
    replayer: Replayer
    drain_timeout: float = 1800.0
    _gate: Gate = field(init=False, factory=lambda: Gate(_AT_ONCE, _COUNTED))
    _agents: dict[Worker, _Agent] = field(init=False, factory=dict)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _moved: trio.Event = field(init=False, factory=trio.Event)  # something about a worker has

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after every worker; never returns."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                self.registry.subscribe(
                    self._observe,
                    *(events.WorkerAdded, events.WorkerRemoved, events.CapabilitiesLearned),
                    *(events.Suspected, events.Absolved, events.Reincarnated),
                    *(events.FacetChanged, events.ProspectsChanged),
                )
                self.turns.began.append(self.look)
                self.turns.ended.append(self.look)
                for worker in self.registry:
                    self._begin(worker)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # at a stop it takes no more, though others are not done yet

    def look(self, workers: Iterable[Worker]) -> None:
        """Something about these workers may have changed."""
        for worker in workers:
            agent = self._agents.get(worker)
            if agent is None:
                continue
            agent.told.set()
            begun = agent.begun
            if begun is not None and not goes_on(agent.action, begun, self.known(worker)):
                agent.scope.cancel()

    async def sync(self, workers: list[Worker], within: float) -> bool:
        """Bring all of these up that can be called; whether they are current, after so many
        seconds at most."""

        def behind() -> bool:
            return any(w.weights is not Weights.CURRENT for w in workers if is_up(w))

        self.look(workers)
        with trio.move_on_after(within):
            while behind():
                await self._moved.wait()
        return not behind()

    def known(self, worker: Worker) -> Known:
        """What is known and wanted of a worker now."""
        lacking, awaiting = self.replayer.lacks(worker)
        return Known(
            incarnation=worker.incarnation,
            reachable=reachable(worker) and not worker.removed,
            certain=worker.suspicion is None and worker.capabilities is not None,
            idle=worker.is_idle,
            memory=worker.memory,
            doubted=self.memory.doubts(worker),
            claimed=worker in self.memory.claimed,
            engaged=self.turns.working(worker),
            lacking=lacking,
            awaiting=awaiting,
        )

    def _observe(self, event: events.Event) -> None:
        worker: Worker = event.worker  # type: ignore[union-attr]
        if isinstance(event, events.WorkerAdded):
            self._begin(worker)
        if worker.weights is Weights.CURRENT or worker.removed:
            self.replayer.restarted.discard(worker)
        self.look([worker])
        self._moved.set()
        self._moved = trio.Event()

    def _begin(self, worker: Worker) -> None:
        if self._nursery is not None and worker not in self._agents:
            agent = self._agents[worker] = _Agent()
            self._nursery.start_soon(self._keep, worker, agent)

    async def _keep(self, worker: Worker, agent: _Agent) -> None:
        try:
            what = f"the agent of worker {worker.url}"
            await keep_running(what, partial(self._tend, worker, agent))
        finally:
            del self._agents[worker]

    async def _tend(self, worker: Worker, agent: _Agent) -> None:
        backoff = Backoff()
        while not worker.removed:
            await trio.lowlevel.checkpoint()
            known = self.known(worker)
            action = next_action(known)
            if action is Action.REST:
                await self._changed(worker, agent, known, _LOOK_AGAIN)
                backoff.reset()
                continue
            await self._act(worker, agent, action, known)
            if await self._changed(worker, agent, known, backoff.next()):
                backoff.reset()

    async def _changed(self, worker: Worker, agent: _Agent, known: Known, within: float) -> bool:
        """Wait until something else is known of the worker, or so many seconds have passed."""
        with trio.move_on_after(within):
            while not worker.removed and self.known(worker) == known:
                agent.told = trio.Event()
                await agent.told.wait()
            return True
        return False

    async def _act(self, worker: Worker, agent: _Agent, action: Action, known: Known) -> None:
        """Do it, as long as it is worth going on with."""
        agent.action, agent.begun = action, known
        what = f"bringing worker {worker.url} to what is wanted ({action})"
        with trio.CancelScope() as agent.scope, contained("worker", what) as attempt:
            match action:
                case Action.DRAIN:
                    if not await self.dispatcher.idle(worker, self.drain_timeout) and known.lacking:
                        self.replayer.delayed(worker, "its work did not end")
                case Action.REPLAY:
                    async with self._gate.turn():
                        if next_action(self.known(worker)) is action:
                            await self.replayer.replay(worker)
                case _:
                    async with self.turns.take([worker]):
                        if next_action(self.known(worker)) is action:
                            await self.memory.bring(worker)
        agent.begun = None
        if attempt.error is not None and action is Action.REPLAY:
            self.replayer.delayed(worker, f"its replay failed: {words(attempt.error)}")
