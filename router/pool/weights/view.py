"""Where every worker stands against the ledger of its model: whether it is current, and what it
must replay to be so. From that the facet `weights` is derived, which nothing else sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ..match import model_of
from ..registry import Registry
from ..worker import UNKNOWN_VERSION, Origin, Weights, Worker
from .ledger import Change, Ledger, WeightStore
from .recipe import DISK, SET_LORA, TENSOR, Plan, Recipe, WeightState
from .state import WorkerWeights, why_not_current


class LedgerView:
    """The ledgers by model, and the state of every worker; changed by `Ledgers` alone."""

    def __init__(self, registry: Registry, store: WeightStore, gating: bool) -> None:
        self.gating = gating
        self._registry = registry
        self._store = store
        self._ledgers: dict[str, Ledger] = {}
        self._known: dict[Worker, WorkerWeights] = {}
        # By URL: of workers that left, or of before a restart.
        self._left: dict[str, WorkerWeights] = {}

    def __iter__(self) -> Iterator[Ledger]:
        return iter(tuple(self._ledgers.values()))

    def ledger(self, model: str) -> Ledger:
        """The ledger of a model, a new one if there was none."""
        return self._ledgers.setdefault(model, Ledger(model))

    def model_of(self, worker: Worker) -> str | None:
        """The ledger that the worker belongs to; None while its model is not known."""
        return self._of(worker).model

    def ledger_of(self, worker: Worker) -> Ledger | None:
        """The ledger of the worker's model; None while that is not known."""
        model = self.model_of(worker)
        return None if model is None else self.ledger(model)

    def workers_of(self, model: str) -> list[Worker]:
        """The registered workers that belong to the ledger of the model."""
        return [worker for worker, known in self._known.items() if known.model == model]

    def only_launched(self, model: str) -> bool:
        """Whether all workers of the model were launched, those that start again included."""
        pool = [w for w, known in self._known.items() if (known.model or known.former) == model]
        return bool(pool) and all(worker.origin is Origin.LAUNCHED for worker in pool)

    def weight_state(self, worker: Worker) -> WeightState:
        return self._of(worker).state

    def plan(self, worker: Worker) -> Plan:
        """What the worker must be sent to be at its ledger's entry; pending changes come on top."""
        ledger = self.ledger_of(worker)
        return Plan() if ledger is None else self._plan(worker, ledger.recipe)

    def needs_replay(self, worker: Worker) -> bool:
        """Whether calls to the worker alone bring it to its ledger's entry, as far as is known."""
        return self.gating and not self._of(worker).fenced and bool(self.plan(worker).steps)

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
        if path != SET_LORA and self.weight_state(worker).loras is None:
            return False
        plan = self.plan(worker)
        return plan.blocked is None and all(step.is_lora for step in plan.steps)

    def may_begin(self, change: Change, worker: Worker) -> bool:
        """Whether a pending change may be given to the worker before it is replayed."""
        fit = self.can_take(worker, change.path)
        return fit and (change.is_full or not self.plan(worker).steps)

    def had_lora(self, workers: Iterable[Worker]) -> list[Worker]:
        """Those whose process had a LoRA, or may have had: updates would miss some layers."""
        return [worker for worker in workers if self.weight_state(worker).wrapped]

    def _settle_all(self, model: str) -> None:
        for worker, known in list(self._known.items()):
            if known.model in (model, None):
                self._settle(worker)

    def _settle(self, worker: Worker, reason: str | None = None) -> None:
        """Let the worker's facet say what its ledger says."""
        known = self._known.get(worker)
        if known is None:
            return
        ledger, why, blocked = self.ledger_of(worker), None, None
        current = self._is_current(worker, ledger)
        if current:
            known.failure = known.reason = None
            known.version = ledger.version if ledger else 0
        else:
            if known.state.base is None or known.state.loras is None:
                known.version = UNKNOWN_VERSION
            # A pending change may set all that is missing.
            if ledger is not None and not ledger.pending:
                blocked = self.plan(worker).blocked
            why = why_not_current(worker, known, ledger, blocked)
        if known.fenced:
            facet = Weights.UPDATING
        elif current:
            facet = Weights.CURRENT
        else:
            facet = Weights.BEHIND if known.failure is None else Weights.FAILED
        stuck = blocked is not None and not known.fenced
        self._registry.set_weights(
            worker, facet, known.version, reason or why, why=why, stuck=stuck
        )

    def _is_current(self, worker: Worker, ledger: Ledger | None) -> bool:
        """Whether what it generates now is of its ledger's weights."""
        if not self.gating:
            return True
        if ledger is None:
            return not any(ledger.live for ledger in self._ledgers.values())
        if ledger.pending or (ledger.version and worker.suspicion is not None):
            return False
        return self._plan(worker, ledger.recipe) == Plan()

    def _plan(self, worker: Worker, recipe: Recipe) -> Plan:
        can = worker.capabilities
        return recipe.plan(self.weight_state(worker), can.model_path if can else None)

    def _of(self, worker: Worker) -> WorkerWeights:
        return self._known.get(worker) or self._left.get(worker.url) or WorkerWeights()

    def _put(self, worker: Worker, state: WeightState) -> None:
        known = self._of(worker)
        known.state = state
        known.unproven = known.unproven and state.doubt
        if worker in self._known:
            self._store.put(known.record(worker.url))
