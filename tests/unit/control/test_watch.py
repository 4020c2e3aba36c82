"""The watch over workers, in virtual time: when they are probed, and what follows."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import trio

from router.control import watch as watch_module
from router.control.client import Answer, Unreachable
from router.control.identity import ProcessIdentity
from router.control.watch import Watchman
from router.pool import events
from router.pool.assets import AssetMap
from router.pool.lifecycle import AdminEvent, Probe
from router.pool.registry import Registry
from router.pool.worker import Health, Hold, HoldKind, Origin
from tests.unit.control.watching import (
    DEAD,
    HANGS,
    OK,
    REFUSED,
    URL,
    WARMING,
    Play,
    Process,
    Scene,
    models,
    settle,
)


def test_a_worker_is_healthy_once_probed_and_read(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = scene.add()
        assert (worker.health, worker.met) == (Health.UNKNOWN, False)
        await settle()
        assert (worker.health, worker.met) == (Health.HEALTHY, True)
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("m",)
        paths = [path for _, path in scene.process.asked]
        assert paths == ["/health", "/v1/models", "/server_info", "/model_info"]

    play(body)


def test_each_probe_is_told_with_the_time_that_it_took(play: Play) -> None:
    async def body(scene: Scene) -> None:
        told: list[events.Probed] = []
        scene.registry.bus.subscribe(told.append, events.Probed)
        worker = await scene.healthy()
        scene.process.takes = 0.25
        scene.process.answers["/health"] = Answer(500, b"")
        await trio.sleep(12)
        first, second = told[:2]
        assert (first.worker, first.finding, first.seconds) == (worker, Probe.OK, 0)
        assert (second.finding, second.seconds) == (Probe.FAILED, 0.25)
        assert second.reason is not None

    play(body)


def test_workers_that_are_there_already_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        process, registry = Process(), Registry()
        monkeypatch.setattr(watch_module, "open_idle", process.open_idle)
        worker = registry.add(URL, Origin.STATIC)
        identity = ProcessIdentity(AssetMap(), process)  # type: ignore[arg-type]
        watchman = Watchman(registry, process, identity)  # type: ignore[arg-type]
        async with trio.open_nursery() as nursery:
            await nursery.start(watchman.run)
            await settle()
            assert worker.health is Health.HEALTHY
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("path", ["/v1/models", "/server_info", "/model_info"])
def test_it_is_not_routable_before_all_is_read(play: Play, path: str) -> None:
    async def body(scene: Scene) -> None:
        scene.process.answers[path] = Answer(500, b"")
        worker = scene.add()
        await trio.sleep(0.5)
        assert (worker.health, worker.capabilities) == (Health.UNKNOWN, None)
        assert worker.health_reason == f"GET {path} answered 500"
        scene.process.answers[path] = Answer(404, b"")
        await trio.sleep(1)
        assert worker.health is Health.HEALTHY
        assert scene.process.times() == [0, 1]

    play(body)


@pytest.mark.parametrize("where", ["health", "models"])
def test_a_warming_worker_is_neither_dead_nor_routable(play: Play, where: str) -> None:
    async def body(scene: Scene) -> None:
        if where == "health":
            scene.process.health(WARMING)
        else:
            scene.process.answers["/v1/models"] = HANGS
        worker = scene.add()
        await trio.sleep(60)
        assert worker.health is Health.WARMING
        assert (worker.is_dead, worker.consecutive_failures) == (False, 0)
        assert "warming" in (worker.health_reason or "")
        scene.process.answers.clear()
        await trio.sleep(16)
        assert worker.health is Health.HEALTHY
        assert worker.incarnation == 1

    play(body)


def test_a_dead_backend_is_believed_at_once(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(DEAD)
        with scene.registry.lease(worker):  # though it works on something
            await trio.sleep(10.5)
            assert worker.health is Health.UNHEALTHY
        assert worker.health_reason == "its backend died: OOM"

    play(body)


def test_so_many_failures_in_a_row(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(Answer(500, b""))
        await trio.sleep(12.5)
        assert (worker.health, worker.consecutive_failures) == (Health.HEALTHY, 2)
        await trio.sleep(1)
        assert worker.health is Health.UNHEALTHY
        assert scene.process.times() == [0, 10, 11, 13]

    play(body)


def test_a_single_failure_is_forgotten(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(Answer(500, b""))
        await trio.sleep(10.5)
        scene.process.health(OK)
        await trio.sleep(1)
        assert worker.consecutive_failures == 0
        await trio.sleep(10)
        assert scene.process.times() == [0, 10, 11, 21]

    play(body)


def test_two_successes_bring_it_back_and_it_is_read_again(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(Answer(500, b""))
        await trio.sleep(14)
        assert worker.health is Health.UNHEALTHY
        scene.process.health(OK)
        scene.process.answers["/v1/models"] = models("other")
        await trio.sleep(3.5)  # the one at 17
        assert (worker.health, worker.consecutive_successes) == (Health.UNHEALTHY, 1)
        await trio.sleep(10)
        assert worker.health is Health.HEALTHY
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)
        # A flap with the connection intact is no other process.
        assert (worker.incarnation, worker.suspicion) == (1, None)

    play(body)


def test_probes_come_less_often_the_longer_it_fails(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(REFUSED)
        scene.add()
        await trio.sleep(50)
        assert scene.process.times() == [0, 1, 3, 7, 15, 25, 35, 45]
        scene.process.health(OK)
        await trio.sleep(30)
        scene.process.health(Answer(500, b""))
        await trio.sleep(7)
        # After the second success it is the interval again, and after a failure the first step.
        assert scene.process.times()[-5:] == [55, 65, 75, 85, 86]

    play(body)


def test_a_short_interval_is_never_exceeded(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(REFUSED)
        scene.add()
        await trio.sleep(1.9)
        assert scene.process.times() == [0, 0.5, 1, 1.5]

    play(body, interval=0.5)


def test_probes_are_spread(play: Play) -> None:
    async def body(scene: Scene) -> None:
        await scene.healthy()
        await trio.sleep(200)
        times = scene.process.times()
        gaps = [late - early for early, late in pairwise(times)]
        assert min(gaps) >= 9
        assert max(gaps) <= 11
        assert len(set(gaps)) > 10

    play(body, jitter=0.1)


def test_the_end_of_the_idle_connection_is_the_end_of_the_process(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        await trio.sleep(3)
        lease = scene.registry.lease(worker)
        scene.process.answers["/v1/models"] = models("other")
        scene.process.die()
        await settle()
        assert scene.process.times() == [0, 3]  # at once
        assert (worker.incarnation, worker.suspicion) == (2, None)
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)
        assert worker.active_requests == 0
        lease.release()
        assert worker.active_requests == 0
        assert len(scene.process.idle) == 1  # and the new process has one of its own

    play(body)


def test_a_suspect_stays_one_until_it_answers(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        await trio.sleep(3)
        scene.process.health(REFUSED)
        scene.process.listens = False
        scene.process.die()
        await trio.sleep(20)
        assert (worker.health, worker.incarnation) == (Health.UNHEALTHY, 1)
        assert worker.suspicion == "its idle connection was closed"
        scene.process.health(WARMING)
        scene.process.listens = True
        await trio.sleep(20)
        assert (worker.health, worker.incarnation) == (Health.WARMING, 1)
        scene.process.health(OK)
        await trio.sleep(20)
        assert (worker.health, worker.incarnation) == (Health.HEALTHY, 2)
        assert scene.count(events.Reincarnated) == 1

    play(body)


def test_an_end_during_a_look_is_not_lost(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.takes = 1
        await trio.sleep(10.5)  # within the answer to /health
        scene.process.die()
        await trio.sleep(10)
        assert worker.incarnation == 2
        assert worker.suspicion is None

    play(body)


def test_a_process_that_was_never_met_cannot_be_replaced(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(WARMING)
        worker = scene.add()
        await trio.sleep(5)
        scene.process.die()
        scene.process.health(OK)
        await settle()
        assert (worker.health, worker.incarnation) == (Health.HEALTHY, 1)

    play(body)


@pytest.mark.parametrize("answer", [REFUSED, WARMING])
def test_a_refusal_or_a_warm_up_after_health_is_another_process(play: Play, answer: Any) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(answer)
        await trio.sleep(10.5)
        assert worker.suspicion is not None
        scene.process.health(OK)
        await trio.sleep(5)
        assert (worker.health, worker.incarnation) == (Health.HEALTHY, 2)

    play(body)


def test_connections_that_are_hung_up_at_once_do_not_drive_the_watch(play: Play) -> None:
    """A port that something in between accepts for a worker (docker, a tunnel)."""

    async def body(scene: Scene) -> None:
        scene.process.hangs_up = True
        worker = scene.add()
        await trio.sleep(1000)
        assert worker.health is Health.HEALTHY
        assert len(scene.process.times()) <= 105
        assert worker.incarnation <= 4  # from then on it is no evidence
        scene.process.hangs_up = False
        scene.registry.trouble(worker, "so that it opens one that lasts")
        await trio.sleep(1)
        before = worker.incarnation
        await trio.sleep(30)
        scene.process.die()
        await settle()
        assert worker.incarnation == before + 1

    play(body)


@pytest.mark.parametrize("answer", [HANGS, Answer(500, b""), Unreachable("reset")])
def test_a_busy_worker_may_be_silent_for_a_minute(play: Play, answer: Any) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(answer)
        with scene.registry.lease(worker):
            await trio.sleep(69)  # the first silent probe was at 10
            assert (worker.health, worker.consecutive_failures) == (Health.HEALTHY, 0)
            await trio.sleep(60)
            assert worker.health is Health.UNHEALTHY

    play(body)


@pytest.mark.parametrize("work", ["ghost", "job", "control call"])
def test_all_work_makes_a_worker_busy(play: Play, work: str) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        if work == "control call":
            scene.process.called = True
        else:
            scene.registry.occupy(Hold(worker, 1, HoldKind(work), "video", job_id="j"))
        scene.process.health(HANGS)
        await trio.sleep(69)
        assert (worker.health, worker.consecutive_failures) == (Health.HEALTHY, 0)
        await trio.sleep(60)
        assert worker.health is Health.UNHEALTHY

    play(body)


def test_silence_is_counted_from_the_first_that_was_not_answered(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        with scene.registry.lease(worker):
            await trio.sleep(299)
            scene.process.health(HANGS)
            await trio.sleep(10)  # the probe at 300 was not answered
            assert worker.consecutive_failures == 0

    play(body, interval=100)


def test_an_answer_ends_the_silence(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        with scene.registry.lease(worker):
            for _ in range(5):
                scene.process.health(HANGS)
                await trio.sleep(40)
                scene.process.health(OK)
                await trio.sleep(20)
        assert (worker.health, worker.consecutive_failures) == (Health.HEALTHY, 0)

    play(body)


def test_an_idle_worker_may_not_be_silent(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(HANGS)
        await trio.sleep(10 + 3 * 5 + 1 + 2 + 0.5)
        assert worker.health is Health.UNHEALTHY

    play(body)


def test_a_busy_worker_may_not_refuse(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(REFUSED)
        with scene.registry.lease(worker):
            await trio.sleep(13.5)
            assert worker.health is Health.UNHEALTHY

    play(body)


def test_quarantined_workers_are_probed_but_stay_out(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.registry.administer(worker, AdminEvent.QUARANTINE)
        await trio.sleep(25)
        assert scene.process.times() == [0, 10, 20]
        assert worker.is_dead

    play(body)


def test_a_removed_worker_is_left_alone(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.registry.remove(worker)
        await trio.sleep(100)
        assert scene.process.times() == [0]
        assert await scene.process.idle[0].receive_some(1) == b""  # we have closed ours

    play(body)


def test_a_removal_during_a_look_ends_it(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.takes = 1
        worker = scene.add()
        await trio.sleep(1.5)  # /health was well, the models are being read
        scene.registry.remove(worker)
        again = scene.add()
        await trio.sleep(0.7)
        assert again.health is Health.UNKNOWN
        await trio.sleep(4)
        assert again.health is Health.HEALTHY
        assert (worker.health, worker.capabilities, worker.met) == (Health.UNKNOWN, None, False)

    play(body)


def test_a_removal_in_the_moment_of_a_connection_leaves_no_address(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(scene: Scene) -> None:
        worker = scene.add()

        async def open_idle(*args: Any) -> trio.abc.Stream | None:
            stream = await scene.process.open_idle(*args)
            scene.registry.remove(worker)
            return stream

        monkeypatch.setattr(watch_module, "open_idle", open_idle)
        await settle()
        assert worker.removed
        assert not scene.watchman.addresses.held

    play(body)


def test_a_look_that_crashes_is_over(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        assert scene.watchman.addresses.held == {URL}

        async def crash(*_: Any) -> Any:
            raise ValueError("crash")

        with monkeypatch.context() as broken:
            broken.setattr(watch_module, "probe", crash)
            scene.watchman.nudge(worker)
            await settle()
        assert not scene.watchman.addresses.held  # its idle connection has ended with the look
        await trio.sleep(5)
        scene.process.answers["/v1/models"] = models("other")
        began = trio.current_time()
        await scene.watchman.look_again(worker, within=5)
        assert trio.current_time() == began
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)

    play(body)


def test_trouble_of_the_relay_asks_for_a_probe_at_once(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        await trio.sleep(3)
        scene.registry.trouble(worker, "connection reset")
        await settle()
        assert scene.process.times() == [0, 3]
        scene.process.takes = 2
        scene.registry.trouble(worker, "connection reset")
        await trio.sleep(1)
        for _ in range(50):  # a burst of failures during a look is one more look
            scene.registry.trouble(worker, "connection reset")
        await trio.sleep(5)
        assert scene.process.times() == [0, 3, 3, 5]

    play(body)


def test_first_contact_waits_for_the_first_look(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.takes = 0.5
        worker = scene.add()
        assert await scene.watchman.first_contact(worker, within=3)
        assert trio.current_time() == pytest.approx(2)  # four answers
        assert worker.health is Health.HEALTHY
        assert await scene.watchman.first_contact(worker, within=3)
        assert trio.current_time() == pytest.approx(2)

    play(body)


def test_first_contact_is_bounded(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(HANGS)
        worker = scene.add()
        assert not await scene.watchman.first_contact(worker, within=3)
        assert trio.current_time() == pytest.approx(3)

    play(body)


def test_nobody_waits_for_a_worker_that_is_removed(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.health(HANGS)
        worker = scene.add()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(scene.watchman.look_again, worker, within=3))
            await settle()
            scene.registry.remove(worker)
        assert not await scene.watchman.first_contact(worker, within=3)
        await scene.watchman.look_again(worker, within=3)
        assert trio.current_time() == 0

    play(body)


def test_another_look_reads_everything_again(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.answers["/v1/models"] = models("other")
        await scene.watchman.look_again(worker, within=3)
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)
        await trio.sleep(30)
        assert len(scene.process.times("/v1/models")) == 2  # not at each probe

    play(body)


def test_another_look_is_one_that_began_after_it_was_asked_for(play: Play) -> None:
    async def body(scene: Scene) -> None:
        scene.process.takes = 1
        worker = scene.add()
        await trio.sleep(2.5)  # the models were read, the rest is not
        scene.process.answers["/v1/models"] = models("other")
        await scene.watchman.look_again(worker, within=20)
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)

    play(body)


def test_another_look_is_bounded(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.health(HANGS)
        await scene.watchman.look_again(worker, within=3)
        assert trio.current_time() == pytest.approx(3)

    play(body)


def test_a_wish_to_read_again_outlives_a_failure(play: Play) -> None:
    async def body(scene: Scene) -> None:
        worker = await scene.healthy()
        scene.process.answers["/model_info"] = Answer(500, b"")
        scene.watchman.nudge(worker, refresh=True)
        await trio.sleep(0.5)
        assert worker.consecutive_failures == 1
        scene.process.answers["/v1/models"] = models("other")
        del scene.process.answers["/model_info"]
        await trio.sleep(1)
        assert worker.capabilities is not None
        assert worker.capabilities.models == ("other",)

    play(body)
