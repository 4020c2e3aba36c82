"""A launcher as the fleet sees it, and the rules for supervising its workers."""

from __future__ import annotations

import random
from pathlib import Path

import trio
from attrs import define, field, frozen

from ..pool.pools import Role
from ..pool.registry import Registry
from ..settings import LauncherSettings, Restart
from ..store.store import Store
from .base import Backend, Planner
from .local import PATIENCE


@frozen
class Launcher:
    """A group of equal workers: their planner, their backend and their settings."""

    planner: Planner
    backend: Backend
    settings: LauncherSettings

    @property
    def name(self) -> str:
        return self.planner.launcher

    @property
    def role(self) -> Role:
        """What its workers are in the pool."""
        return Role(self.settings.pool)

    @property
    def log_dir(self) -> Path | None:
        """Where the output of the workers goes, if the settings say so."""
        return Path(self.settings.log_dir).absolute() if self.settings.log_dir else None


@frozen
class Supervision:
    """When workers are given up, restarted and ended. Times in seconds."""

    settled: float = 60.0  # a death after this much service is not a quick one
    quick_deaths: int = 5  # in a row, then the worker is given up
    backoff_most: float = 60.0
    unhealthy: float = 60.0  # then it counts as dead
    patience: tuple[float, ...] = PATIENCE
    end_within: float = 120.0  # for engines; after that the engine must end it alone

    def pause(self, first: float, quick: int, rng: random.Random) -> float:
        """The pause before a restart after `quick` quick deaths in a row."""
        longest: float = first * 2.0 ** min(max(quick - 1, 0), 30)
        return min(longest, self.backoff_most) * rng.uniform(0.5, 1)


@frozen
class Death:
    """How a launch ended by itself."""

    reason: str  # `exited with status 1`
    status: int | None = None
    hopeless: bool = False  # it could not be started, and never can
    condemned: bool = False  # it still runs, and serves no request
    lost: bool = False  # it runs where it cannot be ended
    taken: frozenset[int] = frozenset()  # its ports that another process has

    def calls_for(self, policy: Restart) -> bool:
        """Whether a worker with this policy is started again."""
        if policy is Restart.ON_FAILURE:
            return self.status != 0
        return policy is Restart.ALWAYS


@define(eq=False)
class Shared:
    """What all slots of a fleet share."""

    registry: Registry
    store: Store
    log_dir: Path
    supervision: Supervision = field(factory=Supervision)
    owner: str = ""
    keep: bool = False  # workers outlive the router
    prompts: bool = False  # the log may have them, as the output of workers that serve does
    rng: random.Random = field(factory=random.Random)
    changed: trio.Event = field(factory=trio.Event)  # replaced at each change of any slot
    ever_ready: bool = False
    stopping: bool = False  # no worker is started any more

    def tell(self) -> None:
        """Wake the tasks that show the slots."""
        self.changed.set()
        self.changed = trio.Event()
