"""What the endpoints of one worker share, for the life of one (simulated) process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial

import trio
from attrs import define, field

from .config import WorkerConfig
from .faults import Faults
from .jobs import Jobs
from .messages import wall_seconds
from .pictures import Recipe, render
from .record import Record, now
from .scheduler import Scheduler

_CACHED_BYTES = 64 * 1024 * 1024
_KEPT_IMAGES = 10_000


@define(eq=False)
class Images:
    """One answered image request: what it takes to make its files again."""

    recipes: list[Recipe]
    created_at: int = field(factory=wall_seconds)


@define(eq=False)
class Renderer:
    """Makes files in a thread and keeps the last ones, at most 64 MiB of them."""

    _kept: OrderedDict[object, bytes] = field(factory=OrderedDict)
    _size: int = 0

    async def picture(self, recipe: Recipe) -> bytes:
        return await self.file(recipe, partial(render, recipe))

    async def file(self, key: object, make: Callable[[], bytes]) -> bytes:
        """What `make` makes; not made again while it is kept under `key`."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        made = await trio.to_thread.run_sync(make)
        if key not in self._kept:
            self._kept[key] = made
            self._size += len(made)
        while self._size > _CACHED_BYTES and len(self._kept) > 1:
            self._size -= len(self._kept.popitem(last=False)[1])
        return made


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@define(eq=False)
class State:
    """One incarnation: a restart makes a new one of the same settings."""

    config: WorkerConfig
    record: Record
    faults: Faults
    scheduler: Scheduler
    ready_at: float
    """When the warm-up ends, as `time.monotonic()`."""
    output_path: str
    images: dict[str, Images] = field(factory=dict)
    videos: Jobs = field(factory=Jobs)
    meshes: Jobs = field(factory=Jobs)
    renderer: Renderer = field(factory=Renderer)
    realtime_over: trio.Event = field(factory=_set_event)
    """Set while no realtime session is active."""

    def remember(self, id: str, images: Images) -> None:
        """Keeps what it takes to make these images; the oldest of many are forgotten."""
        self.images[id] = images
        if len(self.images) > _KEPT_IMAGES:
            del self.images[next(iter(self.images))]

    @property
    def warm(self) -> bool:
        return now() >= self.ready_at and self.faults.peek("warming") is None

    async def until_warm(self) -> None:
        await trio.sleep(max(0.0, self.ready_at - now()))
        while fault := self.faults.peek("warming"):
            await self.faults.over(fault)
