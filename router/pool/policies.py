"""Routing policies: which of several free workers gets the next request."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from .cost import Speeds
from .match import Facts
from .worker import Worker

# Bounds of the memory: names of models and of workers must not pile up.
_MOST_GROUPS = 256
_MOST_WORKERS = 1024  # or twice the candidates, if that is more
# Speeds are estimates: times within this factor count as equal.
_SAME = 1.02


class Policy(Protocol):
    """Chooses among workers that may all take the request.

    `candidates` is never empty and in order of registration. `group` names the set of workers that
    could serve such requests. Policies with memory keep one memory per group, so that traffic for
    one model does not disturb the rotation of another.
    """

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker: ...


class RoundRobin:
    """Each worker in turn, whatever its load.

    Choosing the least recently chosen worker, instead of keeping an index into the list, stays fair
    when workers join, leave or are busy for a while.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, dict[str, int]] = {}
        self._count = 0

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        last = self._last[group] = self._last.pop(group, {})  # the freshest group stands last
        if len(self._last) > _MOST_GROUPS:
            del self._last[next(iter(self._last))]
        chosen = min(candidates, key=lambda worker: last.get(worker.url, 0))
        self._count += 1
        last[chosen.url] = self._count
        most = max(_MOST_WORKERS, 2 * len(candidates))
        if len(last) > most:  # forget workers that left long ago
            keep = sorted(last.items(), key=lambda item: -item[1])[: most // 2]
            self._last[group] = dict(keep)
        return chosen


class LeastRequest(RoundRobin):
    """The worker with the fewest exchanges, jobs and ghosts per slot; ties rotate."""

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        loads = [worker.load for worker in candidates]
        least = min(loads)
        emptiest = [w for w, load in zip(candidates, loads, strict=True) if load == least]
        return super().choose(emptiest, group, facts)


class LeastWork(RoundRobin):
    """The worker that would finish the request first, by the learnt speeds; ties rotate."""

    def __init__(self, speeds: Speeds) -> None:
        super().__init__()
        self._speeds = speeds

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        seconds = [self._finish(worker, facts) for worker in candidates]
        limit = min(seconds) * _SAME
        soonest = [w for w, s in zip(candidates, seconds, strict=True) if s <= limit]
        return super().choose(soonest, group, facts)

    def _finish(self, worker: Worker, facts: Facts) -> float:
        own = self._speeds.expected(worker.url, facts.kind, facts.work)
        return self._speeds.outstanding(worker) / worker.max_concurrency + own


class RandomChoice:
    """A random worker, all with equal chance."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker:
        return self._rng.choice(candidates)


POLICIES: dict[str, Callable[[random.Random, Speeds], Policy]] = {
    "least-request": lambda _, __: LeastRequest(),
    "round-robin": lambda _, __: RoundRobin(),
    "random": lambda rng, _: RandomChoice(rng),
    # Drawing two workers helps if requests wait in the workers' queues; here they wait in the
    # router.
    "power-of-two": lambda _, __: LeastRequest(),
    "least-work": lambda _, speeds: LeastWork(speeds),
}


def make(name: str, speeds: Speeds, rng: random.Random | None = None) -> Policy:
    """The policy of that name (a key of POLICIES). Raises KeyError for any other."""
    return POLICIES[name](rng or random.Random(), speeds)
