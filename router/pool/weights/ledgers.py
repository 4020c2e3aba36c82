"""Changes of ledgers and of the workers' states.

No I/O: `Ledgers` listens to the registry, and the code that calls workers reports the outcomes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import evolve

from .. import events
from ..match import model_of
from ..pools import ledger_name
from ..registry import Registry
from ..worker import ROUTER_RESTARTED, UNKNOWN_VERSION, UNPROVEN, Origin, Worker
from .ledger import Change, Ledger, WeightRecord, WeightStore
from .numbers import NotGreater, TooGreat, number_of
from .recipe import FRESH, Plan, Recipe, WeightState
from .state import WorkerWeights, after, elsewhere, lost_by, without
from .statements import Statements

_MOST_LEFT = 10_000  # workers that left, whose weights are remembered in case they return


class Ledgers(Statements):
    """The ledgers by model, and the state of every worker.

    `gating=False` (`--trust-external-weights`): every worker counts as current.
    """

    def __init__(self, registry: Registry, store: WeightStore, *, gating: bool = True) -> None:
        super().__init__(registry, store, gating)
        self._last_change = 0  # the number of the last change
        self._trusts_restored = False
        registry.has_weights = self.has_weights
        registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.WorkerRemoved, events.CapabilitiesLearned),
            *(events.RoleChanged, events.Suspected, events.Absolved, events.Reincarnated),
        )

    # Changes. Each change is made, opened, reported for each of its workers, and closed.

    def make(
        self,
        change_id: str,
        model: str,
        path: str,
        body: str | None,
        label: str | None,
        digest: str | None = None,
    ) -> Change:
        """A new change that has not begun."""
        self._last_change += 1
        return Change(change_id, model, self._last_change, path, body, label, digest=digest)

    def choose(self, change: Change, asked: object) -> Change | None:
        """Promise the change the number that its client asks for, if that is greater than the last
        one, or if the change repeats the one that made the current version. Digits in a string are
        else a label, as any text. Returns the pending change that this one repeats, if any.

        Raises NotGreater, TooGreat.
        """
        number, ledger = number_of(asked), self.ledger(change.model)
        if number is None:
            if type(asked) is int:
                raise TooGreat
            return None
        for other in ledger.pending:
            if change.digest is not None and (number, change.digest) == (
                other.chosen,
                other.digest,
            ):
                return other
        change.chosen, last = number, ledger.promised
        if number <= last and not (number == last and ledger.repeats(change)):
            change.chosen = None
            if type(asked) is int:
                stands = number == ledger.version > 0
                raise NotGreater(number, last, change.model, stands=stands)
        return None

    def open(self, change: Change, workers: Collection[Worker]) -> None:
        """The change begins on these workers: record the intent."""
        for worker in workers:
            self._of(worker).change = change
        self._store_intent(change, workers, pending=False)

    def proved(self, change: Change, *, lora: bool) -> None:
        """The end of the body has shown the rest of the change, and whether it pushes a LoRA."""
        change.lora = change.lora or lora
        if not change.outdated:
            self._store.put(change)

    def withdraw(self, change: Change) -> None:
        """Take back an opened change of which no call was made. A pending change stays pending."""
        if change in self.ledger(change.model).pending:
            self._store_intent(change, (), pending=True)
        else:
            self._store.delete(Change, change.change_id)
        for known in self._known.values():
            if known.change is change:
                known.change = None

    def fence(self, worker: Worker, reason: str) -> None:
        """Give the worker nothing new: a change holds it until an outcome is reported."""
        known = self._of(worker)
        known.fenced, known.waits = True, False
        self._settle(worker, reason)

    def wait_turn(self, worker: Worker) -> None:
        """A rolling change was opened on the worker: until `fence` or `release` it serves with the
        weights from before, unless its process is replaced."""
        self._of(worker).waits = True

    def applied(self, change: Change, worker: Worker, incarnation: int) -> None:
        """The worker has applied the change. The first success enters the change in the ledger.

        `incarnation`: the worker's incarnation at the call. `release` follows once the entry is
        durable.
        """
        here = not worker.removed and worker.incarnation == incarnation
        if change.outdated:
            change.error = "a new run has begun since"
            if here:
                self._put(worker, lost_by(self.weight_state(worker), change))
            return
        if change.version is None:
            self._issue(change)
        assert change.before is not None
        if here:
            was_current = self._plan(worker, change.before) == Plan()
            self._put(worker, after(self.weight_state(worker), change, was_current))

    def release(self, worker: Worker, reason: str | None = None) -> None:
        """The change is done with the worker, whatever the outcome."""
        known = self._known.get(worker)
        if known is None:
            return
        known.fenced = known.waits = False
        self._put(worker, known.state)
        change, known.change = known.change, None
        # After a crash this worker is not in doubt.
        settled = change is None or change.over or change.outdated
        if change is not None and not settled and change.version is None:
            change.workers = tuple(url for url in change.workers if url != worker.url)
            self._store.put(change)
        self._settle(worker, reason)

    def unchanged(self, change: Change, worker: Worker, reason: str) -> None:
        """The worker has the weights that it had before: it refused, or was never called."""
        change.error = reason
        if change.again and not worker.removed:  # what it has may differ from what others took
            self._put(worker, lost_by(self.weight_state(worker), change))
        self.release(worker, reason)

    def unknown(self, change: Change, worker: Worker, reason: str) -> None:
        """The worker's weights are unknown now."""
        change.error = reason
        if not worker.removed:
            self._put(worker, lost_by(self.weight_state(worker), change))
        self.release(worker, reason)

    def wrapped(self, worker: Worker, incarnation: int | None) -> None:
        """A LoRA call that this incarnation refused has wrapped layers all the same."""
        if not worker.removed and worker.incarnation == incarnation:
            self._put(worker, evolve(self.weight_state(worker), wrapped=True))

    def close(self, change: Change) -> None:
        """All workers of the change have been reported; without a success the change is void."""
        ledger = self.ledger(change.model)
        change.over = True
        if change.version is None:
            ledger.give_up(change)
            if change.error is not None:
                ledger.last_error, ledger.void = f"{change.name}: {change.error}", change.number
            self._store.put(ledger)
        self._store.delete(Change, change.change_id)
        self._settle_all(change.model)

    def came_to_nothing(self, change: Change) -> None:
        """No worker was called, and none refused. A pending change stays pending; any other change
        is void."""
        if change in self.ledger(change.model).pending:
            self._store_intent(change, (), pending=True)
        else:
            self.close(change)

    def defer(self, change: Change, workers: Iterable[Worker]) -> None:
        """All workers of the change sleep: the change comes before any other when one wakes."""
        self.ledger(change.model).pending.append(change)
        self._store_intent(change, workers, pending=True)
        self._settle_all(change.model)

    def commit(self, change: Change, label: str | None) -> int:
        """Issue the number of a transaction, whichever workers have applied all of it."""
        change.label = label or change.label
        return self._issue(change)

    # Replays.

    def sending(self, worker: Worker, *, lora: bool) -> None:
        """A call of a replay is about to be sent: until a good answer comes, the worker's weights
        are unknown."""
        self._put(worker, without(self.weight_state(worker), base=not lora, loras=lora))

    def returned(self, worker: Worker, state: WeightState) -> None:
        """The worker refused, and has the state that it had before."""
        self._put(worker, state)

    def base_replayed(self, worker: Worker, recipe: Recipe) -> None:
        """All calls of a replay except the LoRA calls had good answers."""
        state = self.weight_state(worker)
        if not state.doubt:
            self._put(worker, evolve(state, base=recipe.base_version))

    def replayed(self, worker: Worker, plan: Plan, recipe: Recipe, reason: str) -> None:
        """All calls of the plan for this recipe had good answers."""
        known = self._of(worker)
        known.failure = None
        wrapped = known.state.wrapped or any(s.is_lora and not s.optional for s in plan.steps)
        loras: int | None = recipe.lora_version if wrapped else 0
        if plan.blocked is not None:
            loras = None if known.state.doubt else known.state.loras
        self._put(
            worker,
            WeightState(recipe.base_version, loras, wrapped, partial=wrapped and plan.partial),
        )
        self._settle(worker, reason)

    def failed(self, worker: Worker, reason: str) -> None:
        """A replay was refused: the worker does not serve, and is tried again now and then."""
        self._of(worker).failure = reason
        self._settle(worker, reason)

    def delayed(self, worker: Worker, reason: str) -> None:
        """A replay did not happen; it is due again."""
        self._of(worker).reason = reason
        self._settle(worker)

    def expect_lora(self, worker: Worker, *, wraps: bool) -> None:
        """A transaction is about to make a LoRA call, which wraps layers or not: if the router dies
        before the transaction is over, the worker's LoRAs are unknown."""
        known = self._of(worker)
        lost = without(known.state, base=False, loras=True, wraps=wraps)
        self._store.put(known.record(worker.url, lost))

    # Restarts of the router.

    def restore(
        self,
        ledgers: Iterable[Ledger],
        weights: Iterable[WeightRecord],
        changes: Iterable[Change],
        *,
        trusted: bool = False,
    ) -> None:
        """Take over the state from before a restart of the router, before any worker is added.

        Each worker's process is in doubt until the suspicion of it is lifted, unless the workers
        are `trusted`: the absence was short (`--trust-downtime`). Open changes run again before any
        other, as if they had waited; an open change that cannot be repeated leaves its workers with
        unknown weights.
        """
        self._trusts_restored = trusted
        self._ledgers = {ledger.model: ledger for ledger in ledgers}
        for record in weights:
            state = WeightState(record.base, record.loras, record.wrapped, doubt=True)
            self._left[record.url] = WorkerWeights(
                record.model, state, restored=True, unproven=record.doubt
            )
        for change in sorted(changes, key=lambda change: change.number):
            self._last_change = max(self._last_change, change.number)
            ledger = self.ledger(change.model)
            if not change.pending:
                for url in change.workers:
                    known = self._left.setdefault(url, WorkerWeights(change.model, restored=True))
                    known.state = evolve(lost_by(known.state, change), doubt=True)
                    self._store.put(known.record(url))
                seen = [max(c.seen_version or 0, c.chosen or 0) for c in ledger.pending]
                auto = max([ledger.issued, *seen]) + 1
                change.seen_version = change.chosen if ledger.takes(change) else auto
            if change.body is not None:
                ledger.pending.append(change)
                continue
            if change.seen_version is not None:
                ledger.issued = change.seen_version
                self._store.put(ledger)
            self._store.delete(Change, change.change_id)

    # What happens to workers.

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker):
                self._take_up(worker)
                self._settle(worker, "it has joined")
            case events.WorkerRemoved(worker):
                self._let_go(worker)
            case events.CapabilitiesLearned(worker):
                self._join_ledger(worker)
                self._take_claim(worker)
                self._settle(worker)
            case events.RoleChanged(worker):
                if self.model_of(worker) is not None:
                    self._join_ledger(worker)
                    self._settle(worker, f"it belongs to the pool {worker.pool} now")
            case events.Suspected(worker, reason):
                self._settle(worker, reason)
            case events.Absolved(worker, reason):
                known = self._of(worker)
                # The process is the one from before the restart; else only the one that joined.
                if reason == ROUTER_RESTARTED and not known.unproven:
                    self._put(worker, evolve(known.state, doubt=False))
                self._take_claim(worker)
                self._settle(worker, "it is the same process")
            case events.Reincarnated(worker, reason):
                known = self._of(worker)
                known.failure = known.reason = None
                known.waits = False
                # After a restart of the router the process may be old or new; else it counts as
                # fresh, except that a LoRA of the old one may act.
                unproven = reason.endswith(UNPROVEN)
                if not (known.state.doubt and unproven and reason.startswith(ROUTER_RESTARTED)):
                    worn = known.state.wrapped or known.state.loras is None
                    loras = None if unproven and worn else 0
                    known.state, known.version = evolve(FRESH, loras=loras), 0
                known.unproven = known.state.doubt
                self._put(worker, known.state)
                known.former, known.model = known.model or known.former, None
                self._settle(worker, reason)

    def _take_up(self, worker: Worker) -> None:
        """A worker has joined; it may be known from before."""
        known = self._known[worker] = WorkerWeights()
        before = self._left.pop(worker.url, None)
        if before is None or (before.ended and worker.origin is Origin.LAUNCHED):
            return  # the worker is new, or was started anew
        known.model = before.model
        trusted = before.restored and self._trusts_restored
        known.state = evolve(before.state, doubt=before.unproven if trusted else True)
        known.unproven = before.unproven or not before.restored
        if before.state.base or before.state.loras:
            known.version = UNKNOWN_VERSION  # until the worker is current
        if before.restored and not trusted:
            self._registry.suspect(worker, ROUTER_RESTARTED)

    def _join_ledger(self, worker: Worker) -> None:
        """The worker's model is known, or its pool has changed."""
        known, name = self._of(worker), ledger_name(worker.pool, model_of(worker) or "")
        if name != known.model and not worker.is_plain:
            state = known.state if known.model is None else elsewhere(known.state)
            known.model = name
            self._put(worker, state)

    def _let_go(self, worker: Worker) -> None:
        """A worker has left; the same process may be registered again. A launched worker ends with
        its removal. A later router must know this: a process launched there then is another one."""
        known, url = self._known.pop(worker), worker.url
        known.ended = worker.origin is Origin.LAUNCHED
        known.unproven = True  # no task watches the process meanwhile
        if known.change is not None and not known.waits:  # its outcome will not be reported
            known.state = lost_by(known.state, known.change)
        self._left[url] = known
        if known.ended:
            self._store.delete(WeightRecord, url)
        else:
            self._store.put(known.record(url))
        forgotten = url if known.state == FRESH else None
        if len(self._left) > _MOST_LEFT:
            forgotten = next(iter(self._left))
        if forgotten is not None:
            del self._left[forgotten]
            self._store.delete(WeightRecord, forgotten)

    def _issue(self, change: Change) -> int:
        ledger = self.ledger(change.model)
        for replaced in ledger.enter(change):
            self._store.delete(Change, replaced.change_id)
        assert change.version is not None
        self._store.put(ledger)
        for waiting in ledger.pending:
            self._store.put(waiting)  # one may have got a number
        # The change needs no repetition any more, but after a crash the workers it runs on are in
        # doubt.
        self._store.delete(Change, change.change_id)
        for worker in self.workers_of(ledger.model):
            known = self._of(worker)
            known.failure = None
            if known.change is change:
                self._store.put(known.record(worker.url, lost_by(known.state, change)))
            elif change.again:
                self._put(worker, lost_by(known.state, change))
        self._settle_all(ledger.model)
        if not change.again:
            issued = events.VersionIssued(ledger.model, change.version, change.label)
            self._registry.bus.publish(issued)
        return change.version

    def _store_intent(self, change: Change, workers: Iterable[Worker], *, pending: bool) -> None:
        change.workers, change.pending = tuple(worker.url for worker in workers), pending
        self._store.put(change)
