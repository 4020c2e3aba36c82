"""What is known of one worker against its ledger, and what becomes of that. Pure."""

from __future__ import annotations

from attrs import define, evolve

from ..worker import Worker
from .ledger import Change, Ledger, WeightRecord
from .recipe import FRESH, WeightState


@define(eq=False)
class WorkerWeights:
    """What is known of one worker's weights."""

    model: str | None = None
    state: WeightState = FRESH
    version: int = 0  # of the last ledger entry of which it had all; UNKNOWN_VERSION
    fenced: bool = False  # a change has it
    change: Change | None = None  # which one
    failure: str | None = None  # why its last replay was refused
    reason: str | None = None  # why it is not current, where something better is known
    restored: bool = False  # it is what was known before a restart of the router
    unproven: bool = False  # nor could it be proven since that it is the same process
    # The model of the process before, until that of this one is known.
    former: str | None = None
    ended: bool = False  # it was launched, so its process ended when it left
    claim: int | None = None  # what its owner says that it has, until its model is known

    def record(self, url: str, state: WeightState | None = None) -> WeightRecord:
        """What outlives the router; with `state`, as if that were its own."""
        has = state or self.state
        return WeightRecord(url, self.model, has.base, has.loras, has.wrapped, self.unproven)


def at_version(ledger: Ledger, version: int, wrapped: bool) -> WeightState:
    """The state of a worker that has this version of the ledger."""
    recipe = ledger.recipe
    if version == ledger.version:
        return WeightState(recipe.base_version, recipe.lora_version, wrapped)
    if version <= ledger.since and version not in (0, recipe.opaque):
        return WeightState(None, None, wrapped)
    return WeightState(
        min(version, recipe.base_version), min(version, recipe.lora_version), wrapped
    )


def without(state: WeightState, *, base: bool, loras: bool) -> WeightState:
    """What is left of a state where a call for these parts has an unknown outcome."""
    if loras:
        state = evolve(state, loras=None, wrapped=True)
    return evolve(state, base=None) if base else state


def lost_by(state: WeightState, change: Change) -> WeightState:
    """What is left of a state when the outcome of the change is not known."""
    return without(state, base=not change.is_lora, loras=change.has_lora)


def after(has: WeightState, change: Change, was_current: bool) -> WeightState:
    """What a worker has after it applied the change, as far as it had what came before."""
    assert change.version is not None
    assert change.before is not None
    new = change.applied_to(change.before, change.version)
    lora = change.has_lora
    wrapped = has.wrapped or lora
    # With a transaction its owner says what they have now, but not where it only adds a little.
    vouched = change.is_transaction and (new.opaque or new.is_full)
    if was_current or vouched:
        return WeightState(new.base_version, new.lora_version, wrapped)
    base, loras = has.base, has.loras
    if change.is_full:
        base = change.version
        if has.doubt:
            loras = None if new.lora_version else 0
        return WeightState(base, loras, wrapped)
    if has.doubt:
        return has if not lora else evolve(has, loras=None, wrapped=True)
    if lora:
        loras = change.version if loras == change.before.lora_version else None
    elif base is not None and base >= change.before.base_version:
        base = change.version
    return WeightState(base, loras, wrapped)


def why_not_current(
    worker: Worker, known: WorkerWeights, ledger: Ledger | None, blocked: str | None
) -> str:
    """In one sentence, for people."""
    if known.failure is not None:
        return known.failure
    if ledger is None:
        return "it is not known yet which model it serves"
    if worker.suspicion is not None and ledger.live:
        return f"it may be another process: {worker.suspicion}"
    if ledger.pending:
        return "a change waits to be applied to it"
    return blocked or known.reason or f"it has yet to be brought to version {ledger.version}"
