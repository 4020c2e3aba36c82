"""Lines of waiting requests: one for each set of workers that fit.

Requests that fit the same workers stand in one line, so that none blocks another that it does not
compete with. Of the requests that compete, those of the first level (the highest priority) come
first; within a level clients take turns; within a client the smallest rank comes first. A request
rises by one level each time that it has waited for the ageing time, so that none starves.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterator
from typing import TypeAlias

from attrs import define, field

from .lifecycle import able, hopeful
from .match import NEED_SLOT, Facts, Wants
from .worker import Worker

# A line rebuilds its heaps when more requests than this have left their places before their turn,
# and they outnumber the waiting ones.
_MOST_LEFT = 64

# The key by which a heap sorts, the request's number, and the request.
_Place: TypeAlias = "tuple[float, int, Waiting]"


@define(eq=False)
class Waiting:
    """One request without a worker. The smallest `level` is served first, then the smallest
    `rank`."""

    facts: Facts
    rank: float
    since: float
    tried: frozenset[Worker] = frozenset()
    number: int = 0  # in order of arrival
    level: int = field(init=False)
    line: Line | None = field(default=None, repr=False)
    over: bool = False  # granted, refused, or its client left
    request_id: str | None = None

    @level.default
    def _asked(self) -> int:
        return self.facts.priority.level

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
class Ageing:
    """After how many seconds a waiting request rises by one level, and the clock for it."""

    seconds: float = 300.0
    clock: Callable[[], float] = lambda: 0.0


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
    ageing: Ageing = field(factory=Ageing)
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
    # By level: clients with waiting requests, the next client first; each with a heap by rank.
    levels: dict[int, dict[str, list[_Place]]] = field(factory=dict)
    # A heap of the requests below the first level, by the time at which they rise.
    rising: list[_Place] = field(factory=list)
    # `picky`: requests that failed at a worker and must avoid it; few, and served before the
    # others. `eager`: other requests that need no free slot; these wait only while no worker is
    # routable.
    picky: dict[Waiting, None] = field(factory=dict)
    eager: dict[Waiting, None] = field(factory=dict)
    # What the waiting requests want.
    wants: Counter[Wants] = field(factory=Counter)
    _left: int = field(init=False, default=0)  # places in `levels` that their requests have left

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
            self._stand(waiting)

    def _stand(self, waiting: Waiting) -> None:
        """Take a place among the client's requests of the level."""
        clients = self.levels.setdefault(waiting.level, {})
        heap = clients.setdefault(waiting.facts.client, [])
        heapq.heappush(heap, (waiting.rank, waiting.number, waiting))
        if waiting.level:
            if len(self.rising) > max(_MOST_LEFT, 2 * self.wants.total()):
                self.rising = [place for place in self.rising if not place[2].over]
                heapq.heapify(self.rising)
            rises = 1 + waiting.facts.priority.level - waiting.level
            at = waiting.since + rises * self.ageing.seconds
            heapq.heappush(self.rising, (at, waiting.number, waiting))

    def _rise(self) -> None:
        """Let those rise that have waited long enough; their old places are taken out later."""
        now = self.ageing.clock()
        while self.rising and self.rising[0][0] <= now:
            _, _, waiting = heapq.heappop(self.rising)
            if not waiting.over:
                waiting.level -= 1
                self._left += 1
                self._stand(waiting)

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
        if not self.levels:
            return None
        if self.rising:
            self._rise()
        first = self._first()
        return None if first is None else first[2][0][2]

    def _first(self) -> tuple[dict[str, list[_Place]], str, list[_Place]] | None:
        """The clients of the first level, the next of them, and its places: the first is the
        head's."""
        while self.levels:
            level = min(self.levels)
            clients = self.levels[level]
            if not clients:
                del self.levels[level]
                continue
            client, heap = next(iter(clients.items()))
            while heap and _has_left(heap[0][2], level):
                heapq.heappop(heap)
                self._left -= 1
            if heap:
                return clients, client, heap
            del clients[client]
        return None

    def pop(self) -> Waiting:
        """Take out the request that `head` has just returned; its client goes to the end."""
        first = self._first()
        assert first is not None
        clients, client, heap = first
        _, _, waiting = heapq.heappop(heap)
        self._left -= 1  # `leave` counts it
        del clients[client]
        if heap:
            clients[client] = heap
        return waiting

    def all(self) -> Iterator[Waiting]:
        """All waiting requests: first `picky`, then `eager`, then by level, and by clients in the
        order of their turns."""
        yield from self.picky
        yield from self.eager
        for level in sorted(self.levels):
            for heap in self.levels[level].values():
                places = sorted(heap)
                yield from (one for _, _, one in places if not _has_left(one, level))

    def extract(self, wants: Container[Wants]) -> list[Waiting]:
        """Take out the requests whose wants are among these, in the order of `all`."""
        stay: list[Waiting] = []
        go: list[Waiting] = []
        for waiting in self.all():
            (go if waiting.facts.wants in wants else stay).append(waiting)
        self.levels, self.rising, self.eager, self.picky, self._left = {}, [], {}, {}, 0
        self.wants.clear()
        for waiting in stay:
            self.enter(waiting)
        return go


def _has_left(waiting: Waiting, level: int) -> bool:
    """Whether the request has left its place in this level: it is over, or has risen."""
    return waiting.over or waiting.level != level


@define(eq=False)
class Shares:
    """How one worker shares its slots among its lines: those with a head of the first level come
    first, and within a level in proportion to their waiting clients, so that each client gets the
    same share (stride scheduling)."""

    # For each level, when each line is due, on a clock that advances with each slot given.
    due: dict[Line, dict[int, float]] = field(factory=dict)
    now: dict[int, float] = field(factory=dict)

    def next(self, worker: Worker) -> Line | None:
        """The line whose head the worker serves next; None if no request waits for the worker."""
        best: tuple[int, float, float, int] | None = None
        chosen: Line | None = None
        for line, due in self.due.items():
            if worker in line.serving.free and (head := line.head()):
                level = head.level
                # An empty line gains no claim on the slots that it missed.
                at = max(due.get(level, 0.0), self.now.get(level, 0.0))
                turn = level, at, head.rank, head.number
                if best is None or turn < best:
                    best, chosen = turn, line
        if best is not None and chosen is not None:
            level, at = best[:2]
            self.now[level] = at
            self.due[chosen][level] = at + 1 / len(chosen.levels[level])
        return chosen
