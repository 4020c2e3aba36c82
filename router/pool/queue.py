"""Waiting requests and free workers: who gets which, decided synchronously.

Late binding: a request is given a worker when a slot is free, never before. The queue is told what
happened (a request came or left, a worker changed), and grants and refuses what follows from it.
Nothing here waits or knows a clock, and nothing looks at the whole queue for one request.

Two things always hold. No request waits in a line that has a usable member: so one that comes is
served at once or has nobody to overtake. And no request waits without hope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import define, field

from ..errors import RouterError
from . import events
from .lifecycle import able, hopeful
from .lines import Line, Shares, Waiting
from .match import NEED_SLOT, AmbiguousModel, Candidates, Facts, Need, Wants, refusal
from .policies import Policy
from .worker import Worker

_MOST_IDLE_LINES = 256  # kept though nothing waits in them: policies know them by name
_MOST_WANTS = 4096  # whose line is remembered: clients name models as they like


@define(eq=False)
class Queue:
    """Waiting requests of all lines.

    `workers` gives the registered workers in order. `take` gives the request the worker, and
    occupies its slot at once. `refuse`: nobody may become able to serve it without somebody acting;
    or, `full`, those who could have as many unfinished jobs as they may (`most_jobs` each). Neither
    calls back. `strict_model`: the name of a model that nobody advertises fits nobody, though the
    pool serves only one.
    """

    policy: Policy
    job_policy: Policy
    workers: Callable[[], Iterable[Worker]]
    take: Callable[[Waiting, Worker], None]
    refuse: Callable[[Waiting, bool], None]
    most_jobs: int = 100
    strict_model: bool = False
    waiting: int = field(init=False, default=0)
    _candidates: Candidates = field(init=False, repr=False)
    # By their members, and the oldest weights that will do.
    _lines: dict[tuple[tuple[Worker, ...], int], Line] = field(init=False, factory=dict)
    _of_wants: dict[Wants, Line] = field(init=False, factory=dict)
    _of_worker: dict[Worker, Shares] = field(init=False, factory=dict)
    _count: int = field(init=False, default=0)

    @_candidates.default
    def _look_around(self) -> Candidates:
        return Candidates(self.workers(), strict_model=self.strict_model)

    def add(self, waiting: Waiting) -> None:
        """A request has come."""
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
        """The worker for a generation or session that need not wait, and was tried nowhere yet;
        None if it must. Whoever takes it occupies the slot, and says `taken`, at once.

        The short way for what `add` would grant: nobody waits where a worker is usable, so there
        is nobody to overtake.
        """
        if facts.need not in NEED_SLOT:
            return None
        line = self._line(facts.wants)
        free = line.serving.free
        if not free:
            return None
        return self.policy.choose(list(free), line.key, facts)

    def taken(self, worker: Worker) -> None:
        """A slot of the worker was occupied."""
        for line in self._of_worker[worker].due:
            line.note(worker)

    def drop(self, waiting: Waiting) -> None:
        """The request's client has left, or it has waited too long."""
        if not waiting.over:
            self._leave(waiting)

    def on_event(self, event: events.Event) -> None:
        """Something has happened in the registry."""
        match event:
            case events.OfHold(hold):
                self._touched(hold.worker)
            case (
                events.WorkerAdded(worker)
                | events.WorkerRemoved(worker)
                | events.Reincarnated(worker)
                | events.CapabilitiesLearned(worker)
            ):
                self._changed(worker)
            case events.FacetChanged(worker) | events.ProspectsChanged(worker) if (
                worker.capabilities is None
            ):
                self._changed(worker)  # its hope decides what awaits it
            case events.OfWorker(worker):
                self._touched(worker)

    def lines(self) -> list[Line]:
        """The lines in which something waits."""
        return [line for line in self._lines.values() if line.wants]

    def all(self) -> list[Waiting]:
        """Everything that waits."""
        return [waiting for line in self.lines() for waiting in line.all()]

    def fitting(self, wants: Wants) -> tuple[Worker, ...]:
        """The workers that a request which wants this is meant for, routable or not."""
        return self._candidates.fitting(wants)

    def ambiguous(self, facts: Facts) -> bool:
        """Whether the request fits nobody until it says which of several models it means."""
        return isinstance(self._candidates.misnamed(facts.wants), AmbiguousModel)

    def why_refused(self, facts: Facts) -> RouterError:
        """What to answer to a request that no worker fits, or none that has hope."""
        wants = facts.wants
        misnamed = self._candidates.misnamed(wants)
        return misnamed or refusal(list(self.workers()), self.fitting(wants), facts)

    # What has changed.

    def _touched(self, worker: Worker) -> None:
        """The worker's slots or its prospects have changed."""
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
            if not line.sound.members and line.wants:  # then others may do, or nobody
                self._serve_heads(line)
            if not able(worker, line.key.version):
                self._refuse_hopeless(line)

    def _changed(self, worker: Worker) -> None:
        """What the worker can do, or whether it is there, has changed: find anew who fits what."""
        self._candidates = self._look_around()
        self._of_wants.clear()
        for waiting in self._regroup():
            self._line(waiting.facts.wants).enter(waiting)
        self._touched(worker)
        for line in self.lines():
            self._serve_special(line)
            self._serve_heads(line)
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
                line = self._lines[place] = Line(wants)
                self._settle(line, place[0])
            if len(self._of_wants) >= _MOST_WANTS:
                self._of_wants.clear()
            self._of_wants[wants] = line
        return line

    def _forget_versions(self) -> None:
        """Drop the lines of old versions in which nothing waits: there may come to be as many as
        there were changes."""
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
                self._of_worker.setdefault(worker, Shares()).due[line] = 0.0
                line.note(worker)

    def _regroup(self) -> list[Waiting]:
        """Give the lines the members that they have by now; returns, out of any line and in the
        order of their turns, the requests that do not belong together any more."""
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

    def _serve_heads(self, line: Line) -> None:
        while (free := line.serving.free) and (head := line.head()):
            worker = self.policy.choose(list(free), line.key, head.facts)
            line.note(worker)
            if worker in line.serving.free:  # else it has changed, and we are about to be told
                self._grant(line.pop(), worker)

    def _serve_special(self, line: Line) -> None:
        """Those that do not wait for a turn of their client."""
        for waiting in list(line.picky):
            self._place(line, waiting)
        if line.eager and line.serving.members:
            for waiting in list(line.eager):
                self._place(line, waiting)

    def _place(self, line: Line, waiting: Waiting) -> None:
        """Give a request that is not in a heap its worker, if there is one for it now."""
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
