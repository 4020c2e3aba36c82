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
        loads = [worker.load for worker in candidates]
        least = min(loads)
        emptiest = [w for w, load in zip(candidates, loads, strict=True) if load == least]
        return self._turns.next(emptiest, group)
