"""Each in turn, whatever its load."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..candidates import Facts
from ..worker import Worker
from .base import Turns


class RoundRobin:
    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        return self._turns.next(candidates, group)
