"""Removals after a drain, at the moments at which something else happens too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from router.control.errands import Errands
from router.control.retire import RemovalCalledOff, Retirer
from router.dispatch import Dispatcher
from router.pool import policies
from router.pool.cost import Speeds
from router.pool.lifecycle import AdminEvent, Probe
from router.pool.registry import Registry
from router.pool.worker import Admin, Hold, HoldKind, Origin, Worker


class Scene:
    def __init__(self) -> None:
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, policies.make("least-request", Speeds()))
        self.errands = Errands()
        self.retirer = Retirer(self.registry, self.dispatcher, self.errands)
        self.worker = self.registry.add("http://w:1", Origin.REGISTERED)
        self.ends: list[str] = []

    async def drain(self) -> None:
        try:
            await self.retirer.drain_and_remove(self.worker)
        except RemovalCalledOff:
            self.ends.append("called off")
        else:
            self.ends.append("removed")


def play(body: Callable[[Scene, trio.Nursery], Awaitable[None]]) -> Scene:
    scene = Scene()

    async def main() -> None:
        with trio.fail_after(60):
            async with trio.open_nursery() as outer:
                await outer.start(scene.errands.run)
                async with trio.open_nursery() as nursery:
                    await body(scene, nursery)
                outer.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return scene


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


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
        scene.retirer.keep(scene.worker)  # registering again clears no quarantine
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
        scene.retirer.keep(scene.worker)
        assert scene.worker.admin is Admin.DRAINING
        lease = scene.registry.lease(scene.worker)
        nursery.start_soon(scene.drain)
        await settle()
        scene.retirer.keep(scene.worker)
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
        scene.retirer.remove(scene.worker)
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
