"""The steps that bring a fresh worker to the current weights, in order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import evolve, field, frozen

DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"
SET_LORA = "/v1/set_lora"
MERGE, UNMERGE = "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"

# Calls about the groups of collectives; they change no weights.
GROUPS = ("/init_weights_update_group", "/destroy_weights_update_group")
# Calls in which all workers take part at the same moment, or none.
COLLECTIVES = frozenset(
    {
        "/update_weights_from_distributed",
        "/begin_weight_update",
        "/end_weight_update",
        "/pull_weights",
    }
)
BOUND = COLLECTIVES.union(GROUPS)  # calls that no worker ends unless all others take part
PUSHES = COLLECTIVES | {TENSOR}  # changes that cannot be repeated
UPDATES = PUSHES | {DISK}  # changes of the weights themselves; any other is of LoRAs

SETS = (SET_LORA, TENSOR)  # of LoRA calls: those that bring an adapter, and so wrap layers
_ALL = "all"


@frozen
class Step:
    """One call that brings a worker closer to its ledger.

    `version`: the version of the ledger entry of this step. `modules`: the modules that a disk
    update loads (None: all), or the targets of a LoRA call. `optional`: a worker on which no LoRA
    acts may refuse the call.
    """

    version: int
    path: str
    body: str  # JSON
    modules: tuple[str, ...] | None = None
    optional: bool = False

    @property
    def is_lora(self) -> bool:
        return self.path != DISK

    @property
    def is_pushed(self) -> bool:
        """Whether the step is a LoRA that came as tensors, which cannot be repeated."""
        return self.path == TENSOR

    @property
    def is_full(self) -> bool:
        """Whether the step loads everything, so that earlier steps do not matter."""
        return self.path == DISK and self.modules is None

    @property
    def is_of_all(self) -> bool:
        """Whether the step concerns every module."""
        return self.modules is None or _ALL in self.modules

    def covers(self, other: Step) -> bool:
        """Whether this step leaves nothing of the other step, if both are of one kind."""
        if self.is_of_all:
            return True
        return set(other.modules or [_ALL]) <= set(self.modules or ())


def step_of(path: str, body: str, content: Mapping[str, Any], version: int = 0) -> Step:
    """The step for a change with this endpoint and body."""
    if path == DISK:
        return Step(version, path, body, _names(content.get("target_modules")))
    return Step(version, path, body, _names(content.get("target")) or (_ALL,))


def pushes_lora(path: str, content: Mapping[str, Any]) -> bool:
    """Whether a change with this endpoint and body pushes a LoRA as tensors."""
    return path == TENSOR and content.get("weight_update_mode") == "lora_merge"


def load_from(model_path: str) -> Step:
    """A disk update of all modules."""
    return Step(0, DISK, json.dumps({"model_path": model_path}))


def _names(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        return tuple(sorted({str(name) for name in value}))
    return None


@frozen
class Plan:
    """The calls that bring a worker closer to its ledger, in order. `blocked`: why it is not
    current after them, and needs outside action. `partial`: as of the state after them."""

    steps: tuple[Step, ...] = ()
    blocked: str | None = None
    partial: bool = field(default=False, eq=False)


def _sound(loras: tuple[Step, ...]) -> tuple[Step, ...]:
    """The LoRA steps without merges and unmerges that have no LoRA to act on."""
    found: list[Step] = []
    for step in loras:
        if step.path in SETS or any(s.covers(step) or step.covers(s) for s in found):
            found.append(step)
    return tuple(found)


@frozen
class Recipe:
    """At most one full disk update, then the latest partial update for each set of modules; and the
    LoRA calls, in which a later call for the same target replaces the earlier one.

    `opaque`: the version of the last change since the full update that cannot be repeated (tensors,
    or made past the router); 0: there is none.
    """

    base: tuple[Step, ...] = ()
    loras: tuple[Step, ...] = ()
    opaque: int = 0
    # The version of the last LoRA call, even if that call left nothing to replay.
    lora_version: int = 0

    @property
    def base_version(self) -> int:
        """The version of the last change of the weights themselves; 0: the weights of the start."""
        return max([self.opaque, *(step.version for step in self.base)])

    @property
    def is_full(self) -> bool:
        """Whether the recipe begins with an update of all modules."""
        return bool(self.base) and self.base[0].is_full

    def then(self, step: Step) -> Recipe:
        """The recipe with one more step."""
        if not step.is_lora:
            if step.is_full:
                return evolve(self, base=(step,), opaque=0, loras=self._without_pushed())
            kept = tuple(s for s in self.base if s.is_full or not step.covers(s))
            return evolve(self, base=(*kept, step))
        if step.path in SETS:
            kept = tuple(s for s in self.loras if not step.covers(s))
        else:  # what is set stays set; these calls only switch its effect
            kept = tuple(s for s in self.loras if s.path in SETS or not step.covers(s))
        return evolve(self, loras=_sound((*kept, step)), lora_version=step.version)

    def then_opaque(self, version: int, *, full: bool = False) -> Recipe:
        """The recipe with a change that cannot be repeated. `full`: it replaces all weights."""
        if not full:
            return evolve(self, opaque=version)
        return evolve(self, base=(), opaque=version, loras=self._without_pushed())

    def _without_pushed(self) -> tuple[Step, ...]:
        """The LoRA calls after a full update: no worker that can take one has a pushed LoRA, since
        its layers would be wrapped."""
        return _sound(tuple(step for step in self.loras if not step.is_pushed))

    @property
    def acting_loras(self) -> tuple[Step, ...]:
        """The LoRA calls that still act: all that a worker needs if it never had a LoRA."""
        gone: list[Step] = []
        found: list[Step] = []
        for step in reversed(self.loras):
            if step.path == UNMERGE:
                gone.append(step)
            elif not any(later.covers(step) for later in gone):
                found.append(step)
        return tuple(reversed(found))

    @property
    def repeatable(self) -> bool:
        """Whether a fresh worker can be brought to these weights."""
        return not self.opaque and not any(step.is_pushed for step in self.acting_loras)

    def plan(self, has: WeightState, model_path: str | None) -> Plan:
        """The plan for a worker of this state. `model_path`: the worker's own path."""
        base, missed = self._base_plan(has, model_path), self._missed_loras(has)
        if base.blocked is not None:
            return base
        loras, lost = missed, any(step.is_pushed for step in missed)
        if missed and (lost or not has.wrapped):
            loras = self.acting_loras
        if any(step.is_pushed for step in loras):
            why = "it lacks a pushed LoRA: set a LoRA, or take the LoRA out"
            return Plan(base.steps, blocked=why)
        first = taken_out((_ALL,)) if has.loras is None or (lost and has.wrapped) else ()
        steps = *first, *base.steps, *_effective(loras, bare=bool(first) or not has.wrapped)
        return Plan(steps, partial=loras != missed if missed else has.partial)

    def _base_plan(self, has: WeightState, model_path: str | None) -> Plan:
        known = has.base
        if has.doubt and self.base_version:
            known = None  # the process may be a fresh one
        steps = tuple(step for step in self.base if known is None or step.version > known)
        reset = known is None and not self.is_full
        if self.opaque and (known is None or known < self.opaque):
            return Plan(blocked="it lacks a change that cannot be repeated: update all weights")
        lacks = has.base is None or has.base < self.base_version
        if has.wrapped and lacks and (steps or reset):
            why = "it had a LoRA since its start, so that an update would miss some layers"
            return Plan(blocked=why)
        if reset:
            if model_path is None:
                why = "its weights are not known, nor where those of its start lie"
                return Plan(blocked=why)
            steps = (load_from(model_path), *steps)
        return Plan(steps)

    def _missed_loras(self, has: WeightState) -> tuple[Step, ...]:
        had = None if has.doubt else has.loras
        if had is not None and had >= self.lora_version:
            return ()
        begin = 0  # after the last pushed LoRA that it had
        for number, step in enumerate(self.loras, 1):
            if step.is_pushed and step.version <= (had or 0) and not has.partial:
                begin = number
        missed = self.loras[begin:]
        first = begin and any(step.path == UNMERGE for step in missed)
        return (*merged((_ALL,)), *missed) if first else missed

    def skips(self, path: str) -> bool:
        """Whether a worker with these weights may skip a call of this path, and still answer 200: a
        `set_lora` that equals its last one, or an unmerge of a LoRA that came as tensors."""
        if path == SET_LORA:
            plain = (SET_LORA, UNMERGE)
            return not all(s.path in plain and s.modules == (_ALL,) for s in self.loras)
        return path == UNMERGE and any(step.is_pushed for step in self.loras)


def merged(targets: tuple[str, ...]) -> tuple[Step, ...]:
    """The calls after which a worker knows of all that is merged, also of what came as tensors."""
    return tuple(_step_for(MERGE, target) for target in targets)


def taken_out(targets: tuple[str, ...]) -> tuple[Step, ...]:
    """The calls that take out whatever acts on these targets. The worker then skips no `set_lora`
    for them."""
    return (*merged(targets), *(_step_for(UNMERGE, target) for target in targets))


def _step_for(path: str, target: str) -> Step:
    # Optional: most workers have no LoRA.
    return Step(0, path, json.dumps({"target": target}), (target,), optional=True)


def _effective(loras: tuple[Step, ...], *, bare: bool) -> tuple[Step, ...]:
    """The LoRA calls, and those without which a worker may skip a `set_lora`. `bare`: no LoRA acts
    on the worker."""
    steps: list[Step] = []
    for step in loras:
        if step.path == SET_LORA and (steps or not bare):
            steps += taken_out(step.modules or (_ALL,))
        steps.append(step)
    return tuple(steps)


@frozen
class WeightState:
    """What is known of a worker's weights. A version of None means unknown.

    `base`: the worker has the changes of the weights up to this version; `loras`: the same for
    LoRAs. `wrapped`: the process had a LoRA since its start, or may have had one. `doubt`: the
    process may have been replaced by a fresh one, for which none of this holds. `partial`: of the
    LoRAs it has only those that acted, so that a merge may find too few.
    """

    base: int | None = 0
    loras: int | None = 0
    wrapped: bool = False
    doubt: bool = False
    partial: bool = False

    @property
    def is_bare(self) -> bool:
        """Whether the process never had a LoRA."""
        return not self.wrapped and self.loras is not None


FRESH = WeightState()
