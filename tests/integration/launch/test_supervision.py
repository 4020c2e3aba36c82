"""Workers that die, hang, sleep or never come up: what the fleet does about them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Sequence
from itertools import pairwise

import pytest
import trio

from router.errors import Conflict
from router.launch.base import Handle
from router.launch.launcher import Supervision
from router.launch.phases import Phase, PhaseChanged
from router.launch.records import LaunchRecord
from router.pool.lifecycle import MemoryEvent, Probe, hopeful, routable
from router.pool.registry import Registry
from router.pool.worker import Health, Memory, Origin, Worker
from router.settings import Restart
from tests.integration.launch.engine import EngineBackend
from tests.integration.launch.fleets import FakePlanner, World, router, virtually
from tests.launchers import restarting


def test_workers_are_registered_and_served_as_they_come_up() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=3, max_concurrency=None) as bench:
            first = await bench.serve(1)
            assert bench.phases() == [Phase.STARTING, Phase.READY, Phase.STARTING]
            assert (first.url, first.origin) == ("http://n1.test:102", Origin.LAUNCHED)
            assert first.max_concurrency == 4  # what the command says that it runs together
            other = bench.worker(0)
            for finding in (Probe.REFUSED, Probe.FAILED):
                for _ in range(5):
                    bench.registry.probed(other, finding, "connection refused")
            assert other.health is Health.WARMING
            assert hopeful(other)  # requests wait for it
            assert bench.fleet.proves(first)
            assert bench.fleet.proves(Worker("http://x:1", Origin.STATIC)) is None

    virtually(main)


def test_the_intent_is_durable_before_the_spawn() -> None:
    seen: list[str] = []

    async def main(world: World) -> None:
        def look() -> None:
            records = world.disk.get(LaunchRecord.table, {}).values()
            seen.extend(f"{r.key} {r.ident!r}" for r in records if isinstance(r, LaunchRecord))

        world.engine.asked = look
        async with router(world) as bench:
            await bench.serve()

    virtually(main)
    assert seen[0] == "image/0 ''"


def test_one_that_dies_starts_again_after_growing_pauses_and_is_given_up() -> None:
    async def main(world: World) -> None:
        supervision = Supervision(quick_deaths=4)
        async with router(world, supervision=supervision, **restarting("3s")) as bench:
            pauses = []
            for restarts in range(4):
                await bench.until(Phase.STARTING)
                assert bench.slot().restarts == restarts
                bench.die()
                await bench.until(Phase.RESTARTING if restarts < 3 else Phase.FAILED)
                begun = trio.current_time()
                worker = bench.worker()
                if restarts < 3:
                    assert hopeful(worker)  # it comes back without anyone acting
                    assert "exited with status 1" in str(bench.slot().detail)
                    while bench.slot().phase is Phase.RESTARTING:
                        await bench.fleet.changed()
                    pauses.append(trio.current_time() - begun)
            assert pauses == [3.0, 6.0, 12.0]
            assert worker.health is Health.UNHEALTHY
            assert not hopeful(worker)
            assert (
                bench.slot().detail
                == "given up after 4 quick deaths in a row: exited with status 1"
            )
            await trio.sleep(1000)
            assert world.starts() == 4
            bench.fleet.restart(worker)
            await bench.serve()
            assert bench.worker() is worker
            assert worker.incarnation == 5

    virtually(main)


def test_what_fails_at_the_end_of_a_worker_does_not_end_the_router(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed: list[str] = []
    end = EngineBackend.end

    async def failing_end(
        self: EngineBackend, handle: Handle, *, patience: Sequence[float]
    ) -> None:
        if "end" not in failed:
            failed.append("end")
            raise OSError(errno.EMFILE, "too many open files")
        await end(self, handle, patience=patience)

    async def failing_tail(self: EngineBackend, handle: Handle, lines: int) -> list[str]:
        failed.append("tail")
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(EngineBackend, "end", failing_end)
    monkeypatch.setattr(EngineBackend, "tail", failing_tail)

    async def main(world: World) -> None:
        async with router(world) as bench:
            worker = await bench.serve()
            bench.die()
            await bench.until(Phase.RESTARTING)
            assert await bench.serve() is worker
            assert {"end", "tail"} <= set(failed)
        assert world.living() == []

    virtually(main)


def test_a_worker_killed_many_times_after_good_service_comes_back_each_time() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            for count in range(1, 21):
                worker = await bench.serve()
                assert worker.incarnation == count
                await trio.sleep(Supervision().settled)
                bench.die(status=-9)
                await bench.until(Phase.RESTARTING)
                assert not routable(worker)
            await bench.serve()
            assert bench.slot().restarts == 20
            assert len(bench.registry) == 1
            assert len(world.living()) == 1

    virtually(main)


@pytest.mark.parametrize(
    ("policy", "status", "comes_back"),
    [
        (Restart.ALWAYS, 0, True),
        (Restart.ON_FAILURE, 0, False),
        (Restart.ON_FAILURE, 1, True),
        (Restart.NEVER, 1, False),
    ],
)
def test_restart_policies(policy: Restart, status: int, comes_back: bool) -> None:
    async def main(world: World) -> None:
        async with router(world, restart=policy) as bench:
            worker = await bench.serve()
            bench.die(status=status)
            await bench.until(Phase.RESTARTING if comes_back else Phase.EXITED)
            await trio.sleep(100)
            assert world.starts() == 1 + comes_back
            assert worker.is_dead is not comes_back
            bench.fleet.restart(worker)
            await bench.serve()

    virtually(main)


def test_what_can_never_be_started_is_given_up_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def main(world: World) -> None:
        async with router(world, workers=2, planner=FakePlanner(command=("refused",))) as bench:
            with trio.fail_after(10):
                await bench.fleet.watch_for_collapse()
            assert bench.phases() == [Phase.FAILED] * 2
            assert "no such partition" in caplog.text

    virtually(main)


def test_it_is_no_collapse_while_there_is_another_worker_or_hope() -> None:
    async def main(world: World) -> None:
        quick = Supervision(quick_deaths=1)
        async with router(world, workers=2, supervision=quick) as bench:
            await bench.until(Phase.STARTING, 1)
            bench.die(0)
            await bench.until(Phase.FAILED, 0)
            with trio.move_on_after(100) as waited:
                await bench.fleet.watch_for_collapse()
            assert waited.cancelled_caught  # the other may come up
            bench.registry.add("http://x:1", Origin.STATIC)
            bench.die(1)
            await bench.until(Phase.FAILED, 1)
            with trio.move_on_after(100) as waited:
                await bench.fleet.watch_for_collapse()
            assert waited.cancelled_caught

    virtually(main)


def test_it_is_no_collapse_where_one_has_ever_been_ready() -> None:
    async def main(world: World) -> None:
        async with router(world, supervision=Supervision(quick_deaths=1)) as bench:
            await bench.serve()
            bench.die()
            await bench.until(Phase.FAILED)
            with trio.move_on_after(100) as waited:
                await bench.fleet.watch_for_collapse()
            assert waited.cancelled_caught

    virtually(main)


def test_unhealthy_for_long_counts_as_dead() -> None:
    async def main(world: World) -> None:
        async with router(world, supervision=Supervision(unhealthy=60)) as bench:
            worker, job = await bench.serve(), bench.job()
            for well_again in (True, False):
                bench.registry.probed(worker, Probe.BACKEND_DEAD, "its engine is dead")
                await trio.sleep(59)
                assert world.starts() == 1
                if well_again:
                    for _ in range(2):
                        bench.registry.probed(worker, Probe.OK)
                    await trio.sleep(100)
                    assert world.starts() == 1
            await bench.until(Phase.RESTARTING)
            assert job.status == -15  # politely: something may be under way there
            assert "was unhealthy for 60 s (its engine is dead)" in str(bench.slot().detail)
            await bench.serve()
            assert worker.incarnation == 2

    virtually(main)


@pytest.mark.parametrize("during", [Memory.ASLEEP, Memory.FALLING_ASLEEP])
def test_one_that_dies_asleep_starts_again_at_the_next_wake(during: Memory) -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            worker = await bench.serve()
            bench.registry.apply_memory_event(worker, MemoryEvent.SLEEP)
            if during is Memory.ASLEEP:
                bench.registry.apply_memory_event(worker, MemoryEvent.SLEPT)
            bench.die()
            await trio.sleep(10)
            await bench.until(Phase.DOWN)
            await trio.sleep(1000)
            assert world.starts() == 1
            assert worker.memory is during
            assert not hopeful(worker)
            bench.registry.apply_memory_event(worker, MemoryEvent.WAKE)
            await bench.serve()
            assert worker.memory is Memory.WAKING  # whoever wakes it asks the new process
            bench.registry.apply_memory_event(worker, MemoryEvent.WOKE)
            assert routable(worker)
            assert worker.incarnation == 2

    virtually(main)


def test_one_that_is_put_to_sleep_before_it_has_started_again_stays_down() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            worker = await bench.serve()
            bench.die()
            await bench.until(Phase.RESTARTING)
            bench.registry.apply_memory_event(worker, MemoryEvent.SLEEP)  # the GPU is another's now
            await bench.until(Phase.DOWN)
            await trio.sleep(1000)
            bench.slot().restart()  # which is not to wake it
            await trio.sleep(1000)
            assert (world.starts(), bench.slot().phase) == (1, Phase.DOWN)
            bench.registry.apply_memory_event(worker, MemoryEvent.WAKE)
            await bench.serve()
            assert (worker.memory, worker.incarnation) == (Memory.WAKING, 2)

    virtually(main)


def test_one_that_loads_too_long_is_reported_and_left_loading(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main(world: World) -> None:
        async with router(world, wait_timeout=600) as bench:
            await bench.until(Phase.STARTING)
            await trio.sleep(590)
            assert "not ready" not in caplog.text
            await trio.sleep(20)
            assert "image-0 is not ready after 600 s and is still loading" in caplog.text
            assert any("hello" in getattr(record, "quoted", "") for record in caplog.records)
            assert "still loading" in str(bench.slot().detail)
            await trio.sleep(10_000)
            assert world.starts() == 1
            await bench.serve()
            assert bench.slot().detail is None
        assert caplog.text.count("not ready") == 1

    with caplog.at_level(logging.INFO, "router"):
        virtually(main)


@pytest.mark.parametrize("prompts", [False, True])
def test_output_from_before_a_worker_served_is_quoted_and_later_output_only_with_prompts(
    caplog: pytest.LogCaptureFixture, prompts: bool
) -> None:
    async def main(world: World) -> None:
        async with router(world, **restarting("1s")) as bench:
            bench.fleet.shared.prompts = prompts
            await bench.until(Phase.STARTING)
            bench.die()
            await bench.until(Phase.RESTARTING)
            await bench.serve()
            bench.die()
            await bench.until(Phase.RESTARTING)

    with caplog.at_level(logging.INFO, "router"):
        virtually(main)
    first, second = [r for r in caplog.records if "exited with status 1 after" in r.getMessage()]
    assert "hello" in vars(first)["quoted"]
    assert ("quoted" in vars(second)) is prompts
    assert ("which may hold prompts" in second.getMessage()) is not prompts


def test_a_port_that_somebody_else_has_is_not_tried_again() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            await bench.until(Phase.STARTING)
            bench.job().output.append("port 100: address already in use")
            old = bench.worker()
            bench.die()
            await bench.until(Phase.RESTARTING)
            worker = await bench.serve()
            assert worker.url == "http://n1.test:200"
            assert old.removed
            assert [each.url for each in bench.registry] == [worker.url]

    virtually(main)


def test_restart_by_request_ends_it_first() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            worker = await bench.serve()
            first = bench.job()
            bench.fleet.restart(worker)
            await bench.serve()
            assert first.over
            assert len(world.living()) == 1
            assert (bench.slot().restarts, worker.incarnation) == (1, 2)
            with pytest.raises(Conflict):
                bench.fleet.restart(Registry().add("http://x:1", Origin.STATIC))

    virtually(main)


def test_nothing_starts_while_the_disk_fails() -> None:
    async def main(world: World) -> None:
        async with router(world, workers=1) as bench:
            await bench.serve()
            await bench.fleet.scale(2)
            bench.store.failing = "no space left on device"
            await bench.until(Phase.QUEUED, 1)
            await trio.sleep(100)
            assert len(world.engine.jobs) == 1
            assert "no space left" in str(bench.slot(1).detail)
            bench.store.failing = None
            await bench.serve(1)

    virtually(main)


def test_it_ends_nothing_twice_and_leaves_nothing_when_cancelled_at_any_time() -> None:
    async def main(world: World) -> None:
        for tenths in range(40):
            world.engine.latency = 0.3
            with trio.move_on_after(tenths / 10):
                async with router(world, workers=3) as bench:
                    if tenths % 3 == 0:
                        await bench.until(Phase.STARTING)
                        bench.fleet.restart(bench.worker())
                    await trio.sleep_forever()
            assert not world.living(), tenths

    virtually(main)


def test_each_phase_of_a_launch_is_told() -> None:
    async def main(world: World) -> None:
        async with router(world) as bench:
            told: list[PhaseChanged] = []
            moments: list[float] = []
            bench.registry.bus.subscribe(told.append, PhaseChanged)
            bench.registry.bus.subscribe(
                lambda _: moments.append(trio.current_time()), PhaseChanged
            )
            await bench.serve()
            await trio.sleep(3)
            bench.die()
            await bench.until(Phase.RESTARTING)
            assert {event.name for event in told} == {"image-0"}
            phases = [event.phase for event in told]
            assert phases[-2:] == [Phase.READY, Phase.RESTARTING]
            assert told[-1].detail == bench.slot().detail
            assert {event.launcher for event in told} == {"image"}
            assert [event.old for event in told[1:]] == phases[:-1]
            spent = [event.seconds for event in told[1:]]
            assert spent == pytest.approx([new - old for old, new in pairwise(moments)])
            assert spent[-1] > 0

    virtually(main)
