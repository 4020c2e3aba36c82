"""Whose weights the ledgers hold: the run of the trainer. Another run begins anew."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import ClassVar

from attrs import define, field, frozen

from .. import wall
from ..bus import Bus, Event
from ..pool.events import VersionIssued
from ..pool.weights import Ledger, Ledgers
from ..store.showing import lasting
from ..store.store import Store
from ..text import from_json

logger = logging.getLogger("router.control")


_ONLY = "last"  # the key of the only record


@frozen
class RunRecord:
    """What was said of runs. `started`: at the last start (`--run-id`). `run`: last, of all models;
    a model's own ledger may know better."""

    table: ClassVar[str] = "runs"
    started: str | None = None
    run: str | None = None

    @property
    def key(self) -> str:
        return _ONLY


@define(eq=False)
class Runs:
    """Begins anew with the weights of a model when the trainer's run changes.

    At a start only a name that differs from that of the start before says something new: a request
    may have named another run since, and a router that crashed must not undo that.
    """

    ledgers: Ledgers
    store: Store
    bus: Bus
    _said: RunRecord = field(init=False, factory=RunRecord)

    def start(self, run: str | None, *, fresh: bool = False) -> None:
        """The router starts for this run. `fresh`: begin anew in any case. Warns of all that would
        be replayed. Call this before any worker is added. Raises StateRefused."""
        self._said = self.store.restored(RunRecord).get(_ONLY, self._said)
        if run != self._said.started:
            self._say(run, run)
            self._begin(run, self.ledgers)
        self.ledgers.run = self._said.run
        for ledger in self.ledgers:
            if fresh:
                self.ledgers.begin_anew(ledger.model)
            if ledger.live:
                logger.warning(
                    "model %s: going on with weight version %d (%s)%s: workers that lack it get it"
                    " before they serve. For a new run give another --run-id, or --fresh-weights",
                    *(ledger.model, ledger.version, _what(ledger), _age(ledger)),
                )
        self.bus.subscribe(self._observe, VersionIssued)

    def state(self, run: str, model: str | None) -> list[str]:
        """A client names the run of one model, or of all. Returns the models that began anew."""
        if model is None:
            self._say(self._said.started, run)
            self.ledgers.run = run
        chosen = [ledger for ledger in self.ledgers if model in (ledger.model, None)]
        return self._begin(run, chosen or ([] if model is None else [self.ledgers.ledger(model)]))

    def ended(self, models: Iterable[str]) -> None:
        """All workers of these models have ended with the router. Without a run that could go on,
        the models begin anew."""
        for model in models:
            if self.ledgers.ledger(model).run is None:
                self.ledgers.begin_anew(model)

    def _say(self, started: str | None, run: str | None) -> None:
        self._said = RunRecord(started, run)
        self.store.put(self._said)

    def _begin(self, run: str | None, ledgers: Iterable[Ledger]) -> list[str]:
        begun: list[str] = []
        for ledger in ledgers:
            if ledger.run == run:
                continue
            before, ledger.run = ledger.run, run
            self.store.put(ledger)
            version = ledger.version
            if self.ledgers.begin_anew(ledger.model):
                logger.info(
                    "model %s: run %s begins anew after weight version %d of run %s",
                    *(ledger.model, run, version, before),
                )
                begun.append(ledger.model)
        return begun

    def _observe(self, event: Event) -> None:
        assert isinstance(event, VersionIssued)
        ledger = self.ledgers.ledger(event.model)
        ledger.at = wall.seconds()
        self.store.put(ledger)


def _what(ledger: Ledger) -> str:
    """What the ledger's version was loaded from, for people."""
    paths = [(from_json(step.body) or {}).get("model_path") for step in ledger.recipe.base]
    found = [str(path) for path in paths if path]
    return found[-1] if found else ledger.label or "no path"


def _age(ledger: Ledger) -> str:
    if ledger.at is None:
        return ""
    return f", issued {lasting(max(0.0, wall.seconds() - ledger.at))} ago"
