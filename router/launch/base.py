"""What the parts of the launcher agree on: plans of workers, and the protocol of a backend.

A backend runs what it is given somewhere: as processes here, or as jobs of an engine that places
them on other machines, answers slowly, loses machines and outlives the router. The fleet
(`fleet.py`) decides what should run, and keeps the records; a backend keeps nothing of its own.
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
    """The ports of one worker. It also takes `http` + 1, and one port from `scheduler` on for
    each data-parallel copy (worker contract, "Starting one")."""

    http: int
    master: int
    scheduler: int


@frozen
class WorkerPlan:
    """What one worker of a launcher is to be, down to its command line. Made by a planner."""

    launcher: str  # the launcher's name; unique among all launchers
    index: int  # from 0, within the launcher
    name: str  # for people and file names, such as `worker-0` or `video-3`; unique
    command: tuple[str, ...]
    env: Mapping[str, str] = field(repr=False)  # beside the router's own; may hold secrets
    url: str  # normalised (pool.ids); where it will listen if the backend runs it here
    ports: WorkerPorts
    gpus: tuple[str, ...] = ()  # as CUDA_VISIBLE_DEVICES names them; empty: CPU, or unknown
    batching: int = 1  # `--batching-max-size` of the command: requests that it runs together
    # A digest of what the settings ask for (command, environment, GPUs, host), made with the
    # ports of first choice: a living worker with an equal one may be kept.
    fingerprint: str = ""


class Reservation(Protocol):
    """Ports of one worker: bound by us until the spawn, and nobody else's in this router until
    they are given back."""

    @property
    def ports(self) -> WorkerPorts: ...

    def unbind(self) -> None:
        """Close our sockets, just before the worker is spawned."""

    def give_back(self) -> None:
        """The worker is gone for good, or takes others; also unbinds."""


class Planner(Protocol):
    """Says what the workers of one launcher are to be. Raises StartError where it cannot be."""

    @property
    def launcher(self) -> str: ...

    def check(self, indices: Collection[int]) -> None:
        """Whether there are resources (GPUs) for these workers, which are theirs from now on.
        Raises StartError if not, and then nobody has got any."""

    def forget(self, index: int) -> None:
        """The worker is not wanted any more: others may have its resources."""

    async def learn(self) -> None:
        """Find out what plans depend on. To be awaited before a plan is launched; a living worker
        can be adopted without. Raises StartError if nothing can be launched."""

    def reserve(
        self, index: int, *, keep: WorkerPorts | None = None, avoid: Collection[int] = ()
    ) -> Reservation:
        """Find and bind ports for a worker: `keep` if they are free, else those of the settings,
        else the next ones; never one of `avoid`."""

    def adopt(self, index: int, ports: WorkerPorts) -> Reservation:
        """Note ports that a living worker holds, without binding them."""

    def taken(self, words: str, ports: WorkerPorts) -> frozenset[int]:
        """Which of its ports somebody else had, by the last words of a worker that died; none if
        it died of something else."""

    def moved(self, words: str, ports: WorkerPorts) -> int | None:
        """Where a worker says that it serves, instead of its HTTP port; None if it does not."""

    def plan(self, index: int, ports: WorkerPorts) -> WorkerPlan:
        """The worker of this index on these ports. The same every time, once `learn` has run."""


class RunState(StrEnum):
    """What an engine says of a launch."""

    PENDING = "pending"  # the engine has it, but has no room yet
    RUNNING = "running"
    ENDED = "ended"  # for good: it will not run again under this handle
    LOST = "lost"  # its machine is gone: it may still run there, but nobody can tell or end it


@frozen
class Run:
    """A launch, as its backend sees it at one moment."""

    state: RunState
    # Where it listens. None while that is not known: an engine places it when there is room.
    url: str | None = None
    # Proves which process runs: equal ones mean the same process, and weights in it that are
    # still there. Of an engine that starts a job again by itself, each start has another one.
    process: str | None = None
    pid: int | None = None  # for people, where there is one on this machine
    # Once ended: its exit status, negative for a signal; None if nobody knows it.
    status: int | None = None
    reason: str = ""  # how it ended or why it waits, as the end of a sentence about it


@frozen
class Order:
    """One launch: a plan, where its output goes, and a token that names it for ever.

    `owner` names the router that orders, so that others' launches are never touched.
    """

    plan: WorkerPlan
    token: str
    log: Path | None  # None: wherever the engine keeps it
    owner: str = ""


@frozen
class Handle:
    """What a backend needs to find a launch again, after a restart of the router as well.

    `ident` and `process` are the backend's own words: pid and start time, or the id of a job.
    They are empty in a handle of a launch that was ordered but perhaps never begun.
    """

    token: str
    ident: str = ""
    process: str = ""
    log: Path | None = None


class Backend(Protocol):
    """Runs workers somewhere. All calls may be cancelled at any await.

    None of them raises because an engine does not answer: `watch` and `end` go on asking, `find`
    and `launch` raise EngineUnavailable once they have tried for long enough. Not answering is
    never a sign that a worker has died.
    """

    @property
    def name(self) -> str:
        """As `backend:` in the settings names it."""

    @property
    def local(self) -> bool:
        """Whether workers run on this machine, on the ports of their plan, and under the
        router's own file system."""

    async def launch(self, order: Order) -> Handle:
        """Have a worker started; returns once the backend has taken it, not when it serves.

        The intent is durable before. The same token twice is one launch. If it is cancelled, either
        nothing was started, or `find` will see it. Raises StartError if it can never be
        started so (no such program, a request that the engine refuses), EngineUnavailable.
        """

    async def watch(self, handle: Handle, known: Run | None) -> Run:
        """What the launch is now; waits until it is something else than `known`.

        A handle that the engine has forgotten has ended.
        """

    async def end(self, handle: Handle, *, patience: Sequence[float]) -> None:
        """End the launch with all its processes, and return when nothing of it is left.

        First politely (SIGINT), then firmly (SIGTERM), then by force: `patience` has the seconds
        before the second and the third, and may be empty for force at once. Ending what has ended
        cleans up what it left behind. Where it is cancelled, force is used before it raises, for
        a few seconds at most where an engine does not answer.
        """

    async def find(self, handles: Sequence[Handle]) -> Mapping[str, Handle]:
        """Those of the launches that live, or wait for room, by token, with complete handles.

        Also launches whose handle has only a token: the router died between ordering and noting.
        Raises EngineUnavailable.
        """

    async def tail(self, handle: Handle, lines: int) -> list[str]:
        """The last lines of its output; few or none where the engine has lost them."""


class EngineUnavailable(Exception):
    """The engine does not answer, or refuses everybody; in one sentence. Worth another try."""
