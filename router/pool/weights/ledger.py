"""One model's ledger and its changes, and their storage.

The store keeps these objects by the fields that `init` accepts, and takes a copy. Fields with
`init=False` are known to this process only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from attrs import define, field, frozen

from ...text import LONGEST_LABEL, from_json
from .numbers import number_of
from .recipe import DISK, MERGE, PUSHES, SETS, TENSOR, UPDATES, Recipe, Step, step_of

_MOST_LABELS = 100  # that requests can name
_MOST_FORMER = 100  # versions


@define(eq=False)
class Change:
    """One change on the workers of one model, from its beginning until it is issued or void.

    The store keeps it while it is under way, and while it waits for its workers (`pending`).
    """

    table: ClassVar[str] = "changes"

    change_id: str
    model: str
    number: int  # in order of arrival
    path: str
    body: str | None  # JSON; None if the change cannot be repeated: tensors, or many calls
    label: str | None
    workers: tuple[str, ...] = ()  # URLs of the workers that it runs on or waits for
    pending: bool = False
    chosen: int | None = None  # the number that the client wants for the version
    digest: str | None = None  # equal for requests of the same; None if they cannot be compared
    # An update of tensors that pushes a LoRA, or a transaction with LoRA calls.
    lora: bool = False
    only_lora: bool = False  # a transaction that leaves the weights themselves alone
    # `version` is issued at the first success; `before` is the recipe at that moment.
    version: int | None = field(init=False, default=None)
    before: Recipe | None = field(init=False, default=None)
    # A version that clients may have seen although it never reached the disk.
    seen_version: int | None = field(init=False, default=None)
    error: str | None = field(init=False, default=None)  # the last refusal, for people
    over: bool = field(init=False, default=False)
    # It began in an earlier run of the trainer, and gets no version any more.
    outdated: bool = field(init=False, default=False)
    # Issued as a repetition of the change that made the version before.
    again: bool = field(init=False, default=False)
    full: bool = field(init=False, default=False)  # its tensors replace all weights, or all LoRAs
    # The steps of a transaction, which sends its calls one by one.
    steps: list[Step] = field(init=False, factory=list)
    opaque: bool = field(init=False, default=False)

    @property
    def key(self) -> str:
        return self.change_id

    @property
    def content(self) -> Mapping[str, Any]:
        """The fields of the body."""
        content = from_json(self.body) if self.body else None
        return content if isinstance(content, dict) else {}

    @property
    def is_transaction(self) -> bool:
        """Whether the change consists of several calls, from `POST /weights/begin` to commit."""
        return not self.path

    @property
    def is_lora(self) -> bool:
        """Whether the change is of LoRAs only, and leaves the weights themselves alone."""
        if self.path == TENSOR:
            return self.lora
        return self.only_lora if self.is_transaction else self.path not in UPDATES

    @property
    def name(self) -> str:
        """The name for people."""
        return self.label or self.path or "a transaction"

    @property
    def kind(self) -> str:
        """What the change is: `disk`, `tensor`, `collective`, `lora` or `transaction`."""
        if self.is_transaction:
            return "transaction"
        if self.is_lora:
            return "lora"
        return {DISK: "disk", TENSOR: "tensor"}.get(self.path, "collective")

    @property
    def has_lora(self) -> bool:
        """Whether a part of the change is a LoRA call."""
        return self.is_lora or any(step.is_lora for step in self.steps)

    @property
    def wraps(self) -> bool:
        """Whether its LoRA calls wrap layers: a merge or unmerge alone wraps nothing."""
        if self.is_transaction:
            return self.only_lora or any(s.is_lora and s.path in SETS for s in self.steps)
        return self.is_lora and self.path in SETS

    @property
    def merges(self) -> bool:
        """Whether one of its calls makes all act that was set for its target."""
        return MERGE in (self.path, *(step.path for step in self.steps))

    @property
    def replaces_loras(self) -> bool:
        """Whether its LoRA leaves nothing of those before it."""
        return self.is_lora and self.path in SETS and self.step(0).is_of_all

    @property
    def is_full(self) -> bool:
        """Whether the change sets all weights, whatever they were before."""
        return (self.full and not self.lora) or (self.path == DISK and self.step(0).is_full)

    @property
    def vouches(self) -> bool:
        """Whether each worker that took the change has all weights of its version, whatever it had
        before: the trainer of a transaction answers for that, unless all its calls add a part that
        can be repeated."""
        whole = self.opaque or not self.steps or any(step.is_full for step in self.steps)
        return self.is_transaction and whole

    def step(self, version: int) -> Step:
        """The step of the change in the ledger."""
        return step_of(self.path, self.body or "{}", self.content, version)

    def applied_to(self, recipe: Recipe, version: int) -> Recipe:
        """The recipe after the change."""
        if self.path in PUSHES and not self.lora:
            return recipe.then_opaque(version, full=self.full)
        if self.is_transaction:
            for step in self.steps:
                recipe = recipe.then(Step(version, step.path, step.body, step.modules))
            return recipe.then_opaque(version) if self.opaque or not self.steps else recipe
        return recipe.then(self.step(version))


def label_of(path: str, content: Mapping[str, Any]) -> str | None:
    """The label for people: the label in the body, else the path or LoRA that the change loads."""
    names = ["weight_version", "label", "model_path", "lora_nickname"]
    if number_of(content.get("weight_version")) is not None:
        names.insert(0, "label")  # says more than the number, which is shown anyway
    for name in names:
        value = content.get(name)
        if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
            return str(value)
        if isinstance(value, list) and value:
            return ", ".join(map(str, value))
    return "tensors" if path == TENSOR else None


@define(eq=False)
class Ledger:
    """The weight changes of one model."""

    table: ClassVar[str] = "ledgers"

    model: str
    version: int = 0  # the current version, 0 before the first change
    issued: int = 0  # the highest number ever issued
    label: str | None = None
    recipe: Recipe = field(factory=Recipe)
    last_error: str | None = None  # of a void change; a success of a later change clears it
    # Versions up to this number come from before a reset and have nothing to do with the recipe.
    since: int = 0
    made: str | None = None  # the digest of the change that made the current version
    labels: dict[str, int] = field(factory=dict)  # the last ones, and the newest version with each
    run: str | None = None  # the trainer's run that the versions belong to; None: not known
    at: float | None = None  # when the current version was issued, in wall-clock seconds
    # The last versions before the current one, in order of issue. They need not outlive the router:
    # after its restart only the current version serves.
    former: list[int] = field(init=False, factory=list)
    # Changes that no worker could take yet, in order of arrival; they come before any other change.
    pending: list[Change] = field(init=False, factory=list)
    void: int = field(init=False, default=0)  # the number of the change that `last_error` is about

    @property
    def key(self) -> str:
        return self.model

    @property
    def live(self) -> bool:
        """Whether there was a change, or one is pending; until then nothing is gated."""
        return self.version > 0 or bool(self.pending)

    def lag(self, version: int) -> int | None:
        """How many versions were issued after this one; None if the ledger does not know it, or not
        any more."""
        issued = [self.version, *reversed(self.former)]
        return issued.index(version) if version in issued else None

    def name(self, label: str | None) -> None:
        """Give the current version a label, or none."""
        self.label = label
        if label is not None and len(label) <= LONGEST_LABEL:  # a path may be longer
            kept = {one: version for one, version in self.labels.items() if one != label}
            some = list(kept.items())[1 - _MOST_LABELS :]
            self.labels = {**dict(some), label: self.version}

    def labelled(self, label: str) -> int | None:
        """The newest version with this label, if it is among the last ones."""
        return self.version if label == self.label else self.labels.get(label)

    @property
    def promised(self) -> int:
        """The highest number that is issued, once all pending changes are."""
        last = self.issued
        for change in self.pending:
            last = max(last + 1, change.chosen or 0, change.seen_version or 0)
        return last

    def repeats(self, change: Change) -> bool:
        """Whether the change is the one that made the current version, sent again."""
        same = change.digest is not None and change.digest == self.made
        return same and change.chosen == self.version == self.issued

    def takes(self, change: Change) -> bool:
        """Whether the change would get the number that its client chose."""
        return (change.chosen or 0) > self.issued or self.repeats(change)

    @property
    def due(self) -> Change | None:
        """The pending change that is made next: the last full update, because its success makes
        the updates before it pointless. They stay until then, in case that it is void. LoRA calls
        come last: updates would pass over the layers that they wrap."""
        updates = [change for change in self.pending if not change.has_lora]
        full = [change for change in updates if change.is_full]
        return next(iter((*full[-1:], *updates, *self.pending)), None)

    def before(self, change: Change) -> list[Change]:
        """The pending updates that a pending one would overtake, and replace."""
        return [one for one in self._overtaken(change) if not one.has_lora]

    def _overtaken(self, change: Change) -> list[Change]:
        return self.pending[: self.pending.index(change)] if change in self.pending else []

    def give_up(self, change: Change) -> None:
        """The change is void. No other gets its number, if clients may have seen it."""
        self.pending = [other for other in self.pending if other is not change]
        self.issued = max(self.issued, change.seen_version or 0)

    def enter(self, change: Change) -> list[Change]:
        """Make the change the current version, with the next number or the one that its client
        chose. Returns the pending changes that it replaces."""
        change.before, replaced = self.recipe, self.before(change)
        loras = [other for other in self._overtaken(change) if other.has_lora]
        if loras and change.chosen is not None:
            # The client means the weights with these LoRAs, and nothing is served before.
            loras[-1].chosen, change.chosen = change.chosen, None
        for other in replaced:
            # Clients may expect a version with its number, or a later one.
            self.issued = max(self.issued, other.chosen or 0, other.seen_version or 0)
        self.pending = [c for c in self.pending if c is not change and c not in replaced]
        change.again = self.repeats(change)
        if change.chosen is not None and self.takes(change):
            self.issued = change.chosen
        else:
            seen = {other.seen_version for other in self.pending}
            self.issued += 1
            while self.issued in seen:
                self.issued += 1
        if not change.again:
            self.former = [*self.former, self.version][-_MOST_FORMER:]
        change.version = self.version = self.issued
        self.made = change.digest
        self.name(change.label)
        self.recipe = change.applied_to(self.recipe, change.version)
        if change.number > self.void:
            self.last_error = None
        return replaced


@frozen
class WeightRecord:
    """What one worker has of its model's ledger; see `WeightState`."""

    table: ClassVar[str] = "weights"

    url: str
    model: str | None
    base: int | None
    loras: int | None
    wrapped: bool
    doubt: bool = False  # whether the rest of the record may describe another process

    @property
    def key(self) -> str:
        return self.url


StoredRow = Ledger | WeightRecord | Change


class WeightStore(Protocol):
    """The store that keeps the rows."""

    def put(self, record: StoredRow) -> None:
        """Store a copy in place of the row with the same key."""
        ...

    def delete(self, kind: type[StoredRow], key: str) -> None:
        """Drop the row if it exists."""
        ...
