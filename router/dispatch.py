"""Gives requests their workers: the trio side of the pool's choosing.

The only place that grants leases. Requests do not wait here yet: where no worker is routable
the answer is a 503 at once.
"""

from __future__ import annotations

from collections.abc import Collection

import trio

from .errors import BadRequest, PoolUnavailable, RouterError
from .pool import events
from .pool.candidates import Facts, fitting, group
from .pool.lifecycle import routable
from .pool.policies import Policy
from .pool.registry import Registry
from .pool.worker import Admin, Health, Lease, Memory, Worker


class NoCapableWorker(BadRequest):
    """No registered worker can do the task, whatever state it comes to be in."""

    default_code = "no_capable_worker"


class Dispatcher:
    """Chooses a worker for each exchange by the policy, and grants the lease."""

    def __init__(self, registry: Registry, policy: Policy, *, failure_threshold: int = 3) -> None:
        self._registry = registry
        self._policy = policy
        self._failure_threshold = failure_threshold
        self._drained: dict[Worker, trio.Event] = {}
        registry.subscribe(self._observe)

    def serves(self) -> bool:
        """Whether a request that any worker can do would be served now, not refused."""
        return any(map(routable, self._registry))

    async def drain(self, worker: Worker) -> None:
        """Wait until no exchange is under way at the worker. Whoever wants it to stay so has
        made it unroutable before."""
        while worker.leases:
            changed = self._drained.setdefault(worker, trio.Event())
            await changed.wait()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.LeaseEnded(lease) if not lease.worker.leases:
                worker = lease.worker
            case events.Reincarnated(worker):  # its leases went with the old process
                pass
            case _:
                return
        waiting = self._drained.pop(worker, None)
        if waiting is not None:
            waiting.set()

    async def lease(self, facts: Facts, *, tried: Collection[Worker] = ()) -> Lease:
        """A lease on a fitting worker that was not tried yet.

        Raises PoolUnavailable if no worker may take it, NoCapableWorker if none ever can. The
        caller releases the lease.
        """
        candidates = fitting(self._registry, facts)
        able = [worker for worker in candidates if routable(worker)]
        if not able and not any(map(routable, self._registry)):
            able = [worker for worker in candidates if self._worth_a_try(worker)]
        fresh = [worker for worker in able if worker not in tried]
        if not fresh:
            raise self._refusal(facts, candidates)
        return self._registry.lease(self._policy.choose(fresh, group(self._registry, facts)))

    def _worth_a_try(self, worker: Worker) -> bool:
        """Optimistic first contact (DESIGN section 7): the 502 it may get is the truth."""
        return (
            worker.health is Health.UNKNOWN
            and not worker.met
            and worker.admin is Admin.ENABLED
            and worker.memory is Memory.AWAKE
            and worker.consecutive_failures < self._failure_threshold
        )

    def _refusal(self, facts: Facts, candidates: list[Worker]) -> RouterError:
        if not len(self._registry):
            return PoolUnavailable("No workers are registered", code="no_workers")
        if not candidates:
            # Of a worker that was not read yet nobody can say that it cannot.
            if facts.task is not None and all(worker.capabilities for worker in self._registry):
                return NoCapableWorker(
                    f"No {facts.task}-capable workers available in current worker pool."
                )
            return PoolUnavailable(
                f"No registered worker can do this ({facts.task or facts.model})",
                code="no_routable_worker",
            )
        awake = [w for w in candidates if not w.is_dead and not w.is_sleeping]
        if not awake and any(w.is_sleeping and not w.is_dead for w in candidates):
            return PoolUnavailable("All fitting workers are asleep", code="pool_asleep")
        return PoolUnavailable(
            "No fitting worker is routable at present", code="no_routable_worker"
        )
