"""Removals after a drain, at the moments at which something else happens too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from router.control.agent import RemovalCalledOff
from router.errors import StateUnavailable
from router.pool.lifecycle import AdminEvent, Probe
from router.pool.registry import Registry
from router.pool.worker import Admin, Hold, HoldKind, Memory, Origin, Worker
from tests.unit.control import naps
from tests.unit.control.naps import Nap, settle


class Scene:
    def __init__(self, nap: Nap) -> None:
        self.nap = nap
        self.registry: Registry = nap.registry
        self.worker = nap.add("w", healthy=False)
        self.ends: list[str] = []

    async def drain(self) -> None:
        try:
            await self.nap.memory.agents.retire(self.worker)
        except RemovalCalledOff:
            self.ends.append("called off")
        else:
            self.ends.append("removed")


def play(body: Callable[[Scene, trio.Nursery], Awaitable[None]]) -> Scene:
    scenes: list[Scene] = []

    async def main(nap: Nap) -> None:
        scenes.append(Scene(nap))
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await body(scenes[0], nursery)

    naps.play(main)
    return scenes[0]


def test_the_last_lease_and_the_change_of_mind_come_together() -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        lease.release()  # the drain is woken, and has not run yet
        scene.registry.administer(scene.worker, AdminEvent.UNDRAIN)

    scene = play(body)
    assert scene.ends == ["called off"]
    assert not scene.worker.removed
    assert scene.worker.admin is Admin.ENABLED


def test_a_quarantined_worker_stays_quarantined_until_it_is_gone() -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        scene.registry.administer(scene.worker, AdminEvent.QUARANTINE)
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.registry.stay(
            scene.worker, "it was registered again"
        )  # registering again clears no quarantine
        assert scene.worker.admin is Admin.QUARANTINED
        lease.release()

    assert play(body).ends == ["removed"]


@pytest.mark.parametrize("again", [False, True])
def test_quarantine_during_a_drain_does_not_stop_it(again: bool) -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.registry.administer(scene.worker, AdminEvent.QUARANTINE)
        if again:
            scene.registry.forgive(scene.worker)
        await settle()
        lease.release()

    assert play(body).ends == ["called off" if again else "removed"]


def test_a_process_that_dies_is_drained() -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.registry.reincarnate(scene.worker, "its idle connection was closed")
        await settle()
        assert scene.worker.removed
        lease.release()

    assert play(body).ends == ["removed"]


def test_registering_again_keeps_only_what_was_being_removed() -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        scene.registry.administer(scene.worker, AdminEvent.DRAIN)
        scene.registry.stay(scene.worker, "it was registered again")
        assert scene.worker.admin is Admin.DRAINING
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.registry.stay(scene.worker, "it was registered again")
        assert scene.worker.admin is Admin.ENABLED
        await settle()
        nursery.start_soon(scene.drain)  # and once more
        await settle()
        lease.release()

    assert play(body).ends == ["called off", "removed"]


def test_a_removal_at_once_and_a_new_registration_of_the_address() -> None:
    seen: list[Worker] = []

    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.registry.remove(scene.worker)
        seen.append(scene.registry.add("http://w:1", Origin.REGISTERED))
        await settle()
        assert scene.ends == ["removed"]
        lease.release()

    scene = play(body)
    assert list(scene.registry) == seen


@pytest.mark.parametrize("dead_before", [True, False])
def test_the_jobs_of_a_dead_worker_are_not_waited_for(dead_before: bool) -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        job = Hold(scene.worker, 1, HoldKind.JOB, "video", job=True, job_id="j")
        scene.registry.occupy(job)
        if dead_before:
            scene.registry.probed(scene.worker, Probe.BACKEND_DEAD, "out of memory")
        nursery.start_soon(scene.drain)
        await settle()
        if not dead_before:
            assert scene.ends == []
            scene.registry.probed(scene.worker, Probe.BACKEND_DEAD, "out of memory")
            await settle()
        assert scene.ends == ["removed"]

    play(body)


def test_a_removal_goes_on_without_its_caller_and_after_a_restart() -> None:
    """What is wanted of the worker is on the disk before anybody waits for it."""

    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        lease = scene.registry.lease(scene.worker)
        with trio.move_on_after(1):
            await scene.drain()
        assert scene.nap.disk.commits == 1
        assert scene.worker.leaving == "by request"
        lease.release()
        await settle()
        assert scene.worker.removed

    assert play(body).ends == []


def test_a_removal_that_cannot_be_kept_is_refused() -> None:
    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        scene.nap.disk.fails_at = 1
        with pytest.raises(StateUnavailable):
            await scene.nap.memory.agents.retire(scene.worker)

    play(body)


def test_a_worker_that_leaves_sleeps_and_wakes_meanwhile() -> None:
    """Its GPU may be wanted, however long its last answer takes to reach a slow client."""

    async def body(scene: Scene, nursery: trio.Nursery) -> None:
        nap = scene.nap
        nap.recover(scene.worker)
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        await nap.sleep("sleep", scene.worker)
        nap.body("sleep")
        assert scene.worker.memory is Memory.ASLEEP
        assert not scene.worker.removed
        lease.release()

    assert play(body).ends == ["removed"]
