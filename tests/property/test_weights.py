"""Ledgers under any order of changes, replays, restarts and faults, against true processes.

Safety: nothing is ever given to a worker whose process has other weights than its ledger says.
Liveness: once faults stop, every worker is routable again, and nobody had to act.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from typing import Any

from attrs import define, evolve, field
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router.pool import events
from router.pool.cost import Speeds
from router.pool.lifecycle import AdminEvent, MemoryEvent, Probe, hopeful, routable
from router.pool.lines import Waiting
from router.pool.match import Facts
from router.pool.policies import LeastRequest, LeastWork
from router.pool.queue import Queue
from router.pool.registry import Registry
from router.pool.weights import (
    Change,
    Ledger,
    Ledgers,
    NotGreater,
    Recipe,
    Step,
    WeightRecord,
)
from router.pool.weights.recipe import DISK, MERGE, SET_LORA, UNMERGE, Plan
from router.pool.worker import (
    ROUTER_RESTARTED,
    Admin,
    Capabilities,
    Health,
    Hold,
    HoldKind,
    Memory,
    Origin,
    Weights,
    Worker,
)

URLS = ["http://a:1", "http://b:1", "http://c:1"]
MODULES = ("t", "v")
CARD = Capabilities(models=("m",), model_path="start")
PICK = st.integers(0, 10)

# No merging: it puts to work whatever LoRA the worker knows, also one of a change that was void,
# and nobody outside of it can see which that is.
BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "full": (DISK, {"model_path": "p"}),
    "partial": (DISK, {"model_path": "p", "target_modules": ["v"]}),
    "set": (SET_LORA, {"lora_nickname": "n", "target": "all"}),
    "set one": (SET_LORA, {"lora_nickname": "n", "target": "t"}),
    "unmerge": (UNMERGE, {"target": "all"}),
}


@define
class Process:
    """A worker's process as it truly is."""

    base: dict[str, str] = field(factory=lambda: dict.fromkeys(MODULES, "start"))
    loras: dict[str, tuple[str, bool]] = field(factory=dict)  # which one, and does it act
    wrapped: bool = False
    asleep: bool = False

    @property
    def effect(self) -> tuple[Any, ...]:
        acting = {target: name for target, (name, acts) in self.loras.items() if acts}
        return tuple(sorted(self.base.items())), tuple(sorted(acting.items()))

    def copy(self) -> Process:
        return evolve(self, base=dict(self.base), loras=dict(self.loras))

    def apply(self, path: str, content: dict[str, Any], *, ideal: bool = False) -> bool:
        """Whether it says that it did."""
        if path == DISK:
            for module in content.get("target_modules") or MODULES:
                if not self.wrapped or ideal:  # else it says nothing and passes over them
                    self.base[module] = content["model_path"]
            return True
        targets = MODULES if content["target"] == "all" else (content["target"],)
        if path == SET_LORA:
            self.wrapped = True
            self.loras.update({target: (content["lora_nickname"], True) for target in targets})
            return True
        if not self.loras:
            return ideal
        for target in targets:
            if target in self.loras:
                self.loras[target] = (self.loras[target][0], path == MERGE)
        return True

    def spoil(self, path: str) -> None:
        if path == DISK:
            self.base["t"] = "junk"


@define(eq=False)
class Target:
    """A worker of the open change."""

    incarnation: int = 0
    called: int | None = None
    done: bool = False
    refused: bool = False
    waits: int | None = None  # for its turn in a rolling change, with this version


@define(eq=False)
class Replay:
    """A replay under way."""

    plan: Plan
    steps: list[Step]
    recipe: Recipe
    incarnation: int


class Papers:
    """What would be on the disk."""

    def __init__(self) -> None:
        self.tables: dict[type[Any], dict[str, Any]] = {}

    def put(self, record: Any) -> None:
        self.tables.setdefault(type(record), {})[record.key] = evolve(record)

    def delete(self, kind: type[Any], key: str) -> None:
        self.tables.get(kind, {}).pop(key, None)

    def of(self, kind: type[Any]) -> list[Any]:
        return list(map(evolve, self.tables.get(kind, {}).values()))


class Router:
    """The pure parts, put together as they are in the router."""

    def __init__(self, machine: WeightMachine, papers: Papers) -> None:
        self.machine = machine
        self.registry = Registry(failure_threshold=1)
        self.ledgers = Ledgers(self.registry, papers)
        self.ledgers.restore(papers.of(Ledger), papers.of(WeightRecord), papers.of(Change))
        self.queue = Queue(
            *(LeastRequest(), LeastWork(Speeds()), lambda: self.registry, self.take),
            refuse=lambda *_: None,
        )
        self.holds: list[Hold] = []
        self.change: Change | None = None
        self.targets: dict[Worker, Target] = {}
        self.replays: dict[Worker, Replay] = {}
        self._due: deque[Callable[[], None]] = deque()
        self._busy = False
        self.registry.subscribe(lambda event: self.decide(lambda: self.queue.on_event(event)))
        self.registry.subscribe(self.observe)

    def decide(self, change: Callable[[], None]) -> None:
        self._due.append(change)
        if self._busy:
            return
        self._busy = True
        while self._due:
            self._due.popleft()()
        self._busy = False

    def take(self, _: Waiting, worker: Worker) -> None:
        self.machine.check(worker)
        hold = Hold(worker, worker.incarnation, HoldKind.GENERATION)
        self.registry.lease(worker, hold)
        self.holds.append(hold)

    def observe(self, event: events.Event) -> None:
        match event:
            case events.Reincarnated(worker) | events.WorkerRemoved(worker):
                self.leave(worker)
                self.replays.pop(worker, None)
            case events.FacetChanged(worker, facet="health", new=new) if new != Health.HEALTHY:
                self.leave(worker)
                self.replays.pop(worker, None)
            case events.FacetChanged(worker, facet="admin", new=Admin.QUARANTINED):
                self.leave(worker)
                self.replays.pop(worker, None)
            case events.FacetChanged(worker, facet="memory") | events.Suspected(worker):
                self.replays.pop(worker, None)

    def leave(self, worker: Worker) -> None:
        target = self.targets.get(worker)
        if self.change is not None and target is not None and not target.done:
            if target.waits is not None:  # whether it can be called is asked at its turn
                return
            target.done = True
            if target.called is None:
                self.ledgers.unchanged(self.change, worker, "left")
            else:
                self.ledgers.unknown(self.change, worker, "left")


class WeightMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.papers = Papers()
        self.processes: dict[str, Process] = {}
        self.replaced: set[str] = set()  # by another process, which the router has not judged yet
        self.ideal: dict[int, Process] = {0: Process()}
        self.promised: dict[str, int] = {}  # by change: the number that it must get
        self.sent: dict[str, tuple[str, dict[str, Any]]] = {}  # by digest
        self.count = 0
        self.router = Router(self, self.papers)
        for url in URLS[:2]:
            self.join(url)

    # What is true.

    def truth(self, worker: Worker) -> Process:
        return self.processes[worker.url]

    def check(self, worker: Worker) -> None:
        """It is given something: it must have what its ledger says."""
        ledger = self.router.ledgers.ledger_of(worker)
        version = 0 if ledger is None else ledger.version  # before its model is known
        assert worker.newest_version == version
        target = self.router.targets.get(worker)
        # A new process is brought up to date before its turn.
        if target is not None and target.incarnation == worker.incarnation:
            version = version if target.waits is None else target.waits
        assert worker.weight_version == version
        # In order of issue.
        assert worker.weight_lag == len(self.ideal) - 1 - list(self.ideal).index(version)
        assert not self.truth(worker).asleep
        assert self.truth(worker).effect == self.ideal[version].effect

    def workers(self) -> list[Worker]:
        return list(self.router.registry)

    def pick(self, number: int, some: list[Worker]) -> Worker | None:
        return some[number % len(some)] if some else None

    def callable(self, worker: Worker) -> bool:
        return (
            worker.health is Health.HEALTHY
            and worker.memory is Memory.AWAKE
            and worker.admin is not Admin.QUARANTINED
        )

    # Workers.

    def join(self, url: str) -> None:
        # Whoever registers a worker has woken it.
        self.processes.setdefault(url, Process()).asleep = False
        self.replaced.discard(url)  # as seen from now on
        worker = self.router.registry.add(url, Origin.REGISTERED)
        self.judge(worker)
        self.meet(worker)

    def meet(self, worker: Worker) -> None:
        """A probe that finds it well. What it may be was judged before."""
        if worker.suspicion is not None:
            return
        registry = self.router.registry
        registry.learned(worker, CARD)
        while worker.health is not Health.HEALTHY:
            registry.probed(worker, Probe.OK)

    @rule(number=PICK)
    def joins(self, number: int) -> None:
        absent = [url for url in URLS if self.router.registry.find(url) is None]
        if absent:
            self.join(absent[number % len(absent)])

    @rule(number=PICK)
    def leaves(self, number: int) -> None:
        worker = self.pick(number, self.workers())
        if worker is not None and len(self.workers()) > 1:
            self.router.registry.remove(worker)

    @rule(number=PICK)
    def process_restarts(self, number: int) -> None:
        """The end of the idle connection is heard before anybody can use the new process."""
        worker = self.pick(number, self.workers())
        if worker is not None:
            self.processes[worker.url] = Process()
            self.replaced.add(worker.url)
            self.router.registry.suspect(worker, "its idle connection was closed")

    @rule(number=PICK)
    def proxy_hangs_up(self, number: int) -> None:
        worker = self.pick(number, self.workers())
        if worker is not None and worker.suspicion is None:
            self.router.registry.suspect(worker, "its idle connection was closed")
            self.router.registry.absolve(worker)

    @rule(number=PICK)
    def flaps(self, number: int) -> None:
        worker = self.pick(number, self.workers())
        if worker is not None:
            self.router.registry.probed(worker, Probe.FAILED)

    @rule(number=PICK)
    def is_probed(self, number: int) -> None:
        """A suspect is judged: what cannot be proven counts as another process."""
        worker = self.pick(number, self.workers())
        if worker is not None:
            self.judge(worker)
            self.meet(worker)

    def judge(self, worker: Worker, *, proof: bool = False) -> None:
        registry, reason = self.router.registry, worker.suspicion
        if reason is None:
            return
        asleep = worker.memory is not Memory.AWAKE
        if proof and worker.url not in self.replaced:
            registry.absolve(worker)
        else:
            words = "" if proof else "; nothing proves that it is the same"
            if reason != ROUTER_RESTARTED:  # it was seen to end
                assert worker.url in self.replaced
            registry.reincarnate(worker, f"{reason}{words}")
        self.replaced.discard(worker.url)
        if asleep and worker.memory is not Memory.AWAKE:
            self.truth(worker).asleep = True  # at once, by the router
            if worker.memory is Memory.FALLING_ASLEEP:
                registry.apply_memory_event(worker, MemoryEvent.SLEPT)
            elif worker.memory is Memory.WAKING:
                registry.apply_memory_event(worker, MemoryEvent.LOST)

    @rule(number=PICK, dead=st.booleans())
    def operator(self, number: int, dead: bool) -> None:
        worker = self.pick(number, self.workers())
        if worker is not None:
            event = AdminEvent.QUARANTINE if dead else AdminEvent.CLEAR
            self.router.registry.administer(worker, event)

    @rule(number=PICK)
    def sleeps(self, number: int) -> None:
        worker = self.pick(number, [w for w in self.workers() if self.free(w)])
        if worker is not None and worker.memory is Memory.AWAKE and not worker.holds:
            self.router.registry.apply_memory_event(worker, MemoryEvent.SLEEP)
            self.truth(worker).asleep = True
            self.router.registry.apply_memory_event(worker, MemoryEvent.SLEPT)

    @rule(number=PICK)
    def wakes(self, number: int) -> None:
        worker = self.pick(number, [w for w in self.workers() if self.free(w)])
        if worker is not None:
            self.wake(worker)

    def wake(self, worker: Worker) -> None:
        if worker.memory is Memory.ASLEEP and worker.suspicion is None:
            self.router.registry.apply_memory_event(worker, MemoryEvent.WAKE)
            self.truth(worker).asleep = False
            self.router.registry.apply_memory_event(worker, MemoryEvent.WOKE)

    def free(self, worker: Worker) -> bool:
        """Whether no change has it."""
        target = self.router.targets.get(worker)
        waits = target is not None and target.waits is not None
        return worker.weights is not Weights.UPDATING and not waits

    # Requests.

    @rule()
    def request(self) -> None:
        if self.router.queue.waiting < 3:
            self.count += 1
            waiting = Waiting(Facts(), self.count, self.count)
            self.router.decide(lambda: self.router.queue.add(waiting))

    @rule()
    def generation_ends(self) -> None:
        if self.router.holds:
            self.router.registry.drop(self.router.holds.pop())

    # Changes, as `control.transaction` makes them.

    @precondition(lambda self: self.router.change is None)
    @rule(
        kind=st.sampled_from(sorted(BODIES)),
        some=st.sets(PICK, max_size=3),
        asked=st.sampled_from(["", "", "", "next", "far", "digits", "low", "again"]),
        rolling=st.booleans(),
    )
    def change_begins(self, kind: str, some: set[int], asked: str, rolling: bool) -> None:
        ledgers = self.router.ledgers
        ledger = ledgers.ledger("m")
        members = ledgers.workers_of("m")
        self.pending_begins()  # what waits comes before
        if self.router.change is not None:
            return
        chosen = [w for i, w in enumerate(members) if i in some] or members
        path, content = BODIES[kind]
        digest = str(self.count + 1)
        if asked == "again" and ledger.made in self.sent:
            digest = ledger.made
            path, content = self.sent[digest]
        ready = [w for w in chosen if self.callable(w) and ledgers.can_take(w, path)]
        sleepers = [
            w
            for w in chosen
            if w.health is Health.HEALTHY and w not in ready and w.admin is not Admin.QUARANTINED
        ]
        self.count += 1
        content = {k: f"{v}{self.count}" if v in ("p", "n") else v for k, v in content.items()}
        pending_lora = any(change.has_lora for change in ledger.pending)
        if path == DISK and (ledgers.had_lora([*ready, *sleepers]) or pending_lora):
            return
        change = ledgers.make(str(self.count), "m", path, json.dumps(content), None, digest)
        if not self.number(change, ledger, asked):
            return
        self.sent[digest] = path, content
        if ready and not ledger.pending:
            self.open(change, ready, rolling=rolling)
        elif ready or sleepers:
            ledgers.defer(change, [*ready, *sleepers])

    @precondition(lambda self: self.router.change is None)
    @rule(kind=st.sampled_from(sorted(BODIES)), asked=st.sampled_from(["far", ""]))
    def roll_begins(self, kind: str, asked: str) -> None:
        """A rolling change of all that its first worker has applied."""
        self.change_begins(kind, set(), asked, True)
        self.worker_answers(0, "applied")

    def number(self, change: Change, ledger: Ledger, asked: str) -> bool:
        """Whether the change may be made with the number that its client asks for."""
        last = ledger.promised
        number: dict[str, object] = {
            "next": last + 1,
            "far": last + 10,
            "digits": str(last + 2),
            "low": last if last % 2 else str(last),
            "again": ledger.version,
        }
        again = ledger.repeats(evolve(change, chosen=ledger.version)) and not ledger.pending
        try:
            if self.router.ledgers.choose(change, number.get(asked)) is not None:
                assert asked == "again"  # it waits already
                return False
        except NotGreater:
            assert asked in ("low", "again")
            assert not again
            return False
        if asked in ("next", "far", "digits"):
            self.promised[change.change_id] = int(str(number[asked]))
        elif asked == "again":
            assert again
            self.promised[change.change_id] = ledger.version
        else:
            assert change.chosen is None
        return True

    def open(self, change: Change, workers: list[Worker], *, rolling: bool = False) -> None:
        router = self.router
        router.ledgers.open(change, workers)
        router.change = change
        router.targets = {worker: Target(worker.incarnation) for worker in workers}
        for worker in workers:
            if rolling and worker.weights is Weights.CURRENT:
                router.targets[worker].waits = worker.weight_version
                router.ledgers.wait_turn(worker)
                continue
            router.replays.pop(worker, None)  # it gives way
            router.ledgers.fence(worker, "a change")
        self.turn_comes()  # as long as nothing was said

    def waiting(self) -> list[Worker]:
        return [w for w, target in self.router.targets.items() if target.waits is not None]

    @precondition(lambda self: self.waiting())
    @rule()
    def turn_comes(self) -> None:
        router, change, waiting = self.router, self.router.change, self.waiting()
        assert change is not None
        said = [t for t in router.targets.values() if t.called is not None]
        if not waiting or (change.version is None and said):
            return
        worker, target = waiting[0], router.targets[waiting[0]]
        target.waits = None
        same = worker.incarnation == target.incarnation and not worker.removed
        if same and self.callable(worker):
            router.ledgers.fence(worker, "its turn")
        else:
            router.leave(worker)

    @precondition(lambda self: self.router.change is None)
    @rule()
    def pending_begins(self) -> None:
        ledgers = self.router.ledgers
        ledger = ledgers.ledger("m")
        change = ledger.due
        if change is None:
            return
        ready = [
            w
            for w in ledgers.workers_of("m")
            if self.callable(w)
            and w.suspicion is None
            and ledgers.can_take(w, change.path)
            and (change.is_full or not ledgers.plan(w).steps)
        ]
        if ready and change.path == DISK:
            if len(ledgers.had_lora(ready)) == len(ready):
                change.error = "its workers had a LoRA"
                ledgers.close(change)
                return
            ready = [w for w in ready if not ledgers.had_lora([w])]
        if ready:
            self.open(change, ready)

    @precondition(lambda self: self.router.change is not None)
    @rule(
        number=PICK,
        outcome=st.sampled_from(
            ["applied", "applied", "applied", "refused", "spoilt", "lost", "lost but applied"]
        ),
    )
    def worker_answers(self, number: int, outcome: str) -> None:
        left = [w for w, t in self.router.targets.items() if not t.done and t.waits is None]
        worker = self.pick(number, [w for w in left if not w.holds and not w.suspicion])
        if worker is not None:
            self.answer(worker, outcome)
        self.maybe_close()

    def answer(self, worker: Worker, outcome: str) -> None:
        router, change = self.router, self.router.change
        assert change is not None
        target = router.targets[worker]
        target.done, target.called = True, worker.incarnation
        truth = self.truth(worker)
        content = dict(change.content)
        if "applied" in outcome and not truth.apply(change.path, content):
            outcome = "refused"
        if outcome == "applied":
            before = change.version
            if before is None:
                ideal = self.ideal[router.ledgers.ledger("m").version].copy()
                ideal.apply(change.path, content, ideal=True)
                ledger = router.ledgers.ledger("m")
                replaced = ledger.before(change)
                seen = [max(other.chosen or 0, other.seen_version or 0) for other in replaced]
                last = max([ledger.issued, *seen])
                number = self.promised.get(change.change_id)
                self.ideal[number or last + 1] = ideal
            router.ledgers.applied(change, worker, worker.incarnation)
            if before is None:
                assert change.version == (number or last + 1)
                assert change.again or change.version > last
            self.unsure(change)
            router.ledgers.release(worker)
        elif outcome == "refused" and change.path == DISK:
            router.ledgers.unchanged(change, worker, "refused")
        elif outcome == "refused":
            target.refused = True
            change.error = "refused"
            if change.version is not None:
                router.ledgers.unknown(change, worker, "refused")
        else:
            if outcome == "spoilt":
                truth.spoil(change.path)
            router.ledgers.unknown(change, worker, outcome)

    def unsure(self, change: Change) -> None:
        for worker, target in self.router.targets.items():
            if target.refused:
                self.router.ledgers.unknown(change, worker, "refused")

    def maybe_close(self) -> None:
        router, change, waiting = self.router, self.router.change, self.waiting()
        begun = [target for target in router.targets.values() if target.waits is None]
        if change is None or not all(target.done for target in begun):
            return
        refused = change.version is None and any(t.called is not None for t in begun)
        if waiting and not refused:
            return
        for worker in waiting:  # the change is void: they serve on
            router.ledgers.release(worker)
            del router.targets[worker]
        if change.version is None:
            called = [t for t in router.targets.values() if t.called is not None]
            for worker, target in router.targets.items():
                if target.refused and all(t.refused for t in called):
                    router.ledgers.unchanged(change, worker, "refused")
            if not all(t.refused for t in called):
                self.unsure(change)
        if any(t.called is not None for t in router.targets.values()) or change.version:
            router.ledgers.close(change)
        else:
            router.ledgers.came_to_nothing(change)
        router.change, router.targets = None, {}

    # Replays, as `control.replay` makes them.

    @rule(number=PICK)
    def replay_begins(self, number: int) -> None:
        worker = self.pick(number, [w for w in self.workers() if self.replayable(w)])
        if worker is not None:
            plan = self.router.ledgers.plan(worker)
            ledger = self.router.ledgers.ledger("m")
            self.router.replays[worker] = Replay(
                plan, list(plan.steps), ledger.recipe, worker.incarnation
            )

    def replayable(self, worker: Worker) -> bool:
        ledgers = self.router.ledgers
        ledger = ledgers.ledger_of(worker)
        if ledger is None or not self.callable(worker) or worker.suspicion is not None:
            return False
        if worker.weights not in (Weights.BEHIND, Weights.FAILED) or worker.holds:
            return False
        first = ledger.due
        able = first is not None and ledgers.can_take(worker, first.path)
        if first is not None and able and (first.is_full or not ledgers.plan(worker).steps):
            return False
        return worker not in self.router.replays and ledgers.needs_replay(worker)

    @rule(
        number=PICK,
        outcome=st.sampled_from(["good", "good", "good", "refused", "spoilt", "lost"]),
    )
    def replay_goes_on(self, number: int, outcome: str) -> None:
        worker = self.pick(number, list(self.router.replays))
        if worker is not None:
            self.replay(worker, outcome)

    def replay(self, worker: Worker, outcome: str = "good") -> None:
        ledgers, replay = self.router.ledgers, self.router.replays[worker]
        step, truth = replay.steps[0], self.truth(worker)
        before = ledgers.weight_state(worker)
        if not step.optional:
            ledgers.sending(worker, lora=step.is_lora)
        if outcome == "good" and not truth.apply(step.path, json.loads(step.body)):
            outcome = "refused"
        vain = step.optional and outcome == "refused" and not truth.effect[1]
        if outcome == "good" or vain:
            del replay.steps[0]
            if not step.is_lora and not any(not s.is_lora for s in replay.steps):
                ledgers.base_replayed(worker, replay.recipe)
            if not replay.steps:
                del self.router.replays[worker]
                ledgers.replayed(worker, replay.plan, replay.recipe, "replayed")
            return
        del self.router.replays[worker]
        if outcome == "spoilt":
            truth.spoil(step.path)
        elif outcome == "refused" and step.path == DISK:
            ledgers.returned(worker, before)
        if outcome == "lost":
            ledgers.delayed(worker, "lost")
        else:
            ledgers.failed(worker, "refused")

    # The router.

    @rule(same=st.booleans())
    def router_restarts(self, same: bool) -> None:
        """Whatever was under way was broken off. `same`: that can be proven of the workers."""
        sleepers = {w.url for w in self.workers() if w.memory is not Memory.AWAKE}
        urls = [worker.url for worker in self.workers()]
        self.router = Router(self, self.papers)
        for url in urls:
            worker = self.router.registry.add(url, Origin.REGISTERED)
            if url in sleepers:
                self.router.registry.apply_memory_event(worker, MemoryEvent.SLEEP)
                self.router.registry.apply_memory_event(worker, MemoryEvent.SLEPT)
            self.judge(worker, proof=same)
            self.meet(worker)

    # What must always hold.

    @invariant()
    def nobody_stale_is_routable(self) -> None:
        for worker in self.workers():
            if routable(worker):
                self.check(worker)
            if worker.weights is Weights.CURRENT:
                assert worker.weights_reason is None
                assert not worker.stuck

    @invariant()
    def numbers_are_never_used_again(self) -> None:
        ledger = self.router.ledgers.ledger("m")
        assert ledger.version <= ledger.issued
        assert all(step.version <= ledger.issued for step in ledger.recipe.base)

    def teardown(self) -> None:
        """Faults stop."""
        for _ in range(60):
            while self.router.holds:
                self.generation_ends()
            for worker in self.workers():
                self.router.registry.administer(worker, AdminEvent.CLEAR)
                self.judge(worker)
                self.meet(worker)
                self.wake(worker)
            while self.waiting():
                left = self.waiting()
                self.turn_comes()
                if self.waiting() == left:
                    break
            for worker, target in list(self.router.targets.items()):
                if not target.done and target.waits is None and not worker.suspicion:
                    self.answer(worker, "applied")
            self.maybe_close()
            if self.router.change is None:
                self.pending_begins()
            for worker in self.workers():
                if self.replayable(worker):
                    self.replay_begins(self.workers().index(worker))
            for worker in list(self.router.replays):
                self.replay(worker)
        for worker in self.workers():
            if worker.stuck:  # only where nothing but a new process helps
                assert (
                    self.truth(worker).wrapped or self.router.ledgers.weight_state(worker).wrapped
                )
                assert not hopeful(worker)
                self.process_restarts(self.workers().index(worker))
                self.judge(worker)
                self.meet(worker)
                for _ in range(9):
                    if self.replayable(worker):
                        self.router.replays.clear()
                        self.replay_one(worker)
            assert routable(worker), (worker, worker.weights_reason)
            self.check(worker)

    def replay_one(self, worker: Worker) -> None:
        plan = self.router.ledgers.plan(worker)
        ledger = self.router.ledgers.ledger("m")
        lora = any(step.is_lora and not step.optional for step in plan.steps)
        self.router.replays[worker] = Replay(
            list(plan.steps), ledger.recipe, worker.incarnation, lora
        )
        while worker in self.router.replays:
            self.replay(worker)


WeightMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestWeights = WeightMachine.TestCase
