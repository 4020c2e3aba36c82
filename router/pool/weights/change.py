"""One change of weights, from its beginning until it stands or is void."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from attrs import define, field

from ...text import from_json
from .recipe import DISK, TENSOR, Recipe, Step, step_of
from .records import ChangeRecord


class Kind(StrEnum):
    """What a change changes, and whether it can be repeated."""

    DISK = "disk"
    LORA = "lora"
    TENSOR = "tensor"
    TRANSACTION = "transaction"  # `POST /weights/begin` to commit


@define(eq=False)
class Change:
    """One change on the workers of one model.

    `body`: as JSON text; None where it cannot be repeated.
    """

    change_id: str
    model: str
    number: int
    path: str
    body: str | None
    label: str | None
    content: Mapping[str, Any] = field(factory=dict, repr=False)
    workers: tuple[str, ...] = ()
    # Issued at its first success.
    version: int | None = None
    # One that clients may have been told though it did not come to the disk.
    told: int | None = None
    # What the ledger was when that came.
    before: Recipe | None = None
    error: str | None = None  # the last refusal, for people
    over: bool = False
    # The steps of a transaction, whose calls are sent one by one.
    steps: list[Step] = field(factory=list)
    opaque: bool = False

    @property
    def kind(self) -> Kind:
        if self.path == DISK:
            return Kind.DISK
        if self.path == TENSOR:
            return Kind.TENSOR
        return Kind.LORA if self.path else Kind.TRANSACTION

    @property
    def name(self) -> str:
        """What people call it."""
        return self.label or self.path or "a transaction"

    @property
    def has_lora(self) -> bool:
        """Whether a part of it is a LoRA call."""
        return self.kind is Kind.LORA or any(step.is_lora for step in self.steps)

    @property
    def is_full(self) -> bool:
        """Whether it sets all weights, whatever they were before."""
        return self.kind is Kind.DISK and self.step(0).is_full

    def step(self, version: int) -> Step:
        """The step that it is in the ledger."""
        return step_of(self.path, self.body or "{}", self.content, version)

    def applied_to(self, recipe: Recipe, version: int) -> Recipe:
        """The recipe after it."""
        if self.kind is Kind.TENSOR:
            return recipe.then_opaque(version)
        if self.kind is Kind.TRANSACTION:
            for step in self.steps:
                recipe = recipe.then(Step(version, step.path, step.body, step.modules))
            return recipe.then_opaque(version) if self.opaque or not self.steps else recipe
        return recipe.then(self.step(version))

    def record(self, *, pending: bool) -> ChangeRecord:
        return ChangeRecord(
            self.change_id,
            self.model,
            self.number,
            self.path,
            self.body,
            self.label,
            self.workers,
            pending,
        )


def label_of(path: str, content: Mapping[str, Any]) -> str | None:
    """What people call the change: the label in its body, else the path that it loads."""
    for name in ("weight_version", "label", "model_path", "lora_nickname"):
        value = content.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
        if isinstance(value, list) and value:
            return ", ".join(map(str, value))
    return "tensors" if path == TENSOR else None


def restored(record: ChangeRecord) -> Change:
    """The change of a record."""
    content = from_json(record.body) if record.body else {}
    return Change(
        record.change_id,
        record.model,
        record.number,
        record.path,
        record.body,
        record.label,
        content if isinstance(content, dict) else {},
        record.workers,
    )
