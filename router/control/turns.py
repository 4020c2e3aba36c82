"""Changes, sleeps and wakes take their workers in order of arrival (DESIGN section 6)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import trio
from attrs import define, field

from ..pool.worker import Worker


@define(eq=False)
class _Turn:
    workers: frozenset[Worker]
    moved: trio.Event = field(factory=trio.Event)  # one before it has ended


@define(eq=False)
class Turns:
    """Lets only one at a time work on a worker; who came first goes first.

    What takes several workers begins once none of them is taken by an earlier one.
    """

    _turns: list[_Turn] = field(init=False, factory=list)

    @asynccontextmanager
    async def take(self, workers: Iterable[Worker]) -> AsyncIterator[None]:
        """Wait for these workers, and have them for the length of the block."""
        turn = _Turn(frozenset(workers))
        self._turns.append(turn)
        try:
            while self._is_blocked(turn):
                await turn.moved.wait()
                turn.moved = trio.Event()
            yield
        finally:
            self._turns.remove(turn)
            for other in self._turns:
                if other.workers & turn.workers:
                    other.moved.set()

    def busy(self, worker: Worker) -> bool:
        """Whether something has the worker, or waits for it."""
        return any(worker in turn.workers for turn in self._turns)

    def _is_blocked(self, turn: _Turn) -> bool:
        for earlier in self._turns:
            if earlier is turn:
                return False
            if earlier.workers & turn.workers:
                return True
        return False
