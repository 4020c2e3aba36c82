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
        advertising = [w for w in pool if w.capabilities and facts.model in w.capabilities.models]
        pool = advertising or pool
    if facts.task is not None:
        able = [w for w in pool if w.capabilities and w.capabilities.can(facts.task)]
        if able or facts.task in (Task.VIDEO, Task.MESH):
            return able
        # Not known yet, or of no known type: better than one that is known to do other things.
        unsure = [w for w in pool if not w.capabilities or w.capabilities.can(facts.task) is None]
        return unsure or pool
    return pool
