"""Transition tables of a worker's facets, and the conclusions drawn from the facets.

Each facet is a small machine of its own: being asleep must not erase being behind on weights. An
event that a table does not name raises and changes nothing. Two facets have no table: `health`
follows the probes, and may change from any value to any other (`judge`); `weights` is derived from
the ledgers (pool/weights).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import TypeVar

from attrs import frozen

from ..errors import Conflict
from .versions import Bounds
from .worker import Admin, Health, Memory, Weights, Worker


class AdminEvent(StrEnum):
    DRAIN = "drain"
    UNDRAIN = "undrain"
    QUARANTINE = "quarantine"
    CLEAR = "clear"


class MemoryEvent(StrEnum):
    SLEEP = "sleep"
    SLEPT = "slept"
    WAKE = "wake"
    WOKE = "woke"
    LOST = "lost"  # the outcome of a sleep or wake call is unknown
    REPLACED = "replaced"  # another process answers at this URL


class Probe(StrEnum):
    """The finding of one health probe."""

    OK = "ok"
    WARMING = "warming"
    FAILED = "failed"
    REFUSED = "refused"  # no process listens
    BACKEND_DEAD = "backend_dead"
    UNAUTHORIZED = "unauthorized"  # the worker wants a key, or another key than ours


S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)
Table = Mapping[S, Mapping[E, S]]

ADMIN: Table[Admin, AdminEvent] = {
    Admin.ENABLED: {
        AdminEvent.DRAIN: Admin.DRAINING,
        AdminEvent.UNDRAIN: Admin.ENABLED,
        AdminEvent.QUARANTINE: Admin.QUARANTINED,
        AdminEvent.CLEAR: Admin.ENABLED,
    },
    Admin.DRAINING: {
        AdminEvent.DRAIN: Admin.DRAINING,
        AdminEvent.UNDRAIN: Admin.ENABLED,
        AdminEvent.QUARANTINE: Admin.QUARANTINED,
        # Clearing a quarantine that does not exist must not end a drain.
        AdminEvent.CLEAR: Admin.DRAINING,
    },
    Admin.QUARANTINED: {
        AdminEvent.QUARANTINE: Admin.QUARANTINED,
        AdminEvent.CLEAR: Admin.ENABLED,
    },
}

MEMORY: Table[Memory, MemoryEvent] = {
    Memory.AWAKE: {
        MemoryEvent.SLEEP: Memory.FALLING_ASLEEP,
        MemoryEvent.REPLACED: Memory.AWAKE,
    },
    Memory.FALLING_ASLEEP: {
        MemoryEvent.SLEEP: Memory.FALLING_ASLEEP,
        MemoryEvent.SLEPT: Memory.ASLEEP,
        # Refused: the worker said that it is still awake.
        MemoryEvent.WOKE: Memory.AWAKE,
        MemoryEvent.LOST: Memory.ASLEEP,
        MemoryEvent.WAKE: Memory.WAKING,
        MemoryEvent.REPLACED: Memory.FALLING_ASLEEP,
    },
    Memory.ASLEEP: {
        MemoryEvent.SLEEP: Memory.FALLING_ASLEEP,
        MemoryEvent.WAKE: Memory.WAKING,
        # The new process occupies the GPU without a right to it: it must give the GPU back.
        MemoryEvent.REPLACED: Memory.FALLING_ASLEEP,
    },
    Memory.WAKING: {
        MemoryEvent.SLEEP: Memory.FALLING_ASLEEP,
        MemoryEvent.WOKE: Memory.AWAKE,
        MemoryEvent.LOST: Memory.ASLEEP,
        MemoryEvent.WAKE: Memory.WAKING,
        MemoryEvent.REPLACED: Memory.WAKING,
    },
}


class IllegalTransition(Conflict):
    """The facet does not allow this event in its present state; nothing was changed."""

    default_code = "illegal_transition"


def step(table: Table[S, E], state: S, event: E) -> S:
    """The state after the event. Raises IllegalTransition if the table does not name it."""
    try:
        return table[state][event]
    except KeyError:
        raise IllegalTransition(f"A worker that is {state} cannot {event}") from None


# Successes in a row that an unhealthy worker needs to be healthy again.
SUCCESSES_TO_RECOVER = 2


def judge(worker: Worker, probe: Probe, *, failure_threshold: int) -> Health:
    """The worker's health after its latest probe, which is already counted in its record."""
    match probe:
        case Probe.OK:
            enough = SUCCESSES_TO_RECOVER if worker.health is Health.UNHEALTHY else 1
            return Health.HEALTHY if worker.consecutive_successes >= enough else worker.health
        case Probe.WARMING:
            return Health.WARMING
        case Probe.BACKEND_DEAD:
            # The worker says so itself: more probes would only send work to a dead engine.
            return Health.UNHEALTHY
        case Probe.FAILED | Probe.REFUSED | Probe.UNAUTHORIZED:
            many = worker.consecutive_failures >= failure_threshold
            return Health.UNHEALTHY if many else worker.health


def doubted(worker: Worker) -> bool:
    """Whether doubt about its process keeps the worker from generations: another process would have
    the weights of its start. If the weights were never changed, the doubt does not matter."""
    return worker.suspicion is not None and worker.weight_version > 0 and not worker.trusted


# `reasons` runs several times per assignment, and Python 3.11 is slow to look up enum members.
_HEALTHY, _ENABLED = Health.HEALTHY, Admin.ENABLED
_AWAKE, _CURRENT = Memory.AWAKE, Weights.CURRENT


def reasons(worker: Worker) -> list[str]:
    """Why the worker is not routable, as stable words; empty if it is routable."""
    found: list[str] = []
    if worker.removed:
        found.append("removed")
    if worker.health is not _HEALTHY:
        found.append("not_probed_yet" if worker.health is Health.UNKNOWN else worker.health.value)
        if worker.unauthorized:
            found.append("unauthorized")
    if worker.admin is not _ENABLED:
        found.append(worker.admin.value)
    if worker.memory is not _AWAKE:
        found.append(worker.memory.value)
    if worker.weights is not _CURRENT:
        found.append(f"weights_{worker.weights.value}")
    if doubted(worker):
        found.append("suspect")
    if worker.paused:
        found.append("suspect_asleep" if worker.dozing else "backpressure")
    if worker.trial is not None:
        found.append("on_trial")
    return found


def routable(worker: Worker) -> bool:
    """Whether generations may be sent to the worker."""
    return not reasons(worker)


def able(worker: Worker, bounds: Bounds | None = None) -> bool:
    """Whether generations that accept these weights may be sent to the worker if no better one
    exists: the worker is routable, or only a trial stands against it."""
    if not meets(worker, bounds):
        return False
    found = reasons(worker)
    return not found or found == _ON_TRIAL


_ON_TRIAL = ["on_trial"]


def meets(worker: Worker, bounds: Bounds | None) -> bool:
    """Whether the worker's weights are within the bounds."""
    return bounds is None or bounds.met(worker.weight_version, worker.weight_lag)


def reachable(worker: Worker) -> bool:
    """Whether calls may be sent to the worker, whatever its weights and memory."""
    return why_unreachable(worker) is None


def why_unreachable(worker: Worker) -> str | None:
    """Why no calls may be sent to the worker, for people; None if calls may be sent."""
    if worker.removed:
        return "it was removed"
    if worker.health is not Health.HEALTHY:
        return f"it became {worker.health}"
    return "it was quarantined" if worker.admin is Admin.QUARANTINED else None


class Lack(StrEnum):
    """A condition that the worker will not meet without outside action."""

    LIFE = "life"  # dead, or taken out of service
    MEMORY = "memory"
    WEIGHTS = "weights"  # the current weights of its ledger
    VERSION = "version"  # weights that the request accepts
    CONTACT = "contact"  # its first probe has failed


def lack(worker: Worker, bounds: Bounds | None = None) -> Lack | None:
    """What keeps the worker from becoming `able` without outside action; None if nothing does."""
    if worker.removed or worker.admin is not Admin.ENABLED or worker.health is Health.UNHEALTHY:
        return Lack.LIFE
    if worker.memory not in (Memory.AWAKE, Memory.WAKING):
        return Lack.MEMORY
    if worker.weights is Weights.FAILED or (worker.weights is Weights.BEHIND and worker.stuck):
        return Lack.WEIGHTS
    if bounds is not None and not meets(worker, bounds):
        # The worker will get the weights of its ledger soon; or its ledger is not known yet.
        soon = not worker.has_newest or worker.capabilities is None
        if not soon or bounds.passed(worker.newest_version):
            return Lack.VERSION
    first_probe_failed = worker.health is Health.UNKNOWN and worker.consecutive_failures > 0
    return Lack.CONTACT if first_probe_failed else None


def hopeful(worker: Worker, bounds: Bounds | None = None) -> bool:
    """Whether the worker is able, or may become able without outside action."""
    return lack(worker, bounds) is None


@frozen
class Census:
    """Counts of workers by condition. Each counts once, but a worker on trial counts again."""

    total: int
    routable: int
    dead: int
    sleeping: int
    on_trial: int


def census(workers: Iterable[Worker]) -> Census:
    """Count the workers. A dead worker does not count as sleeping."""
    pool = list(workers)
    return Census(
        total=len(pool),
        routable=sum(map(routable, pool)),
        dead=sum(worker.is_dead for worker in pool),
        sleeping=sum(worker.is_sleeping and not worker.is_dead for worker in pool),
        on_trial=sum(worker.trial is not None for worker in pool),
    )
