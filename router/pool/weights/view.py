"""Where every worker stands against the ledger of its model: whether it is current, and what it
must replay. The facet `weights` is derived here; nothing else sets it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attrs import evolve

from ..pools import pool_and_model
from ..registry import Registry
from ..worker import UNKNOWN_VERSION, Admin, Health, Origin, Weights, Worker
from .ledger import Change, Ledger, WeightStore
from .recipe import FRESH, MERGE, UPDATES, Plan, Recipe, WeightState
from .state import WorkerWeights, of_now, why_not_current


class LedgerView:
    """The ledgers by model, and the state of every worker; only `Ledgers` changes them."""

    def __init__(self, registry: Registry, store: WeightStore, gating: bool) -> None:
        self.gating = gating
        self._registry = registry
        self._store = store
        self._ledgers: dict[str, Ledger] = {}
        self.run: str | None = None  # the run of new ledgers
        self._known: dict[Worker, WorkerWeights] = {}
        # By URL: workers that left, or that were known before a restart.
        self._left: dict[str, WorkerWeights] = {}

    def __iter__(self) -> Iterator[Ledger]:
        return iter(tuple(self._ledgers.values()))

    def ledger(self, model: str) -> Ledger:
        """The ledger of a model; a new one if there was none."""
        return self._ledgers.setdefault(model, Ledger(model, run=self.run))

    def has_weights(self, pool: str) -> bool:
        """Whether the pool has had weights other than those of a start, or is about to."""
        return any(
            pool_and_model(ledger.model)[0] == pool
            for ledger in self
            if ledger.issued or ledger.pending
        )

    def model_of(self, worker: Worker) -> str | None:
        """The model whose ledger the worker belongs to; None while the model is unknown."""
        return self._of(worker).model

    def ledger_of(self, worker: Worker) -> Ledger | None:
        """The ledger of the worker's model; None while the model is unknown."""
        model = self.model_of(worker)
        return None if model is None else self.ledger(model)

    def workers_of(self, model: str) -> list[Worker]:
        """The registered workers that belong to the ledger of the model."""
        return [worker for worker, known in self._known.items() if known.model == model]

    def only_launched(self, model: str) -> bool:
        """Whether all workers of the model were launched, including those that start again."""
        pool = [w for w, known in self._known.items() if (known.model or known.former) == model]
        return bool(pool) and all(worker.origin is Origin.LAUNCHED for worker in pool)

    def weight_state(self, worker: Worker) -> WeightState:
        return self._of(worker).state

    def plan(self, worker: Worker) -> Plan:
        """The calls that bring the worker to its ledger's entry, without pending changes."""
        ledger = self.ledger_of(worker)
        return Plan() if ledger is None else self._plan(worker, ledger.recipe)

    def needs_replay(self, worker: Worker) -> bool:
        """Whether calls to this worker alone would, as far as is known, bring it to its ledger's
        entry."""
        return self.gating and not self._of(worker).fenced and bool(self.plan(worker).steps)

    def behind(self, called: Iterable[Worker], others: Iterable[Worker]) -> list[Worker]:
        """The workers that lack their ledger's weights although they were `called`, and the
        `others` that no replay can help. Of these, workers in quarantine or out of reach are left
        out: a pool must be able to train without them."""
        if not self.gating:
            return []
        lacking = [worker for worker in called if self.plan(worker) != Plan()]
        wanted = [w for w in others if w.health is not Health.UNHEALTHY]
        wanted = [w for w in wanted if w.admin is not Admin.QUARANTINED]
        lacking += [worker for worker in wanted if self.plan(worker).blocked is not None]
        return [worker for worker in lacking if not worker.removed]

    def latest_issued(self, model: str | None, pool: str | None = None) -> int:
        """The highest number issued for the model and the pool that a request names; for any model
        of the pool, if no worker serves that name or the request names none."""
        return max((ledger.issued for ledger in self._meant(model, pool)), default=0)

    def labelled(self, model: str | None, label: str, pool: str | None = None) -> int | None:
        """The newest version with this label of the same models; None if there is none."""
        found = [ledger.labelled(label) for ledger in self._meant(model, pool)]
        return max((version for version in found if version is not None), default=None)

    def _meant(self, model: str | None, pool: str | None) -> list[Ledger]:
        some = [w for w in self._registry if w.capabilities and pool in (None, w.pool)]
        named = [w for w in some if w.capabilities and model in w.capabilities.models]
        serving = {self.model_of(worker) for worker in (named if named or pool is None else some)}
        return [ledger for ledger in self if ledger.model in serving or not serving]

    def can_take(self, worker: Worker, path: str) -> bool:
        """Whether the worker's state allows a call of this kind. A worker cannot take a LoRA call
        while weights have yet to be loaded, because the LoRA would forbid that; nor a merge if its
        LoRAs are unknown."""
        if not path or path in UPDATES:
            return True
        if path == MERGE and self.weight_state(worker).loras is None:
            return False
        ledger = self.ledger_of(worker)
        plan = self._plan(worker, evolve(ledger.recipe, loras=())) if ledger else Plan()
        return plan.blocked is None and all(step.is_lora for step in plan.steps)

    def skips(self, worker: Worker, path: str) -> bool:
        """Whether the worker may skip a LoRA call of a change. Whoever holds a transaction may have
        pushed a LoRA past the router."""
        change, ledger = self._of(worker).change, self.ledger_of(worker)
        if change is not None and change.is_transaction:
            return True
        if ledger is None:
            return False
        recipe = (change.before if change is not None else None) or ledger.recipe
        # A statement may have taken the place of the LoRA calls that a wrapped worker has had.
        return recipe.skips(path) or (self.weight_state(worker).wrapped and not recipe.loras)

    def may_begin(self, change: Change, worker: Worker) -> bool:
        """Whether the worker may get a pending change before its replay."""
        fit = self.can_take(worker, change.path)
        return fit and (change.is_full or not self.plan(worker).steps)

    def had_lora(self, workers: Iterable[Worker]) -> list[Worker]:
        """The workers whose process had a LoRA, or may have: updates would miss some layers."""
        return [worker for worker in workers if self.weight_state(worker).wrapped]

    def restart_helps(self, worker: Worker) -> bool:
        """Whether a fresh process in place of this one could be brought to the ledger's entry."""
        ledger, can = self.ledger_of(worker), worker.capabilities
        path = can.model_path if can else None
        return ledger is not None and ledger.recipe.plan(FRESH, path).blocked is None

    def _settle_all(self, model: str) -> None:
        for worker, known in list(self._known.items()):
            if known.model in (model, None):
                self._settle(worker)

    def _settle(self, worker: Worker, reason: str | None = None) -> None:
        """Set the worker's facet to what its ledger says."""
        known = self._known.get(worker)
        if known is None:
            return
        ledger, why, blocked = self.ledger_of(worker), None, None
        current = self._is_current(worker, ledger)
        if current:
            known.failure = known.reason = None
            if known.before is None:
                known.version = ledger.version if ledger else 0
        else:
            if known.state.base is None or known.state.loras is None:
                known.version = UNKNOWN_VERSION
            # A pending change, or its turn, may supply everything that is missing.
            if ledger is not None and not ledger.pending and not known.waits:
                plan = self.plan(worker)
                blocked = None if plan.steps else plan.blocked
            if blocked is not None:
                known.failure = None  # what was refused cannot be tried again
            why = why_not_current(worker, known, ledger, blocked)
        if known.fenced:
            facet = Weights.UPDATING
        elif current:
            facet = Weights.CURRENT
        else:
            facet = Weights.BEHIND if known.failure is None else Weights.FAILED
        stuck = blocked is not None and not known.fenced and worker.suspicion is None
        newest, lag = (ledger.version, ledger.lag(known.version)) if ledger else (0, 0)
        said = reason or why
        self._registry.set_weights(
            worker, facet, known.version, said, why=why, stuck=stuck, newest=newest, lag=lag
        )

    def _is_current(self, worker: Worker, ledger: Ledger | None) -> bool:
        """Whether the worker generates with its ledger's weights now, or waits for its turn in a
        rolling change and generates with the weights before."""
        if not self.gating or worker.is_plain:
            return True
        if ledger is None:
            return not any(ledger.live for ledger in self._ledgers.values())
        if ledger.pending or (ledger.version and worker.suspicion is not None):
            return False
        before = self._of(worker).before
        return self._plan(worker, ledger.recipe if before is None else before) == Plan()

    def _plan(self, worker: Worker, recipe: Recipe) -> Plan:
        can = worker.capabilities
        return recipe.plan(self.weight_state(worker), can.model_path if can else None)

    def _of(self, worker: Worker) -> WorkerWeights:
        return self._known.get(worker) or self._left.get(worker.url) or WorkerWeights()

    def _put(self, worker: Worker, state: WeightState) -> None:
        known, ledger = self._of(worker), self.ledger_of(worker)
        known.state = state if ledger is None else of_now(state, ledger)
        known.unproven = known.unproven and state.doubt
        if worker in self._known:
            self._store.put(known.record(worker.url))
