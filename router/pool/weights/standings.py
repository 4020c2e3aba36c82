"""Where every worker stands against the ledger of its model, and what its facet says of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..match import model_of
from ..registry import Registry
from ..worker import UNKNOWN_VERSION, Origin, Weights, Worker
from .change import Change
from .ledger import Entry, Ledger, weight_record, why_not_current
from .recipe import DISK, SET_LORA, TENSOR, Plan, Standing
from .records import NoPaper, Paper


class Standings:
    """The ledgers by model, and the standing of every worker; changed by `Ledgers` alone."""

    def __init__(self, registry: Registry, paper: Paper | None, gating: bool) -> None:
        self.gating = gating
        self._registry = registry
        self._paper = paper or NoPaper()
        self._ledgers: dict[str, Ledger] = {}
        self._entries: dict[Worker, Entry] = {}
        self._left: dict[str, Entry] = {}  # by URL: of workers that left, or of before a restart

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

    def only_launched(self, model: str) -> bool:
        """Whether all workers of the model were launched, those that start again included."""
        pool = [w for w, entry in self._entries.items() if (entry.model or entry.former) == model]
        return bool(pool) and all(worker.origin is Origin.LAUNCHED for worker in pool)

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

    def can_take(self, worker: Worker, path: str) -> bool:
        """Whether a call of this kind may be sent to the worker as it is. One of a LoRA not while
        its weights have yet to be loaded, which the LoRA would forbid; and merging means nothing
        where it is not known which LoRA is there."""
        if path in (DISK, TENSOR, ""):
            return True
        if path != SET_LORA and self.standing(worker).loras is None:
            return False
        plan = self.plan(worker)
        return plan.blocked is None and all(step.is_lora for step in plan.steps)

    def may_begin(self, change: Change, worker: Worker) -> bool:
        """Whether a pending change may be given to the worker before it is replayed."""
        fit = self.can_take(worker, change.path)
        return fit and (change.is_full or not self.plan(worker).steps)

    def had_lora(self, workers: Iterable[Worker]) -> list[Worker]:
        """Those whose process had a LoRA, or may have had: updates would miss some layers."""
        return [worker for worker in workers if self.standing(worker).wrapped]

    def settle(self, model: str | None = None) -> None:
        """Let the facets of the workers say what the ledgers say."""
        for worker, entry in list(self._entries.items()):
            if model is None or entry.model in (model, None):
                self._settle(worker)

    def _put_standing(self, worker: Worker, standing: Standing) -> None:
        entry = self._entry(worker)
        entry.standing = standing
        entry.unproven = entry.unproven and standing.doubt
        if worker in self._entries:
            self._paper.put(weight_record(worker.url, entry))

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
        self._registry.stand(worker, wanted, entry.version, reason or why, why=why, stuck=stuck)

    def _entry(self, worker: Worker) -> Entry:
        entry = self._entries.get(worker)
        if entry is None and not worker.removed:  # it was there before this was
            entry = self._entries[worker] = Entry(model_of(worker))
        return entry or self._left.get(worker.url) or Entry()
