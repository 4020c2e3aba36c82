"""What becomes of sleepers by themselves: another process, a return, a restart of the router.

Nothing but a client's wake gives the GPU back.
"""

from __future__ import annotations

import pytest
import trio

from router.pool.lifecycle import AdminEvent, routable
from router.pool.worker import Hold, HoldKind, Memory, Origin, Weights, Worker
from tests.unit.control.naps import BROKEN, HANGS, REFUSED, Nap, answer, play, seen, settle

ASLEEP, AWAKE = Memory.ASLEEP, Memory.AWAKE
FALLING, WAKING = Memory.FALLING_ASLEEP, Memory.WAKING


def ill(nap: Nap, worker: Worker) -> None:
    nap.fall_ill(worker)


def quarantine(nap: Nap, worker: Worker) -> None:
    nap.registry.administer(worker, AdminEvent.QUARANTINE)


def back(nap: Nap, worker: Worker) -> None:
    nap.registry.forgive(worker)
    nap.recover(worker)


AWAY = pytest.mark.parametrize("away", [ill, quarantine])


def test_another_process_in_the_place_of_a_sleeper_is_put_to_sleep() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).takes = 5.0
        nap.replace(worker)
        assert worker.memory is FALLING
        assert not routable(worker)
        await settle()
        assert nap.disk.records == {worker.url: FALLING}
        # Who is told that it sleeps uses the GPU.
        nap.nursery.start_soon(nap.sleep, "again", worker)
        await trio.sleep(4)
        assert "again" not in nap.outcomes
        await trio.sleep(2)
        assert nap.body("again") == {
            "message": "All workers are already sleeping",
            "sleeping_workers": 1,
        }
        assert nap.engine(worker).paths == ["release", "release"]
        assert worker.memory is ASLEEP
        assert nap.disk.durable == {worker.url: ASLEEP}
        await nap.wake("wake", worker)
        assert routable(worker)

    play(body)


def test_one_that_comes_back_unwell_is_put_to_sleep_once_it_is_well() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.fall_ill(worker)
        nap.replace(worker)
        await trio.sleep(100)
        assert len(nap.engine(worker).asked) == 1
        assert worker.memory is FALLING
        nap.recover(worker)
        await settle()
        assert nap.engine(worker).paths == ["release", "release"]
        assert worker.memory is ASLEEP

    play(body)


def test_it_is_tried_until_it_has_worked() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        await trio.sleep(100)
        engine = nap.engine(worker)
        awake = answer(200, success=False, sleeping=False)
        engine.script.extend([answer(500), BROKEN, REFUSED, awake, answer(500), answer(500)])
        nap.replace(worker)
        await trio.sleep(50)
        assert [when - 100 for when in engine.times[1:]] == [0, 1, 3, 7, 15, 30, 45]
        assert worker.memory is ASLEEP
        assert set(engine.paths) == {"release"}

    play(body)


def test_an_event_of_the_worker_ends_the_pause() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        await trio.sleep(100)
        engine = nap.engine(worker)
        engine.script.extend([answer(500)] * 5)
        nap.replace(worker)
        await trio.sleep(10)  # then the next one is due at 15
        nap.fall_ill(worker)
        await settle()
        nap.recover(worker)
        await trio.sleep(5)
        assert [when - 100 for when in engine.times[1:]] == [0, 1, 3, 7, 10, 11]
        assert worker.memory is ASLEEP

    play(body)


def test_a_client_wakes_one_that_was_not_asleep_yet() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).script.extend([answer(500)] * 3)
        nap.replace(worker)
        await settle()
        await nap.wake("wake", worker)
        await settle()
        assert nap.body("wake", 502)["success"] is False
        assert worker.memory is FALLING  # a wake that failed leaves it asleep
        await nap.wake("again", worker)
        assert routable(worker)
        await trio.sleep(100)
        assert nap.engine(worker).paths == [
            *("release", "release", "resume"),
            *("release", "resume"),
        ]

    play(body)


def test_replaced_during_the_call() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        nap.engine(worker).takes = 5.0
        nap.nursery.start_soon(nap.sleep, "sleep", worker)
        await trio.sleep(2)
        nap.replace(worker)
        await trio.sleep(4)
        assert nap.body("sleep", 502)["success"] is False
        assert worker.memory is FALLING
        await trio.sleep(5)
        assert worker.memory is ASLEEP
        assert nap.engine(worker).asleep

        nap.nursery.start_soon(nap.wake, "wake", worker)
        await trio.sleep(2)
        nap.replace(worker)
        assert worker.memory is WAKING
        await trio.sleep(4)
        assert nap.body("wake", 502)["success"] is False
        await trio.sleep(5)
        assert worker.memory is ASLEEP
        assert nap.engine(worker).asleep
        assert nap.engine(worker).paths == ["release", "release", "resume", "release"]

    play(body)


def test_replaced_while_it_drains() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        nap.busy(worker, HoldKind.JOB)
        nap.nursery.start_soon(nap.sleep, "sleep", worker)
        await trio.sleep(100)
        nap.replace(worker)  # the job is gone
        await settle()
        assert nap.body("sleep")["success"] is True
        assert worker.memory is ASLEEP

    play(body)


@AWAY
def test_one_that_could_not_be_called_follows_when_it_is_back(away: object) -> None:
    assert callable(away)

    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        lease = nap.busy(b, HoldKind.JOB)
        away(nap, b)
        word = b.health if away is ill else b.admin
        await nap.sleep("sleep", a, b)
        assert seen(nap.body("sleep")["deferred"]) == [("b", [str(word), "falling_asleep"])]
        assert nap.disk.durable == {a.url: ASLEEP, b.url: FALLING}
        await nap.sleep("again", a, b)
        assert nap.body("again")["sleeping_workers"] == 1
        assert seen(nap.body("again")["deferred"]) == [("b", [str(word), "falling_asleep"])]
        back(nap, b)
        await trio.sleep(100)
        assert not routable(b)
        assert nap.engine(b).asked == []
        lease.release()
        await settle()
        assert nap.engine(b).paths == ["release"]
        assert nap.engine(b).idle == [True]
        assert b.memory is ASLEEP
        assert nap.disk.records == {a.url: ASLEEP, b.url: ASLEEP}

    play(body)


@AWAY
@pytest.mark.parametrize("replaced", [False, True])
def test_a_wake_that_names_it_is_kept_too(away: object, replaced: bool) -> None:
    assert callable(away)

    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        await nap.sleep("sleep", a, b)
        away(nap, b)
        word = b.health if away is ill else b.admin
        await nap.wake("wake", a, b)
        assert seen(nap.body("wake")["deferred"]) == [("b", [str(word), "waking"])]
        assert nap.disk.durable == {b.url: WAKING}
        if replaced:
            nap.replace(b)
        assert b.memory is WAKING
        nap.engine(b).script.extend([answer(500), answer(200, success=True, sleeping=True)])
        nap.registry.set_weights(b, Weights.BEHIND, b.weight_version)
        back(nap, b)
        await trio.sleep(4)
        assert nap.engine(b).paths == ["release", "resume", "resume", "resume"]
        assert b.memory is AWAKE
        assert not routable(b)  # before it has the weights that it missed
        assert nap.disk.records == {}

    play(body)


def test_the_last_wish_counts() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.fall_ill(b)
        await nap.sleep("1", a, b)
        await nap.wake("2", a, b)
        await nap.sleep("3", a, b)
        await nap.wake("4", a, b)
        await nap.sleep("5", a, b)
        assert nap.disk.durable == {a.url: ASLEEP, b.url: FALLING}
        back(nap, b)
        await settle()
        assert nap.engine(b).paths == ["release"]
        assert b.memory is ASLEEP

    play(body)


def test_a_hanging_one_that_is_put_to_sleep_again_can_be_woken() -> None:
    """The background holds a client up no longer than a call may take."""

    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).script.append(HANGS)
        nap.replace(worker)
        await settle()
        nap.nursery.start_soon(nap.wake, "wake", worker)
        await trio.sleep(1700)
        assert "wake" not in nap.outcomes
        await trio.sleep(200)
        assert nap.body("wake")["success"] is True
        assert routable(worker)

    play(body)


def test_removed_while_it_is_followed() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).script.extend([answer(500)] * 100)
        nap.replace(worker)
        await trio.sleep(5)
        nap.registry.remove(worker)
        asked = len(nap.engine(worker).asked)
        await trio.sleep(500)
        assert len(nap.engine(worker).asked) == asked
        assert not nap.operations.busy(worker)
        assert nap.disk.records == {}

    play(body)


def test_one_that_we_launched_is_to_be_started_again_at_a_wake() -> None:
    """It stays down while it sleeps; `waking` tells the launcher to start it."""

    async def body(nap: Nap) -> None:
        worker = nap.add("a", origin=Origin.LAUNCHED)
        await nap.sleep("sleep", worker)
        nap.fall_ill(worker)
        await nap.wake("wake", worker)
        assert nap.body("wake")["results"] == []
        assert seen(nap.body("wake")["deferred"]) == [("a", ["unhealthy", "waking"])]
        assert worker.memory is WAKING
        nap.replace(worker)
        nap.recover(worker)
        await settle()
        assert routable(worker)
        assert nap.engine(worker).paths == ["release", "resume"]

    play(body)


# A restart of the router.


@pytest.mark.parametrize(
    ("recorded", "restored", "path", "then"),
    [
        (ASLEEP, ASLEEP, "release", ASLEEP),  # it may be another process
        (ASLEEP, AWAKE, "release", ASLEEP),
        (FALLING, ASLEEP, "release", ASLEEP),
        (FALLING, FALLING, "release", ASLEEP),
        (FALLING, WAKING, "release", ASLEEP),  # a wake that had no outcome
        (FALLING, AWAKE, "release", ASLEEP),
        (WAKING, ASLEEP, "resume", AWAKE),
        (WAKING, AWAKE, "resume", AWAKE),
        (WAKING, WAKING, "resume", AWAKE),
        (None, ASLEEP, "release", ASLEEP),
    ],
)
def test_a_router_that_starts_takes_up_who_sleeps(
    recorded: Memory | None, restored: Memory, path: str, then: Memory
) -> None:
    url = "http://a:1"

    async def body(nap: Nap) -> None:
        worker = nap.registry.get(url)
        assert worker.memory is (WAKING if recorded is WAKING else recorded or ASLEEP)
        lease = nap.busy(worker, HoldKind.GHOST)
        nap.recover(worker)
        assert not routable(worker)
        await trio.sleep(10)
        if path == "release":
            assert nap.engine(worker).asked == []  # it may still work on something
        lease.release()
        await settle()
        assert nap.engine(worker).paths == [path]
        assert worker.memory is then
        assert nap.disk.records == ({url: ASLEEP} if then is ASLEEP else {})
        await trio.sleep(100)
        assert len(nap.engine(worker).asked) == 1

    play(body, durable={url: recorded} if recorded else {}, static={"a": restored})


def test_restored_sleepers_are_known_to_sleep_once_they_said_so() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.registry.get("http://a:1")
        nap.engine(worker).script.extend([answer(500), answer(500)])
        nap.recover(worker)
        await settle()
        assert worker.memory is ASLEEP
        await nap.sleep("sleep", worker)
        assert nap.body("sleep", 502)["success"] is False
        await nap.sleep("again", worker)
        assert "results" in nap.body("again")
        assert len(nap.engine(worker).asked) == 3
        await trio.sleep(100)
        assert len(nap.engine(worker).asked) == 3

    play(body, durable={"http://a:1": ASLEEP}, static={"a": ASLEEP})


def test_one_that_is_well_at_once() -> None:
    async def body(nap: Nap) -> None:
        await settle()
        worker = nap.registry.get("http://a:1")
        assert worker.memory is ASLEEP
        assert nap.engine(worker).paths == ["release"]

    play(body, durable={"http://a:1": FALLING}, static={"a": AWAKE}, well=True)


@pytest.mark.parametrize("origin", [Origin.LAUNCHED, Origin.REGISTERED])
def test_one_that_joins_after_the_start(origin: Origin) -> None:
    """A launched one is as its record says; who registers has been away, and is awake."""

    async def body(nap: Nap) -> None:
        worker = nap.add("a", healthy=False, origin=origin)
        assert worker.memory is (ASLEEP if origin is Origin.LAUNCHED else AWAKE)
        nap.recover(worker)
        await settle()
        assert nap.engine(worker).paths == (["release"] if origin is Origin.LAUNCHED else [])
        assert routable(worker) is (origin is Origin.REGISTERED)

    play(body, durable={"http://a:1": ASLEEP}, launched=True)


def test_the_sleep_of_one_that_is_gone_is_forgotten() -> None:
    """No flag names it any more, and nobody has launched anything."""

    async def body(nap: Nap) -> None:
        assert nap.disk.records == {"http://a:1": ASLEEP}
        assert nap.add("b", origin=Origin.LAUNCHED).memory is AWAKE

    play(body, durable={"http://a:1": ASLEEP, "http://b:1": ASLEEP}, static={"a": AWAKE})


def test_whatever_the_moment_of_a_crash() -> None:
    """What the disk holds at any moment never lets a worker be awake that was not woken."""

    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        for worker in (a, b):
            nap.engine(worker).takes = 1.0
        nap.fall_ill(b)
        told: list[tuple[float, str]] = []

        async def live() -> None:
            await nap.sleep("sleep", a, b)
            told.append((trio.current_time(), "asleep"))
            back(nap, b)
            await trio.sleep(3)
            nap.fall_ill(b)
            told.append((trio.current_time(), "wakes"))
            await nap.wake("wake", a, b)
            told.append((trio.current_time(), "awake"))

        nap.nursery.start_soon(live)
        while len(told) < 3:
            await trio.sleep(0.05)
            found = nap.crash()
            phase = told[-1][1] if told else "before"
            for worker in (a, b):
                if nap.engine(worker).asleep:
                    assert worker.url in found, "it would be routed to though it sleeps"
                if phase == "asleep":
                    assert found[worker.url] in (ASLEEP, FALLING)
            if phase == "awake":
                assert found == {b.url: WAKING}

    play(body)


def test_a_sleep_in_the_background_that_drains_holds_up_nobody() -> None:
    """A job of a process that took a sleeper's place may go on for long."""

    async def body(nap: Nap) -> None:
        busy, other = nap.add("busy"), nap.add("other")
        await nap.sleep("sleep", busy, other)
        nap.replace(busy)
        nap.registry.occupy(Hold(busy, busy.incarnation, HoldKind.JOB, "video", job_id="j"))
        await settle()
        assert busy.memory is FALLING
        with trio.fail_after(5):
            await nap.wake("wake", busy, other)
        assert (busy.memory, other.memory) == (AWAKE, AWAKE)

    play(body)
