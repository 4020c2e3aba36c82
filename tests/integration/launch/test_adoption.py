"""What outlives a router: the next one takes it over, or ends it."""

from __future__ import annotations

import pytest
import trio
from attrs import evolve

from router.launch import adoption
from router.launch.launcher import Supervision
from router.launch.phases import Phase
from router.launch.records import LaunchRecord, SizeRecord
from router.pool.registry import Registry
from router.pool.worker import Health
from tests.integration.launch.engine import EngineBackend
from tests.integration.launch.fleets import (
    DiskStore,
    FakePlanner,
    World,
    other_settings,
    router,
    virtually,
)


async def killed_with(
    world: World, workers: int, planner: FakePlanner | None = None
) -> dict[int, str | None]:
    """Leave ready workers behind; their processes by index."""
    async with router(world, workers=workers, planner=planner, killed=True) as bench:
        for index in range(workers):
            await bench.serve(index)
        await bench.store.commit()
        return {index: bench.worker(index).process for index in range(workers)}


def test_living_workers_are_taken_over_without_a_restart() -> None:
    async def main(world: World) -> None:
        processes = await killed_with(world, 3)
        assert len(world.living()) == 3
        async with router(world, workers=3) as bench:
            for index in range(3):
                worker = await bench.serve(index)
                assert worker.process == processes[index]
                assert (worker.incarnation, bench.slot(index).restarts) == (1, 0)
                assert bench.fleet.proves(worker)
            assert world.starts() == 3
        assert not world.living()
        assert not world.disk[LaunchRecord.table]

    virtually(main)


def test_dead_ones_are_started_again_as_other_processes() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 2)
        world.engine.finish(world.living_of(0), 1)
        async with router(world, workers=2) as bench:
            dead, living = await bench.serve(0), await bench.serve(1)
            assert (dead.incarnation, living.incarnation) == (2, 1)
            assert world.starts() == 3

    virtually(main)


def test_those_of_other_settings_are_ended_before_the_new_ones_start() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 2, FakePlanner(command=("stubborn",)))
        old = world.living()
        async with router(world, workers=2, planner=other_settings(FakePlanner())) as bench:
            while len(world.engine.jobs) == 2:
                await bench.fleet.changed()
            assert all(job.over for job in old)
            await bench.serve(0)
            await bench.serve(1)
            assert len(world.living()) == 2

    virtually(main)


def test_those_that_the_settings_do_not_name_any_more_are_ended() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 3)
        kept = world.living_of(0)
        async with router(world, workers=1) as bench:
            await bench.serve()
            await trio.sleep(100)
            assert world.living() == [kept]
            assert list(world.disk[LaunchRecord.table]) == ["image/0"] or bench.store._staged

    virtually(main)


def test_an_intent_without_a_process_is_adopted_if_it_was_begun_and_else_made_anew() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 2)
        table = world.disk[LaunchRecord.table]
        for key, record in list(table.items()):
            assert isinstance(record, LaunchRecord)
            table[key] = evolve(record, ident="", process="")
        begun, unbegun = world.living_of(0), world.living_of(1)
        world.engine.finish(unbegun, 0)
        del world.engine.jobs[unbegun.order.token]
        async with router(world, workers=2) as bench:
            await bench.serve(0)
            assert bench.job(0) is begun
            await bench.serve(1)
            assert len(world.engine.jobs) == 2

    virtually(main)


def test_kept_workers_outlive_a_clean_stop() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=2, keep=True) as bench:
            await bench.serve(0)
            await bench.serve(1)
        assert len(world.living()) == 2
        async with router(world, workers=2) as bench:
            await bench.serve(0)
            await bench.serve(1)
            assert world.starts() == 2
        assert not world.living()

    virtually(main)


def test_without_records_nobody_is_touched() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 1)
        (stranger,) = world.living()
        world.disk.clear()
        async with router(world) as bench:
            await bench.serve()
            assert len(world.living()) == 2
        assert world.living() == [stranger]

    virtually(main)


def test_an_engine_that_does_not_answer_at_the_start_is_waited_for() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 1)
        world.engine.down = True
        async with router(world) as bench:
            await trio.sleep(100)
            assert bench.phases() == [Phase.QUEUED]
            assert "does not answer" in str(bench.slot().detail)
            world.engine.down = False
            await bench.serve()
            assert world.starts() == 1
            world.engine.down = True
            await trio.sleep(1000)  # no news is no death
            assert bench.phases() == [Phase.READY]
            world.engine.down = False
            await trio.sleep(100)
            assert world.starts() == 1

    virtually(main)


def test_a_router_can_stop_though_its_engine_never_answered() -> None:
    async def main(world: World) -> None:
        world.engine.down = True
        async with router(world, workers=2):
            await trio.sleep(1)

    virtually(main)


def test_what_ran_on_a_lost_machine_starts_elsewhere() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            worker = await bench.serve()
            world.engine.lose("n1")
            await bench.until(Phase.RESTARTING)
            assert "on a machine that is gone" in str(bench.slot().detail)
            again = await bench.serve()
            assert (worker.url, again.url) == ("http://n1.test:100", "http://n2.test:100")
            assert worker.removed
            assert len(world.engine.jobs) == 2  # it was asked for anew

    virtually(main)


@pytest.mark.parametrize("moves", [True, False])
def test_an_engine_that_starts_a_job_again_by_itself(moves: bool) -> None:
    async def main(world: World) -> None:
        world.engine.requeues = True
        async with router(world) as bench:
            worker = await bench.serve()
            first = worker.process
            room = world.engine.machines["n1"]
            world.engine.lose("n1")
            if not moves:
                world.engine.machines = {"n1": room}
            while bench.worker().process == first:
                await bench.fleet.changed()
            again = await bench.serve()
            assert (again is worker) is not moves
            assert again.incarnation == 1 + (not moves)
            assert len(world.engine.jobs) == 1
            assert bench.slot().restarts == 0

    virtually(main)


def test_without_room_it_waits_and_says_so() -> None:
    async def main(world: World) -> None:
        world.engine.machines = {"n1": 0}
        async with router(world) as bench:
            await trio.sleep(10_000)
            assert bench.phases() == [Phase.QUEUED]
            assert bench.slot().detail == "no machine has room"
            assert len(bench.registry) == 0
            world.engine.machines["n2"] = 1
            await bench.serve()

    virtually(main)


def test_sizes_that_were_asked_for_hold_until_the_settings_change() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=2, killed=True) as bench:
            await bench.fleet.scale(3)
            bench.registry.remove(await bench.serve(1))  # as DELETE does
            await bench.serve(0)
            await bench.serve(2)
            await trio.sleep(10)
            await bench.store.commit()
        assert world.disk[SizeRecord.table] == {"image": SizeRecord("image", 2, (0, 2))}
        starts = world.starts()
        async with router(world, workers=2, killed=True) as bench:
            await bench.serve(0)
            await bench.serve(2)
            assert world.starts() == starts
        async with router(world, workers=1) as bench:
            await bench.serve(0)
            await trio.sleep(100)
            assert [job.order.plan.index for job in world.living()] == [0]
        async with router(world, workers=2) as bench:
            await bench.serve(1)

    virtually(main)


def test_reaping_ends_what_is_recorded() -> None:
    async def main(world: World) -> None:
        await killed_with(world, 3)
        world.engine.finish(world.living_of(1), 0)
        store = DiskStore(disk=world.disk)
        backend = EngineBackend(world.engine)
        assert await adoption.reap(store, {"engine": backend}) == ({"image-0", "image-2"}, set())
        assert not world.living()
        assert not world.disk[LaunchRecord.table]
        assert await adoption.reap(store, {}) == (set(), set())

    virtually(main)


def test_a_restored_sleeper_without_a_process_waits_for_the_wake() -> None:
    """Its state comes back with its registration (router/store)."""
    from router.pool import events
    from router.pool.lifecycle import MemoryEvent

    async def main(world: World) -> None:
        await killed_with(world, 1)
        world.engine.finish(world.living()[0], 1)

        def restore(registry: Registry) -> None:
            def put_to_sleep(event: events.Event) -> None:
                if isinstance(event, events.WorkerAdded):
                    registry.apply_memory_event(event.worker, MemoryEvent.SLEEP)
                    registry.apply_memory_event(event.worker, MemoryEvent.SLEPT)

            registry.subscribe(put_to_sleep)

        async with router(world, supervision=Supervision(), restore=restore, local=True) as bench:
            await bench.until(Phase.DOWN)
            assert bench.worker().health is Health.UNHEALTHY
            assert world.starts() == 1
            bench.registry.apply_memory_event(bench.worker(), MemoryEvent.WAKE)
            assert (await bench.serve()).memory == "waking"

    virtually(main)
