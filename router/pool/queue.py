"""Waiting requests and free workers: who gets which, decided synchronously.

Late binding: a request is given a worker when a slot is free, never before. The queue takes what
happened (a request came or left, a worker changed) and returns what follows: grants and refusals.
Nothing here waits or knows a clock.

Requests that fit the same workers form a group, so that none blocks another that it does not
compete with. Within a group clients take turns; within a client the order is that of arrival, or
the longest first with ageing. Where a worker serves several groups, it takes the head that comes
first by that order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from typing import TypeAlias

from attrs import define, field, frozen

from .candidates import Facts, Need, fitting, group_key
from .lifecycle import hopeful, routable
from .policies.base import Policy
from .worker import Worker

GroupKey: TypeAlias = tuple[object, ...]


@define(eq=False)
class Waiting:
    """One request that has no worker yet. `rank`: smaller is served first."""

    facts: Facts
    rank: float
    since: float
    tried: frozenset[Worker] = frozenset()
    group: Group | None = field(default=None, repr=False)
    over: bool = False  # granted, refused, or its client left


@frozen
class Grant:
    """The request gets the worker; whoever takes the grant occupies the slot at once."""

    waiting: Waiting
    worker: Worker


@frozen
class Refusal:
    """Nobody may become able to serve the request without somebody acting."""

    waiting: Waiting


Effect: TypeAlias = Grant | Refusal


@define(eq=False)
class Group:
    """The requests that fit the same workers."""

    key: GroupKey
    members: list[Worker]
    # Routable members with a free slot.
    free: dict[Worker, None] = field(factory=dict)
    # Clients with waiting requests, the next one first; each with a heap by rank.
    clients: dict[str, list[tuple[float, int, Waiting]]] = field(factory=dict)
    # Requests that need no free slot, only a routable worker; and those that may not go
    # everywhere. Both are few.
    eager: list[Waiting] = field(factory=list)
    picky: list[Waiting] = field(factory=list)

    def head(self) -> Waiting | None:
        """The request whose turn it is."""
        while self.clients:
            client, heap = next(iter(self.clients.items()))
            while heap and heap[0][2].over:
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
            del self.clients[client]
        return None

    def pop(self) -> None:
        """Take the head away; its client goes to the end of the line."""
        client, heap = next(iter(self.clients.items()))
        heapq.heappop(heap)
        del self.clients[client]
        if heap:
            self.clients[client] = heap

    def all(self) -> list[Waiting]:
        """Everything that waits here, in no order."""
        heaps = [entry[2] for heap in self.clients.values() for entry in heap]
        return [w for w in (*self.eager, *self.picky, *heaps) if not w.over]


Take: TypeAlias = Callable[[Grant], None]


@define(eq=False)
class Queue:
    """Waiting requests of all groups.

    `workers` gives the registered workers in order; `take` occupies the slot of a grant, at once.
    """

    policy: Policy
    job_policy: Policy
    workers: Callable[[], Iterable[Worker]]
    take: Take
    waiting: int = field(init=False, default=0)
    _groups: dict[GroupKey, Group] = field(init=False, factory=dict)
    _of_worker: dict[Worker, list[Group]] = field(init=False, factory=dict)
    _count: int = field(init=False, default=0)

    def add(self, waiting: Waiting) -> list[Effect]:
        """A request has come."""
        group = self._group(waiting.facts)
        self.waiting += 1
        self._enter(waiting, group)
        return self._serve(group)

    def drop(self, waiting: Waiting) -> None:
        """The request's client has left, or it has waited too long."""
        if waiting.over:
            return
        self._leave(waiting)
        group = waiting.group
        if group is not None:
            for some in (group.eager, group.picky):
                if waiting in some:
                    some.remove(waiting)

    def touched(self, worker: Worker) -> list[Effect]:
        """The worker's slots or its routability have changed."""
        groups = self._of_worker.get(worker, [])
        able = routable(worker)
        for group in groups:
            if able and worker.free_slots > 0:
                group.free[worker] = None
            else:
                group.free.pop(worker, None)
        if not able:
            return [effect for group in groups for effect in self._refuse_hopeless(group)]
        effects: list[Effect] = []
        for group in groups:
            if group.eager or group.picky:
                effects += self._serve_special(group)
        while worker.free_slots > 0:
            ready = [(head.rank, i) for i, g in enumerate(groups) if (head := g.head())]
            if not ready:
                break
            effects.append(self._grant_head(groups[min(ready)[1]], worker))
        return effects

    def rebuilt(self) -> list[Effect]:
        """Workers joined, left or learnt what they can do: sort everything anew."""
        before = [w for group in self._groups.values() for w in group.all()]
        before.sort(key=lambda waiting: waiting.rank)
        self._groups.clear()
        self._of_worker.clear()
        for waiting in before:
            self._enter(waiting, self._group(waiting.facts))
        effects: list[Effect] = []
        for group in list(self._groups.values()):
            effects += self._serve(group)
        return effects

    def groups(self) -> list[Group]:
        """The groups in which something waits."""
        return [group for group in self._groups.values() if group.all()]

    def _group(self, facts: Facts) -> Group:
        pool = self.workers()
        key = group_key(pool, facts)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Group(key, fitting(pool, facts))
            for worker in group.members:
                self._of_worker.setdefault(worker, []).append(group)
                if routable(worker) and worker.free_slots > 0:
                    group.free[worker] = None
        return group

    def _enter(self, waiting: Waiting, group: Group) -> None:
        waiting.group = group
        self._count += 1
        if waiting.facts.need in (Need.JOB, Need.NOTHING):
            group.eager.append(waiting)
        elif waiting.tried:
            group.picky.append(waiting)
        else:
            heap = group.clients.setdefault(waiting.facts.client, [])
            heapq.heappush(heap, (waiting.rank, self._count, waiting))

    def _serve(self, group: Group) -> list[Effect]:
        effects = self._serve_special(group)
        while group.free and (head := group.head()):
            worker = self.policy.choose(list(group.free), group.key, head.facts)
            effects.append(self._grant_head(group, worker))
        return effects + self._refuse_hopeless(group)

    def _serve_special(self, group: Group) -> list[Effect]:
        effects: list[Effect] = []
        for waiting in [*group.eager]:
            able = [w for w in group.members if routable(w) and w not in waiting.tried]
            if able:
                group.eager.remove(waiting)
                job = waiting.facts.need is Need.JOB
                policy = self.job_policy if job else self.policy
                worker = policy.choose(able, group.key, waiting.facts)
                effects.append(self._grant(waiting, worker))
        for waiting in [*group.picky]:
            able = [worker for worker in group.free if worker not in waiting.tried]
            if able:
                group.picky.remove(waiting)
                worker = self.policy.choose(able, group.key, waiting.facts)
                effects.append(self._grant(waiting, worker))
        return effects

    def _grant_head(self, group: Group, worker: Worker) -> Grant:
        head = group.head()
        assert head is not None
        group.pop()
        return self._grant(head, worker)

    def _grant(self, waiting: Waiting, worker: Worker) -> Grant:
        self._leave(waiting)
        grant = Grant(waiting, worker)
        self.take(grant)
        if worker.free_slots <= 0:
            for group in self._of_worker.get(worker, []):
                group.free.pop(worker, None)
        return grant

    def _refuse_hopeless(self, group: Group) -> list[Effect]:
        effects: list[Effect] = []
        hope = [worker for worker in group.members if hopeful(worker)]
        candidates = group.all() if not hope else [*group.eager, *group.picky]
        for waiting in candidates:
            if not any(worker not in waiting.tried for worker in hope):
                self.drop(waiting)
                effects.append(Refusal(waiting))
        return effects

    def _leave(self, waiting: Waiting) -> None:
        waiting.over = True
        self.waiting -= 1
