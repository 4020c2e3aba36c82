"""Which workers a weight, LoRA or memory call is meant for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from ..errors import BadRequest, PoolUnavailable
from .lifecycle import reasons
from .models import UnknownModel, models_of
from .registry import Registry
from .worker import Admin, Health, Memory, Worker


@frozen
class Targets:
    """The workers that a call goes to now, and those that it cannot go to now."""

    eligible: Sequence[Worker]
    deferred: Sequence[Worker]

    def deferred_rows(self) -> list[dict[str, object]]:
        """The deferred workers on the wire."""
        return [
            {"worker_url": worker.url, "worker_id": worker.worker_id, "reasons": reasons(worker)}
            for worker in self.deferred
        ]


def select(
    registry: Registry, *, model: str | None, workers: str | None, mixed: bool = False
) -> list[Worker]:
    """The workers named by `?model=` or `?workers=ID,ID`; all, if the pool serves one model, or
    if they may be `mixed`.

    Raises BadRequest (`ambiguous_target`, naming the models, if several are served), NotFound,
    PoolUnavailable if the pool is empty.
    """
    if model is not None and workers is not None:
        raise BadRequest("Give ?model= or ?workers=, not both", code="invalid_field")
    pool = list(registry)
    if not pool:
        raise no_workers()
    if workers is not None:
        return _named(registry, workers)
    if model is not None:
        chosen = [w for w in pool if w.capabilities and model in w.capabilities.models]
        if not chosen:
            raise UnknownModel(model, pool)
        return chosen
    served = models_of(pool)
    if len(served) > 1 and not mixed:
        raise BadRequest(
            f"The pool serves several models ({', '.join(served)}): name one with ?model=, or "
            "workers with ?workers=ID,ID",
            code="ambiguous_target",
            details={"models": served},
        )
    return pool


def awake_targets(chosen: Iterable[Worker]) -> Targets:
    """Split the chosen: eligible are the healthy, awake and not quarantined ones."""
    pool = list(chosen)
    eligible = [w for w in pool if reachable(w) and w.memory is Memory.AWAKE]
    return Targets(eligible, [w for w in pool if w not in eligible])


def asleep_targets(chosen: Iterable[Worker]) -> Targets:
    """Split the chosen for a wake: eligible are the healthy ones that are not known to be awake."""
    sleepers = [w for w in chosen if w.is_sleeping]
    eligible = [w for w in sleepers if reachable(w)]
    return Targets(eligible, [w for w in sleepers if w not in eligible])


def healthy_targets(chosen: Iterable[Worker]) -> Targets:
    """Split the chosen for a question: eligible are all healthy ones that are not quarantined."""
    pool = list(chosen)
    eligible = [w for w in pool if reachable(w)]
    return Targets(eligible, [w for w in pool if w not in eligible])


def reachable(worker: Worker) -> bool:
    """Whether calls may be sent to it: healthy and not quarantined."""
    return worker.health is Health.HEALTHY and worker.admin is not Admin.QUARANTINED


def is_up(worker: Worker) -> bool:
    """Whether calls that change its weights may be sent to it: reachable, awake, and it has said
    what it can do."""
    told = worker.capabilities is not None and not worker.removed
    return told and reachable(worker) and worker.memory is Memory.AWAKE


def no_workers() -> PoolUnavailable:
    return PoolUnavailable("No healthy workers available in the pool", code="no_workers")


def _named(registry: Registry, names: str) -> list[Worker]:
    parts = [name.strip() for name in names.split(",") if name.strip()]
    if not parts:
        raise BadRequest("?workers= names no worker", code="invalid_field")
    return list(dict.fromkeys(registry.get(name) for name in parts))
