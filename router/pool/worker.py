"""The record of one worker: its facets, its capabilities, the holds on its slots, and its
leases."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar, Self

from attrs import define, field, frozen

from . import ids
from .pools import USUAL, Kind, Role

if TYPE_CHECKING:
    from collections.abc import Callable

    from .match import Wants


class Health(StrEnum):
    """The verdict of the probes. `warming`: the process lives but does not serve yet."""

    UNKNOWN = "unknown"
    WARMING = "warming"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class Admin(StrEnum):
    """The state that an operator wants."""

    ENABLED = "enabled"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


class Memory(StrEnum):
    """Whether the weights are on the GPU. A worker cannot be asked: this is its last report."""

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


# The reason to suspect a worker that was known before a restart of the router.
ROUTER_RESTARTED = "the router was restarted"
# The end of a reason for which a worker counts as another process.
UNPROVEN = "; nothing proves that it is the same"

_HTTP = Kind.HTTP  # Python 3.11 is slow to look up enum members

# An unknown weight version; less than any other.
UNKNOWN_VERSION = -1


class Origin(StrEnum):
    """How the worker became known."""

    STATIC = "static"
    REGISTERED = "registered"
    LAUNCHED = "launched"


class Task(StrEnum):
    """The product of a generation."""

    IMAGE = "image"
    EDIT = "edit"
    VIDEO = "video"
    MESH = "mesh"


# The tasks that each `task_type` word of a worker stands for (worker contract, "Other rules").
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
    """What a worker tells about itself at `/v1/models`, `/server_info` and `/model_info`."""

    models: tuple[str, ...] = ()
    task_types: tuple[str, ...] = ()
    output_types: tuple[str, ...] = ()
    dp_size: int = 1
    model_path: str | None = None
    version: str | None = None
    # Requests that each copy of the model runs together, if the worker tells it.
    batching: int | None = None
    # The tasks that the worker can do; None if the worker named no known task or output type.
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
        """Whether the worker can do the task; None if that is unknown."""
        return None if self.tasks is None else task in self.tasks


@define(eq=False)
class Worker:
    """One registration of one URL. Only the registry changes a Worker."""

    url: str
    origin: Origin
    number: int = 0  # in order of registration
    role: Role = USUAL
    # The role from the settings. A request may have changed `role` since.
    role_default: Role = USUAL
    health: Health = Health.UNKNOWN
    admin: Admin = Admin.ENABLED
    memory: Memory = Memory.AWAKE
    weights: Weights = Weights.CURRENT
    # The version of the last ledger entry that the worker has in full; 0: that of its start.
    weight_version: int = 0
    newest_version: int = 0  # of its model, whether the worker has it or not
    # How many versions of its model were issued after its own; None: too many, or not known.
    weight_lag: int | None = 0
    # Why the weights are not current, in one sentence for people; None while they are.
    weights_reason: str | None = None
    # The worker is behind, and no replay can help until somebody acts.
    stuck: bool = False
    # Consecutive probes of one outcome; never both above zero.
    consecutive_failures: int = 0
    consecutive_successes: int = 0
    # Why health is not `healthy`, in one sentence for people; None while it is.
    health_reason: str | None = None
    unauthorized: bool = False  # the last probe lacked a key, or had the wrong one
    # Known once `/v1/models`, `/server_info` and `/model_info` were read in this incarnation.
    capabilities: Capabilities | None = None
    # A probe of this incarnation has succeeded.
    met: bool = False
    # Counts the processes seen behind the URL, from 1.
    incarnation: int = 1
    # The relay has failed to talk to the worker since the last good probe.
    troubled: bool = False
    # Set while the worker fails and others do not: it gets one request at a time (`pool.ejection`).
    trial: Trial | None = None
    # The worker has asked for no requests for a while, or is `dozing`.
    paused: bool = False
    # A generation met a sleeping engine, though the worker counts as awake (`pool.ejection`).
    dozing: bool = False
    # Set while the process may not be the one that was probed.
    suspicion: str | None = None
    # The process was started, or will be without outside action: until the worker serves, a refused
    # connection means that it loads. Only for launched workers.
    starting: bool = False
    ending: bool = False  # the process that still answers is about to end
    # Identifies the running process, if the launcher can: equal values mean the same process.
    process: str | None = None
    # Registered by a request: the worker stays even if no flag names it.
    registered: bool = False
    # Another system manages the weights (`--trust-external-weights`): a doubt keeps nothing back.
    trusted: bool = False
    # Set by the operator; None: as many as the worker can do (see `max_concurrency`).
    concurrency_limit: int | None = None
    # The limit from the settings. A request may have changed `concurrency_limit` since.
    concurrency_default: int | None = None
    # Requests that each copy of the model runs together, if the launcher knows.
    batching: int = 1
    # Other normalised URLs that lead to this worker, the latest last.
    aliases: tuple[str, ...] = ()
    # The launcher's name for the worker; unique among launched workers.
    label: str | None = None
    # Why the worker leaves once its work has ended; None: it stays. None for every enabled worker.
    leaving: str | None = None
    removed: bool = False
    leases: set[Lease] = field(factory=set, repr=False)
    # The holds on the slots, the oldest first: generations until the head of their answer, jobs
    # until they end, sessions, and ghosts. Jobs may push the count above `max_concurrency`.
    holds: dict[Hold, None] = field(factory=dict, repr=False)

    @property
    def worker_id(self) -> str:
        return ids.worker_id(self.url)

    @property
    def display_id(self) -> str:
        return ids.display_id(self.url)

    @property
    def pool(self) -> str:
        return self.role.pool

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain HTTP worker: without models, weights and memory."""
        return self.role.kind is _HTTP

    @property
    def name(self) -> str:
        """The name for people."""
        return self.label or self.display_id

    @property
    def max_concurrency(self) -> int:
        """Slots: the generations that the worker runs at once."""
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
        """Generations that the worker could begin now; negative if jobs exceed the slots."""
        return (1 if self.dozing else self.max_concurrency) - len(self.holds)

    @property
    def load(self) -> float:
        """Exchanges, jobs and ghosts, per slot."""
        count = len(self.leases)
        for hold in self.holds:
            count += hold.kind in _WITHOUT_LEASE
        return count / self.max_concurrency if count else 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no work runs that a weight change or a sleep must wait for. Answers on their way
        to clients do not count."""
        return not self.holds and not any(lease.binding for lease in self.leases)

    @property
    def is_drained(self) -> bool:
        """Whether no exchange runs and no slot is held. The holds of an unhealthy worker do not
        count: they may never end."""
        return not self.leases and (not self.holds or self.health is Health.UNHEALTHY)

    @property
    def jobs(self) -> int:
        """Video and mesh jobs that were submitted and have not ended."""
        return sum(hold.job and hold.kind is not HoldKind.GHOST for hold in self.holds)

    @property
    def ghosts(self) -> int:
        """Generations that go on although their client has left."""
        return sum(hold.kind is HoldKind.GHOST for hold in self.holds)

    @property
    def has_newest(self) -> bool:
        """Whether the weights are current, and not those before a rolling change."""
        return self.weights is Weights.CURRENT and self.weight_version == self.newest_version

    @property
    def is_dead(self) -> bool:
        return self.admin is Admin.QUARANTINED or self.health is Health.UNHEALTHY

    @property
    def is_sleeping(self) -> bool:
        """Whether the worker is asleep. A worker that is not known to be awake counts as asleep."""
        return self.memory is not Memory.AWAKE


@frozen
class WorkerRecord:
    """The last known state of a worker, without its health: probes find the health anew."""

    table: ClassVar[str] = "workers"

    url: str
    number: int  # in order of registration
    origin: Origin
    registered: bool = False
    admin: Admin = Admin.ENABLED
    # Awake or asleep; a worker that is not known to be awake counts as asleep.
    memory: Memory = Memory.AWAKE
    incarnation: int = 1
    # None: no probe has succeeded yet.
    capabilities: Capabilities | None = None
    # The operator's limit if `concurrency_set`; otherwise the flags decide.
    concurrency: int | None = None
    concurrency_set: bool = False
    aliases: tuple[str, ...] = ()
    leaving: str | None = None  # why the worker will be removed once its work has ended
    # The role that a request has set; None: the flags decide.
    role: Role | None = None

    @property
    def key(self) -> str:
        return self.url

    @classmethod
    def of(cls, worker: Worker) -> WorkerRecord:
        """The record of a worker's present state."""
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
            role=worker.role if worker.role != worker.role_default else None,
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
    # When the worker could begin: jobs beyond the slots wait there behind others.
    begun: float | None = None
    # True for a job, from its submission on. The id follows once it is known.
    job: bool = False
    job_id: str | None = None
    # The wants that decide which other workers fit, if known.
    wants: Wants | None = None
    # Not granted but found: recorded before a restart of the router.
    restored: bool = False
    # Taken while it was unknown which process runs.
    doubtful: bool = False
    orphaned: bool = False  # its worker was removed: nobody learns when the work ends


@define(eq=False)
class Trial:
    """Why a worker is on trial, and how the trial goes. Only `pool.ejection` changes a Trial."""

    reason: str
    failures: int  # failures that led to the trial, and failures since
    since: float  # time of the last failure, on the dispatcher's clock
    pause: float  # seconds until the worker may get a request
    peers: frozenset[Worker] = field(repr=False)  # the workers it was compared with
    successes: int = 0  # successes of the peers since the trial began
    due: bool = False  # the next request may be the trial
    hold: Hold | None = field(default=None, repr=False)  # the slot of the trial request


@define(eq=False)
class Lease:
    """The right to send one exchange to one worker. Ends exactly once, on every path.

    A lease belongs to one incarnation of the worker: if the process was replaced, the end of the
    lease changes nothing, unless the lease is doubtful. `hold` is the slot that the lease occupies;
    None if the slot was given back or the exchange needs no slot.
    """

    worker: Worker
    incarnation: int
    _on_end: Callable[[Lease], None] = field(alias="on_end", repr=False)
    hold: Hold | None = None
    # The worker's weight version at the grant; None if the version means nothing for the answer.
    weight_version: int | None = None
    # The worker is not idle before this lease ends, although the lease holds no slot.
    binding: bool = False
    # Granted while it was unknown which process runs.
    doubtful: bool = False
    # Of the request, if the lease was granted outside of the request's own task.
    request_id: str | None = None
    # Ends a session that has no end of its own; set by the code that can end it.
    evict: Callable[[], None] | None = None
    ended: bool = False

    def release(self) -> None:
        """End the lease. Raises RuntimeError if it has ended already: a caller counts twice."""
        if self.ended:
            raise RuntimeError(f"lease on {self.worker.url} released twice")
        self.ended = True
        self._on_end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
