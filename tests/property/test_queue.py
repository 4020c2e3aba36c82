"""The queue under any order of events, against what its promises say of the whole pool."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

from attrs import define, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from router.front.priority import Priority
from router.pool import events
from router.pool.cost import Speeds
from router.pool.ejection import EjectionLimits
from router.pool.lifecycle import (
    AdminEvent,
    IllegalTransition,
    MemoryEvent,
    Probe,
    able,
    hopeful,
)
from router.pool.lines import Ageing, Waiting
from router.pool.match import Candidates, Facts, Need
from router.pool.policies import POLICIES, LeastWork, make
from router.pool.queue import Queue
from router.pool.registry import Registry
from router.pool.versions import Bounds
from router.pool.worker import Capabilities, Hold, HoldKind, Lease, Origin, Task, Weights, Worker

MOST_JOBS = 2
AGEING = 1.0
TRIALS = EjectionLimits(failures=2, pause=1.0, longest=8.0)

FACTS = st.builds(
    Facts,
    model=st.sampled_from([None, "x", "y", "z"]),
    task=st.sampled_from([None, Task.IMAGE, Task.VIDEO]),
    need=st.sampled_from([Need.SLOT, Need.SLOT, Need.SLOT, Need.SESSION, Need.JOB, Need.NOTHING]),
    client=st.sampled_from("abc"),
    priority=st.sampled_from([*Priority, Priority.NORMAL, Priority.NORMAL]),
    bounds=st.none()
    | st.builds(
        Bounds,
        st.sampled_from([0, 0, 1, 2]),
        st.sampled_from([None, None, 0, 1, 2]),
        st.sampled_from([None, None, 0, 1]),
    ),
)
CAPABILITIES = st.builds(
    Capabilities,
    models=st.sampled_from([(), ("x",), ("y",), ("x", "y")]),
    task_types=st.sampled_from([(), ("T2I",), ("T2V",), ("T2I", "T2V")]),
    dp_size=st.integers(1, 2),
)
INDEX = st.integers(0, 1000)
# The same workers, the same weights that will do.
Rivals: TypeAlias = tuple[tuple[Worker, ...], Bounds | None]


@define(eq=False)
class Given:
    """A lease that was granted."""

    lease: Lease
    waiting: Waiting


@define(eq=False)
class Shell:
    """Carries out what the queue decides, as the dispatcher does."""

    policy: str
    registry: Registry = field(
        factory=lambda: Registry(failure_threshold=2, ejection=TRIALS),
    )
    now: float = 0.0
    waiting: dict[Waiting, None] = field(factory=dict)
    given: list[Given] = field(factory=list)
    holds: list[Hold] = field(factory=list)  # of jobs and ghosts
    refused: int = 0
    # Per set of workers, level and waiting client: who was served there since it was.
    overtaken: dict[tuple[Rivals, int, str], set[str]] = field(factory=dict)
    queue: Queue = field(init=False)
    _due: deque[Callable[[], None]] = field(factory=deque)
    _busy: bool = False

    def __attrs_post_init__(self) -> None:
        speeds = Speeds()
        policy = make(self.policy, speeds, random.Random(1))
        self.queue = Queue(
            *(policy, LeastWork(speeds), lambda: self.registry, self.take, self.refuse),
            most_jobs=MOST_JOBS,
            ageing=Ageing(AGEING, lambda: self.now),
        )
        self.registry.subscribe(self.observe)

    def observe(self, event: events.Event) -> None:
        if isinstance(
            event,
            events.WorkerAdded
            | events.WorkerRemoved
            | events.Reincarnated
            | events.CapabilitiesLearned
            | events.FacetChanged
            | events.ProspectsChanged,
        ):
            self.overtaken.clear()
        if isinstance(event, events.SlotFreed):
            self.registry.ejection.ended(event.hold, self.now)
        self.decide(lambda: self.queue.on_event(event))

    def decide(self, change: Callable[[], None]) -> None:
        self._due.append(change)
        if self._busy:
            return
        self._busy = True
        while self._due:
            self._due.popleft()()
        self._busy = False

    def fitting(self, waiting: Waiting) -> tuple[Worker, ...]:
        return Candidates(self.registry).fitting(waiting.facts.wants)

    def level(self, waiting: Waiting) -> int:
        """That of its priority, less one for each ageing time that it has waited."""
        return max(0, waiting.facts.priority.level - int((self.now - waiting.since) / AGEING))

    def rivals(self, waiting: Waiting) -> Rivals:
        """What those have in common that take turns with it."""
        return self.fitting(waiting), waiting.facts.bounds

    def add(self, waiting: Waiting) -> None:
        self.waiting[waiting] = None
        self.decide(lambda: self.queue.add(waiting))

    def add_at_once(self, waiting: Waiting) -> bool:
        """The short way: False if there is none."""
        worker = self.queue.at_once(waiting.facts)
        if worker is None:
            return False
        rivals = self.rivals(waiting)
        ahead = [w for w in self.waiting if not w.eager and worker not in w.tried]
        assert not [w for w in ahead if self.rivals(w) == rivals]
        self.waiting[waiting] = None
        self.take(waiting, worker)
        self.queue.taken(worker)
        return True

    def cancel(self, waiting: Waiting) -> None:
        del self.waiting[waiting]
        self.overtaken.clear()  # a client that waits anew has another place
        self.queue.drop(waiting)

    def take(self, waiting: Waiting, worker: Worker) -> None:
        del self.waiting[waiting]  # a KeyError if it ended before
        assert worker in best(self.fitting(waiting), waiting)
        assert worker not in waiting.tried
        assert accepts(waiting, worker.weight_version, worker.weight_lag)
        need = waiting.facts.need
        hold = None
        if need is not Need.NOTHING:
            kind = HoldKind.SESSION if need is Need.SESSION else HoldKind.GENERATION
            hold = Hold(
                worker,
                worker.incarnation,
                kind,
                job=need is Need.JOB,
                wants=waiting.facts.wants,
            )
        if need in (Need.SLOT, Need.SESSION):
            assert worker.free_slots > 0, "over-committed"
            if not waiting.tried:
                self.check_order(waiting, worker)
        elif need is Need.JOB:
            assert worker.jobs < MOST_JOBS
        self.given.append(Given(self.registry.lease(worker, hold), waiting))

    def check_order(self, waiting: Waiting, worker: Worker) -> None:
        """Before all of a lower level that the worker could serve; within a client of a level by
        rank, then by arrival; and clients take turns."""
        line, client, level = self.rivals(waiting), waiting.facts.client, self.level(waiting)
        others = [other for other in self.waiting if not other.eager and not other.tried]
        for other in others:
            if worker in best(self.fitting(other), other):
                assert self.level(other) >= level, "a lower level was served before a higher one"
        rivals = [
            other for other in others if self.rivals(other) == line and self.level(other) == level
        ]
        mine = [other for other in rivals if other.facts.client == client]
        place = (waiting.rank, waiting.number)
        assert all((other.rank, other.number or 1e9) > place for other in mine)
        self.overtaken.pop((line, level, client), None)
        for other in {rival.facts.client for rival in rivals} - {client}:
            passed = self.overtaken.setdefault((line, level, other), set())
            assert client not in passed, f"{client} was served twice while {other} waited"
            passed.add(client)

    def refuse(self, waiting: Waiting, full: bool) -> None:
        del self.waiting[waiting]
        self.refused += 1
        fit = [worker for worker in self.fitting(waiting) if worker not in waiting.tried]
        if full:
            able = [worker for worker in fit if serves(worker, waiting)]
            assert able
            assert waiting.facts.need is Need.JOB
        else:
            assert not any(hopes(w, waiting) for w in fit), "refused though there is hope"


def hopes(worker: Worker, waiting: Waiting) -> bool:
    """Whether the worker may come to serve it without anyone acting."""
    return hopeful(worker, waiting.facts.bounds)


def serves(worker: Worker, waiting: Waiting) -> bool:
    return able(worker) and accepts(waiting, worker.weight_version, worker.weight_lag)


def accepts(waiting: Waiting, version: int, lag: int | None) -> bool:
    """Whether it may get these weights."""
    bounds = waiting.facts.bounds
    if bounds is None:
        return True
    if bounds.exact is not None and version != bounds.exact:
        return False
    if bounds.lag is not None and (lag is None or lag > bounds.lag):
        return False
    return version >= bounds.oldest


def ejected(worker: Worker) -> bool:
    """Whether it is on trial, and no request of it is due."""
    return worker.trial is not None and not worker.trial.due


def best(workers: Iterable[Worker], waiting: Waiting) -> list[Worker]:
    """Of the workers that fit those that are able and come first: without trouble, then with, then
    ejected, if no other may come to be able by itself."""
    fit = list(workers)
    some = [worker for worker in fit if serves(worker, waiting)]
    kept = [worker for worker in some if not ejected(worker)]
    if not kept and any(hopes(w, waiting) for w in fit if w not in some and w.trial is None):
        return []
    return [worker for worker in kept if not worker.troubled] or kept or some


class QueueMachine(RuleBasedStateMachine):
    @initialize(policy=st.sampled_from(sorted(POLICIES)), well=st.integers(0, 3))
    def begin(self, policy: str, well: int) -> None:
        self.shell = Shell(policy)
        self.registry = self.shell.registry
        self.asked = 0
        self.seen: list[Worker] = []
        for index, name in enumerate("abc"[:well]):
            self.join(name, None)
            self.well(index, Capabilities(models=("x",), task_types=("T2I", "T2V")))

    def worker(self, index: int) -> Worker | None:
        workers = list(self.registry)
        return workers[index % len(workers)] if workers else None

    @rule(name=st.sampled_from("abcd"), slots=st.none() | st.integers(1, 3))
    def join(self, name: str, slots: int | None) -> None:
        known = self.registry.find(f"http://{name}")
        worker = self.registry.add(f"http://{name}", Origin.STATIC, concurrency=slots)
        if known is None:
            self.seen.append(worker)

    @rule(index=INDEX, capabilities=CAPABILITIES)
    def well(self, index: int, capabilities: Capabilities) -> None:
        """A worker tells what it can do, and its probe is good."""
        if worker := self.worker(index):
            self.registry.learned(worker, capabilities)
            self.registry.probed(worker, Probe.OK)

    @rule(index=INDEX, probe=st.sampled_from(Probe))
    def probe(self, index: int, probe: Probe) -> None:
        if worker := self.worker(index):
            self.registry.probed(worker, probe, None if probe is Probe.OK else "why")

    @rule(
        index=INDEX,
        event=st.sampled_from([*AdminEvent, *MemoryEvent, *Weights]),
        ahead=st.integers(0, 3),
    )
    def happen(self, index: int, event: AdminEvent | MemoryEvent | Weights, ahead: int) -> None:
        worker = self.worker(index)
        if worker is None:
            return
        try:
            match event:
                case AdminEvent():
                    self.registry.administer(worker, event)
                case MemoryEvent():
                    self.registry.apply_memory_event(worker, event)
                case Weights():
                    more = worker.weights is not event is Weights.CURRENT
                    version = worker.weight_version + more
                    newest = max(version, worker.newest_version + ahead)
                    lag = len(range(version, newest, 2)) if newest < version + 5 else None
                    self.registry.set_weights(worker, event, version, newest=newest, lag=lag)
        except IllegalTransition:
            pass

    @rule(
        index=INDEX,
        how=st.sampled_from(["remove", "reincarnate", "suspect", "absolve", "trouble", "forgive"]),
    )
    def upset(self, index: int, how: str) -> None:
        if worker := self.worker(index):
            match how:
                case "remove":
                    self.registry.remove(worker)
                case "reincarnate":
                    self.registry.reincarnate(worker, "why")
                case "suspect":
                    self.registry.suspect(worker, "why")
                case "absolve":
                    self.registry.absolve(worker)
                case "trouble":
                    self.registry.trouble(worker, "why")
                case "forgive":
                    self.registry.forgive(worker)

    @rule(seconds=st.sampled_from([0.5, 1.0, 10.0]))
    def time_passes(self, seconds: float) -> None:
        before = {waiting: self.shell.level(waiting) for waiting in self.shell.waiting}
        self.shell.now += seconds
        if before != {waiting: self.shell.level(waiting) for waiting in self.shell.waiting}:
            self.shell.overtaken.clear()
        ejection = self.registry.ejection
        due = ejection.next_look()
        ejection.look(self.shell.now)
        assert ejection.next_look() > self.shell.now
        assert due > self.shell.now or ejection.next_look() != due

    @rule(index=INDEX, seconds=st.sampled_from([0.0, 1.0, 5.0]))
    def asks_for_a_pause(self, index: int, seconds: float) -> None:
        if worker := self.worker(index):
            self.registry.ejection.hold_off(worker, seconds, self.shell.now)

    @precondition(lambda self: self.shell.given)
    @rule(index=INDEX, fails=st.booleans())
    def outcome(self, index: int, fails: bool) -> None:
        given = self.pick(index)
        hold, worker = given.lease.hold, given.lease.worker
        if hold is not None and hold.incarnation == worker.incarnation and fails:
            fit = self.shell.fitting(given.waiting)
            self.registry.ejection.failed(hold, fit, self.shell.now, "why")
        elif hold is not None and hold.incarnation == worker.incarnation:
            self.registry.ejection.succeeded(worker, self.shell.now)
        given.lease.release()

    @rule(index=INDEX)
    def keeps_failing(self, index: int) -> None:
        if worker := self.worker(index):
            for _ in range(4):
                hold = Hold(worker, worker.incarnation, HoldKind.GENERATION)
                self.registry.ejection.failed(hold, list(self.registry), self.shell.now, "why")

    @rule(index=INDEX, slots=st.none() | st.integers(1, 3))
    def resize(self, index: int, slots: int | None) -> None:
        if worker := self.worker(index):
            self.registry.set_concurrency(worker, slots)

    @rule(facts=FACTS, rank=st.integers(0, 3), many=st.integers(1, 4), short=st.booleans())
    def ask(self, facts: Facts, rank: int, many: int, short: bool) -> None:
        for _ in range(many):
            self.asked += 1
            waiting = Waiting(facts, rank, self.shell.now)
            if not short or not self.shell.add_at_once(waiting):
                self.shell.add(waiting)

    @precondition(lambda self: self.shell.waiting)
    @rule(index=INDEX)
    def leave(self, index: int) -> None:
        waiting = list(self.shell.waiting)
        self.shell.cancel(waiting[index % len(waiting)])

    def pick(self, index: int) -> Given:
        return self.shell.given.pop(index % len(self.shell.given))

    @precondition(lambda self: self.shell.given)
    @rule(index=INDEX, head_first=st.booleans())
    def finish(self, index: int, head_first: bool) -> None:
        given = self.pick(index)
        if head_first:
            self.registry.free(given.lease)
        given.lease.release()

    @precondition(lambda self: self.shell.given)
    @rule(index=INDEX, kind=st.sampled_from([HoldKind.JOB, HoldKind.GHOST]))
    def linger(self, index: int, kind: HoldKind) -> None:
        given = self.pick(index)
        hold = self.registry.keep(given.lease, kind)
        given.lease.release()
        if hold is not None:
            self.shell.holds.append(hold)

    @precondition(lambda self: self.shell.holds)
    @rule(index=INDEX, haunts=st.booleans())
    def end(self, index: int, haunts: bool) -> None:
        hold = self.shell.holds[index % len(self.shell.holds)]
        if haunts:
            self.registry.turn_into_ghost(hold)
        else:
            self.shell.holds.remove(hold)
            self.registry.drop(hold)

    @precondition(lambda self: self.shell.given)
    @rule(index=INDEX, trouble=st.booleans())
    def retry(self, index: int, trouble: bool) -> None:
        given = self.pick(index)
        if trouble:
            self.registry.trouble(given.lease.worker, "refused")
        given.lease.release()
        tried = given.waiting.tried | {given.lease.worker}
        self.asked += 1
        self.shell.add(Waiting(given.waiting.facts, 0, self.shell.now, tried))

    @invariant()
    def nobody_waits_who_could_be_served(self) -> None:
        for waiting in self.shell.waiting:
            able = best(self.shell.fitting(waiting), waiting)
            if not waiting.eager:
                able = [worker for worker in able if worker.free_slots > 0]
            assert not [worker for worker in able if worker not in waiting.tried]

    @invariant()
    def nobody_waits_without_hope(self) -> None:
        for waiting in self.shell.waiting:
            members = set(self.shell.fitting(waiting)) - waiting.tried
            assert any(hopes(worker, waiting) for worker in members)

    @invariant()
    def all_that_wait_are_known(self) -> None:
        queue = self.shell.queue
        assert queue.waiting == len(self.shell.waiting)
        assert Counter(queue.all()) == Counter(self.shell.waiting.keys())
        assert not any(waiting.over for waiting in self.shell.waiting)

    @invariant()
    def places_that_were_left_are_counted(self) -> None:
        for line in self.shell.queue._lines.values():
            places = [
                waiting.over or waiting.level != level
                for level, clients in line.levels.items()
                for heap in clients.values()
                for _, _, waiting in heap
            ]
            assert sum(places) == line._left
            assert all(w.line is line for _, _, w in line.rising if not w.over)

    @invariant()
    def slots_are_held_by_what_runs(self) -> None:
        leased = {given.lease.hold for given in self.shell.given} - {None}
        for worker in self.seen:
            for hold in worker.holds:
                assert hold in leased or hold in self.shell.holds
                assert hold.incarnation == worker.incarnation
            for hold in leased | set(self.shell.holds):
                current = hold.worker is worker and hold.incarnation == worker.incarnation
                assert (hold in worker.holds) == (current and not worker.removed)

    @invariant()
    def trials_agree_with_their_workers(self) -> None:
        for worker in self.seen:
            trial = worker.trial
            assert trial is None or not worker.removed
            if trial is not None and trial.hold is not None:
                assert not trial.due
                assert trial.hold in worker.holds

    def teardown(self) -> None:
        if not hasattr(self, "shell"):
            return
        while self.shell.given:
            self.shell.given.pop().lease.release()
        while self.shell.holds:
            self.registry.drop(self.shell.holds.pop())
        for waiting in list(self.shell.waiting):
            if waiting in self.shell.waiting:
                self.shell.cancel(waiting)
        while self.shell.given:
            self.shell.given.pop().lease.release()
        assert self.shell.queue.waiting == 0
        for worker in self.seen:
            assert not worker.leases
            assert not worker.holds


QueueMachine.TestCase.settings = settings(
    settings.get_profile("router"), max_examples=120, stateful_step_count=50
)
TestQueue = QueueMachine.TestCase
