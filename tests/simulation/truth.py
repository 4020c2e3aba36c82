"""What must be true of every sample, and of what the router has acknowledged. Does no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from attrs import define, field, frozen

from router.pool import events
from router.pool.registry import Registry
from router.pool.worker import Worker
from tests.simulation.universe import Universe, Wrong
from tests.simulation.worker import MODEL, MODULES, Weights

DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"


@frozen
class Change:
    """A weight change that was sent. Its label is the path of what it loads."""

    label: str
    path: str
    targets: tuple[str, ...] | None = None
    refused: bool = False  # by every worker

    @property
    def whole(self) -> bool:
        return self.targets is None

    def applied(self, before: Weights) -> Weights:
        targets = None if self.targets is None else list(self.targets)
        return before.loaded(self.label, targets)

    def content(self) -> dict[str, Any]:
        found: dict[str, Any] = {"label": self.label}
        if self.path == DISK:
            found["model_path"] = self.label
        else:
            found["serialized_named_tensors"] = [self.label]
        return found if self.targets is None else {**found, "target_modules": list(self.targets)}


@frozen
class Sample:
    """A generation that a client got. `floor`: the latest version that had been acknowledged
    before it was asked for."""

    request: str
    worker: str
    version: int
    floor: int
    weights: Weights


@define(eq=False)
class Truth:
    """What each version must look like, and how far it has come."""

    changes: dict[str, Change] = field(factory=dict)  # by label
    versions: dict[int, Change] = field(factory=dict)
    acknowledged: int = 0
    open: dict[int, list[Sample]] = field(factory=dict)  # of versions not told of yet
    judged: Counter[int] = field(factory=Counter)

    def sent(self, change: Change) -> Change:
        self.changes[change.label] = change
        return change

    def answered(self, change: Change, told: Mapping[str, Any]) -> None:
        """The router has answered a change: what it says of its version holds from now on."""
        version, rows = told.get("weight_version"), told.get("results") or ()
        if any(200 <= row["status_code"] < 300 for row in rows):
            if not isinstance(version, int):
                raise Wrong(f"{change.label} was applied, and has no version: {told}")
            self.learn(version, change.label)
            self.acknowledge(version)
        if told.get("success") and not told.get("pending"):
            missing = [row for row in rows if not 200 <= row["status_code"] < 300]
            if missing or not rows:
                raise Wrong(f"{change.label} is said to be a success: {told}")

    def acknowledge(self, version: int) -> None:
        self.acknowledged = max(self.acknowledged, version)

    def learn(self, version: int, label: str | None) -> None:
        """The router says which change the version is."""
        if version == 0:
            return
        change = self.changes.get(label or "")
        if change is None:
            raise Wrong(f"version {version} is said to be {label!r}, which was never sent")
        known = self.versions.setdefault(version, change)
        if known is not change:
            raise Wrong(f"version {version} is {known.label} and then {change.label}")
        for number in sorted(self.open):
            if number >= version and self.state(number) is not None:
                for sample in self.open.pop(number):
                    self._judge(sample)

    def told(self, ledger: Mapping[str, Any]) -> None:
        """What `GET /weights` says of the model: nothing that was acknowledged is lost."""
        version = ledger["weight_version"]
        if version < self.acknowledged:
            raise Wrong(f"version {self.acknowledged} was acknowledged, and now it is {version}")
        for step in ledger["replay"]:
            label = step["body"].get("model_path")
            if label in self.changes:
                self.learn(step["weight_version"], label)
        self.learn(version, ledger["label"])

    def state(self, version: int) -> Weights | None:
        """What workers of this version generate with; None while that is not known."""
        steps: list[Change] = []
        for number in range(version, 0, -1):
            change = self.versions.get(number)
            if change is None:
                return None
            steps.append(change)
            if change.whole:
                break
        found = Weights()
        for change in reversed(steps):
            found = change.applied(found)
        return found

    def saw(self, sample: Sample) -> None:
        """A client got a sample."""
        if sample.version < sample.floor:
            raise Wrong(
                f"a stale sample: {sample.request} of {sample.worker} says version "
                f"{sample.version}, and {sample.floor} had been acknowledged before"
            )
        if self.state(sample.version) is None:
            self.open.setdefault(sample.version, []).append(sample)
        else:
            self._judge(sample)

    def _judge(self, sample: Sample) -> None:
        expected = self.state(sample.version)
        if sample.weights != expected:
            raise Wrong(
                f"{sample.request} of {sample.worker} says version {sample.version}, which is "
                f"{expected}, and was made by {sample.weights}"
            )
        self.judged[sample.version] += 1

    def settle(self) -> None:
        """At the end: samples of versions that nobody told of are at least of changes that were
        sent."""
        for samples in self.open.values():
            for sample in samples:
                for module in sample.weights.modules:
                    if module != MODEL and module not in self.changes:
                        raise Wrong(f"{sample.request} was made by {module!r}, never sent")
        self.open.clear()


@define
class Spy:
    """Hears the registry of one life after all others: what happens comes to all in order."""

    universe: Universe
    # The facets of each worker; None: it is gone.
    heard: dict[Worker, dict[str, str] | None] = field(factory=dict)

    def begin(self, registry: Registry) -> None:
        self.heard = {worker: {} for worker in registry}
        registry.subscribe(self._hear)

    def _hear(self, event: events.Event) -> None:
        worker = getattr(event, "worker", None)
        if isinstance(event, events.WorkerAdded):
            self.heard[event.worker] = {}
        elif worker is not None and self.heard.get(worker) is None:
            missed = "was removed before" if worker in self.heard else "was not added yet"
            if not isinstance(event, events.FacetChanged):
                return
            self.universe.wrong = f"{worker.url} {missed}: {event}"
        elif isinstance(event, events.WorkerRemoved):
            self.heard[event.worker] = None
        elif isinstance(event, events.FacetChanged):
            facets = self.heard[event.worker]
            if facets is not None and facets.setdefault(event.facet, event.old) != event.old:
                self.universe.wrong = f"{event} follows another value of the facet: {facets}"
            if facets is not None:
                facets[event.facet] = event.new


__all__ = ["DISK", "MODULES", "TENSOR", "Change", "Sample", "Spy", "Truth"]
