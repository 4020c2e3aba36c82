"""What the parts of the launcher share: plans of workers, and the protocol of a backend.

A backend runs launches: as processes here, or as jobs of an engine that places them on other
machines, answers slowly, loses machines and outlives the router. The fleet (`fleet.py`) decides
what should run and keeps the records; a backend keeps none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from attrs import field, frozen

TOKEN_VARIABLE = "SGLANG_D_ROUTER_LAUNCH"
"""Environment variable that holds the token of a launch, in the worker and all its children."""


@frozen
class WorkerPorts:
    """The ports of one worker. The worker also takes `http` + 1, and one port from `scheduler` on
    for each data-parallel copy (worker contract, "Starting one")."""

    http: int
    master: int
    scheduler: int


@frozen
class WorkerPlan:
    """All that describes one worker of a launcher, even its command line. Made by a planner."""

    launcher: str  # the launcher's name; unique among all launchers
    index: int  # from 0, within the launcher
    name: str  # for people and file names, such as `worker-0` or `video-3`; unique
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # beside the router's own; may hold secrets
    url: str  # normalised (pool.ids); where it listens if the backend runs it here
    ports: WorkerPorts
    gpus: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them; empty: CPU, or unknown
    batching: int = 1  # `--batching-max-size` of the command: requests that it runs together
    # A digest of what the settings ask for (command, environment, GPUs, host), made with the ports
    # of first choice: a living worker with an equal digest may be kept.
    fingerprint: str = ""


class Reservation(Protocol):
    """The ports of one worker: bound by us until the spawn, and given to no other worker of this
    router before `give_back`."""

    @property
    def ports(self) -> WorkerPorts: ...

    def unbind(self) -> None:
        """Close our sockets, just before the worker is spawned."""

    def give_back(self) -> None:
        """Release the ports, bound or not: the worker is gone for good, or takes others."""


class Planner(Protocol):
    """Plans the workers of one launcher. Raises StartError if that is impossible."""

    @property
    def launcher(self) -> str: ...

    def check(self, indices: Collection[int]) -> None:
        """Give these workers their resources (GPUs). Raises StartError if any is lacking; then none
        of them gets any."""

    def forget(self, index: int) -> None:
        """The worker is no longer wanted: others may have its resources."""

    async def learn(self) -> None:
        """Find out what plans depend on. Await it before launching a plan; a living worker can be
        adopted without. Raises StartError if nothing can be launched."""

    def reserve(
        self, index: int, *, keep: WorkerPorts | None = None, avoid: Collection[int] = ()
    ) -> Reservation:
        """Find and bind ports for a worker: `keep` if free, else the ports of the settings, else
        the next ones; never one of `avoid`."""

    def adopt(self, index: int, ports: WorkerPorts) -> Reservation:
        """Note ports that a living worker holds, without binding them."""

    def taken(self, words: str, ports: WorkerPorts) -> frozenset[int]:
        """The ports of a dead worker that another process had, according to the worker's last
        words; none if it died for another reason."""

    def moved(self, words: str, ports: WorkerPorts) -> int | None:
        """The port on which a worker says that it serves instead of its HTTP port, or None."""

    def plan(self, index: int, ports: WorkerPorts) -> WorkerPlan:
        """The plan of this worker on these ports. Always the same once `learn` has run."""


class RunState(StrEnum):
    """The state of a launch, as its engine reports it."""

    PENDING = "pending"  # the engine has accepted it but has no room yet
    RUNNING = "running"
    ENDED = "ended"  # for good: it will not run again under this handle
    LOST = "lost"  # its machine is gone: it may still run there, but cannot be reached or ended


@frozen
class Run:
    """A launch, as its backend sees it at one moment."""

    state: RunState
    # Where it listens. None while unknown: an engine places it when there is room.
    url: str | None = None
    # Identifies the process: equal values mean the same process, with its weights still loaded. If
    # an engine restarts a job by itself, each start has a new value.
    process: str | None = None
    pid: int | None = None  # for people, where there is one on this machine
    # Once ended: the exit status, negative for a signal; None if unknown.
    status: int | None = None
    reason: str = ""  # how it ended or why it waits, as the end of a sentence about it


@frozen
class Order:
    """One launch: a plan, a file for its output, and a token that names it for ever.

    `owner` names the ordering router, so that it never touches launches of other routers.
    """

    plan: WorkerPlan
    token: str
    log: Path | None  # None: wherever the engine keeps it
    owner: str = ""


@frozen
class Handle:
    """What a backend needs to find a launch again, even after a restart of the router.

    `ident` and `process` are opaque to the router: pid and start time, or the id of a job. Both are
    empty if the launch was ordered but perhaps never began.
    """

    token: str
    ident: str = ""
    process: str = ""
    log: Path | None = None


class Backend(Protocol):
    """Runs workers somewhere. All calls may be cancelled at any await.

    An engine that does not answer is never taken as a sign that a worker has died. Meanwhile
    `watch` and `end` keep asking; `find` and `launch` raise EngineUnavailable after enough tries.
    """

    @property
    def name(self) -> str:
        """The name of the backend in the settings (`backend:`)."""

    @property
    def local(self) -> bool:
        """Whether workers run here, on the ports of their plan and in the router's file system."""

    async def launch(self, order: Order) -> Handle:
        """Order a worker; returns once the backend has accepted it, before it serves.

        The caller has made the intent durable. The same token twice is one launch. After a
        cancellation either nothing was started, or `find` sees the launch. Raises StartError if it
        can never start (no such program, a request that the engine refuses), EngineUnavailable.
        """

    async def watch(self, handle: Handle, known: Run | None) -> Run:
        """The launch as it is now; waits until it differs from `known`.

        A handle that the engine has forgotten has ended.
        """

    async def end(self, handle: Handle, *, patience: Sequence[float]) -> None:
        """End the launch with all its processes; returns when none of them is left.

        Sends SIGINT, then SIGTERM, then uses force. `patience` has the seconds before the second
        and the third step; empty means force at once. Ending an ended launch cleans up its remains.
        If cancelled, `end` uses force before it raises, which takes a few seconds at most with an
        engine that does not answer.
        """

    async def find(self, handles: Sequence[Handle]) -> Mapping[str, Handle]:
        """The launches that live or wait for room, by token, with complete handles.

        Also finds launches whose handle has only a token, because the router died between ordering
        and recording. Raises EngineUnavailable.
        """

    async def tail(self, handle: Handle, lines: int) -> list[str]:
        """The last lines of the launch's output; few or none if the engine has lost them."""


class EngineUnavailable(Exception):
    """The engine does not answer, or refuses all requests. One sentence; worth a retry."""
