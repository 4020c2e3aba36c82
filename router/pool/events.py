"""What observers of the registry are told. Frozen facts, in the order in which they happened."""

from __future__ import annotations

from typing import get_args

from attrs import frozen

from .known import WorkerRecord
from .worker import Hold, Lease, Worker


@frozen
class WorkerAdded:
    """`past`: what was known of it before a restart of the router, if anything was."""

    worker: Worker
    past: WorkerRecord | None = None


@frozen
class AliasesChanged:
    """Other URLs than before lead to the worker."""

    worker: Worker


@frozen
class WorkerRegistered:
    """A request has registered a worker that was known already by the flags."""

    worker: Worker


@frozen
class WorkerRemoved:
    worker: Worker


@frozen
class FacetChanged:
    """One facet took another value; `reason` is a sentence for people, if there is one."""

    worker: Worker
    facet: str
    old: str
    new: str
    reason: str | None = None


@frozen
class ProspectsChanged:
    """What may be expected of the worker has changed, perhaps without a change of a facet: its
    first probe has failed, trouble with it is over, or a pause of it begins or ends."""

    worker: Worker


@frozen
class CapabilitiesLearned:
    worker: Worker


@frozen
class Suspected:
    """It is doubtful whether the worker's process is still the same."""

    worker: Worker
    reason: str


@frozen
class Absolved:
    """The process is proven to be the same: the doubt is over, and everything stays."""

    worker: Worker
    reason: str


@frozen
class Reincarnated:
    """Another process answers at the worker's URL; what was known of the old one is void."""

    worker: Worker
    reason: str


@frozen
class Trouble:
    """An exchange with the worker failed in transport: a probe should look at once."""

    worker: Worker
    reason: str


@frozen
class Ejected:
    """The worker fails while others do not: from now on it gets one request at a time."""

    worker: Worker
    reason: str


@frozen
class Readmitted:
    """The worker is on trial no more."""

    worker: Worker
    reason: str


@frozen
class LeaseGranted:
    lease: Lease


@frozen
class LeaseEnded:
    lease: Lease


@frozen
class Held:
    """A slot outlives its lease: a job that runs on, or a ghost."""

    hold: Hold


@frozen
class SlotFreed:
    hold: Hold


@frozen
class SlotsChanged:
    """The worker has another number of slots."""

    worker: Worker


Event = (
    WorkerAdded
    | WorkerRegistered
    | AliasesChanged
    | WorkerRemoved
    | FacetChanged
    | ProspectsChanged
    | CapabilitiesLearned
    | Suspected
    | Absolved
    | Reincarnated
    | Trouble
    | Ejected
    | Readmitted
    | LeaseGranted
    | LeaseEnded
    | Held
    | SlotFreed
    | SlotsChanged
)
KINDS: tuple[type[Event], ...] = get_args(Event)
