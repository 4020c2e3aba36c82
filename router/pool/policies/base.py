"""What a policy is, and the rotation that several of them share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Protocol

from ..candidates import Facts
from ..worker import Worker


class Policy(Protocol):
    """Chooses among workers that may all take the request.

    `candidates` is never empty and in order of registration. `group` names the set of workers
    that could serve such requests; policies with memory keep it per group, so that traffic for
    one model does not disturb the rotation of another.
    """

    def choose(self, candidates: Sequence[Worker], group: Hashable, facts: Facts) -> Worker: ...


# What is remembered at most, that neither names of models nor of workers pile up.
_MOST_GROUPS = 256
_MOST_WORKERS = 1024  # or twice the candidates, where there are more


class Turns:
    """Remembers per group whose turn was longest ago.

    Least recently chosen, rather than an index into the list, stays fair when workers join,
    leave or are busy for a while.
    """

    def __init__(self) -> None:
        self._last: dict[Hashable, dict[str, int]] = {}
        self._count = 0

    def next(self, candidates: Sequence[Worker], group: Hashable) -> Worker:
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
