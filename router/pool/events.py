"""Events of the pool: frozen facts, told on the bus of the registry."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from attrs import frozen

from .. import bus
from ..errors import RouterError
from .worker import Hold, Lease, Worker, WorkerRecord

if TYPE_CHECKING:
    from .match import Facts


class Event(bus.Event):
    """Something has happened to a worker."""

    @property
    @abstractmethod
    def worker(self) -> Worker:
        """The worker that the event is about."""


@frozen
class OfWorker(Event):
    worker: Worker


@frozen
class WithReason(OfWorker):
    """`reason`: a sentence for people."""

    reason: str


@frozen
class OfLease(Event):
    lease: Lease

    @property
    def worker(self) -> Worker:
        return self.lease.worker


@frozen
class OfHold(Event):
    hold: Hold

    @property
    def worker(self) -> Worker:
        return self.hold.worker


@frozen
class WorkerAdded(OfWorker):
    """`past`: the record of the worker from before a restart of the router, if there is one."""

    past: WorkerRecord | None = None


class AliasesChanged(OfWorker):
    """The set of other URLs that lead to the worker has changed."""


class WorkerRegistered(OfWorker):
    """A request has registered a worker that the flags already named."""


class WorkerRemoved(OfWorker):
    """The worker has left the pool."""


@frozen
class FacetChanged(OfWorker):
    """One facet has a new value. `reason` is a sentence for people, or None."""

    facet: str
    old: str
    new: str
    reason: str | None = None


class ProspectsChanged(OfWorker):
    """The outlook of the worker has changed, perhaps without a change of a facet: its first probe
    has failed, its trouble is over, or one of its pauses begins or ends."""


class CapabilitiesLearned(OfWorker):
    """The worker has told what it can do."""


class RoleChanged(OfWorker):
    """The worker has moved to another pool, or is probed in another way."""


class SlotsChanged(OfWorker):
    """The number of the worker's slots has changed."""


class Suspected(WithReason):
    """The worker's process may have been replaced."""


class Absolved(WithReason):
    """The process is proven to be the same: the doubt is over, and all state stays."""


class Reincarnated(WithReason):
    """Another process answers at the worker's URL; all knowledge about the old process is void."""


class Trouble(WithReason):
    """An exchange with the worker failed in transport: a probe should run at once."""


class Ejected(WithReason):
    """The worker fails while others do not: from now on it is on trial, one request at a time."""


class Readmitted(WithReason):
    """The worker is no longer on trial."""


class LeaseGranted(OfLease):
    """An exchange has a lease on the worker."""


class LeaseEnded(OfLease):
    """The exchange is over."""


class Held(OfHold):
    """A slot outlives its lease: for a job that runs on, or for a ghost."""


class SlotFreed(OfHold):
    """The slot is free."""


@frozen
class Probed(bus.Event):
    """A health probe has ended: `finding` is a Probe, `seconds` the time that the probe took.

    Not an Event of the worker: most probes change nothing about the worker.
    """

    worker: Worker
    finding: str
    seconds: float
    reason: str | None = None


@frozen
class JobEnded(bus.Event):
    """A video or mesh has ended with this status; None if its worker no longer knows it."""

    hold: Hold
    status: object


@frozen
class VersionIssued(bus.Event):
    """The first worker has applied a weight change of the model, which is at this version now."""

    model: str
    version: int
    label: str | None


@frozen
class RefitBegan(bus.Event):
    """A weight change has these workers from now on, or as their turns come. `refit` is its id,
    `model` its ledger, `kind` what it brings."""

    refit: str
    model: str
    kind: str
    workers: int


@frozen
class RefitEnded(bus.Event):
    """The weight change is over, after `seconds`; `applied` of its workers have all of it.
    `version` is None if none was issued."""

    refit: str
    model: str
    kind: str
    workers: int
    applied: int
    version: int | None
    label: str | None
    seconds: float

    @property
    def outcome(self) -> str:
        """`applied` by all workers, `partly`, or `void`."""
        if not self.applied:
            return "void"
        return "applied" if self.applied >= self.workers else "partly"


@frozen
class Queued(bus.Event):
    """A request found no free worker and waits; `waiting` is the number of waiting requests."""

    facts: Facts
    waiting: int


@frozen
class Refused(bus.Event):
    """A request was refused a worker, after `waited` seconds in the queue."""

    facts: Facts
    error: RouterError
    waited: float
