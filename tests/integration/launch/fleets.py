"""A fleet on the fake engine, in virtual time, with a disk that outlives routers."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing
from attrs import define, evolve, field

from router.errors import StartError
from router.launch.base import WorkerPlan, WorkerPorts
from router.launch.fleet import Fleet
from router.launch.launcher import Launcher, Shared, Supervision
from router.launch.phases import Phase
from router.launch.slot import Slot
from router.pool.lifecycle import Probe
from router.pool.registry import Registry
from router.pool.worker import Worker
from router.settings import LauncherSettings
from router.store.records import Record
from router.store.store import Store
from tests.integration.launch.engine import Engine, EngineBackend, Job

R = TypeVar("R", bound=Record)
Tables = dict[str, dict[str, Record]]


@define(eq=False)
class DiskStore(Store):
    """Keeps what was committed in `disk`, as a file would."""

    disk: Tables = field(factory=dict)
    _staged: list[Callable[[], None]] = field(factory=list)

    def restored(self, kind: type[R]) -> dict[str, R]:
        return dict(self.disk.get(kind.table, {}))  # type: ignore[arg-type]

    def put(self, record: Record) -> None:
        table = self.disk.setdefault(record.table, {})
        self._staged.append(lambda: table.update({record.key: record}))

    def delete(self, kind: type[Record], key: str) -> None:
        table = self.disk.setdefault(kind.table, {})
        self._staged.append(lambda: (table.pop(key, None), None)[1])

    async def commit(self) -> None:
        await super().commit()
        while self._staged:
            self._staged.pop(0)()


@define(eq=False)
class Reserved:
    ports: WorkerPorts

    def unbind(self) -> None:
        pass

    def give_back(self) -> None:
        pass


@define(eq=False)
class FakePlanner:
    """Plans workers that do what `command` says; the port of a worker is 100 + 2 * index."""

    launcher: str = "image"
    command: tuple[str, ...] = ("stay",)
    version: str = "1"  # of the settings
    room: int = 8  # workers that there are GPUs for
    checked: set[int] = field(factory=set)

    def check(self, indices: Collection[int]) -> None:
        if len(self.checked | set(indices)) > self.room:
            raise StartError(f"there are GPUs for {self.room} workers")
        self.checked |= set(indices)

    def forget(self, index: int) -> None:
        self.checked.discard(index)

    async def learn(self) -> None:
        await trio.lowlevel.checkpoint()

    def reserve(
        self, index: int, *, keep: WorkerPorts | None = None, avoid: Collection[int] = ()
    ) -> Reserved:
        port = keep.http if keep else 100 + 2 * index
        while port in avoid:
            port += 100
        return Reserved(WorkerPorts(port, port + 10_000, port + 20_000))

    def adopt(self, index: int, ports: WorkerPorts) -> Reserved:
        return Reserved(ports)

    def taken(self, words: str, ports: WorkerPorts) -> frozenset[int]:
        return frozenset({ports.http}) if "in use" in words else frozenset()

    def moved(self, words: str, ports: WorkerPorts) -> int | None:
        return ports.http + 42 if "moved" in words else None

    def plan(self, index: int, ports: WorkerPorts) -> WorkerPlan:
        return WorkerPlan(
            launcher=self.launcher,
            index=index,
            name=f"{self.launcher}-{index}",
            command=self.command,
            env={},
            url=f"http://127.0.0.1:{ports.http}",
            ports=ports,
            batching=4,
            fingerprint=f"{self.command}{self.version}",
        )


@define(eq=False)
class World:
    """What outlives routers: an engine, and a disk."""

    engine: Engine = field(factory=Engine)
    disk: Tables = field(factory=dict)

    def living(self) -> list[Job]:
        return [job for job in self.engine.jobs.values() if not job.over]

    def living_of(self, index: int) -> Job:
        """The one living job of the worker of this index."""
        (job,) = (job for job in self.living() if job.order.plan.index == index)
        return job

    def starts(self) -> int:
        return sum(job.starts for job in self.engine.jobs.values())


@define(eq=False)
class Bench:
    """A running fleet, and what it runs on."""

    world: World
    fleet: Fleet
    registry: Registry
    planner: FakePlanner
    store: DiskStore

    def slot(self, index: int = 0) -> Slot:
        return self.fleet._slots[f"{self.planner.launcher}/{index}"]

    def worker(self, index: int = 0) -> Worker:
        worker = self.slot(index).worker
        assert worker is not None
        return worker

    def job(self, index: int = 0) -> Job:
        handle = self.slot(index).handle
        assert handle is not None
        return self.world.engine.jobs[handle.token]

    def phases(self) -> list[Phase]:
        return [view.phase for view in self.fleet.views()]

    async def until(self, phase: Phase, index: int = 0) -> None:
        while self.slot(index).phase is not phase:
            await self.fleet.changed()

    async def serve(self, index: int = 0) -> Worker:
        """The worker answers its probes from now on."""
        await self.until(Phase.STARTING, index)
        while self.slot(index).worker is None:
            await self.fleet.changed()
        self.registry.probed(self.worker(index), Probe.OK)
        assert self.slot(index).phase is Phase.READY
        return self.worker(index)

    def die(self, index: int = 0, status: int = 1) -> None:
        self.world.engine.finish(self.job(index), status)


@asynccontextmanager
async def router(
    world: World,
    *,
    workers: int = 1,
    planner: FakePlanner | None = None,
    supervision: Supervision | None = None,
    keep: bool = False,
    killed: bool = False,
    local: bool = False,
    drain: Callable[[Registry, Worker], Awaitable[None]] | None = None,
    restore: Callable[[Registry], None] = lambda _: None,
    **launcher: Any,
) -> AsyncIterator[Bench]:
    """A router over the world. At the end of the block it is closed, or `killed`: then nobody has
    a chance to do anything."""
    registry = Registry()
    restore(registry)
    store = DiskStore(disk=world.disk)
    planner = planner or FakePlanner()
    backend = EngineBackend(world.engine, local=local)
    shared = Shared(
        registry, store, Path("/nowhere"), supervision or Supervision(), keep=keep or killed
    )
    shared.rng = Steady()

    async def remove(worker: Worker) -> None:
        if drain is not None:
            await drain(registry, worker)
        registry.remove(worker)

    settings = LauncherSettings(model="m", num_workers=workers, **launcher)
    fleet = Fleet([Launcher(planner, backend, settings)], shared, remove)
    async with trio.open_nursery() as nursery:
        await nursery.start(fleet.run)
        yield Bench(world, fleet, registry, planner, store)
        if not killed:
            await fleet.close()
            await store.commit()
        nursery.cancel_scope.cancel()


class Steady(random.Random):
    """No jitter."""

    def uniform(self, a: float, b: float) -> float:
        return b


def virtually(main: Callable[[World], Awaitable[None]]) -> None:
    """Run a test in virtual time, in a world of its own."""

    async def whole() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.engine.run)
            with trio.fail_after(100_000):
                await main(world)
            nursery.cancel_scope.cancel()

    clock = trio.testing.MockClock(autojump_threshold=0)
    trio.run(whole, clock=clock, strict_exception_groups=True)


def other_settings(planner: FakePlanner) -> FakePlanner:
    return evolve(planner, version="2", checked=set())
