"""One task per worker, its agent: it brings the worker to the wanted state.

An agent compares the known and the wanted state, does what `plan.next_action` says, and looks
again: at once after a change, and every few seconds anyway. A missed wake-up costs only seconds. A
worker that hangs delays no other worker.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from ..backoff import Backoff
from ..boundary import contained, keep_running
from ..dispatch import Dispatcher
from ..errors import Conflict
from ..front.record import serving
from ..pool import events
from ..pool.lifecycle import reachable
from ..pool.registry import Registry
from ..pool.worker import Health, Memory, Weights, Worker
from ..text import words
from .calls import Claim
from .client import ControlClient
from .operations import Operations
from .plan import Action, Known, goes_on, next_action
from .replay import Replayer
from .tasks import SoftLimiter, Tasks
from .worker_memory import RELEASE, RESUME, WorkerMemory

# Seconds until an agent looks again although nothing seems to have changed.
_LOOK_AGAIN = 5.0
# Replays side by side: storage is shared. A replay that takes longer than _COUNTED seconds may
# hang, and no longer counts.
_AT_ONCE, _COUNTED = 8, 60.0


class RemovalCalledOff(Conflict):
    """The worker was put back into service while it was drained for removal."""

    default_code = "removal_called_off"


@define(eq=False)
class _Agent:
    changed: ParkingLot = field(factory=ParkingLot)  # parked here until something may have changed
    claim: Claim | None = None
    # The running action, and the knowledge at its start.
    action: Action = Action.REST
    begun: Known | None = None
    scope: trio.CancelScope = field(factory=trio.CancelScope)


@define(eq=False)
class Agents(Tasks):
    """The agents of all workers. `drain_timeout`: seconds that a worker may take to become idle.
    `grace`: seconds for the others once a worker has failed a call that none can end without it."""

    registry: Registry
    dispatcher: Dispatcher
    client: ControlClient
    operations: Operations
    worker_memory: WorkerMemory
    replayer: Replayer
    drain_timeout: float = 1800.0
    grace: float = 10.0
    # Makes the pending changes of a worker's model; set by the code that makes changes.
    catch_up: Callable[[Worker], Awaitable[None]] = field(init=False)
    _replays: SoftLimiter = field(init=False, factory=lambda: SoftLimiter(_AT_ONCE, _COUNTED))
    _agents: dict[Worker, _Agent] = field(init=False, factory=dict)
    _moved: ParkingLot = field(init=False, factory=ParkingLot)  # parked until any worker changes

    def _begin(self) -> None:
        self.registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.WorkerRemoved, events.CapabilitiesLearned),
            *(events.Suspected, events.Absolved, events.Reincarnated),
            *(events.FacetChanged, events.ProspectsChanged),
        )
        for worker in self.registry:
            self._agent(worker)

    @contextmanager
    def having(self, claims: Iterable[Claim]) -> Iterator[None]:
        """Have the agents meet these claims while the block runs, or until the claims are dropped.
        The caller has taken the workers (`Operations.take`)."""
        claims = list(claims)
        self.give(claims)
        try:
            yield
        finally:
            self.drop(claims)

    def give(self, claims: Sequence[Claim]) -> None:
        """Have the agents meet these claims until they are dropped."""
        for claim in claims:
            self._agent(claim.worker).claim = claim
        self.look(claim.worker for claim in claims)

    def drop(self, claims: Iterable[Claim]) -> None:
        """The operation no longer needs the workers of these claims."""
        for claim in claims:
            if claim.row is None:
                claim.fail("it was let go")
            claim.idle.set()
            claim.over.set()
            agent = self._agents.get(claim.worker)
            if agent is not None and agent.claim is claim:
                agent.claim = None
                self.look([claim.worker])

    def look(self, workers: Iterable[Worker]) -> None:
        """Wake the agents of these workers: something may have changed."""
        for worker in workers:
            agent = self._agents.get(worker)
            if agent is None:
                continue
            agent.changed.unpark_all()
            begun = agent.begun
            if begun is not None and not goes_on(agent.action, begun, self.known(worker)):
                agent.scope.cancel()

    async def retire(self, worker: Worker, reason: str = "by request") -> None:
        """Have the worker removed once its work has ended, even if the caller stops waiting. If an
        operator enables the worker meanwhile, the removal is called off: the last word counts.

        Raises RemovalCalledOff, StateUnavailable.
        """
        self.registry.retire(worker, reason)
        await self.worker_memory.store.commit()
        await self.retired(worker)

    async def retired(self, worker: Worker) -> None:
        """Wait for the end of a removal (`Registry.retire`). Raises RemovalCalledOff."""
        await self.until(lambda: worker.removed or worker.leaving is None)
        if not worker.removed:
            raise RemovalCalledOff(f"Worker {worker.url} was enabled again; it stays in the pool")

    async def sync(self, workers: list[Worker], within: float) -> list[Worker]:
        """Bring all callable workers of these to the current weights; returns those that are not
        current after at most `within` seconds, or once nothing but a new change can help them."""

        def behind() -> list[Worker]:
            up = [w for w in workers if reachable(w) and not w.is_sleeping and w.capabilities]
            return [w for w in up if not w.has_newest and w.leaving is None]

        self.look(workers)
        await self.until(lambda: all(w.stuck for w in behind()), within)
        return behind()

    async def until(self, is_true: Callable[[], bool], within: float = math.inf) -> bool:
        """Wait until the condition holds, at most `within` seconds; returns whether it holds."""
        with trio.move_on_after(within):
            while not is_true():
                with trio.move_on_after(_LOOK_AGAIN):
                    await self._moved.park()
        return is_true()

    def known(self, worker: Worker) -> Known:
        """The known and the wanted state of a worker now."""
        lacking, awaiting = self.replayer.lacks(worker)
        agent = self._agents.get(worker)
        claim = None if agent is None else agent.claim
        return Known(
            incarnation=worker.incarnation,
            healthy=worker.health is Health.HEALTHY,
            reachable=reachable(worker),
            certain=worker.suspicion is None and worker.capabilities is not None,
            idle=worker.is_idle,
            memory=worker.memory,
            doubted=self.worker_memory.doubts(worker),
            lacking=lacking,
            awaiting=awaiting,
            leaving=worker.leaving is not None and not worker.removed,
            drained=worker.is_drained,
            claim=claim,
            stage=None if claim is None else claim.stage,
            left=claim is not None and claim.left is not None,
        )

    def _observe(self, event: events.Event) -> None:
        worker = event.worker
        if isinstance(event, events.WorkerAdded):
            self._agent(worker)
            calls = (RELEASE, RESUME)
            moving = any(self.client.is_calling(worker.url, path) for path in calls)
            if moving and worker.memory is Memory.AWAKE:  # the worker was removed during this call
                self.worker_memory.wake_again(worker)
        if worker.weights is Weights.CURRENT or worker.removed:
            self.replayer.restarted.discard(worker)
        self.look([worker])
        self._moved.unpark_all()

    def _agent(self, worker: Worker) -> _Agent:
        agent = self._agents.get(worker)
        if agent is None:
            agent = self._agents[worker] = _Agent()
            self._start(self._keep, worker, agent)
        return agent

    async def _keep(self, worker: Worker, agent: _Agent) -> None:
        serving.set(None)
        try:
            what = f"the agent of worker {worker.url}"
            await keep_running(what, partial(self._tend, worker, agent))
        finally:
            del self._agents[worker]

    async def _tend(self, worker: Worker, agent: _Agent) -> None:
        backoff = Backoff()
        while not worker.removed or agent.claim is not None:
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
        """Wait until the knowledge about the worker changes; False after `within` seconds."""
        with trio.move_on_after(within):
            await self._until(agent, lambda: self.known(worker) != known)
            return True
        return False

    async def _until(self, agent: _Agent, is_true: Callable[[], bool]) -> None:
        while not is_true():
            await agent.changed.park()

    async def _act(self, worker: Worker, agent: _Agent, action: Action, known: Known) -> None:
        """Do the action while it is worth continuing, and record the outcome."""
        agent.action, agent.begun = action, known
        claim = agent.claim
        what = f"bringing worker {worker.url} to what is wanted ({action})"
        with trio.CancelScope() as agent.scope, contained("worker", what) as attempt:
            match action:
                case Action.DRAIN:
                    await self._drain(worker, agent, known)
                case Action.EMPTY:
                    await self.dispatcher.drain(worker)
                case Action.REMOVE:
                    self.registry.remove(worker)
                case Action.CATCH_UP:
                    await self.catch_up(worker)
                case Action.REPLAY:
                    async with self._replays.slot():
                        if next_action(self.known(worker)) is action:
                            await self.replayer.replay(worker)
                case Action.LEAVE:
                    assert claim is not None
                    claim.fail()
                case _ if claim is not None:
                    await self._call(claim)
                case _:  # no claim: the facet `memory` says what to do
                    async with self.operations.take([worker]):
                        if next_action(self.known(worker)) is action:
                            claim = self.worker_memory.own_claim(worker)
                            await self._call(claim)
        agent.begun = None
        self._moved.unpark_all()
        if attempt.error is not None and action is Action.REPLAY:
            self.replayer.delayed(worker, f"its replay failed: {words(attempt.error)}")
        if claim is None or (known.claim is not None and agent.claim is not claim):
            return  # no operation waits for the outcome
        if claim.row is None and claim.called is not None:
            claim.fail()  # the call was broken off
        if claim.row is not None:
            await claim.end()

    async def _drain(self, worker: Worker, agent: _Agent, known: Known) -> None:
        claim = agent.claim
        within = self.drain_timeout if claim is None else claim.within
        with trio.move_on_at(trio.current_time() + within if claim is None else claim.deadline):
            await self.dispatcher.idle(worker, math.inf)
            if claim is None:
                return
            # Wait out the suspicion: work sent to a new process that was taken for the old one
            # would be forgotten.
            await self._until(agent, lambda: claim.incarnation is None or worker.suspicion is None)
            claim.idle.set()
            return
        late = f"its work did not end within {within:g} s"
        if claim is not None:
            claim.fail(late, "drain_timeout", 504)
        elif known.lacking:
            self.replayer.delayed(worker, late)

    async def _call(self, claim: Claim) -> None:
        assert claim.call is not None
        claim.called = claim.worker.incarnation
        claim.row = await self.replayer.call(claim.worker, claim.call)
