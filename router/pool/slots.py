"""The leases and slots of workers: how they are taken and given back."""

from __future__ import annotations

from collections.abc import Callable

from . import events
from .ejection import Ejection, EjectionLimits
from .worker import Hold, HoldKind, Lease, Worker


class Slots:
    """The part of the registry that leases workers. `tell` publishes events of the pool."""

    def __init__(self, tell: Callable[..., None], limits: EjectionLimits) -> None:
        self._tell = tell
        # Changes the trial and the pause of workers.
        self.ejection = Ejection(limits, tell)

    def lease(
        self, worker: Worker, hold: Hold | None = None, *, request_id: str | None = None
    ) -> Lease:
        """Take a lease on the worker and, with `hold`, a slot. The caller decides whether the
        worker may get work. `request_id`: see `Lease`."""
        version = None if worker.is_plain else worker.weight_version
        lease = Lease(worker, worker.incarnation, self._end, hold, version)
        lease.doubtful = worker.suspicion is not None
        lease.request_id = request_id
        worker.leases.add(lease)
        if hold is not None:
            hold.doubtful = lease.doubtful
            hold.begun = hold.since if worker.free_slots > 0 else None
            worker.holds[hold] = None
            self.ejection.granted(hold)
        self._tell(events.LeaseGranted(lease))
        return lease

    def free(self, lease: Lease) -> None:
        """Give back the lease's slot while its exchange goes on: the GPU is free."""
        hold, lease.hold = lease.hold, None
        if hold is not None:
            self.drop(hold)

    def keep(self, lease: Lease, kind: HoldKind) -> Hold | None:
        """Let the lease's slot outlive the lease, as a job or a ghost. None if there is no slot.

        The caller must drop the hold in the end.
        """
        hold, lease.hold = lease.hold, None
        if hold is None or hold not in hold.worker.holds:
            return None
        hold.kind = kind
        self._tell(events.Held(hold))
        return hold

    def turn_into_ghost(self, hold: Hold) -> None:
        """The job was deleted but still runs: a ghost keeps its slot taken."""
        if hold in hold.worker.holds:
            hold.kind = HoldKind.GHOST
            self._tell(events.Held(hold))

    def drop(self, hold: Hold) -> None:
        """Free a slot. Does nothing if the hold belongs to an earlier incarnation."""
        hold.orphaned = False
        if hold in hold.worker.holds:
            del hold.worker.holds[hold]
            self._tell(events.SlotFreed(hold))

    def begin(self, worker: Worker, now: float) -> None:
        """Note that work waiting behind other work has begun, as far as there are slots."""
        room = worker.max_concurrency
        for hold in worker.holds:
            if room <= 0:
                break
            room -= 1
            if hold.begun is None:
                hold.begun = now

    def occupy(self, hold: Hold) -> None:
        """Take a slot for work that the worker began before this router knew of it."""
        hold.restored = True
        hold.worker.holds[hold] = None
        self._tell(events.Held(hold))

    def _end(self, lease: Lease) -> None:
        self.free(lease)
        lease.worker.leases.discard(lease)
        self._tell(events.LeaseEnded(lease))
