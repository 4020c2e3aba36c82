"""The fewest exchanges per slot; ties rotate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..worker import Worker
from .base import Turns


class LeastRequest:
    def __init__(self) -> None:
        self._turns = Turns()

    def choose(self, candidates: Sequence[Worker], group: Hashable) -> Worker:
        least = min(map(_load, candidates))
        return self._turns.next([w for w in candidates if _load(w) == least], group)


def _load(worker: Worker) -> float:
    return worker.active_requests / worker.max_concurrency
