"""More and fewer workers while the router runs, and what happens to those in the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from router.errors import BadRequest, Conflict, NotFound, RouterError, StateUnavailable
from router.launch.fleet import Fleet
from router.launch.launcher import Launcher, Shared
from router.launch.phases import Phase
from router.pool.lifecycle import AdminEvent
from router.pool.registry import Registry
from router.pool.worker import Admin, Worker
from router.settings import LauncherSettings
from router.store.store import Store
from tests.integration.launch.engine import Engine, EngineBackend
from tests.integration.launch.fleets import FakePlanner, World, router, virtually


def test_more_take_the_lowest_free_indices_and_fewer_end_the_highest() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=3) as bench:
            for index in range(3):
                await bench.serve(index)
            bench.registry.remove(bench.worker(1))  # as DELETE does
            await trio.sleep(10)
            assert len(world.living()) == 2
            assert await bench.fleet.scale(4) == {
                "launcher": "image",
                "num_workers": 4,
                "starting": ["image-1", "image-3"],
                "ending": [],
            }
            await bench.serve(1)
            await bench.serve(3)
            done = await bench.fleet.scale(1)
            assert done["ending"] == ["image-1", "image-2", "image-3"]
            await trio.sleep(10)
            assert len(world.living()) == 1
            assert [worker.url for worker in bench.registry] == ["http://n1.test:100"]
            assert bench.planner.checked == {0}
            assert (await bench.fleet.scale(0))["ending"] == ["image-0"]
            await trio.sleep(10)
            assert not world.living()
            assert len(bench.registry) == 0

    virtually(main)


def test_a_removed_worker_is_gone_when_that_is_answered() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=2) as bench:
            worker, job = await bench.serve(0), bench.job(0)
            bench.registry.remove(worker)
            await bench.fleet.settled(worker)
            assert job.over
            await bench.fleet.settled(await bench.serve(1))  # of one that stays, at once
            assert len(world.living()) == 1

    virtually(main)


def test_fewer_wait_for_work_to_end_and_more_call_them_back() -> None:
    """As `Agents.retire` does it, a drain is called off where a worker is enabled."""
    gate = trio.Event()

    async def drain(registry: Registry, worker: Worker) -> None:
        registry.administer(worker, AdminEvent.DRAIN)
        while not gate.is_set() and worker.admin is Admin.DRAINING:
            await trio.sleep(1)
        if worker.admin is not Admin.DRAINING:
            raise RouterError("called off")

    async def main(world: World) -> None:
        async with router(world, workers=3, drain=drain) as bench:
            workers = [await bench.serve(index) for index in range(3)]
            await bench.fleet.scale(1)
            await trio.sleep(100)
            assert len(world.living()) == 3
            assert [worker.admin for worker in workers] == ["enabled", "draining", "draining"]
            bench.store.failing = "the disk is full"
            with pytest.raises(StateUnavailable):
                await bench.fleet.scale(2)
            assert [worker.admin for worker in workers] == ["enabled", "draining", "draining"]
            bench.store.failing = None
            assert (await bench.fleet.scale(2))["starting"] == []
            await trio.sleep(10)
            assert [worker.admin for worker in workers] == ["enabled", "enabled", "draining"]
            bench.registry.administer(workers[2], AdminEvent.UNDRAIN)  # by an operator
            await trio.sleep(10)
            assert len(bench.fleet.views()) == 3
            await bench.fleet.scale(2)
            gate.set()
            await trio.sleep(10)
            assert len(world.living()) == 2
            assert workers[2].removed

    virtually(main)


def test_an_index_is_taken_again_only_when_it_is_free() -> None:
    async def main(world: World) -> None:
        stubborn = FakePlanner(command=("stubborn",))
        async with router(world, workers=2, planner=stubborn) as bench:
            await bench.serve(0)
            first = await bench.serve(1)
            job = bench.job(1)
            bench.registry.remove(first)
            assert (await bench.fleet.scale(2))["starting"] == ["image-1"]
            seen = len(world.engine.jobs)
            while not job.over:
                assert len(world.engine.jobs) == seen
                await trio.sleep(0.1)
            await bench.serve(1)

    virtually(main)


def test_more_than_there_are_resources_for_is_refused_and_changes_nothing() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=2, planner=FakePlanner(room=3)) as bench:
            await bench.serve()
            with pytest.raises(Conflict, match="GPUs for 3 workers") as caught:
                await bench.fleet.scale(4)
            assert caught.value.code == "cannot_scale"
            assert len(bench.fleet.views()) == 2
            await bench.fleet.scale(3)
            await bench.serve(2)

    virtually(main)


def test_which_launcher_is_meant() -> None:
    async def main(world: World) -> None:
        registry = Registry()
        backend = EngineBackend(Engine())
        launchers = [
            Launcher(FakePlanner(name), backend, LauncherSettings(model=name))
            for name in ("image", "video")
        ]

        async def remove(worker: Worker) -> None:
            registry.remove(worker)

        fleet = Fleet(launchers, Shared(registry, Store(), Path()), remove)
        async with trio.open_nursery() as nursery:
            await nursery.start(fleet.run)
            with pytest.raises(BadRequest) as ambiguous:
                await fleet.scale(1)
            assert ambiguous.value.code == "ambiguous_launcher"
            assert ambiguous.value.details == {"launchers": ["image", "video"]}
            with pytest.raises(NotFound) as unknown:
                await fleet.scale(1, "audio")
            assert unknown.value.code == "unknown_launcher"
            assert (await fleet.scale(0, "video"))["launcher"] == "video"
            nursery.cancel_scope.cancel()
        none = Fleet([], Shared(registry, Store(), Path()), remove)
        with pytest.raises(Conflict) as nobody:
            await none.scale(1)
        assert nobody.value.code == "no_launcher"

    virtually(main)


def test_a_worker_whose_process_is_gone_can_be_removed_too() -> None:
    async def main(world: World) -> None:
        async with router(world, planner=FakePlanner(command=("refused",)), local=True) as bench:
            await bench.until(Phase.FAILED)
            worker = bench.worker()
            bench.registry.remove(worker)
            await bench.fleet.settled(worker)
            assert bench.fleet.views() == []

    virtually(main)
