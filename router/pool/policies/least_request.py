"""The fewest exchanges per slot; ties rotate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..candidates import Facts
from ..worker import Worker
from .base import Turns


class LeastRequest:
    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        least = min(worker.load for worker in candidates)
        return self._turns.next([w for w in candidates if w.load == least], group)
