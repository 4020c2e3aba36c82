"""What must be true of every image: its pixels are those of the weights that its header names.

The judge knows all changes by their labels, hears every answer, and holds the versions that the
router has told of against what the images show. It does no I/O.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from simulated_worker.loras import Loras
from simulated_worker.pictures import expected_image, made_by
from simulated_worker.weights import identity_of

SIDE, PROMPT = 32, "chaos"


class Wrong(AssertionError):
    """Something that must never be."""


@frozen
class Paint:
    """What an image shows: the identities of its maker's weights and LoRA."""

    weights: str
    lora: str = ""


@define(eq=False)
class Change:
    """A weight change that was sent, or the weights of the start."""

    label: str
    path: str
    body: Mapping[str, Any]
    paint: Paint
    # Its answer never came: whether it happened is known to the router alone.
    lost: bool = False


@frozen
class Seen:
    """An image that a client got. `floor`: the latest version that had been acknowledged when it
    was asked for."""

    request: str
    worker: str
    version: int
    floor: int
    seed: int
    steps: int
    png: bytes

    def shows(self, paint: Paint) -> bool:
        """Whether it is, to the last pixel, what such weights make."""
        return self.png == expected_image(
            paint.weights,
            PROMPT,
            self.seed,
            width=SIDE,
            height=SIDE,
            steps=self.steps,
            lora=paint.lora,
        )

    @property
    def paint(self) -> Paint:
        """What it says of itself."""
        told = made_by(self.png)
        return Paint(told.get("weights", "?"), told.get("lora", "?"))


@define(eq=False)
class Model:
    """One model's weights: what each version must look like, and how far it has come."""

    name: str
    base: str  # the model path of the start
    changes: dict[str, Change] = field(init=False, factory=dict)  # by label
    versions: dict[int, Change] = field(init=False, factory=dict)
    acknowledged: int = field(init=False, default=0)
    # Images of versions that nobody has told of yet.
    open: dict[int, list[Seen]] = field(init=False, factory=dict)
    proven: Counter[int] = field(init=False, factory=Counter)  # images by version

    def __attrs_post_init__(self) -> None:
        start = Change("start", "", {}, Paint(identity_of(self.base, "T2I")))
        self.changes[start.label] = self.versions[0] = start

    def disk(self, label: str, model_path: str) -> Change:
        """A disk update of everything."""
        body = {"model_path": model_path, "label": label}
        paint = Paint(identity_of(model_path, "T2I") if _loads(model_path) else "refused")
        return self._sent(Change(label, "/update_weights_from_disk", body, paint))

    def lora(self, label: str, lora_path: str, strength: float = 1.0) -> Change:
        """An adapter in place of the one before."""
        body = {
            "lora_nickname": label,
            "lora_path": lora_path,
            "strength": strength,
            "label": label,
        }
        lora = "refused"
        if _loads(lora_path):
            worn = Loras()
            worn.set([label], [lora_path], ["all"], [strength], None)
            lora = worn.identity
        paint = Paint(self.versions[0].paint.weights, lora)
        return self._sent(Change(label, "/v1/set_lora", body, paint))

    def bare(self, label: str) -> Change:
        """No adapter acts any more."""
        body = {"target": "all", "label": label}
        paint = Paint(self.versions[0].paint.weights)
        return self._sent(Change(label, "/v1/unmerge_lora_weights", body, paint))

    def _sent(self, change: Change) -> Change:
        self.changes[change.label] = change
        return change

    def answered(self, change: Change, body: Mapping[str, Any]) -> None:
        """The router has answered a change: what it says of its version holds from now on."""
        version, rows = body.get("weight_version"), body.get("results") or ()
        if any(200 <= row["status_code"] < 300 for row in rows):
            if not isinstance(version, int):
                raise Wrong(f"{change.label} was applied, and has no version: {body}")
            self.learn(version, change.label)
            self.acknowledged = max(self.acknowledged, version)
        elif not rows:
            change.lost = True  # pending: it comes about when somebody wakes, and is told then

    def learn(self, version: int, label: str | None) -> None:
        """The router says which change the version is."""
        change = self.changes.get(label or "start")
        if change is None:
            raise Wrong(f"{self.name}: version {version} is said to be {label!r}, never sent")
        known = self.versions.setdefault(version, change)
        if known is not change:
            raise Wrong(f"{self.name}: version {version} is {known.label} and then {change.label}")
        for seen in self.open.pop(version, ()):
            self._prove(seen, known)

    def saw(self, seen: Seen) -> None:
        """A client got an image."""
        if seen.version < seen.floor:
            raise Wrong(
                f"a stale image: version {seen.version} though {seen.floor} had been "
                f"acknowledged before it was asked for{self._tell(seen)}"
            )
        if seen.version in self.versions:
            self._prove(seen, self.versions[seen.version])
        else:
            self.open.setdefault(seen.version, []).append(seen)

    def settle(self) -> None:
        """At the end: versions that nobody told of must be those of changes whose answers were
        lost, the same for all images."""
        for version, images in sorted(self.open.items()):
            paint = images[0].paint
            lost = [c for c in self.changes.values() if c.lost and c.paint == paint]
            if not lost:
                raise Wrong(
                    f"version {version} was never told of, and is none of the changes whose "
                    f"answers were lost{self._tell(images[0])}"
                )
            for seen in images:
                self._prove(seen, lost[0])
        self.open.clear()

    def _prove(self, seen: Seen, change: Change) -> None:
        if not seen.shows(change.paint):
            raise Wrong(
                f"not the pixels of version {seen.version}, {change.label}{self._tell(seen)}"
            )
        self.proven[seen.version] += 1

    def _tell(self, seen: Seen) -> str:
        shown = seen.paint
        labels = [c.label for c in self.changes.values() if c.paint == shown]
        return (
            f"\n  model {self.name}, request {seen.request}, worker {seen.worker}, "
            f"X-Weight-Version {seen.version}\n  it shows {shown}: "
            f"{', '.join(labels) or 'no change that was ever sent'}"
        )


def _loads(path: str) -> bool:
    return not path.startswith("/nonexistent")
