"""Which workers fit a request. DESIGN section 5, "Candidates"."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import frozen

from .worker import Task, Worker


@frozen
class Facts:
    """What routing needs to know of a request."""

    model: str | None = None
    task: Task | None = None


def fitting(workers: Iterable[Worker], facts: Facts) -> list[Worker]:
    """The workers that a request with these facts is meant for, routable or not.

    The model binds only if some worker advertises it: workers never check it themselves, and
    clients of a one-model pool often send another name. Images prefer workers that make images
    and go to others only if there are none.
    """
    pool = list(workers)
    if facts.model is not None:
        pool = [worker for worker in pool if _advertises(worker, facts.model)] or pool
    if facts.task is not None:
        able = [w for w in pool if w.capabilities and w.capabilities.can(facts.task)]
        if able or facts.task in (Task.VIDEO, Task.MESH):
            return able
        # Not known yet, or of no known type: better than one that is known to do other things.
        unsure = [w for w in pool if not w.capabilities or w.capabilities.can(facts.task) is None]
        return unsure or pool
    return pool


def group(workers: Iterable[Worker], facts: Facts) -> tuple[str | None, Task | None]:
    """Names the set of workers that fit: the same for all requests that have the same one.

    A model that nobody advertises binds nothing, so its name, of the client's choice, is no part.
    """
    model = facts.model
    if model is not None and not any(_advertises(worker, model) for worker in workers):
        model = None
    return model, facts.task


def _advertises(worker: Worker, model: str) -> bool:
    return worker.capabilities is not None and model in worker.capabilities.models
