"""Which workers are ejected: workers that fail while others that do the same work succeed.

A broken worker that answers at once is always free, and would get every waiting request. If its
failures, compared with those of the other workers, cannot be chance, it is put on trial: one
request at a time, each after a longer pause. One success frees it. Nothing here waits or knows a
clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection

from attrs import define, field

from . import events
from .lifecycle import able
from .worker import Hold, HoldKind, Trial, Worker

# Outcomes that count: the last _WINDOW of each worker, none older than _RECENT seconds.
_WINDOW, _RECENT = 20, 300.0
# The share of failures assumed for the other workers before they have outcomes. The assumption
# weighs as much as _USUAL_WEIGHT outcomes.
_USUAL, _USUAL_WEIGHT = 0.03, 5
# Failures are no chance if a worker like the others would have them once in a thousand times.
_NO_CHANCE = math.log(1000)
# A trial costs a request. Before a trial, _WORTH requests per failure must succeed at the other
# workers, or _WORTH times the pause (at most `longest`) must pass.
_WORTH = 20


@define
class EjectionLimits:
    """`failures`: the fewest failures that put a worker on trial; None: no worker is put on trial.
    `pause`: seconds before the first trial request, doubled after each failure up to `longest`.
    `longest` also bounds the pauses that workers ask for."""

    failures: int | None = 2
    pause: float = 1.0
    longest: float = 60.0


@define(eq=False)
class _History:
    """The outcomes of one worker's requests, and the end of its last trial."""

    outcomes: deque[tuple[float, bool]] = field(factory=lambda: deque(maxlen=_WINDOW))
    pause: float = 0.0
    freed: float = -math.inf

    def count(self, now: float) -> tuple[int, int, int]:
        """Failures, all outcomes, and failures since the last success."""
        failures = run = count = 0
        for at, failed in self.outcomes:
            if at >= now - _RECENT:
                count += 1
                failures += failed
                run = run + 1 if failed else 0
        return failures, count, run


@define(eq=False)
class Ejection:
    """Puts workers on trial and ends trials; keeps requests from workers that ask for a pause.

    All times come from the caller, who calls `look` when `next_look` has come.
    """

    limits: EjectionLimits
    tell: Callable[[events.Event], None]
    _histories: dict[Worker, _History] = field(init=False, factory=dict)
    _trials: dict[Worker, Trial] = field(init=False, factory=dict)
    _paused: dict[Worker, float] = field(init=False, factory=dict)

    def succeeded(self, worker: Worker, now: float) -> None:
        """A generation or job of the worker has succeeded."""
        if worker.removed:
            return
        self.told(worker)
        history = self._histories.get(worker)
        if history is None:
            history = self._histories[worker] = _History()
        if worker in self._trials:
            history.outcomes.clear()
            self._free(worker, now, "a request has succeeded")
        history.outcomes.append((now, False))
        if self._trials:
            for trial in self._trials.values():
                trial.successes += worker in trial.peers
            self.look(now)

    def failed(self, hold: Hold, meant: Collection[Worker], now: float, why: str) -> None:
        """The work of this slot has failed. `meant`: the workers that the work fits."""
        worker = hold.worker
        if worker.removed or self.limits.failures is None or worker.dozing:
            return
        history = self._histories.setdefault(worker, _History())
        history.outcomes.append((now, True))
        trial = worker.trial
        if trial is None:
            self._judge(worker, frozenset(meant) - {worker}, now, why)
        else:
            trial.failures += 1
            trial.since = now
            if trial.hold is hold:
                trial.hold = None
                trial.pause = min(trial.pause * 2, self.limits.longest)
            if trial.due:  # this request was sent before the trial was due
                trial.due = False
                self.tell(events.ProspectsChanged(worker))
        for other, its in list(self._trials.items()):
            if other is not worker and not self._stands_out(other, its.peers, now):
                self._free(other, now, "others fail as well")

    def hold_off(self, worker: Worker, seconds: float, now: float) -> None:
        """The worker asks for no requests for this many seconds. This is not a failure."""
        if worker.removed or seconds <= 0:
            return
        until = now + min(seconds, self.limits.longest)
        self._paused[worker] = max(until, self._paused.get(worker, until))
        if not worker.paused:
            worker.paused = True
            self.tell(events.ProspectsChanged(worker))

    def dozes(self, hold: Hold | None, now: float) -> None:
        """A generation met a sleeping engine: the worker gets nothing for the longest pause, and
        then one request at a time until one succeeds. This is not a failure."""
        worker = None if hold is None else hold.worker
        if hold is not None and worker is not None and hold.incarnation == worker.incarnation:
            worker.dozing = True
            self.hold_off(worker, self.limits.longest, now)

    def told(self, worker: Worker) -> None:
        """It is known again whether the engine of the worker sleeps."""
        if worker.dozing:
            worker.dozing = worker.paused = False
            self._paused.pop(worker, None)
            self.tell(events.ProspectsChanged(worker))

    def granted(self, hold: Hold) -> None:
        """A slot of the worker is taken. If a trial is due, this request is the trial. A session is
        never the trial: it may last long, and its end says nothing."""
        trial = hold.worker.trial
        if trial is not None and trial.due and hold.kind is not HoldKind.SESSION:
            trial.due = False
            trial.hold = hold

    def ended(self, hold: Hold, now: float) -> None:
        """The slot is free. If its request was the trial and had no outcome, the next trial follows
        after the same pause."""
        trial = hold.worker.trial
        if trial is not None and trial.hold is hold:
            trial.hold = None
            trial.since = now

    def next_look(self) -> float:
        """When the next pause ends; infinity if no pause ends by itself."""
        if not self._trials and not self._paused:
            return math.inf
        ends = [self._opens(t) for t in self._trials.values() if not t.due and t.hold is None]
        return min([*ends, *self._paused.values()], default=math.inf)

    def look(self, now: float) -> None:
        """End the pauses that have expired."""
        for worker, until in list(self._paused.items()):
            if now >= until:
                del self._paused[worker]
                worker.paused = False
                self.tell(events.ProspectsChanged(worker))
        for worker, trial in list(self._trials.items()):
            if not trial.due and trial.hold is None and now >= self._opens(trial):
                trial.due = True
                self.tell(events.ProspectsChanged(worker))

    def forget(self, worker: Worker) -> None:
        """Forget the worker's failures: another process runs, or an operator says that all is well.
        Sends no event."""
        for known in (self._histories, self._trials, self._paused):
            known.pop(worker, None)
        worker.trial = None
        worker.paused = worker.dozing = False

    def _judge(self, worker: Worker, peers: frozenset[Worker], now: float, why: str) -> None:
        """Put the worker on trial if it stands out and a sound worker can take its place."""
        if not any(able(peer) and peer.trial is None for peer in peers):
            return
        if not self._stands_out(worker, peers, now):
            return
        history, limits = self._histories[worker], self.limits
        failures, count, run = history.count(now)
        again = now - history.freed < limits.longest
        pause = min(history.pause * 2, limits.longest) if again else limits.pause
        many = f"{run} failures in a row" if run * 2 >= count else f"{failures} of {count} failed"
        reason = f"{many} while others did not; the last: {why}"
        trial = worker.trial = Trial(reason, max(run, failures), now, pause, peers)
        self._trials[worker] = trial
        self.tell(events.Ejected(worker, reason))

    def _stands_out(self, worker: Worker, peers: Collection[Worker], now: float) -> bool:
        """Whether the worker fails too often for chance, going by the failures of its peers."""
        assert self.limits.failures is not None
        failures, count, run = self._histories[worker].count(now)
        theirs, of = _USUAL * _USUAL_WEIGHT, float(_USUAL_WEIGHT)
        for peer in peers:
            if peer is not worker and peer in self._histories:
                some, all_of_them, _ = self._histories[peer].count(now)
                theirs += some
                of += all_of_them
        usual = theirs / of
        least = self.limits.failures
        if run >= least and _surprise(run, run, usual) >= _NO_CHANCE:
            return True
        many = failures >= least and failures * 2 >= count
        return many and _surprise(failures, count, usual) >= _NO_CHANCE

    def _free(self, worker: Worker, now: float, why: str) -> None:
        trial = self._trials.pop(worker)
        history = self._histories[worker]
        history.pause, history.freed = trial.pause, now
        worker.trial = None
        self.tell(events.Readmitted(worker, why))

    def _opens(self, trial: Trial) -> float:
        """When the next trial request is due, by present knowledge."""
        pause = trial.pause
        if trial.successes < _WORTH * trial.failures:
            pause = max(pause, min(self.limits.longest, _WORTH * pause))
        return trial.since + pause


def _surprise(failures: int, count: int, usual: float) -> float:
    """How surprising this many failures are if `usual` is the usual share: their probability is at
    most exp(-surprise), by Chernoff's bound."""
    share = failures / count if count else 0.0
    if share <= usual:
        return 0.0
    surprise = share * math.log(share / usual)
    if share < 1:
        surprise += (1 - share) * math.log((1 - share) / (1 - usual))
    return count * surprise
