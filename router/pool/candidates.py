"""Which workers fit a request. DESIGN section 5, "Candidates"."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from attrs import frozen

from .lifecycle import hopeful
from .worker import Task, Worker


class Need(StrEnum):
    """What a request needs of a worker."""

    SLOT = "slot"  # a generation: until the head of its answer
    SESSION = "session"  # a WebSocket: for its length
    JOB = "job"  # a submission: at once, whatever runs there; it holds a slot until the job ends
    NOTHING = "nothing"  # anything else


@frozen
class Facts:
    """What routing needs to know of a request."""

    model: str | None = None
    task: Task | None = None
    need: Need = Need.SLOT
    client: str = ""  # requests of different clients share the slots in turn
    work: float = 1.0  # units of work (pool.cost)
    kind: str = ""  # the kind of endpoint, as speeds are learnt


def fitting(workers: Iterable[Worker], facts: Facts) -> list[Worker]:
    """The workers that a request with these facts is meant for, routable or not.

    The model binds only if some worker advertises it: workers never check it themselves, and
    clients of a one-model pool often send another name. Images prefer workers that make images
    and go to others only if there are none.
    """
    pool = list(workers)
    if facts.model is not None:
        advertising = [worker for worker in pool if _advertises(worker, facts.model)]
        pool = advertising or [worker for worker in pool if _unread(worker)] or pool
    if facts.task is not None:
        able = [w for w in pool if w.capabilities and w.capabilities.can(facts.task)]
        if able or facts.task in (Task.VIDEO, Task.MESH):
            return able
        # Not known yet, or of no known type: better than one that is known to do other things.
        unsure = [w for w in pool if not w.capabilities or w.capabilities.can(facts.task) is None]
        return unsure or pool
    return pool


def group_key(workers: Iterable[Worker], facts: Facts) -> tuple[str | None, Task | None, bool]:
    """Names the set of workers that fit: the same for all requests that have the same one.

    A model that nobody advertises binds nothing, so its name, of the client's choice, is no part;
    but while a worker that may advertise it is still starting, the request waits for that.
    """
    model = facts.model
    awaited = False
    if model is not None:
        pool = list(workers)
        if not any(_advertises(worker, model) for worker in pool):
            awaited = any(map(_unread, pool))
            model = model if awaited else None
    return model, facts.task, awaited


def _unread(worker: Worker) -> bool:
    """Whether what it serves is not known yet, but will be without anyone acting."""
    return worker.capabilities is None and hopeful(worker)


def _advertises(worker: Worker, model: str) -> bool:
    return worker.capabilities is not None and model in worker.capabilities.models
