"""All ledgers, and where every worker stands against that of its model.

No I/O: it hears the registry, is told by whoever acts on workers what came of it, and says of each
worker whether it is current and what it must replay to be so. It alone drives the facet `weights`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping

from attrs import evolve

from .. import events
from ..registry import Registry
from ..targets import model_of
from ..worker import UNKNOWN_VERSION, Weights, Worker
from .change import Change, restored
from .ledger import (
    Entry,
    Ledger,
    after,
    at_version,
    lost_by,
    next_event,
    weight_record,
    why_not_current,
)
from .recipe import FRESH, Plan, Recipe, Standing
from .records import ChangeRecord, LedgerRecord, NoPaper, Paper, WeightRecord

_MOST_LEFT = 10_000  # workers that left, whose standing is remembered should they come again


class Ledgers:
    """The ledgers by model, and the standing of every worker.

    Make it before the dispatcher: it must hear of events first, so that a worker that is not
    current any more is unroutable before anybody is given it. `gating=False`
    (`--trust-external-weights`): every worker counts as current.
    """

    def __init__(
        self, registry: Registry, *, paper: Paper | None = None, gating: bool = True
    ) -> None:
        self.gating = gating
        self._registry = registry
        self._paper = paper or NoPaper()
        self._ledgers: dict[str, Ledger] = {}
        self._entries: dict[Worker, Entry] = {}
        self._left: dict[str, Entry] = {}  # by URL: of workers that left, or of before a restart
        self._numbers = itertools.count(1)
        registry.subscribe(self._observe)

    # To look at.

    def model_of(self, worker: Worker) -> str | None:
        """The ledger that the worker belongs to; None while its model is not known."""
        return self._entry(worker).model

    def __iter__(self) -> Iterator[Ledger]:
        return iter(tuple(self._ledgers.values()))

    def ledger(self, model: str) -> Ledger:
        """The ledger of a model, a new one if there was none."""
        return self._ledgers.setdefault(model, Ledger(model))

    def ledger_of(self, worker: Worker) -> Ledger | None:
        """The ledger of the worker's model; None while that is not known."""
        model = self._entry(worker).model
        return None if model is None else self.ledger(model)

    def workers_of(self, model: str) -> list[Worker]:
        """The registered workers that belong to the ledger of the model."""
        return [worker for worker, entry in self._entries.items() if entry.model == model]

    def standing(self, worker: Worker) -> Standing:
        return self._entry(worker).standing

    def plan(self, worker: Worker) -> Plan:
        """What the worker must be sent to be at its ledger's entry; pending changes come on top."""
        ledger = self.ledger_of(worker)
        if ledger is None:
            return Plan()
        can = worker.capabilities
        return ledger.recipe.plan(self.standing(worker), can.model_path if can else None)

    def is_current(self, worker: Worker) -> bool:
        """Whether what it generates now is of its ledger's weights."""
        if not self.gating:
            return True
        entry = self._entry(worker)
        if entry.model is None:
            return not any(ledger.live for ledger in self._ledgers.values())
        ledger = self.ledger(entry.model)
        if ledger.pending or (ledger.version and worker.suspicion is not None):
            return False
        return self.plan(worker) == Plan()

    def needs_replay(self, worker: Worker) -> bool:
        """Whether calls to the worker alone bring it to its ledger's entry, as far as is known."""
        return self.gating and not self._entry(worker).fenced and bool(self.plan(worker).steps)

    def latest_issued(self, model: str | None) -> int:
        """The highest number issued to the model that a request names; to any, if nobody serves
        it by that name or none is named. For `X-Min-Weight-Version`."""
        pool = [w for w in self._registry if w.capabilities and model in w.capabilities.models]
        serving = {model_of(worker) for worker in pool}
        some = [ledger for ledger in self if ledger.model in serving or not serving]
        return max((ledger.issued for ledger in some), default=0)

    def had_lora(self, workers: Iterable[Worker]) -> list[Worker]:
        """Those whose process had a LoRA, or may have had: updates would miss some layers."""
        return [worker for worker in workers if self.standing(worker).wrapped]

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

    def open(self, change: Change, workers: Iterable[Worker]) -> None:
        """The change begins on these workers: enter its intent."""
        change.workers = tuple(worker.url for worker in workers)
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
        self._paper.put(weight_record(worker.url, entry.model, lost))

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
            ledger.version, ledger.issued = version, max(ledger.issued, version)
            ledger.label = label if label is not None else ledger.label
            ledger.last_error = None
            for url, entry in self._left.items():
                if entry.model == model:
                    entry.standing = at_version(ledger, version, entry.standing.wrapped)
                    self._paper.put(weight_record(url, entry.model, entry.standing))
        elif label is not None and version == ledger.version:
            ledger.label = label
        self._paper.put(ledger.record())
        for worker in workers:
            entry = self._entry(worker)
            entry.failure = entry.reason = None
            entry.version = version
            self._put_standing(worker, at_version(ledger, version, entry.standing.wrapped))
        self.settle(model)

    def claim(self, worker: Worker, version: int) -> None:
        """Its owner says what the worker has (`POST /workers {"weight_version": N}`)."""
        entry = self._entry(worker)
        if entry.model is None or worker.suspicion is not None or worker.capabilities is None:
            entry.claim = version  # of the process that will answer
        else:
            self._take_at_word(worker, entry, version)
        self._settle(worker)

    # Restarts of the router.

    def restore(
        self,
        ledgers: Iterable[LedgerRecord],
        weights: Iterable[WeightRecord],
        changes: Iterable[ChangeRecord],
    ) -> None:
        """Take over what was known before a restart of the router; before any worker is added.

        Of each worker it is in doubt whether it is still the same process, until the suspicion of
        it is lifted. Open changes are run again before anything else, as if they had waited; of
        those that cannot be repeated the workers are left of unknown weights.
        """
        for record in ledgers:
            ledger = self._ledgers[record.model] = Ledger(
                record.model, record.version, record.issued, record.label, record.recipe
            )
            ledger.last_error = record.last_error
        for weight in weights:
            standing = Standing(weight.base, weight.loras, weight.wrapped, doubt=True)
            self._left[weight.url] = Entry(weight.model, standing)
        for intent in sorted(changes, key=lambda change: change.number):
            change = restored(intent)
            self._numbers = itertools.count(max(intent.number + 1, next(self._numbers)))
            if not intent.pending:
                for url in intent.workers:
                    entry = self._left.setdefault(url, Entry(intent.model, FRESH))
                    entry.standing = evolve(lost_by(entry.standing, change), doubt=True)
                    self._paper.put(weight_record(url, entry.model, entry.standing))
            if change.body is None:
                self._paper.delete(ChangeRecord, change.change_id)
            else:
                self.ledger(intent.model).pending.append(change)

    # Where workers stand.

    def settle(self, model: str | None = None) -> None:
        """Let the facets of the workers say what the ledgers say."""
        for worker, entry in list(self._entries.items()):
            if model is None or entry.model in (model, None):
                self._settle(worker)

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker):
                known = self._left.pop(worker.url, None)
                entry = self._entries[worker] = Entry()
                if known is not None:
                    entry.model = known.model
                    entry.standing = evolve(known.standing, doubt=True)
                self._settle(worker, "it has joined")
            case events.WorkerRemoved(worker):
                gone = self._entries.pop(worker, None)
                if gone is not None:
                    self._left[worker.url] = gone
                    if len(self._left) > _MOST_LEFT:
                        del self._left[next(iter(self._left))]
                    self._paper.delete(WeightRecord, worker.url)
            case events.CapabilitiesLearned(worker):
                self._learn_model(worker)
            case events.Suspected(worker, reason):
                self._settle(worker, reason)
            case events.Absolved(worker):
                self._entry(worker).claim = None
                self._put_standing(worker, evolve(self.standing(worker), doubt=False))
                self._settle(worker, "it is the same process")
            case events.Reincarnated(worker, reason):
                entry = self._entry(worker)
                entry.failure = entry.reason = None
                if not entry.standing.doubt:
                    entry.standing, entry.version = FRESH, 0
                entry.model = None
                self._settle(worker, reason)

    def _learn_model(self, worker: Worker) -> None:
        entry = self._entry(worker)
        model = model_of(worker) or ""
        if model != entry.model:
            entry.model = model
            self._put_standing(worker, entry.standing)
        if entry.claim is not None and worker.suspicion is None:
            claim, entry.claim = entry.claim, None
            self._take_at_word(worker, entry, claim)
        self._settle(worker)

    def _take_at_word(self, worker: Worker, entry: Entry, version: int) -> None:
        assert entry.model is not None
        ledger = self.ledger(entry.model)
        if version <= ledger.issued:
            entry.failure = entry.reason = None
            entry.version = version
            self._put_standing(worker, at_version(ledger, version, entry.standing.wrapped))

    def _issue(self, ledger: Ledger, change: Change) -> None:
        change.before = ledger.recipe
        change.version = ledger.version = ledger.issued = ledger.issued + 1
        ledger.label = change.label
        ledger.recipe = change.applied_to(ledger.recipe, change.version)
        ledger.last_error = None
        if change in ledger.pending:
            ledger.pending.remove(change)
        self._paper.put(ledger.record())
        for worker in self.workers_of(ledger.model):
            self._entry(worker).failure = None
        self.settle(ledger.model)

    def _put_standing(self, worker: Worker, standing: Standing) -> None:
        entry = self._entry(worker)
        entry.standing = standing
        if worker in self._entries:
            self._paper.put(weight_record(worker.url, entry.model, entry.standing))

    def _settle(self, worker: Worker, reason: str | None = None) -> None:
        entry = self._entries.get(worker)
        if entry is None:
            return
        current = self.is_current(worker)
        ledger = None if entry.model is None else self.ledger(entry.model)
        blocked = None
        if current:
            entry.failure = entry.reason = None
            entry.version = ledger.version if ledger else 0
        else:
            if entry.standing.base is None or entry.standing.loras is None:
                entry.version = UNKNOWN_VERSION
            # A pending change may set all that is missing.
            if ledger is not None and not ledger.pending:
                blocked = self.plan(worker).blocked
        why = None if current else why_not_current(worker, entry, ledger, blocked)
        if entry.fenced:
            wanted = Weights.UPDATING
        elif current:
            wanted = Weights.CURRENT
        else:
            wanted = Weights.FAILED if entry.failure is not None else Weights.BEHIND
        stuck = blocked is not None and wanted is not Weights.UPDATING
        self._registry.stand(worker, entry.version, reason=why, stuck=stuck)
        while worker.weights is not wanted:
            self._registry.weigh(worker, next_event(worker.weights, wanted), reason or why)

    def _entry(self, worker: Worker) -> Entry:
        entry = self._entries.get(worker)
        if entry is None and not worker.removed:  # it was there before this was
            entry = self._entries[worker] = Entry(model_of(worker))
        return entry or self._left.get(worker.url) or Entry()
