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

STEP = 10.0  # seconds
STEPS = 90
_MOST_REFITS = 60
_GROWTH = math.log(1.1)  # of the classes of times: a percentile is off by 5 % at most
_LEFT = ("client_gone", "client_send_timeout", "cancelled")  # neither done nor an error


@define(eq=False)
class _Step:
    number: int  # counts steps of trio's clock
    done: int = 0  # generations answered well, and jobs that have ended
    errors: int = 0  # 5xx, answers that broke off, and jobs that failed
    waiting: int = 0  # the most requests that waited for a worker at once
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
    kind: str
    workers: int
    began: float  # seconds since 1970
    ended: float | None = None
    version: int | None = None
    label: str | None = None
    failed: int = 0

    def row(self) -> dict[str, Any]:
        pool, model = pool_and_model(self.ledger)
        return {
            "model": model,
            "pool": pool,
            "kind": self.kind,
            "began": round(self.began, 2),
            "ended": None if self.ended is None else round(self.ended, 2),
            "weight_version": self.version,
            "label": self.label,
            "workers": self.workers,
            "failed": self.failed,
        }


class Recent:
    """Counts what is done, what fails and what waits, and remembers the last refits.

    `generations` and `submissions` are the routes of requests for workers, `waiting` is the present
    length of the queue.
    """

    def __init__(
        self,
        bus: Bus,
        generations: Collection[str],
        submissions: Collection[str],
        waiting: Callable[[], int],
    ) -> None:
        self._counted = {**dict.fromkeys(submissions, False), **dict.fromkeys(generations, True)}
        self._waiting = waiting
        self._steps: deque[_Step] = deque(maxlen=STEPS)
        self._refits: deque[_Refit] = deque(maxlen=_MOST_REFITS)
        self._open: dict[str, _Refit] = {}  # by their ids
        bus.subscribe(self._ended, ExchangeEnded)
        bus.subscribe(self._job, events.JobEnded)
        bus.subscribe(self._queued, events.Queued)
        bus.subscribe(self._began, events.RefitBegan)
        bus.subscribe(self._over, events.RefitEnded)
        bus.subscribe(self._issued, events.VersionIssued)

    def series(self, since: int = 0) -> dict[str, Any]:
        """The steps from number `since` on, the last one unfinished. `at` is its beginning, in
        seconds since 1970. A row: number, done, errors, waiting, p50 and p99 in seconds."""
        last = self._at(trio.current_time()).number
        at = wall.seconds() - (trio.current_time() - last * STEP)
        rows = [step.row() for step in self._steps if step.number >= since]
        return {"step_seconds": STEP, "last": last, "at": round(at, 1), "steps": rows}

    def refits(self) -> list[dict[str, Any]]:
        """The last refits, the oldest first."""
        return [refit.row() for refit in self._refits]

    async def run(self) -> None:
        """Begin each step in time, with the queue as it then is; never returns."""
        while True:
            began = self._at(trio.current_time()).number
            await trio.sleep_until((began + 1) * STEP)

    def _at(self, now: float) -> _Step:
        """The step of this time, or a later one that has begun."""
        number = int(now / STEP)
        last = self._steps[-1].number if self._steps else number - 1
        if last < number:
            waiting = self._waiting()
            for begun in range(max(last, number - STEPS) + 1, number + 1):
                self._steps.append(_Step(begun, waiting=waiting))
        return self._steps[-1]

    def _ended(self, event: ExchangeEnded) -> None:
        record = event.record
        counts = self._counted.get(record.route)
        if counts is None or record.method != "POST" or record.ended is None:
            return
        status = record.status
        if record.code in _LEFT:
            return
        if status is None or status >= 500 or (record.code is not None and status < 400):
            self._at(record.ended).errors += 1
        elif counts and status < 400 and record.answered is not None:
            self._at(record.ended).note(record.answered - record.arrived)

    def _queued(self, event: events.Queued) -> None:
        step = self._at(trio.current_time())
        step.waiting = max(step.waiting, event.waiting)

    def _job(self, event: events.JobEnded) -> None:
        now = trio.current_time()
        if event.status == "completed":
            self._at(now).note(now - event.hold.since)
        elif event.status == "failed":
            self._at(now).errors += 1

    def _began(self, event: events.RefitBegan) -> None:
        refit = _Refit(event.model, event.kind, event.workers, wall.seconds())
        self._open[event.refit] = refit
        self._refits.append(refit)

    def _over(self, event: events.RefitEnded) -> None:
        refit = self._open.pop(event.refit)
        refit.ended, refit.failed = wall.seconds(), event.workers - event.applied
        refit.version, refit.label = event.version, event.label

    def _issued(self, event: events.VersionIssued) -> None:
        for refit in self._open.values():
            if refit.ledger == event.model:
                refit.version, refit.label = event.version, event.label
