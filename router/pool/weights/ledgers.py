"""All ledgers, and where every worker stands against that of its model.

No I/O: it hears the registry, is told by whoever acts on workers what came of it, and says of each
worker whether it is current and what it must replay to be so. It alone drives the facet `weights`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from attrs import evolve

from .. import events
from ..match import model_of
from ..registry import Registry
from ..worker import ROUTER_RESTARTED, UNKNOWN_VERSION, Origin, Worker
from .change import Change, restored
from .ledger import Entry, Ledger, after, at_version, lost_by, weight_record
from .recipe import FRESH, Plan, Recipe, Standing
from .records import ChangeRecord, LedgerRecord, Paper, WeightRecord
from .standings import Standings

_MOST_LEFT = 10_000  # workers that left, whose standing is remembered should they come again


class Ledgers(Standings):
    """The ledgers by model, and the standing of every worker.

    `gating=False` (`--trust-external-weights`): every worker counts as current.
    """

    def __init__(
        self, registry: Registry, *, paper: Paper | None = None, gating: bool = True
    ) -> None:
        super().__init__(registry, paper, gating)
        self._numbers = itertools.count(1)
        self._trusts_restored = False
        registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.WorkerRemoved, events.CapabilitiesLearned),
            *(events.Suspected, events.Absolved, events.Reincarnated),
        )

    # Changes. Each is made, opened, reported on for each of its workers, and closed.

    def make(
        self,
        change_id: str,
        model: str,
        path: str,
        body: str | None,
        label: str | None,
        content: Mapping[str, object] | None = None,
    ) -> Change:
        """A new change, not begun yet."""
        number = next(self._numbers)
        return Change(change_id, model, number, path, body, label, dict(content or {}))

    def withdraw(self, change: Change) -> None:
        """The change was opened, but nothing has been done: it was not to be."""
        self._paper.delete(ChangeRecord, change.change_id)
        for entry in self._entries.values():
            if entry.change is change:
                entry.change = None

    def open(self, change: Change, workers: Iterable[Worker]) -> None:
        """The change begins on these workers: enter its intent."""
        change.workers = ()
        for worker in workers:
            self._entry(worker).change = change
            change.workers = (*change.workers, worker.url)
        self._paper.put(change.record(pending=False))

    def fence(self, worker: Worker, reason: str) -> None:
        """Give the worker nothing new: a change has it until it is reported on."""
        self._entry(worker).fenced = True
        self._settle(worker, reason)

    def applied(self, change: Change, worker: Worker, incarnation: int) -> None:
        """The worker has applied the change. With the first one, the change is the ledger's.

        `incarnation`: that of the worker when it was called. `release` follows, once that is
        durable.
        """
        ledger, entry = self.ledger(change.model), self._entry(worker)
        if change.version is None:
            self._issue(ledger, change)
        assert change.version is not None
        assert change.before is not None
        if worker.removed or worker.incarnation != incarnation:
            return
        can = worker.capabilities
        was_current = change.before.plan(entry.standing, can.model_path if can else None) == Plan()
        self._put_standing(worker, after(entry.standing, change, was_current))

    def release(self, worker: Worker, reason: str | None = None) -> None:
        """The change is done with the worker, whatever came of it."""
        entry = self._entries.get(worker)
        if entry is not None:
            entry.fenced = False
            self._put_standing(worker, entry.standing)
            change, entry.change = entry.change, None
            # After a crash this worker is not in doubt.
            if change is not None and not change.over and change.version is None:
                change.workers = tuple(url for url in change.workers if url != worker.url)
                self._paper.put(change.record(pending=False))
            self._settle(worker, reason)

    def unchanged(self, change: Change, worker: Worker, reason: str) -> None:
        """The worker has what it had before: it refused, or was never called."""
        change.error = reason
        self.release(worker, reason)

    def unknown(self, change: Change, worker: Worker, reason: str) -> None:
        """Nobody knows what the worker has now."""
        change.error = reason
        if not worker.removed:
            self._put_standing(worker, lost_by(self.standing(worker), change))
        self.release(worker, reason)

    def close(self, change: Change) -> None:
        """All workers of the change have been reported on; without a success it is void."""
        ledger = self.ledger(change.model)
        change.over = True
        if change in ledger.pending:
            ledger.pending.remove(change)
        if change.version is None and change.error is not None:
            ledger.last_error = f"{change.name}: {change.error}"
            self._paper.put(ledger.record())
        self._paper.delete(ChangeRecord, change.change_id)
        self.settle(change.model)

    def came_to_nothing(self, change: Change) -> None:
        """No worker was called, and nobody has said a word against it. If it was pending it still
        is; else it is void."""
        change.workers = ()
        if change in self.ledger(change.model).pending:
            self._paper.put(change.record(pending=True))
        else:
            self.close(change)

    def defer(self, change: Change, workers: Iterable[Worker]) -> None:
        """All workers of the change sleep: it comes before anything else when one wakes."""
        change.workers = tuple(worker.url for worker in workers)
        self.ledger(change.model).pending.append(change)
        self._paper.put(change.record(pending=True))
        self.settle(change.model)

    def commit(self, change: Change, label: str | None) -> int:
        """A transaction stands, whoever has applied all of it: the number that it is issued."""
        change.label = label or change.label
        self._issue(self.ledger(change.model), change)
        assert change.version is not None
        return change.version

    # Replays.

    def sending(self, worker: Worker, *, lora: bool) -> None:
        """A call of a replay is about to be sent: until it is answered well nobody knows what
        the worker has."""
        standing = self.standing(worker)
        lost = evolve(standing, loras=None, wrapped=True) if lora else evolve(standing, base=None)
        self._put_standing(worker, lost)

    def returned(self, worker: Worker, standing: Standing) -> None:
        """It refused, and is what it was before."""
        self._put_standing(worker, standing)

    def base_replayed(self, worker: Worker, recipe: Recipe) -> None:
        """Of a replay all calls but those of LoRAs were answered well."""
        standing = self.standing(worker)
        if not standing.doubt:
            self._put_standing(worker, evolve(standing, base=recipe.base_version))

    def replayed(self, worker: Worker, recipe: Recipe, *, lora: bool, reason: str) -> None:
        """All calls of a plan for this recipe were answered well. `lora`: one was of a LoRA."""
        entry = self._entry(worker)
        entry.failure = None
        wrapped = entry.standing.wrapped or lora
        self._put_standing(
            worker, Standing(recipe.base_version, recipe.lora_version, wrapped=wrapped)
        )
        self._settle(worker, reason)

    def failed(self, worker: Worker, reason: str) -> None:
        """A replay was refused: the worker does not serve, and is tried again now and then."""
        self._entry(worker).failure = reason
        self._settle(worker, reason)

    def forewarn_of_lora(self, worker: Worker) -> None:
        """A transaction is about to call for a LoRA: should the router die before it is over,
        what the worker has of LoRAs is not known."""
        entry = self._entry(worker)
        lost = evolve(entry.standing, loras=None, wrapped=True)
        self._paper.put(weight_record(worker.url, evolve(entry, standing=lost)))

    def delayed(self, worker: Worker, reason: str) -> None:
        """A replay did not come about; it is due again."""
        self._entry(worker).reason = reason
        self._settle(worker)

    # What somebody else knows.

    def attest(
        self, model: str, version: int, label: str | None, workers: Iterable[Worker] | None
    ) -> None:
        """These workers have that version of the ledger; with None all have it, and it is the
        ledger's own, whatever was there before (the operator's way out)."""
        ledger = self.ledger(model)
        if workers is None:
            workers = self.workers_of(model)
            if version != ledger.version:
                ledger.recipe = Recipe() if version == 0 else Recipe().then_opaque(version)
            for change in ledger.pending:
                self._paper.delete(ChangeRecord, change.change_id)
            ledger.pending.clear()
            ledger.since = ledger.issued if version != ledger.version else ledger.since
            ledger.version, ledger.issued = version, max(ledger.issued, version)
            ledger.label = label if label is not None else ledger.label
            ledger.last_error = None
            for url, entry in self._left.items():
                if entry.model == model and not entry.ended:
                    entry.standing = at_version(ledger, version, entry.standing.wrapped)
                    self._paper.put(weight_record(url, entry))
        elif label is not None and version == ledger.version:
            ledger.label = label
        self._paper.put(ledger.record())
        for worker in workers:
            self._take_at_word(worker, ledger, version)
        self.settle(model)

    def begin_anew(self, model: str) -> None:
        """All workers of the model have ended: the weights of a start are current again. Numbers
        that were issued are not issued again."""
        if not self.ledger(model).live:
            return
        entries = {worker.url: entry for worker, entry in self._entries.items()} | self._left
        alive = {
            url: entry
            for url, entry in entries.items()
            if entry.model in (model, None) and not entry.ended and entry.standing != FRESH
        }
        self.attest(model, 0, None, None)
        ledger = self.ledger(model)
        ledger.label = None
        self._paper.put(ledger.record())
        # Should one come back that left the pool before, it has not those of its start.
        for url, entry in alive.items():
            entry.standing = evolve(entry.standing, base=None, loras=None)
            self._paper.put(weight_record(url, entry))

    def claim(self, worker: Worker, version: int) -> None:
        """Its owner says what the worker has (`POST /workers {"weight_version": N}`)."""
        entry = self._entry(worker)
        entry.claim = version
        if worker.capabilities is not None:  # else of the process that will answer
            self._take_claim(worker, entry)
        self._settle(worker)

    # Restarts of the router.

    def restore(
        self,
        ledgers: Iterable[LedgerRecord],
        weights: Iterable[WeightRecord],
        changes: Iterable[ChangeRecord],
        *,
        trusted: bool = False,
    ) -> None:
        """Take over what was known before a restart of the router; before any worker is added.

        Of each worker it is in doubt whether it is still the same process, until the suspicion of
        it is lifted; unless they are `trusted`: the absence was short (`--trust-downtime`). Open
        changes are run again before anything else, as if they had waited; of those that cannot be
        repeated the workers are left of unknown weights.
        """
        self._trusts_restored = trusted
        for record in ledgers:
            ledger = self._ledgers[record.model] = Ledger(
                record.model, record.version, record.issued, record.label, record.recipe
            )
            ledger.last_error, ledger.since = record.last_error, record.since
        for weight in weights:
            standing = Standing(weight.base, weight.loras, weight.wrapped, doubt=True)
            self._left[weight.url] = Entry(
                weight.model, standing, restored=True, unproven=weight.doubt
            )
        for intent in sorted(changes, key=lambda change: change.number):
            change = restored(intent)
            self._numbers = itertools.count(max(intent.number + 1, next(self._numbers)))
            if not intent.pending:
                for url in intent.workers:
                    entry = self._left.setdefault(url, Entry(intent.model, restored=True))
                    entry.standing = evolve(lost_by(entry.standing, change), doubt=True)
                    self._paper.put(weight_record(url, entry))
                ledger = self.ledger(intent.model)
                before = [other.told or 0 for other in ledger.pending]
                change.told = max(ledger.issued, *before, 0) + 1
            if change.body is None:
                if change.told is not None:
                    self.ledger(intent.model).issued = change.told
                    self._paper.put(self.ledger(intent.model).record())
                self._paper.delete(ChangeRecord, change.change_id)
            else:
                self.ledger(intent.model).pending.append(change)

    # What happens to workers.

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker):
                known = self._left.pop(worker.url, None)
                if known is not None and known.ended and worker.origin is Origin.LAUNCHED:
                    known = None  # it is started anew
                entry = self._entries[worker] = Entry()
                if known is not None:
                    entry.model = known.model
                    trusted = known.restored and self._trusts_restored
                    entry.standing = evolve(
                        known.standing, doubt=known.unproven if trusted else True
                    )
                    entry.unproven = known.unproven or not known.restored
                    if known.standing.base or known.standing.loras:
                        entry.version = UNKNOWN_VERSION  # until it is current
                    if known.restored and not trusted:
                        self._registry.suspect(worker, ROUTER_RESTARTED)
                self._settle(worker, "it has joined")
            case events.WorkerRemoved(worker):
                gone = self._entries.pop(worker, None)
                if gone is not None:
                    gone.ended = worker.origin is Origin.LAUNCHED
                    if gone.change is not None:  # nobody hears of its outcome any more
                        gone.standing = lost_by(gone.standing, gone.change)
                    self._remember(worker.url, gone)
            case events.CapabilitiesLearned(worker):
                self._learn_model(worker)
            case events.Suspected(worker, reason):
                self._settle(worker, reason)
            case events.Absolved(worker, reason):
                entry = self._entry(worker)
                # The same as then; else only as since it joined.
                if reason == ROUTER_RESTARTED and not entry.unproven:
                    self._put_standing(worker, evolve(entry.standing, doubt=False))
                self._take_claim(worker, entry)
                self._settle(worker, "it is the same process")
            case events.Reincarnated(worker, reason):
                entry = self._entry(worker)
                entry.failure = entry.reason = None
                # After a restart of the router nobody may know; else it is taken for a fresh one.
                if not (entry.standing.doubt and reason.startswith(f"{ROUTER_RESTARTED};")):
                    entry.standing, entry.version = FRESH, 0
                entry.unproven = entry.standing.doubt
                self._put_standing(worker, entry.standing)
                entry.former = entry.model or entry.former
                entry.model = None
                self._settle(worker, reason)

    def _remember(self, url: str, entry: Entry) -> None:
        """The same process may be registered again. One that was launched ends with its removal,
        which a later router must know: what is launched there then is another one."""
        self._left[url] = entry
        entry.unproven = True  # nobody watches it meanwhile
        if entry.ended:
            self._paper.delete(WeightRecord, url)
        else:
            self._paper.put(weight_record(url, entry))
        forgotten = url if entry.standing == FRESH else None
        if len(self._left) > _MOST_LEFT:
            forgotten = next(iter(self._left))
        if forgotten is not None:
            del self._left[forgotten]
            self._paper.delete(WeightRecord, forgotten)

    def _learn_model(self, worker: Worker) -> None:
        entry = self._entry(worker)
        model = model_of(worker) or ""
        if model != entry.model:
            entry.model = model
            self._put_standing(worker, entry.standing)
        self._take_claim(worker, entry)
        self._settle(worker)

    def _take_claim(self, worker: Worker, entry: Entry) -> None:
        """Take its owner's word, once it is certain whom that is about."""
        if entry.claim is not None and entry.model is not None and worker.suspicion is None:
            claim, entry.claim = entry.claim, None
            self._take_at_word(worker, self.ledger(entry.model), claim)

    def _take_at_word(self, worker: Worker, ledger: Ledger, version: int) -> None:
        entry = self._entry(worker)
        if version <= ledger.issued:
            entry.failure = entry.reason = None
            entry.version = version
            self._put_standing(worker, at_version(ledger, version, entry.standing.wrapped))

    def _issue(self, ledger: Ledger, change: Change) -> None:
        change.before = ledger.recipe
        told = {other.told for other in ledger.pending if other is not change}
        ledger.issued += 1
        while ledger.issued in told:
            ledger.issued += 1
        change.version = ledger.version = ledger.issued
        ledger.label = change.label
        ledger.recipe = change.applied_to(ledger.recipe, change.version)
        ledger.last_error = None
        if change in ledger.pending:
            ledger.pending.remove(change)
        self._paper.put(ledger.record())
        # It needs no repetition any more; but those it is under way at are in doubt after a crash.
        self._paper.delete(ChangeRecord, change.change_id)
        for worker in self.workers_of(ledger.model):
            entry = self._entry(worker)
            entry.failure = None
            if entry.change is change:
                lost = lost_by(entry.standing, change)
                self._paper.put(weight_record(worker.url, evolve(entry, standing=lost)))
        self.settle(ledger.model)
