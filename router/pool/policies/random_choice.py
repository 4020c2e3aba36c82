"""Any of them, with equal chance."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from ..candidates import Facts
from ..worker import Worker


class RandomChoice:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        return self._rng.choice(candidates)
