"""What the router knows about one worker against its ledger, and how events change it. Pure."""

from __future__ import annotations

from attrs import define, evolve

from ..worker import Worker
from .ledger import Change, Ledger, WeightRecord
from .recipe import FRESH, Recipe, WeightState


@define(eq=False)
class WorkerWeights:
    """What the router knows about one worker's weights."""

    model: str | None = None
    state: WeightState = FRESH
    version: int = 0  # of the last ledger entry held in full, or UNKNOWN_VERSION
    fenced: bool = False  # a change holds the worker
    change: Change | None = None  # that change
    waits: bool = False  # it serves until its turn in that change, which is rolling
    failure: str | None = None  # why its last replay was refused
    reason: str | None = None  # why the worker is not current, if a better reason is known
    restored: bool = False  # this is from before a restart of the router
    unproven: bool = False  # no proof since then that it is the same process
    # The model of the previous process, until the model of this process is known.
    former: str | None = None
    ended: bool = False  # a launched worker: its process ended when it left
    claim: int | None = None  # the version that its owner claims, until its model is known

    @property
    def before(self) -> Recipe | None:
        """The weights that count for a worker which waits for its turn, once the change has a
        version: those before the change. None: those of its ledger."""
        if self.change is None or self.change.outdated or not self.waits:
            return None
        return self.change.before

    def record(self, url: str, state: WeightState | None = None) -> WeightRecord:
        """The part that outlives the router; `state` replaces its own state in the record."""
        has = state or self.state
        loras = None if has.partial else has.loras
        return WeightRecord(url, self.model, has.base, loras, has.wrapped, self.unproven)


def at_version(ledger: Ledger, version: int, wrapped: bool) -> WeightState:
    """The state of a worker that has this version of the ledger."""
    recipe = ledger.recipe
    if version == ledger.version:
        wrapped = wrapped or bool(recipe.loras)
        return WeightState(recipe.base_version, recipe.lora_version, wrapped)
    if version <= ledger.since and version not in (0, recipe.opaque):
        return WeightState(None, None, wrapped)
    return WeightState(
        min(version, recipe.base_version), min(version, recipe.lora_version), wrapped
    )


def of_now(state: WeightState, ledger: Ledger) -> WeightState:
    """The state as the ledger sees it: what a call from before a reset has brought since has
    nothing to do with the recipe."""
    base, loras = state.base, state.loras
    if base and base <= ledger.since and base != ledger.recipe.opaque:
        base = None
    if loras and loras <= ledger.since:
        loras = None
    return evolve(state, base=base, loras=loras)


def without(state: WeightState, *, base: bool, loras: bool, wraps: bool = True) -> WeightState:
    """The state after a call for these parts had an unknown outcome. `wraps`: if for LoRAs, it
    wraps layers."""
    if loras:
        state = evolve(state, loras=None, wrapped=state.wrapped or wraps)
    return evolve(state, base=None) if base else state


def lost_by(state: WeightState, change: Change) -> WeightState:
    """The state after the change had an unknown outcome."""
    loras, wraps = change.has_lora or change.lora, change.wraps or change.lora
    return without(state, base=not change.is_lora, loras=loras, wraps=wraps)


def after(has: WeightState, change: Change, was_current: bool) -> WeightState:
    """The state after the worker applied the change, given what it had before."""
    found, bare = _after(has, change, was_current), has.is_bare and not has.doubt
    if bare and not change.wraps:
        return evolve(found, loras=0)  # to such a process a merge or unmerge does nothing
    if change.merges and (bare or has.partial):
        return evolve(found, loras=None)
    assert change.before is not None
    lacks = has.partial or (bare and bool(change.before.loras))
    return evolve(found, partial=lacks and not change.replaces_loras)


def _after(has: WeightState, change: Change, was_current: bool) -> WeightState:
    assert change.version is not None
    assert change.before is not None
    new = change.applied_to(change.before, change.version)
    lora = change.has_lora
    wrapped = has.wrapped or change.wraps
    if was_current or change.vouches:
        return WeightState(new.base_version, new.lora_version, wrapped)
    base, loras = has.base, has.loras
    if change.is_full:
        base = change.version
        if has.doubt:
            loras = None if new.lora_version else 0
        return WeightState(base, loras, wrapped)
    if has.doubt:
        return has if not lora else evolve(has, loras=None, wrapped=wrapped)
    if lora:
        replaces = change.full or loras == change.before.lora_version
        loras = change.version if replaces else None
    elif base is not None and base >= change.before.base_version:
        base = change.version
    return WeightState(base, loras, wrapped)


def elsewhere(state: WeightState) -> WeightState:
    """The state against another ledger, whose numbers mean other weights: only those of the start
    are the same."""
    return evolve(state, base=state.base and None, loras=state.loras and None)


def why_not_current(
    worker: Worker, known: WorkerWeights, ledger: Ledger | None, blocked: str | None
) -> str:
    """Why the worker is not current, in one sentence for people."""
    if known.failure is not None:
        return known.failure
    if ledger is None:
        return "it is not known yet which model it serves"
    if worker.suspicion is not None and ledger.live:
        return f"it may be another process: {worker.suspicion}"
    if ledger.pending:
        return "a change waits to be applied to it"
    return blocked or known.reason or f"it has yet to be brought to version {ledger.version}"
