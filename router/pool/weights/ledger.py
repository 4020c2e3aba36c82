"""One model's ledger, and what is known of one worker against it."""

from __future__ import annotations

from attrs import define, evolve, field

from ..worker import Worker
from .change import Change, Kind
from .recipe import FRESH, Recipe, Standing
from .records import LedgerRecord, WeightRecord


@define(eq=False)
class Ledger:
    """The weight changes of one model.

    `version`: the current entry, 0 before the first; `issued`: the highest number ever given out.
    `pending`: changes that nobody could be given yet, in order; they come before anything else.
    """

    model: str
    version: int = 0
    issued: int = 0
    label: str | None = None
    recipe: Recipe = field(factory=Recipe)
    last_error: str | None = None
    # Up to this number versions are of before a reset: what they were has nothing to do with the
    # recipe.
    since: int = 0
    pending: list[Change] = field(factory=list)

    @property
    def live(self) -> bool:
        """Whether there was, or is about to be, any change: before it nothing is gated."""
        return self.version > 0 or bool(self.pending)

    def record(self) -> LedgerRecord:
        return LedgerRecord(
            self.model,
            self.version,
            self.issued,
            self.label,
            self.recipe,
            self.last_error,
            self.since,
        )


@define(eq=False)
class Entry:
    """What is known of one worker."""

    model: str | None = None
    standing: Standing = FRESH
    version: int = 0  # of the last entry of which it had all; UNKNOWN_VERSION
    fenced: bool = False  # a change has it
    change: Change | None = None  # which one
    failure: str | None = None  # why its last replay was refused
    reason: str | None = None  # why it is not current, where somebody knows better
    restored: bool = False  # it is what was known before a restart of the router
    unproven: bool = False  # nor could it be proven since that it is the same process
    # The model of the process before, until that of this one is known.
    former: str | None = None
    ended: bool = False  # it was launched, so its process ended when it left
    claim: int | None = None  # what its owner says that it has, until its model is known


def at_version(ledger: Ledger, version: int, wrapped: bool) -> Standing:
    """The standing of a worker that has this version of the ledger."""
    recipe = ledger.recipe
    if version == ledger.version:
        return Standing(recipe.base_version, recipe.lora_version, wrapped)
    if version <= ledger.since and version not in (0, recipe.opaque):
        return Standing(None, None, wrapped)
    return Standing(min(version, recipe.base_version), min(version, recipe.lora_version), wrapped)


def lost_by(standing: Standing, change: Change) -> Standing:
    """What is left of a standing when the outcome of the change is not known."""
    if change.has_lora:
        standing = evolve(standing, loras=None, wrapped=True)
    return standing if change.kind is Kind.LORA else evolve(standing, base=None)


def after(has: Standing, change: Change, was_current: bool) -> Standing:
    """What a worker has after it applied the change, as far as it had what came before."""
    assert change.version is not None
    assert change.before is not None
    new = change.applied_to(change.before, change.version)
    lora = change.has_lora
    wrapped = has.wrapped or lora
    # With a transaction its owner says what they have now, but not where it only adds a little.
    vouched = change.kind is Kind.TRANSACTION and (new.opaque or new.is_full)
    if was_current or vouched:
        return Standing(new.base_version, new.lora_version, wrapped)
    base, loras = has.base, has.loras
    if change.is_full:
        base = change.version
        if has.doubt:
            loras = None if new.lora_version else 0
        return Standing(base, loras, wrapped)
    if has.doubt:
        return has if not lora else evolve(has, loras=None, wrapped=True)
    if lora:
        loras = change.version if loras == change.before.lora_version else None
    elif base is not None and base >= change.before.base_version:
        base = change.version
    return Standing(base, loras, wrapped)


def weight_record(url: str, entry: Entry) -> WeightRecord:
    """What of a worker's standing outlives the process."""
    has = entry.standing
    return WeightRecord(url, entry.model, has.base, has.loras, has.wrapped, entry.unproven)


def why_not_current(
    worker: Worker, entry: Entry, ledger: Ledger | None, blocked: str | None
) -> str:
    """In one sentence, for people."""
    if entry.failure is not None:
        return entry.failure
    if ledger is None:
        return "it is not known yet which model it serves"
    if worker.suspicion is not None and ledger.live:
        return f"it may be another process: {worker.suspicion}"
    if ledger.pending:
        return "a change waits to be applied to it"
    if blocked is not None:
        return blocked
    return entry.reason or f"it has yet to be brought to version {ledger.version}"
