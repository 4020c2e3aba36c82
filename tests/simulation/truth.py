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
DISTRIBUTED = "/update_weights_from_distributed"


@frozen
class Change:
    """A weight change that was sent. Its label is the path of what it loads."""

    label: str
    path: str
    targets: tuple[str, ...] | None = None
    refused: bool = False  # by every worker
    # What the trainer wants its version to be: a number, a number as a text, or its label.
    number: int | str | None = None
    full: bool = False  # tensors that are said to be all there are

    @property
    def whole(self) -> bool:
        return self.targets is None

    def applied(self, before: Weights) -> Weights:
        targets = None if self.targets is None else list(self.targets)
        return before.loaded(self.label, targets)

    def named(self) -> dict[str, Any]:
        """The fields that say which version it is to be."""
        if self.number == self.label:
            return {"weight_version": self.label}
        said = {} if self.number is None else {"weight_version": self.number}
        return {"label": self.label, **said}

    @property
    def least(self) -> int:
        """Its version is this one, or a greater one if the number was given as a text."""
        return 0 if self.number in (None, self.label) else int(self.number or 0)

    def content(self, *, named: bool = True) -> dict[str, Any]:
        found: dict[str, Any] = self.named() if named else {"label": self.label}
        if self.path == DISK:
            found["model_path"] = self.label
        else:
            found["serialized_named_tensors"] = [self.label]
        if self.full:
            found["full"] = True
        return found if self.targets is None else {**found, "target_modules": list(self.targets)}


@frozen
class Sample:
    """A generation that a client got. `floor`: the latest version that had been acknowledged
    before it was asked for, or a later one that it demands; `exact`: the one it demands."""

    request: str
    worker: str
    version: int
    floor: int
    weights: Weights
    exact: int | None = None
    run: int = 0  # of the trainer, at least this one: it had begun before the request


@define(eq=False)
class Truth:
    """What each version must look like, and how far it has come."""

    start: Weights = field(factory=Weights)  # of every process
    changes: dict[str, Change] = field(factory=dict)  # by label
    versions: dict[int, Change] = field(factory=dict)
    acknowledged: int = 0
    # Changes of which nobody knows yet whether they have a version: each by its label, with the
    # version below which it must lie if it has one, None while it may still get one.
    unsettled: dict[str, int | None] = field(factory=dict)
    open: dict[int, list[Sample]] = field(factory=dict)  # of versions not told of yet
    judged: Counter[int] = field(factory=Counter)
    # Runs of the trainer that were asked for, and that have surely begun. A run begins with version
    # 0, and numbers go on.
    asked: int = 0
    begun: int = 0
    bygone: int = 0  # the last version that was acknowledged in an earlier run
    # The first and the last run of which each change, by label, may be.
    earliest: dict[str, int] = field(factory=dict)
    latest: dict[str, int] = field(factory=dict)

    def ask_run(self) -> None:
        """Another run may begin from now on."""
        self.asked += 1
        self.bygone = max(self.bygone, self.acknowledged)
        self.acknowledged = 0

    def begin_run(self) -> None:
        """What was asked for last has begun."""
        self.begun = self.asked

    def is_current(self, change: Change) -> bool:
        """Whether the change is surely of the present run."""
        return self.earliest.get(change.label) == self.asked

    def sent(self, change: Change) -> Change:
        self.changes[change.label] = change
        self.unsettled[change.label] = None
        self.earliest.setdefault(change.label, self.begun)
        return change

    def refused(self, change: Change, last: int, floor: int) -> None:
        """The router says that the number of the change is not greater than the last one. `floor`:
        what was acknowledged before. Raises Wrong."""
        if not isinstance(change.number, int) or change.number > last or last < floor:
            raise Wrong(f"{change.label} was refused: {change.number!r} is not above {last}")
        del self.changes[change.label]  # no worker may have it
        self.unsettled.pop(change.label, None)

    def at_rest(self, version: int) -> None:
        """Nothing is under way, and this is the version: what is not known of yet lies before."""
        for label, before in self.unsettled.items():
            if before is None:
                self.unsettled[label] = version

    def answered(self, change: Change, told: Mapping[str, Any]) -> None:
        """The router has answered a change: what it says of its version holds from now on."""
        version, rows = told.get("weight_version"), told.get("results") or ()
        if any(200 <= row["status_code"] < 300 for row in rows):
            if not isinstance(version, int):
                raise Wrong(f"{change.label} was applied, and has no version: {told}")
            self.learn(version, change.label)
            self.acknowledge(version, change)
        if told.get("success") and not told.get("pending"):
            missing = [row for row in rows if not 200 <= row["status_code"] < 300]
            if missing or not rows:
                raise Wrong(f"{change.label} is said to be a success: {told}")

    def acknowledge(self, version: int, change: Change) -> None:
        if self.is_current(change):
            self.acknowledged = max(self.acknowledged, version)

    def learn(self, version: int, label: str | None) -> None:
        """The router says which change the version is."""
        if version == 0:
            return
        change = self.changes.get(label or "")
        if change is None:
            raise Wrong(f"version {version} is said to be {label!r}, which was never sent")
        if version < change.least or (isinstance(change.number, int) and version != change.number):
            raise Wrong(f"{change.label} wants to be {change.number!r}, and is {version}")
        self.unsettled.pop(change.label, None)
        self.latest.setdefault(change.label, self.asked)
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
        number = version
        while number:
            change = self.versions.get(number)
            if change is None:
                return None
            steps.append(change)
            if change.whole:
                break
            before = max((known for known in self.versions if known < number), default=0)
            if before != number - 1 and not self._jumped(before, change):
                return None
            if before:
                last = self.versions[before].label
                if self.latest[last] < self.earliest[change.label]:
                    break  # it is the first one of its run
                if self.earliest[last] < self.latest[change.label]:
                    return None
            number = before
        found = self.start
        for change in reversed(steps):
            found = change.applied(found)
        return found

    def _jumped(self, before: int, change: Change) -> bool:
        """Whether the change surely has the next version after this one."""
        between = [b for b in self.unsettled.values() if b is None or b > before]
        return change.least > before and not between

    def saw(self, sample: Sample) -> None:
        """A client got a sample."""
        for module in sample.weights.modules:
            if self.latest.get(module, sample.run) < sample.run:
                raise Wrong(f"{sample.request} was made by {module} of an earlier run")
        if sample.version < sample.floor and self.bygone < sample.floor:
            raise Wrong(
                f"a stale sample: {sample.request} of {sample.worker} says version "
                f"{sample.version}, and {sample.floor} had been acknowledged before"
            )
        if sample.exact not in (None, sample.version):
            raise Wrong(
                f"{sample.request} asked for version {sample.exact}, and got {sample.version}"
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


__all__ = ["DISK", "DISTRIBUTED", "MODULES", "TENSOR", "Change", "Sample", "Spy", "Truth"]
