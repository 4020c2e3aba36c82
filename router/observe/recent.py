"""What happened in the last 15 minutes: counters of fixed size, for charts."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Collection
from typing import Any

import trio
from attrs import define, field

from .. import wall
from ..bus import Bus
from ..front.record import ExchangeEnded
from ..pool import events
from ..pool.pools import pool_and_model
from ..pool.worker import HoldKind, Weights, Worker

STEP = 10.0  # seconds
STEPS = 90
_MOST_REFITS = 60
_GROWTH = math.log(1.1)  # of the classes of times: a percentile is off by 5 % at most
_LEFT = ("client_gone", "client_send_timeout", "cancelled")  # neither done nor an error


@define(eq=False)
class _Step:
    number: int  # counts steps of trio's clock
    done: int = 0  # generations answered well, and jobs that have ended
    errors: int = 0  # generations and submissions that got a 5xx, or whose answer broke off
    waiting: int = 0  # the most requests that waited for a worker
    times: Counter[int] = field(factory=Counter)  # of what was done, by class

    def note(self, seconds: float) -> None:
        self.done += 1
        self.times[round(math.log(max(seconds, 0.001)) / _GROWTH)] += 1

    def percentile(self, share: float) -> float | None:
        """Seconds within which this share was done; None if nothing was."""
        left = share * self.done
        for kind in sorted(self.times):
            left -= self.times[kind]
            if left <= 0:
                return round(math.exp(kind * _GROWTH), 4)
        return None

    def row(self) -> list[float | None]:
        told = self.percentile(0.5), self.percentile(0.99)
        return [self.number, self.done, self.errors, self.waiting, *told]


@define(eq=False)
class _Refit:
    ledger: str
    began: float  # seconds since 1970
    ended: float | None = None
    version: int | None = None
    label: str | None = None
    workers: set[str] = field(factory=set)
    failed: int = 0
    under_way: set[Worker] = field(factory=set)

    def row(self) -> dict[str, Any]:
        pool, model = pool_and_model(self.ledger)
        return {
            "model": model,
            "pool": pool,
            "began": round(self.began, 2),
            "ended": None if self.ended is None else round(self.ended, 2),
            "weight_version": self.version,
            "label": self.label,
            "workers": len(self.workers),
            "failed": self.failed,
        }


class Recent:
    """Counts what is done, what fails and what waits, and remembers the last refits.

    `generations` and `submissions` are the routes of requests for workers, `waiting` is the present
    length of the queue, `ledger_of` names the ledger of a worker.
    """

    def __init__(
        self,
        bus: Bus,
        generations: Collection[str],
        submissions: Collection[str],
        waiting: Callable[[], int],
        ledger_of: Callable[[Worker], str | None],
    ) -> None:
        self._counted = {**dict.fromkeys(submissions, False), **dict.fromkeys(generations, True)}
        self._waiting, self._ledger_of = waiting, ledger_of
        self._steps: deque[_Step] = deque(maxlen=STEPS)
        self._refits: deque[_Refit] = deque(maxlen=_MOST_REFITS)
        self._open: dict[str, _Refit] = {}
        bus.subscribe(self._ended, ExchangeEnded)
        bus.subscribe(self._freed, events.SlotFreed)
        bus.subscribe(self._queued, events.Queued)
        bus.subscribe(self._weights, events.FacetChanged, events.WorkerRemoved)
        bus.subscribe(self._issued, events.VersionIssued)

    def series(self, since: int = 0) -> dict[str, Any]:
        """The steps from number `since` on, the last one unfinished. `at` is its beginning, in
        seconds since 1970. A row: number, done, errors, waiting, p50 and p99 in seconds."""
        last = self._now().number
        at = wall.seconds() - (trio.current_time() - last * STEP)
        rows = [step.row() for step in self._steps if step.number >= since]
        return {"step_seconds": STEP, "last": last, "at": round(at, 1), "steps": rows}

    def refits(self) -> list[dict[str, Any]]:
        """The last refits, the oldest first."""
        return [refit.row() for refit in self._refits]

    def _now(self) -> _Step:
        """The present step. The queue has not changed in those that nobody noted."""
        number, waiting = int(trio.current_time() / STEP), self._waiting()
        last = self._steps[-1].number if self._steps else number - 1
        for skipped in range(max(last, number - STEPS) + 1, number + 1):
            self._steps.append(_Step(skipped))
            self._steps[-1].waiting = waiting
        step = self._steps[-1]
        step.waiting = max(step.waiting, waiting)
        return step

    def _ended(self, event: ExchangeEnded) -> None:
        record = event.record
        counts = self._counted.get(record.route)
        if counts is None or record.method != "POST":
            return
        step, status = self._now(), record.status
        if record.code in _LEFT:
            return
        if status is None or status >= 500 or (record.code is not None and status < 400):
            step.errors += 1
        elif counts and status < 400 and record.answered is not None:
            step.note(record.answered - record.arrived)

    def _queued(self, _: events.Queued) -> None:
        self._now()

    def _freed(self, event: events.SlotFreed) -> None:
        hold, worker = event.hold, event.worker
        lost = worker.removed or hold.incarnation != worker.incarnation
        if hold.kind is HoldKind.JOB and not lost:
            self._now().note(trio.current_time() - hold.since)

    def _weights(self, event: events.Event) -> None:
        worker = event.worker
        match event:
            case events.FacetChanged(facet="weights", new=Weights.UPDATING):
                ledger = self._ledger_of(worker) or ""
                refit = self._open.get(ledger)
                if refit is None:
                    refit = self._open[ledger] = _Refit(ledger, wall.seconds())
                    self._refits.append(refit)
                refit.workers.add(worker.url)
                refit.under_way.add(worker)
            case events.FacetChanged(facet="weights", old=Weights.UPDATING, new=new):
                self._over(worker, failed=new is not Weights.CURRENT)
            case events.WorkerRemoved():
                self._over(worker, failed=True)

    def _over(self, worker: Worker, *, failed: bool) -> None:
        for ledger, refit in list(self._open.items()):
            if worker in refit.under_way:
                refit.under_way.remove(worker)
                refit.failed += failed
                if not refit.under_way:
                    refit.ended = wall.seconds()
                    del self._open[ledger]

    def _issued(self, event: events.VersionIssued) -> None:
        refit = self._open.get(event.model)
        if refit is None:  # stated by a client, or all workers slept
            refit = _Refit(event.model, wall.seconds(), wall.seconds())
            self._refits.append(refit)
        refit.version, refit.label = event.version, event.label
