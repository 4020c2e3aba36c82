"""Decides, synchronously, which waiting request gets which free worker.

Late binding: a request gets a worker when a slot is free, never before. Callers tell the queue what
happened (a request came or left, a worker changed), and the queue grants and refuses what follows.
Nothing here waits, the clock only lets requests rise with time, and nothing looks at the whole
queue for one request.

Two invariants hold. No request waits in a line that has a usable member: a new request is therefore
served at once or has no request to overtake. And no request waits without hope.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

from attrs import define, field

from ..errors import RouterError
from . import events
from .lifecycle import able, hopeful
from .lines import Ageing, Line, Shares, Waiting
from .match import NEED_SLOT, AmbiguousModel, Candidates, Facts, Need, Wants, refusal
from .policies import Policy
from .versions import Bounds
from .worker import UNKNOWN_VERSION, Worker

_MOST_IDLE_LINES = 256  # idle lines that are kept: policies know lines by name
_MOST_WANTS = 4096  # wants whose line is remembered: clients may name any model


@define
class QueueLimits:
    """Bounds of waiting. `longest_first`: by expected work, with ageing, instead of by arrival."""

    size: int = 10_000
    bytes: int = 1024**3  # of request bodies held while their requests wait
    patience: float = 1800.0  # seconds
    longest_first: bool = False
    jobs_per_worker: int = 100
    strict_model: bool = False  # refuse a model that no worker advertises


@define(eq=False)
class Queue:
    """Waiting requests of all lines.

    `workers` returns the registered workers in order. `take` gives the request to the worker and
    occupies a slot at once. `refuse` is called if no worker may become able to serve the request by
    itself or, with `full`, if every able worker has its maximum of unfinished jobs (`most_jobs`).
    Neither calls back. `strict_model`: a model name that no worker advertises fits no worker, even
    if the pool serves only one model.
    """

    policy: Policy
    job_policy: Policy
    workers: Callable[[], Iterable[Worker]]
    take: Callable[[Waiting, Worker], None]
    refuse: Callable[[Waiting, bool], None]
    most_jobs: int = 100
    strict_model: bool = False
    ageing: Ageing = field(factory=Ageing)
    waiting: int = field(init=False, default=0)
    _candidates: Candidates = field(init=False, repr=False)
    # By the line's members and the weights that will do.
    _lines: dict[tuple[tuple[Worker, ...], Bounds | None], Line] = field(init=False, factory=dict)
    _of_wants: dict[Wants, Line] = field(init=False, factory=dict)
    _of_worker: dict[Worker, Shares] = field(init=False, factory=dict)
    _count: int = field(init=False, default=0)

    @_candidates.default
    def _look_around(self) -> Candidates:
        return Candidates(self.workers(), strict_model=self.strict_model)

    def add(self, waiting: Waiting) -> None:
        """A request has arrived."""
        self._count += 1
        waiting.number = self._count
        self.waiting += 1
        line = self._line(waiting.facts.wants)
        line.enter(waiting)
        if waiting.tried or waiting.eager:
            self._place(line, waiting)
        else:
            self._serve_heads(line)
        if not waiting.over and not waiting.has_hope:
            self._refuse(waiting)

    def at_once(self, facts: Facts) -> Worker | None:
        """The worker for a new generation or session; None if the request must wait. The caller
        occupies the slot and calls `taken`, both at once.

        A shortcut for what `add` would grant: no request waits while a worker is usable, so there
        is no request to overtake.
        """
        if facts.need not in NEED_SLOT:
            return None
        line = self._line(facts.wants)
        free = line.serving.free
        if not free:
            return None
        return self.policy.choose(list(free), line.key, facts)

    def another(self, facts: Facts, taken: Container[Worker], version: int | None) -> Worker | None:
        """As `at_once`, but not one of the `taken` workers, and with this version's weights. None
        if the version is unknown: two unknown ones may differ."""
        if version is None or version == UNKNOWN_VERSION:
            return None
        line = self._line(facts.wants)
        free = [w for w in line.serving.free if w not in taken and w.weight_version == version]
        return self.policy.choose(free, line.key, facts) if free else None

    def taken(self, worker: Worker) -> None:
        """A slot of the worker was occupied."""
        for line in self._of_worker[worker].due:
            line.note(worker)

    def drop(self, waiting: Waiting) -> None:
        """The client of the request has left, or the request has waited too long."""
        if not waiting.over:
            self._leave(waiting)

    def on_event(self, event: events.Event) -> None:
        """The registry has sent an event."""
        match event:
            case events.OfHold(hold):
                self._touched(hold.worker)
            case (
                events.WorkerAdded(worker)
                | events.WorkerRemoved(worker)
                | events.Reincarnated(worker)
                | events.CapabilitiesLearned(worker)
                | events.RoleChanged(worker)
            ):
                self._changed(worker)
            case events.FacetChanged(worker) | events.ProspectsChanged(worker) if (
                worker.capabilities is None
            ):
                self._changed(worker)  # its hope decides which requests wait for it
            case events.OfWorker(worker):
                self._touched(worker)

    def lines(self) -> list[Line]:
        """The lines with waiting requests."""
        return [line for line in self._lines.values() if line.wants]

    def all(self) -> list[Waiting]:
        """All waiting requests."""
        return [waiting for line in self.lines() for waiting in line.all()]

    def fitting(self, wants: Wants) -> tuple[Worker, ...]:
        """The workers that a request with these wants is meant for, routable or not."""
        return self._candidates.fitting(wants)

    def ambiguous(self, facts: Facts) -> bool:
        """Whether the request fits no worker until it names one of several models."""
        return isinstance(self._candidates.misnamed(facts.wants), AmbiguousModel)

    def why_refused(self, facts: Facts) -> RouterError:
        """The error for a request that no worker fits, or no worker with hope."""
        wants = facts.wants
        misnamed = self._candidates.misnamed(wants)
        return misnamed or refusal(list(self.workers()), self.fitting(wants), facts)

    # What has changed.

    def _touched(self, worker: Worker) -> None:
        """The worker's slots or prospects have changed."""
        shares = self._of_worker.get(worker)
        if shares is None:
            return
        lines = list(shares.due)
        for line in lines:
            line.note(worker)
            self._serve_special(line)
        while worker.free_slots > 0 and (due := shares.next(worker)):
            self._grant(due.pop(), worker)
        for line in lines:
            if not line.sound.members and line.wants:  # then another tier may serve, or none
                self._serve_heads(*lines)
                break
        for line in lines:
            if not able(worker, line.key.version):
                self._refuse_hopeless(line)

    def _changed(self, worker: Worker) -> None:
        """The worker's capabilities or its membership changed: find the fitting workers anew."""
        self._candidates = self._look_around()
        self._of_wants.clear()
        for waiting in self._regroup():
            self._line(waiting.facts.wants).enter(waiting)
        self._touched(worker)
        lines = self.lines()
        for line in lines:
            self._serve_special(line)
        self._serve_heads(*lines)
        for line in lines:
            self._refuse_hopeless(line)

    # Lines.

    def _line(self, wants: Wants) -> Line:
        line = self._of_wants.get(wants)
        if line is None:
            place = self._candidates.fitting(wants), wants.version
            line = self._lines.get(place)
            if line is None:
                if wants.version:
                    self._forget_versions()
                line = self._lines[place] = Line(wants, self.ageing)
                self._settle(line, place[0])
            if len(self._of_wants) >= _MOST_WANTS:
                self._of_wants.clear()
            self._of_wants[wants] = line
        return line

    def _forget_versions(self) -> None:
        """Drop idle lines that ask for a weight version: otherwise there may be one for each
        change."""
        for place, line in list(self._lines.items()):
            if line.key.version and not line.wants:
                del self._lines[place]
                self._settle(line, ())
        self._of_wants.clear()

    def _settle(self, line: Line, members: tuple[Worker, ...]) -> None:
        """Give a line its members."""
        if line.members == members:
            return
        old, new = set(line.members), set(members)
        line.members = members
        for worker in old - new:
            line.expel(worker)
            shares = self._of_worker[worker]
            del shares.due[line]
            if not shares.due:
                del self._of_worker[worker]
        for worker in members:
            if worker not in old:
                self._of_worker.setdefault(worker, Shares()).due[line] = {}
                line.note(worker)

    def _regroup(self) -> list[Waiting]:
        """Give the lines their present members. Returns the requests that no longer belong to their
        line, outside any line and in the order of their turns."""
        homeless: list[Waiting] = []
        before, self._lines = self._lines, {}
        for line in before.values():
            members = self._candidates.fitting(line.key)
            place = members, line.key.version
            surplus = not line.wants and len(self._lines) >= _MOST_IDLE_LINES
            if place in self._lines or surplus:
                homeless += line.extract(set(line.wants))
                self._settle(line, ())
                continue
            self._lines[place] = line
            self._settle(line, members)
            strangers = {w for w in line.wants if self._candidates.fitting(w) != members}
            if strangers:
                homeless += line.extract(strangers)
        return homeless

    # Serving.

    def _serve_heads(self, *lines: Line) -> None:
        """Serve the heads of the lines, those of the first level first."""
        while heads := [
            (line, head) for line in lines if line.serving.free and (head := line.head())
        ]:
            line, head = min(heads, key=lambda each: each[1].level)
            worker = self.policy.choose(list(line.serving.free), line.key, head.facts)
            line.note(worker)
            if worker in line.serving.free:  # else it has changed, and its event is about to arrive
                self._grant(line.pop(), worker)

    def _serve_special(self, line: Line) -> None:
        """Serve the requests that do not wait for the turn of their client."""
        for waiting in list(line.picky):
            self._place(line, waiting)
        if line.eager and line.serving.members:
            for waiting in sorted(line.eager, key=lambda one: one.level):
                self._place(line, waiting)

    def _place(self, line: Line, waiting: Waiting) -> None:
        """Give a worker to a request that is in no heap, if one may serve it now."""
        pool = line.serving.members if waiting.eager else line.serving.free
        able = [worker for worker in pool if worker not in waiting.tried]
        policy = self.policy
        if waiting.facts.need is Need.JOB and able:
            policy, most = self.job_policy, self.most_jobs
            able = [worker for worker in able if len(worker.holds) < most or worker.jobs < most]
            if not able:
                self._refuse(waiting, full=True)
        if able:
            self._grant(waiting, policy.choose(able, line.key, waiting.facts))

    def _grant(self, waiting: Waiting, worker: Worker) -> None:
        self._leave(waiting)
        self.take(waiting, worker)
        self.taken(worker)

    def _refuse_hopeless(self, line: Line) -> None:
        none = not any(hopeful(worker, line.key.version) for worker in line.members)
        for waiting in list(line.all() if none else line.picky):
            if none or not waiting.has_hope:
                self._refuse(waiting)

    def _refuse(self, waiting: Waiting, *, full: bool = False) -> None:
        self._leave(waiting)
        self.refuse(waiting, full)

    def _leave(self, waiting: Waiting) -> None:
        assert waiting.line is not None
        waiting.line.leave(waiting)
        self.waiting -= 1
