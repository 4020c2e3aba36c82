"""Why a request is refused that no worker may come to serve."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import BadRequest, PoolUnavailable, RouterError
from .candidates import Facts, Need, may_have
from .worker import Admin, Weights, Worker


class NoCapableWorker(BadRequest):
    """No registered worker can do the task, whatever state it comes to be in."""

    default_code = "no_capable_worker"


def refusal(pool: Collection[Worker], fitting: Collection[Worker], facts: Facts) -> RouterError:
    """What to answer to a request that these workers of the pool fit, none of which has hope."""
    if not pool:
        return PoolUnavailable("No workers are registered", code="no_workers")
    if not fitting and facts.need is Need.JOB and facts.task is not None:
        return NoCapableWorker(f"No {facts.task}-capable workers available in current worker pool.")
    living = [w for w in fitting if not w.is_dead and w.admin is Admin.ENABLED]
    if living and all(worker.is_sleeping for worker in living):
        return PoolUnavailable("All fitting workers are asleep", code="pool_asleep")
    awake = [worker for worker in living if not worker.is_sleeping]
    if awake and all(worker.weights is Weights.FAILED or worker.stuck for worker in awake):
        return PoolUnavailable(
            "No fitting worker has the weights it needs", code="weights_unavailable"
        )
    version = facts.min_version
    if awake and not any(may_have(worker, version) for worker in awake):
        return PoolUnavailable(
            f"No fitting worker has weights of version {version} or later",
            code="weights_unavailable",
        )
    return PoolUnavailable("No fitting worker is routable at present", code="no_routable_worker")
