"""What has happened in the pool. Frozen facts, told on the bus of the registry."""

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
        """The worker that it is about."""


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
    """`past`: what was known of it before a restart of the router, if anything was."""

    past: WorkerRecord | None = None


class AliasesChanged(OfWorker):
    """Other URLs than before lead to the worker."""


class WorkerRegistered(OfWorker):
    """A request has registered a worker that was known already by the flags."""


class WorkerRemoved(OfWorker):
    """The worker is not in the pool any more."""


@frozen
class FacetChanged(OfWorker):
    """One facet took another value; `reason` is a sentence for people, if there is one."""

    facet: str
    old: str
    new: str
    reason: str | None = None


class ProspectsChanged(OfWorker):
    """What may be expected of the worker has changed, perhaps without a change of a facet: its
    first probe has failed, trouble with it is over, or a pause of it begins or ends."""


class CapabilitiesLearned(OfWorker):
    """The worker has told what it can do."""


class SlotsChanged(OfWorker):
    """The worker has another number of slots."""


class Suspected(WithReason):
    """It is doubtful whether the worker's process is still the same."""


class Absolved(WithReason):
    """The process is proven to be the same: the doubt is over, and everything stays."""


class Reincarnated(WithReason):
    """Another process answers at the worker's URL; what was known of the old one is void."""


class Trouble(WithReason):
    """An exchange with the worker failed in transport: a probe should look at once."""


class Ejected(WithReason):
    """The worker fails while others do not: from now on it gets one request at a time."""


class Readmitted(WithReason):
    """The worker is on trial no more."""


class LeaseGranted(OfLease):
    """An exchange was given the worker."""


class LeaseEnded(OfLease):
    """The exchange is over."""


class Held(OfHold):
    """A slot outlives its lease: a job that runs on, or a ghost."""


class SlotFreed(OfHold):
    """The slot is free."""


@frozen
class Probed(bus.Event):
    """A health probe was answered, or not: `finding` is a Probe, `seconds` how long that took.

    No Event of the worker: most probes change nothing of it.
    """

    worker: Worker
    finding: str
    seconds: float
    reason: str | None = None


@frozen
class VersionIssued(bus.Event):
    """The first worker has applied a weight change of the model: it is this version now."""

    model: str
    version: int
    label: str | None


@frozen
class Queued(bus.Event):
    """A request found no free worker and waits for one; `waiting` do now."""

    facts: Facts
    waiting: int


@frozen
class Refused(bus.Event):
    """A request was given no worker, after so many seconds in the queue."""

    facts: Facts
    error: RouterError
    waited: float
