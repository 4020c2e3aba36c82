"""The record of one worker: its facets, what it can do, what occupies its slots, and the leases on
it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self

from attrs import define, field, frozen

from . import ids

if TYPE_CHECKING:
    from collections.abc import Callable

    from .match import Wants


class Health(StrEnum):
    """What probes say. `warming`: the process lives but does not serve yet."""

    UNKNOWN = "unknown"
    WARMING = "warming"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Admin(StrEnum):
    """What an operator wants."""

    ENABLED = "enabled"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class Memory(StrEnum):
    """Whether the weights are on the GPU. A worker cannot be asked: this is what it last said."""

    AWAKE = "awake"
    FALLING_ASLEEP = "falling_asleep"
    ASLEEP = "asleep"
    WAKING = "waking"


class Weights(StrEnum):
    """Where the worker stands against the ledger of its model."""

    CURRENT = "current"
    UPDATING = "updating"
    BEHIND = "behind"
    FAILED = "failed"


# Why a worker is a suspect of which something was known before the router was restarted.
ROUTER_RESTARTED = "the router was restarted"

# A weight version that nobody knows; less than any other.
UNKNOWN_VERSION = -1


class Origin(StrEnum):
    """How the worker became known."""

    STATIC = "static"
    REGISTERED = "registered"
    LAUNCHED = "launched"


class Task(StrEnum):
    """What a generation makes."""

    IMAGE = "image"
    EDIT = "edit"
    VIDEO = "video"
    MESH = "mesh"


# The worker's `task_type` words (worker contract, "Other rules") by what they make.
_TASKS_OF_TYPE: dict[str, frozenset[Task]] = {
    "T2I": frozenset({Task.IMAGE}),
    "I2I": frozenset({Task.EDIT}),
    # A worker that reports only TI2I also takes plain text (seen on a real worker).
    "TI2I": frozenset({Task.IMAGE, Task.EDIT}),
    "T2V": frozenset({Task.VIDEO}),
    "I2V": frozenset({Task.VIDEO}),
    "TI2V": frozenset({Task.VIDEO}),
    "V2V": frozenset({Task.VIDEO}),
    "F2V": frozenset({Task.VIDEO}),
    "I2M": frozenset({Task.MESH}),
}
_TASKS_OF_OUTPUT: dict[str, frozenset[Task]] = {
    "IMAGE": frozenset({Task.IMAGE, Task.EDIT}),
    "VIDEO": frozenset({Task.VIDEO}),
    "MESH": frozenset({Task.MESH}),
}


@frozen
class Capabilities:
    """What a worker says of itself at `/v1/models`, `/server_info` and `/model_info`."""

    models: tuple[str, ...] = ()
    task_types: tuple[str, ...] = ()
    output_types: tuple[str, ...] = ()
    dp_size: int = 1
    model_path: str | None = None
    version: str | None = None
    # Requests that each copy runs together, where it says so.
    batching: int | None = None
    # What it can make; None if it named nothing that is understood.
    tasks: frozenset[Task] | None = field(init=False, repr=False, eq=False)

    @tasks.default
    def _understood(self) -> frozenset[Task] | None:
        found: set[Task] = set()
        for word in self.task_types:
            found |= _TASKS_OF_TYPE.get(word.upper(), frozenset())
        if not found:
            for word in self.output_types:
                found |= _TASKS_OF_OUTPUT.get(word.upper(), frozenset())
        return frozenset(found) or None

    def can(self, task: Task) -> bool | None:
        """Whether it can do the task; None if that is not known."""
        return None if self.tasks is None else task in self.tasks


@define(eq=False)
class Worker:
    """One registration of one URL. Only the registry changes it."""

    url: str
    origin: Origin
    number: int = 0  # in order of registration
    health: Health = Health.UNKNOWN
    admin: Admin = Admin.ENABLED
    memory: Memory = Memory.AWAKE
    weights: Weights = Weights.CURRENT
    # Of the last ledger entry of which it has all; 0: that of its start, before any change.
    weight_version: int = 0
    # Why it is not current, in one sentence for people; None while it is.
    weights_reason: str | None = None
    # It is behind, and no replay can help it until somebody acts.
    stuck: bool = False
    # Probes since the last one of the other outcome; never both above zero.
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    # Why health is not `healthy`, in one sentence for people; None while it is.
    health_reason: str | None = None
    unauthorized: bool = False  # the last probe was refused for want of a key, or of the right one
    # Known once `/v1/models`, `/server_info` and `/model_info` were read in this incarnation.
    capabilities: Capabilities | None = None
    # A probe of this incarnation has succeeded.
    met: bool = False
    # Counts the processes seen behind the URL, from 1.
    incarnation: int = 1
    # The relay could not talk to it since the last good probe.
    troubled: bool = False
    # Set while it fails and others do not: it gets one request at a time (`pool.ejection`).
    trial: Trial | None = None
    # It has asked to be left alone for a while.
    paused: bool = False
    # Set while it is doubtful whether the process is still the one that was probed.
    suspicion: str | None = None
    # Its process was started, or will be without anyone acting: until it serves, refusing
    # connections means that it loads. Only of launched workers.
    starting: bool = False
    ending: bool = False  # and the process that still answers is about to end
    # Proves which process runs, if its launcher knows: equal ones mean the same process.
    process: str | None = None
    # By a request: it stays though no flag names it any more.
    registered: bool = False
    # Somebody else sees to its weights (`--trust-external-weights`): that doubt keeps nothing back.
    trusted: bool = False
    # What the operator set; None: as many as the worker can (see `max_concurrency`).
    concurrency_limit: int | None = None
    # What the settings say. A request may have changed the limit since.
    concurrency_default: int | None = None
    # Requests that each of its copies runs together, where its launcher knows.
    batching: int = 1
    # Other normalised URLs that were answered with it, the latest last.
    aliases: tuple[str, ...] = ()
    # What its launcher calls it; unique among launched workers.
    label: str | None = None
    # Why it is to be removed once its work has ended; None: it stays. Never of an enabled one.
    leaving: str | None = None
    removed: bool = False
    leases: set[Lease] = field(factory=set, repr=False)
    # What occupies its slots, the oldest first: generations until the head of their answer, jobs
    # until they end, sessions, and ghosts. Jobs may make it more than `max_concurrency`.
    holds: dict[Hold, None] = field(factory=dict, repr=False)

    @property
    def worker_id(self) -> str:
        return ids.worker_id(self.url)

    @property
    def display_id(self) -> str:
        return ids.display_id(self.url)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.label or self.display_id

    @property
    def max_concurrency(self) -> int:
        """Generations it works on at once (slots)."""
        if self.concurrency_limit is not None:
            return self.concurrency_limit
        can = self.capabilities
        return (can.batching if can and can.batching else self.batching) * (
            can.dp_size if can else 1
        )

    @property
    def active_requests(self) -> int:
        """Exchanges between dispatch and last byte."""
        return len(self.leases)

    @property
    def free_slots(self) -> int:
        """Generations that it could begin now; negative where jobs exceed its slots."""
        return self.max_concurrency - len(self.holds)

    @property
    def load(self) -> float:
        """Exchanges, jobs and ghosts, per slot."""
        count = len(self.leases)
        for hold in self.holds:
            count += hold.kind in _WITHOUT_LEASE
        return count / self.max_concurrency if count else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs there that a change of weights or a sleep must wait for. Answers
        on their way to clients do not count."""
        return not self.holds and not any(lease.binding for lease in self.leases)

    @property
    def is_drained(self) -> bool:
        """Whether neither an exchange nor anything that holds a slot is under way there. What an
        unhealthy worker does is not counted: it may never end."""
        return not self.leases and (not self.holds or self.health is Health.UNHEALTHY)

    @property
    def jobs(self) -> int:
        """Video and mesh jobs that were submitted and have not ended."""
        return sum(hold.job and hold.kind is not HoldKind.GHOST for hold in self.holds)

    @property
    def ghosts(self) -> int:
        """Generations that go on though their client has left."""
        return sum(hold.kind is HoldKind.GHOST for hold in self.holds)

    @property
    def is_dead(self) -> bool:
        return self.admin is Admin.QUARANTINED or self.health is Health.UNHEALTHY

    @property
    def is_sleeping(self) -> bool:
        """Not known to be awake counts as asleep."""
        return self.memory is not Memory.AWAKE


@frozen
class WorkerRecord:
    """A worker, as it was known last. Not its health: that is found out anew."""

    table: ClassVar[str] = "workers"

    url: str
    number: int  # in order of registration
    origin: Origin
    registered: bool = False
    admin: Admin = Admin.ENABLED
    # Awake or asleep: what is not known to be awake counts as asleep.
    memory: Memory = Memory.AWAKE
    incarnation: int = 1
    # None: no process was probed well yet.
    capabilities: Capabilities | None = None
    # What an operator set, if he did; else what the flags say counts.
    concurrency: int | None = None
    concurrency_set: bool = False
    aliases: tuple[str, ...] = ()
    leaving: str | None = None  # why it is to be removed once its work has ended

    @property
    def key(self) -> str:
        return self.url

    @classmethod
    def of(cls, worker: Worker) -> WorkerRecord:
        """The record of a worker as it is now."""
        concurrency_set = worker.concurrency_limit != worker.concurrency_default
        return cls(
            url=worker.url,
            number=worker.number,
            origin=worker.origin,
            registered=worker.registered,
            admin=worker.admin,
            memory=Memory.AWAKE if worker.memory is Memory.AWAKE else Memory.ASLEEP,
            incarnation=worker.incarnation,
            capabilities=worker.capabilities,
            concurrency=worker.concurrency_limit if concurrency_set else None,
            concurrency_set=concurrency_set,
            aliases=worker.aliases,
            leaving=worker.leaving,
        )


class HoldKind(StrEnum):
    """Why a slot is occupied."""

    GENERATION = "generation"
    JOB = "job"
    SESSION = "session"
    GHOST = "ghost"


_WITHOUT_LEASE = (HoldKind.JOB, HoldKind.GHOST)


@define(eq=False)
class Hold:
    """One occupied slot of one incarnation of a worker."""

    worker: Worker
    incarnation: int
    kind: HoldKind
    endpoint: str = ""  # the kind of endpoint, as speeds are learnt
    work: float = 0.0  # units of work (pool.cost)
    since: float = 0.0  # when the slot was taken, on the dispatcher's clock
    # When the worker can have begun with it: jobs beyond its slots wait behind others there.
    begun: float | None = None
    # For a job, from its submission on; and its id, once it is known.
    job: bool = False
    job_id: str | None = None
    # What says which other workers it was fit for, where that is known.
    wants: Wants | None = None
    # It was not granted but found: by what was known before a restart of the router.
    restored: bool = False
    # It was taken while nobody knew which process is there.
    doubtful: bool = False


@define(eq=False)
class Trial:
    """Why a worker is on trial, and how that goes. Only `pool.ejection` changes it."""

    reason: str
    failures: int  # those that led to it, and since
    since: float  # the last failure, on the dispatcher's clock
    pause: float  # seconds until it may have a request
    peers: frozenset[Worker] = field(repr=False)  # those that it was compared with
    successes: int = 0  # theirs, since it began
    due: bool = False  # the next request may be the trial
    hold: Hold | None = field(default=None, repr=False)  # of the request that is the trial


@define(eq=False)
class Lease:
    """The right to send one exchange to one worker. Ends exactly once, on every path.

    It belongs to one incarnation of the worker: its end after the process was replaced
    changes nothing there, unless it is doubtful. `hold` is the slot it occupies, None once that
    was given back or where none is needed.
    """

    worker: Worker
    incarnation: int
    _on_end: Callable[[Lease], None] = field(alias="on_end", repr=False)
    hold: Hold | None = None
    # Of the worker's weights when it was granted; None where that says nothing.
    weight_version: int | None = None
    # It must end before the worker is idle, though it holds no slot.
    binding: bool = False
    # It was granted while nobody knew which process is there.
    doubtful: bool = False
    # Ends a session that has no end of its own; whoever can, sets it.
    evict: Callable[[], None] | None = None
    ended: bool = False

    def release(self) -> None:
        """End the lease. Raises RuntimeError if it has ended already: somebody counts twice."""
        if self.ended:
            raise RuntimeError(f"lease on {self.worker.url} released twice")
        self.ended = True
        self._on_end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
