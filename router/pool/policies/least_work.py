"""Where the request would be finished first, by the learnt speeds; ties rotate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..candidates import Facts
from ..cost import Speeds
from ..worker import Worker
from .base import Turns

# Speeds are estimates: what is about the same counts as the same.
_SAME = 1.02


class LeastWork:
    def __init__(self, speeds: Speeds) -> None:
        self._speeds = speeds
        self._turns = Turns()

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        seconds = [self._finish(worker, facts) for worker in candidates]
        limit = min(seconds) * _SAME
        soonest = [w for w, s in zip(candidates, seconds, strict=True) if s <= limit]
        return self._turns.next(soonest, group)

    def _finish(self, worker: Worker, facts: Facts) -> float:
        own = self._speeds.expected(worker.url, facts.kind, facts.work)
        return self._speeds.outstanding(worker) / worker.max_concurrency + own
