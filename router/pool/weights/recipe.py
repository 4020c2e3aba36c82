"""What must be replayed on a fresh worker so that it is current, and in which order."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import evolve, frozen

DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"
SET_LORA = "/v1/set_lora"
MERGE, UNMERGE = "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"

_ALL = "all"


@frozen
class Step:
    """One call that brings a worker nearer to its ledger.

    `version`: of the entry that it belongs to. `modules`: those that a disk update loads (None:
    all); the targets of a LoRA call. `optional`: it may be refused by a worker on which no LoRA
    acts.
    """

    version: int
    path: str
    body: str  # JSON
    modules: tuple[str, ...] | None = None
    optional: bool = False

    @property
    def is_lora(self) -> bool:
        return self.path not in (DISK, TENSOR)

    @property
    def is_full(self) -> bool:
        """Whether it loads everything, so that nothing before it matters."""
        return self.path == DISK and self.modules is None

    @property
    def is_of_all(self) -> bool:
        """Whether it is about every module."""
        return self.modules is None or _ALL in self.modules

    def covers(self, other: Step) -> bool:
        """Whether nothing of the other is left after this one, both being of one kind."""
        if self.is_of_all:
            return True
        return set(other.modules or [_ALL]) <= set(self.modules or ())


def step_of(path: str, body: str, content: Mapping[str, Any], version: int = 0) -> Step:
    """The step that a change of this endpoint and body is."""
    if path == DISK:
        return Step(version, path, body, _names(content.get("target_modules")))
    return Step(version, path, body, _names(content.get("target")) or (_ALL,))


def load_from(model_path: str) -> Step:
    """A disk update of everything."""
    return Step(0, DISK, json.dumps({"model_path": model_path}))


def _names(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        return tuple(sorted({str(name) for name in value}))
    return None


@frozen
class Plan:
    """How a worker becomes current: these calls, in order. `blocked`: why that is not possible
    without somebody acting; then there are none."""

    steps: tuple[Step, ...] = ()
    blocked: str | None = None


def _sound(loras: tuple[Step, ...]) -> tuple[Step, ...]:
    """Without those that find nothing set that they could merge, or take out."""
    found: list[Step] = []
    for step in loras:
        if step.path == SET_LORA or any(s.covers(step) or step.covers(s) for s in found):
            found.append(step)
    return tuple(found)


@frozen
class Recipe:
    """At most one full disk update, then one later partial one for each set of modules; and the
    LoRA calls, of which a later one for the same target replaces the earlier.

    `opaque`: the version of the last change since the full update that cannot be repeated
    (tensors, or made past the router); 0: there is none.
    """

    base: tuple[Step, ...] = ()
    loras: tuple[Step, ...] = ()
    opaque: int = 0
    # Of the last LoRA call, which may have left none to replay.
    lora_version: int = 0

    @property
    def base_version(self) -> int:
        """Of the last change of the weights themselves; 0: those of the start."""
        return max([self.opaque, *(step.version for step in self.base)])

    @property
    def is_full(self) -> bool:
        """Whether it begins with an update of everything."""
        return bool(self.base) and self.base[0].is_full

    def then(self, step: Step) -> Recipe:
        """With one more step."""
        if not step.is_lora:
            if step.is_full:
                return evolve(self, base=(step,), opaque=0)
            kept = tuple(s for s in self.base if s.is_full or not step.covers(s))
            return evolve(self, base=(*kept, step))
        if step.path == SET_LORA:
            kept = tuple(s for s in self.loras if not step.covers(s))
        else:  # what is set stays set: this only says whether it acts
            kept = tuple(s for s in self.loras if s.path == SET_LORA or not step.covers(s))
        return evolve(self, loras=_sound((*kept, step)), lora_version=step.version)

    def then_opaque(self, version: int) -> Recipe:
        """With a change that cannot be repeated."""
        return evolve(self, opaque=version)

    @property
    def acting_loras(self) -> tuple[Step, ...]:
        """The LoRA calls that a worker needs which never had any: those that still act."""
        gone: list[Step] = []
        found: list[Step] = []
        for step in reversed(self.loras):
            if step.path == UNMERGE:
                gone.append(step)
            elif not any(later.covers(step) for later in gone):
                found.append(step)
        return tuple(reversed(found))

    def plan(self, has: WeightState, model_path: str | None) -> Plan:
        """What a worker of this state is to be sent. `model_path`: its own."""
        known = has.base
        if has.doubt and self.base_version:
            known = None  # fresh, or what it was
        steps = tuple(step for step in self.base if known is None or step.version > known)
        reset = known is None and not self.is_full
        if self.opaque and (known is None or known < self.opaque):
            return Plan(blocked="weights were changed in a way that cannot be repeated for it")
        lacks = has.base is None or has.base < self.base_version
        if has.wrapped and lacks and (steps or reset):
            why = "it had a LoRA since its start, so that an update would miss some layers"
            return Plan(blocked=why)
        if reset:
            if model_path is None:
                why = "its weights are not known, nor where those of its start lie"
                return Plan(blocked=why)
            steps = (load_from(model_path), *steps)
        anew = bool(self.loras) and self.loras[0].path == SET_LORA and self.loras[0].is_of_all
        first = (_UNMERGE_ALL,) if has.loras is None and not anew else ()
        return Plan((*first, *steps, *self._lora_plan(has)))

    def _lora_plan(self, has: WeightState) -> tuple[Step, ...]:
        if not has.doubt and has.loras is not None and has.loras >= self.lora_version:
            return ()
        return self.loras if has.wrapped or has.loras is None else self.acting_loras


# For a worker on which a LoRA may act though none should; most have none to take out.
_UNMERGE_ALL = Step(0, UNMERGE, json.dumps({"target": _ALL}), (_ALL,), optional=True)


@frozen
class WeightState:
    """What is known of the weights that a worker has. A version of None: nothing.

    `base`: up to which version it has the changes of the weights; `loras`: those of LoRAs.
    `wrapped`: it had a LoRA since its start, or may have had. `doubt`: it is not certain that
    this is still the process of which all this is known; if not, it is a fresh one.
    """

    base: int | None = 0
    loras: int | None = 0
    wrapped: bool = False
    doubt: bool = False


FRESH = WeightState()
