"""What the endpoints are given to work with."""

from __future__ import annotations

from typing import Any, Protocol, cast

from attrs import frozen
from quart import current_app

from ..control.agent import Agents
from ..control.client import ControlClient
from ..control.jobs import JobControl
from ..control.memory import MemoryControl
from ..control.names import Names
from ..control.open_transactions import Transactions
from ..control.refit import WeightControl
from ..control.watch import Watchman
from ..dispatch import Dispatcher
from ..pool.registry import Registry
from ..pool.weights import Ledgers
from ..pool.worker import Worker
from ..store.store import Store

_KEY = "router"


@frozen
class CallLimits:
    """How long workers may take over weight and memory calls, in seconds."""

    refit: float  # from the last byte of the call to its answer
    idle: float  # without taking a byte of a streamed body


class LaunchedWorkers(Protocol):
    """What the endpoints need of the launcher (router/launch/fleet.py)."""

    def describe(self, worker: Worker) -> dict[str, Any] | None:
        """What is told of a launched worker; None of any other."""

    def restart(self, worker: Worker) -> None:
        """Start it again. Raises Conflict."""

    async def tail(self, worker: Worker, lines: int) -> list[str]:
        """The end of its output. Raises NotFound."""

    async def scale(self, workers: int, launcher: str | None = None) -> dict[str, Any]:
        """Have so many workers of a launcher. Raises RouterError."""

    async def settled(self, worker: Worker) -> None:
        """Wait until what ran for a removed worker has ended."""


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
    weights: WeightControl
    transactions: Transactions
    agents: Agents
    memory: MemoryControl
    launcher: LaunchedWorkers
    limits: CallLimits

    def attach(self, extensions: dict[str, object]) -> None:
        """Make the parts found by `parts()` within the app of these extensions."""
        extensions[_KEY] = self


def parts() -> Parts:
    """The parts of the app that handles the current request."""
    return cast(Parts, current_app.extensions[_KEY])
