"""Lines of waiting requests: one for each set of workers that fit.

Requests that fit the same workers stand in one line, so that none blocks another that it does not
compete with. Within a line clients take turns; within a client the smallest rank comes first.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Container, Iterator

from attrs import define, field

from .lifecycle import able, hopeful
from .match import NEED_SLOT, Facts, Wants
from .worker import Worker

# A line rebuilds its heaps when more requests than this have left it before their turn, and they
# outnumber the waiting ones.
_MOST_LEFT = 64


@define(eq=False)
class Waiting:
    """One request without a worker. The smallest `rank` is served first."""

    facts: Facts
    rank: float
    since: float
    tried: frozenset[Worker] = frozenset()
    number: int = 0  # in order of arrival
    line: Line | None = field(default=None, repr=False)
    over: bool = False  # granted, refused, or its client left
    request_id: str | None = None

    @property
    def eager(self) -> bool:
        """Whether the request needs no free slot."""
        return self.facts.need not in NEED_SLOT

    @property
    def has_hope(self) -> bool:
        """Whether an untried worker may come to serve the request without outside action."""
        line = self.line
        assert line is not None
        bounds = line.key.version
        return any(hopeful(w, bounds) and w not in self.tried for w in line.members)


@define(eq=False)
class _Tier:
    """The members of one condition, and the members among them with a free slot."""

    members: dict[Worker, None] = field(factory=dict)
    free: dict[Worker, None] = field(factory=dict)


@define(eq=False)
class Line:
    """The requests that fit the same workers and accept the same weights."""

    # Names the line to policies, even if its members change.
    key: Wants
    members: tuple[Worker, ...] = ()
    # Able and without trouble; also a worker on trial whose next request is due.
    sound: _Tier = field(factory=_Tier)
    # Able, with trouble: these serve if no member is sound.
    troubled: _Tier = field(factory=_Tier)
    # Not able, but may become able by themselves; none of them counts as free.
    awaited: _Tier = field(factory=_Tier)
    # Able, but on trial: these serve only if there is no other member, not even an awaited one.
    ejected: _Tier = field(factory=_Tier)
    _tiers: dict[Worker, _Tier] = field(init=False, factory=dict, repr=False)
    # Clients with waiting requests, the next client first; each with a heap by rank.
    clients: dict[str, list[tuple[float, int, Waiting]]] = field(factory=dict)
    # `picky`: requests that failed at a worker and must avoid it; few, and served before the
    # others. `eager`: other requests that need no free slot; these wait only while no worker is
    # routable.
    picky: dict[Waiting, None] = field(factory=dict)
    eager: dict[Waiting, None] = field(factory=dict)
    # What the waiting requests want.
    wants: Counter[Wants] = field(factory=Counter)
    _left: int = field(init=False, default=0)  # requests that are over but still in a heap

    @property
    def serving(self) -> _Tier:
        """The members that may get requests now."""
        if self.sound.members:
            return self.sound
        return self.troubled if self.troubled.members or self.awaited.members else self.ejected

    def note(self, worker: Worker) -> None:
        """Sort a member into its tier by its present state."""
        self.expel(worker)
        if able(worker, self.key.version):
            if worker.trial is not None and not worker.trial.due:
                tier = self.ejected
            else:
                tier = self.troubled if worker.troubled else self.sound
            if worker.free_slots > 0:
                tier.free[worker] = None
        elif worker.trial is None and hopeful(worker, self.key.version):
            tier = self.awaited
        else:
            return
        tier.members[worker] = None
        self._tiers[worker] = tier

    def expel(self, worker: Worker) -> None:
        """Drop the worker from its tier."""
        tier = self._tiers.pop(worker, None)
        if tier is not None:
            del tier.members[worker]
            tier.free.pop(worker, None)

    def enter(self, waiting: Waiting) -> None:
        waiting.line = self
        self.wants[waiting.facts.wants] += 1
        if waiting.tried:
            self.picky[waiting] = None
        elif waiting.eager:
            self.eager[waiting] = None
        else:
            heap = self.clients.setdefault(waiting.facts.client, [])
            heapq.heappush(heap, (waiting.rank, waiting.number, waiting))

    def leave(self, waiting: Waiting) -> None:
        """The request is over. A request in a heap is taken out of the heap later."""
        waiting.over = True
        wants = waiting.facts.wants
        self.wants[wants] -= 1
        if not self.wants[wants]:
            del self.wants[wants]
        if waiting in self.eager or waiting in self.picky:
            self.eager.pop(waiting, None)
            self.picky.pop(waiting, None)
            return
        self._left += 1
        if self._left > _MOST_LEFT and self._left > self.wants.total():
            self.extract(())

    def head(self) -> Waiting | None:
        """The request whose turn it is, among those that may go to any member."""
        while self.clients:
            client, heap = next(iter(self.clients.items()))
            while heap and heap[0][2].over:
                heapq.heappop(heap)
                self._left -= 1
            if heap:
                return heap[0][2]
            del self.clients[client]
        return None

    def pop(self) -> Waiting:
        """Take out the head, which must exist; its client goes to the end."""
        client, heap = next(iter(self.clients.items()))
        _, _, waiting = heapq.heappop(heap)
        self._left -= 1  # `leave` counts it
        del self.clients[client]
        if heap:
            self.clients[client] = heap
        return waiting

    def all(self) -> Iterator[Waiting]:
        """All waiting requests: first `picky`, then `eager`, then by clients in the order of their
        turns."""
        yield from self.picky
        yield from self.eager
        for heap in self.clients.values():
            yield from (waiting for _, _, waiting in sorted(heap) if not waiting.over)

    def extract(self, wants: Container[Wants]) -> list[Waiting]:
        """Take out the requests whose wants are among these, in the order of `all`."""
        stay: list[Waiting] = []
        go: list[Waiting] = []
        for waiting in self.all():
            (go if waiting.facts.wants in wants else stay).append(waiting)
        self.clients, self.eager, self.picky, self._left = {}, {}, {}, 0
        self.wants.clear()
        for waiting in stay:
            self.enter(waiting)
        return go


@define(eq=False)
class Shares:
    """How one worker shares its slots among its lines: in proportion to their waiting clients, so
    that each client gets the same share (stride scheduling)."""

    # When each line is due, on a clock that advances with each slot given.
    due: dict[Line, float] = field(factory=dict)
    now: float = 0.0

    def next(self, worker: Worker) -> Line | None:
        """The line whose head the worker serves next; None if no request waits for the worker."""
        best: tuple[float, float, int] | None = None
        chosen: Line | None = None
        for line, due in self.due.items():
            if worker in line.serving.free and (head := line.head()):
                # An empty line gains no claim on the slots that it missed.
                turn = max(due, self.now), head.rank, head.number
                if best is None or turn < best:
                    best, chosen = turn, line
        if best is not None and chosen is not None:
            self.now = best[0]
            self.due[chosen] = self.now + 1 / len(chosen.clients)
        return chosen
