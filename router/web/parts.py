"""What the endpoints are given to work with."""

from __future__ import annotations

from typing import cast

from attrs import frozen
from quart import current_app

from ..control.client import ControlClient
from ..control.errands import Errands
from ..control.held import Transactions
from ..control.jobs import JobControl
from ..control.memory import MemoryControl
from ..control.refit import WeightControl
from ..control.replay import Replayer
from ..control.retire import Retirer
from ..control.watch import Watchman
from ..dispatch import Dispatcher
from ..pool.registry import Registry
from ..pool.weights import Ledgers
from ..store.store import Store

_KEY = "router"


@frozen
class CallLimits:
    """How long workers may take over weight and memory calls, in seconds."""

    refit: float  # from the last byte of the call to its answer
    idle: float  # without taking a byte of a streamed body


@frozen
class Parts:
    """The parts of the running router that endpoints call."""

    store: Store
    registry: Registry
    dispatcher: Dispatcher
    watchman: Watchman
    retirer: Retirer
    client: ControlClient
    jobs: JobControl
    ledgers: Ledgers
    weights: WeightControl
    transactions: Transactions
    replayer: Replayer
    memory: MemoryControl
    errands: Errands
    limits: CallLimits

    def attach(self, extensions: dict[str, object]) -> None:
        """Make the parts found by `parts()` within the app of these extensions."""
        extensions[_KEY] = self


def parts() -> Parts:
    """The parts of the app that handles the current request."""
    return cast(Parts, current_app.extensions[_KEY])
