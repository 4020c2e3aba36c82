"""The parts of the router that endpoints use."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from attrs import define, frozen
from quart import current_app

from ..control.agent import Agents
from ..control.client import ControlClient
from ..control.jobs import JobControl
from ..control.memory import MemoryControl
from ..control.names import Names
from ..control.refit import WeightControl
from ..control.runs import Runs
from ..control.transactions import Transactions
from ..control.watch import Watchman
from ..dispatch import Dispatcher
from ..front.drain import Drain
from ..observe.metrics import Metrics
from ..observe.previews import Previews
from ..pool.registry import Registry
from ..pool.weights import Ledgers
from ..pool.worker import Worker
from ..settings import Changes
from ..store.store import Store
from .feed import Feed

_KEY = "router"


@define
class CallLimits:
    """How long workers may take over weight and memory calls, in seconds."""

    refit: float  # from the last byte of the call to its answer
    idle: float  # without taking a byte of a streamed body


class FollowedLog(Protocol):
    """A log that is followed."""

    found: list[str]
    over: bool

    async def new(self) -> list[str]:
        """The lines since the last call, or none; after the last ones `over` is set."""


class WorkerLogs(Protocol):
    """What the endpoints need to show logs (router/launch/logs.py)."""

    async def tail(self, worker: Worker, lines: int) -> list[str]:
        """The end of the worker's output. Raises NotFound."""

    def following(self) -> AbstractContextManager[None]:
        """Count one who follows. Raises PoolUnavailable."""

    async def follow(self, worker: Worker, lines: int) -> FollowedLog:
        """The end of the worker's output and what comes later. Raises NotFound."""


class LaunchedWorkers(Protocol):
    """What the endpoints need from the launcher (router/launch/fleet.py)."""

    @property
    def logs(self) -> WorkerLogs:
        """The output of the workers."""

    def describe(self, worker: Worker) -> dict[str, Any] | None:
        """The launch of a worker as JSON; None if it was not launched."""

    def restart(self, worker: Worker) -> None:
        """Start the worker again. Raises Conflict."""

    async def scale(self, workers: int, launcher: str | None = None) -> dict[str, Any]:
        """Change a launcher to this number of workers. Raises RouterError."""

    async def settled(self, worker: Worker) -> None:
        """Wait until the processes of a removed worker have ended."""


@frozen
class Parts:
    """The parts of the running router that endpoints call."""

    store: Store
    registry: Registry
    dispatcher: Dispatcher
    watchman: Watchman
    names: Names
    client: ControlClient
    jobs: JobControl
    ledgers: Ledgers
    runs: Runs
    weights: WeightControl
    transactions: Transactions
    agents: Agents
    memory: MemoryControl
    launcher: LaunchedWorkers
    feed: Feed
    metrics: Metrics
    previews: Previews
    limits: CallLimits
    reload: Callable[[], Awaitable[Changes]]  # raises RouterError
    drain: Drain

    def attach(self, extensions: dict[str, object]) -> None:
        """Make `parts()` return these parts within the app that has these extensions."""
        extensions[_KEY] = self


def parts() -> Parts:
    """The parts of the app that handles the current request."""
    return cast(Parts, current_app.extensions[_KEY])
