"""Faults that the router once had, or could have, each to be put back one at a time.

A simulation that does not find them is too weak. Each is a small patch of the router, where the
duty lies today; a name that is gone raises, so that no fault silently stops being put back.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any
from unittest import mock
from weakref import WeakKeyDictionary, WeakSet

import trio
from attrs import evolve, frozen

from router.bus import Bus
from router.control import client
from router.control.agent import Agents
from router.control.calls import Claim
from router.control.fenced_change import FencedChange
from router.control.follow import Follower
from router.control.identity import Evidence
from router.control.open_transaction import OpenTransaction
from router.control.operations import Operations
from router.control.plan import Action, Known
from router.control.refit import WeightControl
from router.control.watch import PATIENCE_WHILE_BUSY, Watchman
from router.control.worker_memory import WorkerMemory
from router.dispatch import Dispatcher
from router.pool import events
from router.pool.assets import AssetMap
from router.pool.ejection import Ejection
from router.pool.lifecycle import Probe
from router.pool.versions import Bounds
from router.pool.weights import Ledgers
from router.pool.weights.ledger import Change, Ledger
from router.pool.weights.recipe import DISK, Plan, Recipe
from router.pool.worker import Memory, Worker
from router.relay.keys import Keys
from router.store import opening
from router.store.store import Store

Stack = contextlib.ExitStack


@frozen
class Fault:
    """`theme`: of rounds that show it soonest."""

    what: str
    put: Callable[[Stack], None]
    theme: str


FAULTS: dict[str, Fault] = {}


def fault(name: str, theme: str, what: str) -> Callable[[Callable[[Stack], None]], None]:
    def keep(put: Callable[[Stack], None]) -> None:
        FAULTS[name] = Fault(what, put, theme)

    return keep


# What went wrong in the patches themselves: then they are to be mended, and nothing was found.
broken: list[BaseException] = []


def _replace(stack: Stack, owner: Any, name: str, value: Any) -> None:
    def note(error: Exception) -> None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            broken.append(error)

    @functools.wraps(value)
    def checked(*args: Any, **given: Any) -> Any:
        try:
            return value(*args, **given)
        except Exception as error:
            note(error)
            raise

    @functools.wraps(value)
    async def checked_too(*args: Any, **given: Any) -> Any:
        try:
            return await value(*args, **given)
        except Exception as error:
            note(error)
            raise

    stand_in = checked_too if inspect.iscoroutinefunction(value) else checked
    real = inspect.getattr_static(owner, name)
    patch = property(checked) if isinstance(real, property) else stand_in
    stack.enter_context(mock.patch.object(owner, name, patch))


@fault(
    "joiner",
    "collisions",
    "A worker that joins while a pending change is made is not looked after",
)
def _joiner(stack: Stack) -> None:
    real = Agents._observe

    def observe(self: Agents, event: events.Event) -> None:
        pending = any(ledger.pending for ledger in self.replayer.ledgers)
        if not (isinstance(event, events.WorkerAdded) and pending):
            real(self, event)

    _replace(stack, Agents, "_observe", observe)


@fault(
    "removed",
    "collisions",
    "A worker that is removed in the middle of the first change comes back as if it were untouched",
)
def _removed(stack: Stack) -> None:
    real = Ledgers._let_go

    def let_go(self: Ledgers, worker: Any) -> None:
        self._known[worker].change = None
        real(self, worker)

    _replace(stack, Ledgers, "_let_go", let_go)


@fault("refused-begin", "transactions", "A begin that a full disk refused leaves its intent behind")
def _refused_begin(stack: Stack) -> None:
    refused: WeakSet[Any] = WeakSet()
    real = OpenTransaction.release

    def withdraw(self: Ledgers, change: Any) -> None:
        refused.add(change)
        for known in self._known.values():
            if known.change is change:
                known.change = None

    def release(self: OpenTransaction, *args: Any, **given: Any) -> None:
        if self.change not in refused:
            real(self, *args, **given)

    _replace(stack, Ledgers, "withdraw", withdraw)
    _replace(stack, OpenTransaction, "release", release)


@fault("dead-drain", "removals", "A removal with a drain waits for the jobs of a dead worker")
def _dead_drain(stack: Stack) -> None:
    _replace(stack, Worker, "is_drained", lambda self: not (self.leases or self.holds))


@fault(
    "behind-wake",
    "naps",
    "A change that waits behind a wake with a pending change loses the workers",
)
def _behind_wake(stack: Stack) -> None:
    asleep: WeakKeyDictionary[Any, set[Any]] = WeakKeyDictionary()
    start, members = Operations.start, WeightControl.members

    def starts(self: Operations, *args: Any, **given: Any) -> Any:
        operation = start(self, *args, **given)
        sleepers = {w for w in operation.workers if w.memory is not Memory.AWAKE}
        asleep.setdefault(operation, sleepers)
        return operation

    def has(self: WeightControl, operation: Any, chosen: list[Any], path: str = "") -> Any:
        lost = asleep.get(operation, set()) if path else set()
        lost = {worker for worker in lost if worker.memory is Memory.AWAKE}
        return members(self, operation, [w for w in chosen if w not in lost], path)

    _replace(stack, Operations, "start", starts)
    _replace(stack, WeightControl, "members", has)


@fault(
    "exchanges-only", "late", "Only open exchanges count as work of a worker whose health is slow"
)
def _exchanges_only(stack: Stack) -> None:
    look = Watchman._look

    async def looks(self: Watchman, watch: Any, nursery: trio.Nursery) -> None:
        await look(self, watch, nursery)
        worker, since = watch.worker, watch.silent_since
        if since is None or worker.leases or worker.removed:
            return
        busy = worker.holds or self.client.is_calling(worker.url)
        if busy and trio.current_time() - since < PATIENCE_WHILE_BUSY:
            self.registry.probed(worker, Probe.FAILED, "it does not answer", seconds=5.0)

    _replace(stack, Watchman, "_look", looks)


@fault(
    "background-sleep", "long naps", "A sleep in the background drains without bound in its turn"
)
def _background_sleep(stack: Stack) -> None:
    real = Agents._drain

    async def drain(self: Agents, worker: Any, agent: Any, known: Known) -> None:
        if agent.claim is None and (known.memory is Memory.FALLING_ASLEEP or known.doubted):
            async with self.operations.take([worker]):
                await self.dispatcher.idle(worker, math.inf)
        else:
            await real(self, worker, agent, known)

    _replace(stack, Agents, "_drain", drain)


class _Shared(dict[Any, Any]):
    def __init__(self) -> None:
        self._limit = trio.CapacityLimiter(64)

    def setdefault(self, _: Any, __: Any = None) -> Any:
        return self._limit


@fault("shared-looks", "floods", "Looks at the jobs of all workers share their tokens")
def _shared_looks(stack: Stack) -> None:
    real = Follower.run

    async def run(self: Follower, **given: Any) -> None:
        assert self._looks is not None
        self._looks = _Shared()  # type: ignore[assignment]
        await real(self, **given)

    _replace(stack, Follower, "run", run)


@fault("reverse-order", "mixed", "Observers hear events in reverse order")
def _reverse_order(stack: Stack) -> None:
    def publish(self: Bus, *some: Any) -> None:
        for event in some:
            for observer in self._fit(type(event)):
                observer(event)
        for decide in self._settlers:
            decide()

    _replace(stack, Bus, "publish", publish)


@fault("idle-end", "restarts", "The end of the idle connection is no suspicion")
def _idle_end(stack: Stack) -> None:
    _replace(stack, Evidence, "ended", lambda self, lasted: False)


@fault("not-durable", "losses", "What is acknowledged is not waited for to be on the disk")
def _not_durable(stack: Stack) -> None:
    async def commit(self: Store) -> None:
        await trio.lowlevel.checkpoint()

    _replace(stack, Store, "commit", commit)


@fault("unsynced-start", "losses", "A start does not sync what it has read")
def _unsynced_start(stack: Stack) -> None:
    real = opening._mend
    _replace(stack, opening, "_mend", lambda folder, loaded: real(folder, evolve(loaded, last=0)))


@fault(
    "no-pause",
    "full naps",
    "A pending change that cannot be written is tried again without a pause",
)
def _no_pause(stack: Stack) -> None:
    real = Agents._changed

    async def changed(self: Agents, worker: Any, agent: Any, known: Known, within: float) -> bool:
        again = agent.action is Action.CATCH_UP and known.awaiting
        return await real(self, worker, agent, known, 0.0 if again else within)

    _replace(stack, Agents, "_changed", changed)


@fault(
    "called-though-gone",
    "collisions",
    "Who leaves while the intent is written is called",
)
def _called_though_gone(stack: Stack) -> None:
    left: Any = inspect.getattr_static(Claim, "left")
    known = Agents.known

    def stays(self: Claim) -> Any:
        return None if self.worker.removed else left.fget(self)

    def knows(self: Agents, worker: Any) -> Known:
        found = known(self, worker)
        wanted = worker.removed and found.claim is not None and found.healthy
        return evolve(found, reachable=True) if wanted else found

    _replace(stack, Claim, "left", stays)
    _replace(stack, Agents, "known", knows)


@fault("late-asset", "mixed", "What a removed worker answers late is entered as an asset")
def _late_asset(stack: Stack) -> None:
    learn = AssetMap.learn

    def learns(self: AssetMap, asset_id: str, worker: Any, *args: Any, **given: Any) -> None:
        removed, worker.removed = worker.removed, False
        learn(self, asset_id, worker, *args, **given)
        worker.removed = removed

    _replace(stack, AssetMap, "learn", learns)
    _replace(stack, AssetMap, "knows", lambda self, owner: False)


@fault(
    "removed-asleep",
    "collisions",
    "A worker that is removed while it is put to sleep, and comes back, counts as awake",
)
def _removed_asleep(stack: Stack) -> None:
    _replace(stack, WorkerMemory, "wake_again", lambda self, worker: None)


@fault("late-call", "mixed", "A call that was broken off comes to the worker after the next one")
def _late_call(stack: Stack) -> None:
    stack.enter_context(mock.patch.object(client, "_ABORTS", client._CLOSES))


@fault("chosen-lost", "numbers", "The number that a trainer chose is not that of its version")
def _chosen_lost(stack: Stack) -> None:
    choose = Ledgers.choose

    def chooses(self: Ledgers, change: Any, asked: object) -> Any:
        found = choose(self, change, asked)
        change.chosen = None
        return found

    _replace(stack, Ledgers, "choose", chooses)


@fault("any-version", "numbers", "A request that wants one version alone gets any")
def _any_version(stack: Stack) -> None:
    met = Bounds.met
    _replace(stack, Bounds, "met", lambda self, *given: met(self._replace(exact=None), *given))


@fault("key-twice", "keys", "A key whose request is in doubt is free for another generation")
def _key_twice(stack: Stack) -> None:
    _replace(stack, Keys, "_is_lost", lambda self, entry: entry.error is not None)


@fault("unnoticed-sleeper", "strays", "The word of a worker that it sleeps is not noticed")
def _unnoticed_sleeper(stack: Stack) -> None:
    _replace(stack, Ejection, "dozes", lambda self, hold, now: None)


@fault("all-cancelled", "groups", "A cancelled group takes the requests of others with it")
def _all_cancelled(stack: Stack) -> None:
    real = Dispatcher.cancel
    _replace(stack, Dispatcher, "cancel", lambda self, meant: real(self, lambda facts: True))


@fault("full-lost", "tensors", "Full tensors do not heal a worker that missed earlier ones")
def _full_lost(stack: Stack) -> None:
    real: Any = inspect.getattr_static(Change, "is_full")
    _replace(stack, Change, "is_full", lambda self: self.path == DISK and real.fget(self))


@fault("false-success", "tensors", "An update is a success though a called worker is behind")
def _false_success(stack: Stack) -> None:
    _replace(stack, Ledgers, "behind", lambda self, *given: [])


@fault("unnamed-part", "parts", "A worker that was sent no part counts as if it had all of it")
def _unnamed_part(stack: Stack) -> None:
    def whole(self: OpenTransaction) -> list[Any]:
        return [worker for worker in self.present if worker not in self.spoilt]

    _replace(stack, OpenTransaction, "whole", whole)


@fault("old-run", "runs", "A new run takes the weights of the run before for those of the start")
def _old_run(stack: Stack) -> None:
    begin = Ledgers.begin_anew

    def begins(self: Ledgers, model: str) -> bool:
        begun, ledger = begin(self, model), self.ledger(model)
        for worker in self.workers_of(model):
            self._take_at_word(worker, ledger, 0)
        return begun

    _replace(stack, Ledgers, "begin_anew", begins)


@fault("refused-wraps", "loras", "A LoRA that was refused does not count as wrapped layers")
def _refused_wraps(stack: Stack) -> None:
    _replace(stack, Ledgers, "wrapped", lambda self, worker, called: None)


@fault("loras-first", "loras", "An update waits behind a LoRA call that no worker can take")
def _loras_first(stack: Stack) -> None:
    plan = Recipe.plan

    def all_or_nothing(self: Recipe, *given: Any) -> Plan:
        found = plan(self, *given)
        return found if found.blocked is None else Plan(blocked=found.blocked)

    _replace(stack, Recipe, "plan", all_or_nothing)
    _replace(stack, Ledger, "due", lambda self: next(iter(self.pending), None))


@fault("endless-collective", "collectives", "The others of a failed collective are waited for")
def _endless_collective(stack: Stack) -> None:
    _replace(stack, FencedChange, "failed", lambda self, *given: None)


@fault("refused-commit", "collectives", "A commit after a call that all have refused counts")
def _refused_commit(stack: Stack) -> None:
    def whole(self: OpenTransaction) -> list[Any]:
        named = self.named or self.claims
        return [w for w in self.present if w in named and w not in self.spoilt]

    _replace(stack, OpenTransaction, "whole", whole)
