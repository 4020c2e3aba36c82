"""How many workers are in which condition."""

from __future__ import annotations

from attrs import frozen

from .lifecycle import routable
from .registry import Registry


@frozen
class Census:
    """How many workers are in which condition; each is counted once, but those on trial again."""

    total: int
    routable: int
    dead: int
    sleeping: int
    on_trial: int


def census(registry: Registry) -> Census:
    """Count the workers. One that is dead does not count as sleeping."""
    workers = list(registry)
    dead = [worker for worker in workers if worker.is_dead]
    sleeping = [worker for worker in workers if not worker.is_dead and worker.is_sleeping]
    return Census(
        total=len(workers),
        routable=sum(map(routable, workers)),
        dead=len(dead),
        sleeping=len(sleeping),
        on_trial=sum(worker.trial is not None for worker in workers),
    )
