"""Changes, sleeps and wakes take their workers in order of arrival."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from ..pool.worker import Worker


@define(eq=False)
class Turn:
    """One that works on workers, or waits for them. `model`: and on the ledger of that model."""

    workers: set[Worker]
    model: str | None
    _turns: list[Turn] = field(repr=False)  # all there are
    moved: trio.Event = field(factory=trio.Event)  # one before it has let go of something

    def release(self, worker: Worker) -> None:
        """Let others have this worker already."""
        if worker in self.workers:
            self.workers.discard(worker)
            self.tell_others()

    def tell_others(self) -> None:
        """It is in the way of less than before."""
        for other in self._turns:
            if other is not self:
                other.moved.set()

    def collides(self, other: Turn) -> bool:
        """Whether not both can be under way at once."""
        same_model = self.model is not None and self.model == other.model
        return same_model or not self.workers.isdisjoint(other.workers)


@define(eq=False)
class Turns:
    """Lets only one at a time work on a worker; who came first goes first.

    What takes several workers begins once none of them is taken by an earlier one.
    """

    _turns: list[Turn] = field(init=False, factory=list)

    @asynccontextmanager
    async def take(self, workers: Iterable[Worker]) -> AsyncIterator[Turn]:
        """Wait for these workers, and have them for the length of the block, or until they are
        released one by one."""
        async with self.having(self.queue(workers)) as turn:
            yield turn

    def queue(self, workers: Iterable[Worker], model: str | None = None) -> Turn:
        """Stand in line for these workers, and with `model` for its ledger. `having` follows."""
        turn = Turn(set(workers), model, self._turns)
        self._turns.append(turn)
        return turn

    @asynccontextmanager
    async def having(self, turn: Turn) -> AsyncIterator[Turn]:
        """Wait for the turn, and have what it is for during the block."""
        try:
            while self._is_blocked(turn):
                await turn.moved.wait()
                turn.moved = trio.Event()
            yield turn
        finally:
            self._turns.remove(turn)
            turn.workers = set()
            turn.tell_others()

    def extend(self, turn: Turn, worker: Worker) -> bool:
        """Take one more worker into a turn that has begun, if nothing has it or waits for it."""
        if worker not in turn.workers:
            if self.busy(worker):
                return False
            turn.workers.add(worker)
        return True

    def busy(self, worker: Worker) -> bool:
        """Whether something has the worker, or waits for it."""
        return any(worker in turn.workers for turn in self._turns)

    def is_last(self, turn: Turn) -> bool:
        """Whether nothing that came after it has to do with the same workers."""
        later = self._turns[self._turns.index(turn) + 1 :] if turn in self._turns else [turn]
        return not any(turn.collides(other) for other in later)

    def _is_blocked(self, turn: Turn) -> bool:
        for earlier in self._turns:
            if earlier is turn:
                return False
            if earlier.collides(turn):
                return True
        return False
