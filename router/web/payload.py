"""The JSON of workers. Fields may be added, never renamed or removed."""

from __future__ import annotations

from itertools import islice
from typing import Any

from .. import wall
from ..pool.cost import Speeds
from ..pool.lifecycle import reachable, reasons, routable
from ..pool.worker import Hold, HoldKind, Task, Trial, Worker
from .parts import Parts

_MOST_WORK = 32  # rows of one worker


def describe(of: Parts, worker: Worker) -> dict[str, Any]:
    """The JSON of one worker of this router."""
    return worker_payload(worker, of.dispatcher.speeds, of.launcher.describe(worker))


def worker_payload(worker: Worker, speeds: Speeds, launch: dict[str, Any] | None) -> dict[str, Any]:
    """The JSON of one worker; `launch` is what its launcher says about it."""
    can = worker.capabilities
    return {
        # What people look for first; terminals cut long lines.
        "url": worker.url,
        "name": worker.name,
        "routable": routable(worker),
        "reasons": reasons(worker),
        "worker_id": worker.worker_id,
        "id": worker.worker_id,
        "display_id": worker.display_id,
        "active_requests": worker.active_requests,
        "is_healthy": reachable(worker),
        "is_dead": worker.is_dead,
        "is_sleeping": worker.is_sleeping,
        "consecutive_failures": worker.consecutive_failures,
        "video_support": can.can(Task.VIDEO) if can else None,
        "health": worker.health,
        "health_reason": worker.health_reason,
        "admin": worker.admin,
        "memory": worker.memory,
        "weights": worker.weights,
        "weight_version": worker.weight_version if worker.weight_version >= 0 else None,
        "weights_reason": worker.weights_reason,
        "origin": worker.origin,
        "pool": worker.pool,
        "kind": worker.role.kind,
        "incarnation": worker.incarnation,
        "suspicion": worker.suspicion,
        "trial": _trial(worker.trial),
        "models": list(can.models) if can else None,
        "model_path": can.model_path if can else None,
        "task_types": list(can.task_types) if can else None,
        "output_types": list(can.output_types) if can else None,
        "max_concurrency": worker.max_concurrency,
        "slots_in_use": len(worker.holds),
        "jobs": worker.jobs,
        "ghosts": worker.ghosts,
        "work": [_work(hold, speeds) for hold in islice(worker.holds, _MOST_WORK)],
        "outstanding_seconds": round(speeds.outstanding(worker), 3),
        "seconds_per_unit_of_work": speeds.of(worker.url),
        "launch": launch,
    }


def _work(hold: Hold, speeds: Speeds) -> dict[str, Any]:
    began = None if hold.begun is None else wall.seconds() - (speeds.clock() - hold.begun)
    expected = None
    if hold.work and hold.kind is not HoldKind.SESSION:
        expected = speeds.expected(hold.worker.url, hold.endpoint, hold.work)
    return {
        "kind": hold.kind,
        "job_id": hold.job_id,
        "endpoint": hold.endpoint,
        "began": None if began is None else round(began, 1),
        "expected_seconds": None if expected is None else round(expected, 2),
    }


def _trial(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    return {"reason": trial.reason, "failures": trial.failures, "pause_seconds": trial.pause}
