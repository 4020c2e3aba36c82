"""One weight change on its workers: intent on disk, fence, drain, calls, outcomes on disk, unfence.

The workers' agents drain and call the workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, evolve, field, frozen
from trio.lowlevel import ParkingLot

from ..errors import RouterError, StateUnavailable
from ..pool import events
from ..pool.weights import Change, Ledgers, Meaning, meaning, wraps
from ..pool.weights.answers import alike, words
from ..pool.weights.recipe import BOUND, COLLECTIVES
from ..pool.worker import Weights, Worker
from ..store.store import Store
from .agent import Agents
from .calls import Claim, Pipe, Row, broken_by, fill
from .client import Call
from .operations import Operation


@frozen(eq=False)
class _Failure:
    """What a worker has failed, and when the calls of other workers are given up that need it."""

    path: str | None  # of its call; None: it takes no part any more
    why: str
    until: float
    begun_by: float  # calls that began later do not need it


@define(eq=False)
class FencedChange(ABC):
    """The workers of a change, from its intent until each worker is let go.

    `operation` holds the workers and releases them one by one; with `keeps`, only at its own end.
    """

    change: Change
    operation: Operation[Any]
    agents: Agents
    ledgers: Ledgers
    store: Store
    keeps: bool = False
    claims: dict[Worker, Claim] = field(init=False, factory=dict)
    # Of workers that have failed their last call, or left.
    _failures: dict[Worker, _Failure] = field(init=False, factory=dict)
    _failed: ParkingLot = field(init=False, factory=ParkingLot)  # until one more has
    done: int = field(init=False, default=0)  # workers that have the whole change

    @property
    def kind(self) -> str:
        """What it is, for those who watch."""
        return self.change.kind

    @asynccontextmanager
    async def fenced(
        self,
        workers: Sequence[Worker],
        reason: str,
        call: Call | None = None,
        later: Collection[Worker] = (),
    ) -> AsyncIterator[None]:
        """Fence the workers during the block; have each worker drained and then called. Those that
        come `later` serve until `turn` is called for them.

        Raises StateUnavailable if the intent cannot be made durable; then nothing was done. If the
        block is cancelled, the intent stays open, as after a crash.
        """
        self.ledgers.open(self.change, workers)
        self.claims = {
            worker: Claim(worker, self.record, self.agents.drain_timeout, call, worker.incarnation)
            for worker in workers
        }
        try:
            await self.store.commit()
        except StateUnavailable:
            self.ledgers.withdraw(self.change)
            raise
        self._release(*self.operation.workers.difference(workers))
        for worker in later:
            self.ledgers.wait_turn(worker)
        change, publish, began = self.change, self.agents.registry.bus.publish, trio.current_time()
        publish(events.RefitBegan(change.change_id, change.model, self.kind, len(workers)))
        try:
            self.turn([c for c in self.claims.values() if c.worker not in later], reason)
            yield
        finally:
            self.agents.drop(self.claims.values())
            publish(
                events.RefitEnded(
                    *(change.change_id, change.model, self.kind, len(workers), self.done),
                    *(change.version, change.label, trio.current_time() - began),
                )
            )

    def turn(self, claims: Sequence[Claim], reason: str) -> None:
        """It is the turn of these workers: fence them, and have their claims met."""
        for claim in claims:
            if claim.left is None:
                self.ledgers.fence(claim.worker, reason)
        self.agents.give(claims)

    @abstractmethod
    async def record(self, claim: Claim) -> None:
        """Record the outcome of a call, or of the wait for a worker."""

    async def send(self, claims: Sequence[Claim], call: Call) -> RouterError | None:
        """Once all these workers are idle, send the call to all at once. The body is read once and
        copied to all, in bounded memory. Returns why the body broke off (no worker got the whole
        call), or None."""
        failure: RouterError | None = None
        streamed, bound = not isinstance(call.body, bytes), call.path in BOUND

        async def over() -> None:
            async with trio.open_nursery() as ends:
                for claim in claims:
                    ends.start_soon(self._end_of, claim, claims, call.path)
            nursery.cancel_scope.cancel()  # claims that were dropped take nothing more

        for claim in claims:
            self._failures.pop(claim.worker, None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(over)
            if bound:
                nursery.start_soon(self._give_up, claims, call.path)
            for claim in claims:
                await claim.idle.wait()
            ready = [claim for claim in claims if claim.row is None]
            if not bound or len(ready) == len(claims):
                pipes = [Pipe() for _ in ready] if streamed else []
                for i, claim in enumerate(ready):
                    claim.send(evolve(call, body=pipes[i]) if streamed else call)
                self.agents.look(claim.worker for claim in ready)
                if pipes and not isinstance(call.body, bytes):
                    failure = await fill(pipes, call.body)
        return failure

    async def _end_of(self, claim: Claim, claims: Sequence[Claim], path: str) -> None:
        """Wait for the end of a call, and note a failure. If the others were called, they may have
        done their part: they get a moment more."""
        await claim.over.wait()
        if claim.row is not None and not claim.row.success:
            called = any(other.called is not None for other in claims)
            grace = self.agents.grace if called else 0
            self.failed(claim.worker, path, words(claim.row.body), grace)

    def failed(self, worker: Worker, path: str | None, why: str, grace: float) -> None:
        """The worker has failed a call of this path, perhaps before others got theirs; or, without
        a path, takes no part any more. Those that need it get so many seconds of `grace`."""
        now = trio.current_time()
        until, begun_by = now + grace, now + (0 if path is None else grace)
        self._failures[worker] = _Failure(path, broken_by(worker, why), until, begun_by)
        self._failed.unpark_all()

    async def _give_up(self, claims: Sequence[Claim], path: str) -> None:
        """Wait until a worker without which these do not end their call has failed it, perhaps in a
        call of its own; then give these up."""
        began = trio.current_time()
        while True:
            known = [
                failure
                for failure in self._failures.values()
                if failure.path in (path, None) and began <= failure.begun_by
            ]
            if not known:
                await self._failed.park()
                continue
            first = min(known, key=lambda failure: failure.until)
            await trio.sleep_until(first.until)
            if first in self._failures.values():  # else that worker has been called again
                break
        for claim in claims:
            if claim.row is None:
                claim.given_up = first.why
        self.agents.look(claim.worker for claim in claims)

    def let_go(self, worker: Worker) -> None:
        """The change is done with the worker."""
        self.agents.drop([self.claims[worker]])
        self._release(worker)

    def _release(self, *workers: Worker) -> None:
        if not self.keeps:
            self.agents.operations.release(self.operation, *workers)


@frozen
class Rolling:
    """How many workers a rolling change may fence at once: a number from 1, or a percentage from 1
    of the workers that it calls, rounded up."""

    number: int
    percent: bool = False

    def of(self, workers: int) -> int:
        return -(-workers * self.number // 100) if self.percent else self.number


@define(eq=False)
class OneCallChange(FencedChange):
    """A change of one call. Each worker gets the call as soon as it is idle; a streamed body or a
    collective goes to all workers at once.

    With `rolling`, workers that are current serve until their turn.
    """

    rolling: Rolling | None = None
    _moved: ParkingLot = field(init=False, factory=ParkingLot)  # until a worker is let go
    # Set if a success could not be made durable.
    undurable: StateUnavailable | None = field(init=False, default=None)
    # The reasons of refusals; their meaning is open until all workers have answered.
    _refusals: dict[Worker, str] = field(init=False, factory=dict)
    # The distinct answers: equal for refusals that say the same, None for any other answer.
    _said: set[object] = field(init=False, factory=set)

    async def run(self, call: Call, workers: Sequence[Worker]) -> list[Row]:
        """Make the change; returns the rows of the workers in their order.

        Raises the errors of `fenced`, and of reading a streamed body.
        """
        failure: RouterError | None = None
        at_once = call.path in COLLECTIVES or not isinstance(call.body, bytes)
        reason = f"{self.change.name}: a change"
        rolls = self.rolling is not None and not at_once
        later = [w for w in workers if rolls and w.weights is Weights.CURRENT]
        async with self.fenced(workers, reason, None if at_once else call, later):
            claims = list(self.claims.values())
            if self.rolling is not None and later:
                spared = await self._roll(later, self.rolling.of(len(workers)), reason)
                claims = [claim for claim in claims if claim not in spared]
            elif at_once:
                failure = await self.send(claims, call)
            for claim in claims:
                await claim.over.wait()
        rows = [claim.row for claim in claims if claim.row is not None]
        if any(row.sent for row in rows) or self.change.version is not None:
            self.ledgers.close(self.change)
        else:
            self.ledgers.came_to_nothing(self.change)
        if failure is not None:
            raise failure
        return rows

    async def _roll(self, later: Sequence[Worker], most: int, reason: str) -> list[Claim]:
        """Give these workers their turns, `most` at a time. If no worker has applied the change and
        one has refused it, or a new run has begun, no turn follows: then the rest serve on. Returns
        their claims."""
        turns: list[Claim] = []
        waiting = deque(self.claims[worker] for worker in later)
        while waiting:
            refused = self.change.version is None and bool(self._said)
            stopped = refused or self.change.outdated
            begun = [claim for claim in self.claims.values() if claim not in waiting]
            if stopped and all(claim.over.is_set() for claim in begun):
                break
            if stopped or sum(not claim.over.is_set() for claim in turns) >= most:
                await self._moved.park()
                continue
            claim = waiting.popleft()
            turns.append(claim)
            if claim.left is None:
                claim.deadline = trio.current_time() + claim.within
                self.turn([claim], reason)
            else:  # its agent may be bringing it up to date
                claim.fail()
                await claim.end()
        for claim in waiting:
            self.ledgers.release(claim.worker)
            self.let_go(claim.worker)
        return list(waiting)

    def let_go(self, worker: Worker) -> None:
        super().let_go(worker)
        self._moved.unpark_all()

    async def record(self, claim: Claim) -> None:
        """Report the outcome to the ledger, and let the worker go."""
        worker, change, row = claim.worker, self.change, claim.row
        assert row is not None
        reason = words(row.body)
        what = meaning(change.path, row.status, row.body, sent=row.sent)
        if row.answered:
            refused = what is Meaning.REFUSED
            self._said.add(alike(row.status, row.body) if refused else None)
            if what is not Meaning.APPLIED and wraps(change.path, row.status, row.body):
                self.ledgers.wrapped(worker, claim.called)
        match what:
            case Meaning.APPLIED:
                assert claim.called is not None
                self.ledgers.applied(change, worker, claim.called)
                self.done += change.version is not None
                self._judge_refusals()
                # The outcome is durable before the worker serves again.
                try:
                    await self.store.commit()
                except StateUnavailable as error:
                    self.undurable = error
                self.ledgers.release(worker, "the change was applied")
            case Meaning.UNCHANGED:
                self.ledgers.unchanged(change, worker, reason)
            case Meaning.REFUSED:
                change.error = reason
                self._refusals[worker] = reason
            case Meaning.UNKNOWN:
                self.ledgers.unknown(change, worker, reason)
        if worker not in self._refusals:
            self.let_go(worker)
        self._judge_refusals()

    def _judge_refusals(self) -> None:
        """Judge the workers that refused. If all called workers refuse alike, the refusals changed
        nothing, and the workers serve on once this is known: a worker that is still busy delays no
        other. Otherwise the weights of the refusing workers are unknown."""
        unknown = self.change.version is not None or len(self._said) > 1
        claims = self.claims.values()
        if not unknown and any(c.called is not None and c.row is None for c in claims):
            return  # a worker that was called may still answer differently
        report = self.ledgers.unknown if unknown else self.ledgers.unchanged
        for worker, reason in self._refusals.items():
            report(self.change, worker, reason)
            self.let_go(worker)
        if unknown:
            self._refusals.clear()
