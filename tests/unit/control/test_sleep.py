"""Sleep and wake by request, in virtual time."""

from __future__ import annotations

import pytest
import trio

from router.control.client import Call
from router.errors import RouterError
from router.pool import events
from router.pool.lifecycle import AdminEvent, routable
from router.pool.worker import HoldKind, Lease, Memory, Weights
from tests.unit.control.naps import (
    BODY,
    BROKEN,
    HANGS,
    REFUSED,
    RELEASE,
    Nap,
    answer,
    play,
    seen,
    settle,
)

ASLEEP, AWAKE = Memory.ASLEEP, Memory.AWAKE
FALLING, WAKING = Memory.FALLING_ASLEEP, Memory.WAKING
KINDS = [HoldKind.GENERATION, HoldKind.JOB, HoldKind.SESSION, HoldKind.GHOST]


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_is_idle_before_it_is_called(kind: HoldKind) -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        lease = nap.busy(worker, kind)
        nap.nursery.start_soon(nap.sleep, "sleep", worker)
        await settle()
        assert worker.memory is FALLING
        assert not routable(worker)
        await trio.sleep(100)
        assert nap.engine(worker).asked == []
        lease.release()
        await settle()
        assert nap.engine(worker).paths == ["release"]
        assert nap.engine(worker).idle == [True]
        assert nap.engine(worker).bodies == [BODY]
        assert nap.body("sleep")["success"] is True
        assert worker.memory is ASLEEP

    play(body)


def test_each_gets_its_call_as_soon_as_it_is_idle() -> None:
    async def body(nap: Nap) -> None:
        a, b, c = nap.add("a"), nap.add("b"), nap.add("c")
        leases = {b: nap.busy(b), c: nap.busy(c, HoldKind.JOB)}
        nap.nursery.start_soon(nap.sleep, "sleep", a, b, c)
        for worker in (b, c):
            await trio.sleep(100)
            leases[worker].release()
        await settle()
        assert [nap.engine(w).times for w in (a, b, c)] == [[0.0], [100.0], [200.0]]
        rows = nap.body("sleep")["results"]
        assert [row["worker_url"] for row in rows] == [a.url, b.url, c.url]
        assert nap.ended["sleep"] == 200.0

    play(body)


def test_one_that_does_not_come_to_be_idle_is_awake_again() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        lease = nap.busy(b, HoldKind.JOB)
        nap.nursery.start_soon(nap.sleep, "sleep", a, b)
        await trio.sleep(1799)
        assert (a.memory, b.memory) == (ASLEEP, FALLING)
        await trio.sleep(2)
        body = nap.body("sleep", 502)
        assert [row["status_code"] for row in body["results"]] == [200, 504]
        assert body["results"][1]["body"]["code"] == "drain_timeout"
        assert body["success"] is False
        assert nap.engine(b).asked == []
        assert routable(b)
        lease.release()
        await trio.sleep(100)
        assert nap.engine(b).asked == []
        assert nap.disk.durable == {a.url: ASLEEP}

    play(body)


def test_the_waiting_are_refused_at_once_where_nobody_else_fits() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        leases = [nap.busy(a), nap.busy(b)]
        nap.nursery.start_soon(nap.generate, "waiting")
        await settle()
        nap.nursery.start_soon(nap.sleep, "one", a)
        await settle()
        assert nap.granted == {}  # there is b
        nap.nursery.start_soon(nap.sleep, "other", b)
        await settle()
        nap.nursery.start_soon(nap.generate, "new")
        await settle()
        for name in ("waiting", "new"):
            refusal = nap.granted[name]
            assert isinstance(refusal, RouterError)
            assert (refusal.status, refusal.code) == (503, "pool_asleep")
        assert nap.outcomes == {}
        for lease in leases:
            lease.release()

    play(body)


def test_who_wakes_serves() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).takes = 5.0
        nap.nursery.start_soon(nap.wake, "wake", worker)
        await trio.sleep(1)
        assert worker.memory is WAKING
        nap.nursery.start_soon(nap.generate, "waits")
        await trio.sleep(1)
        assert nap.granted == {}
        assert nap.outcomes.keys() == {"sleep"}
        await trio.sleep(4)
        assert nap.body("wake")["success"] is True
        assert nap.body("wake")["deferred"] == []
        assert isinstance(nap.granted["waits"], Lease)

    play(body)


def test_the_answer_names_those_that_miss_a_change() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        await nap.sleep("sleep", a, b)
        nap.registry.set_weights(b, Weights.BEHIND, b.weight_version)
        await nap.wake("wake", a, b)
        body = nap.body("wake")
        assert len(body["results"]) == 2
        assert seen(body["deferred"]) == [("b", ["weights_behind"])]
        assert routable(a)
        assert not routable(b)
        await nap.wake("again", a, b)
        assert nap.body("again")["message"] == "All workers are already active"
        assert seen(nap.body("again")["deferred"]) == [("b", ["weights_behind"])]

    play(body)


def test_weights_and_administration_do_not_keep_a_worker_from_sleep() -> None:
    async def body(nap: Nap) -> None:
        behind, failed, draining = nap.add("a"), nap.add("b"), nap.add("c")
        nap.registry.set_weights(failed, Weights.FAILED, 0)
        nap.registry.set_weights(behind, Weights.BEHIND, behind.weight_version)
        nap.registry.administer(draining, AdminEvent.DRAIN)
        await nap.sleep("sleep", behind, failed, draining)
        assert len(nap.body("sleep")["results"]) == 3
        assert behind.memory is failed.memory is draining.memory is ASLEEP
        assert (behind.weights, failed.weights) == ("behind", "failed")
        await nap.wake("wake", behind, failed, draining)
        reasons = dict(seen(nap.body("wake")["deferred"]))
        assert reasons == {"a": ["weights_behind"], "b": ["weights_failed"]}
        assert draining.memory is AWAKE
        assert not routable(draining)

    play(body)


def test_what_was_not_said_is_asked_again() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("1", worker)  # its word of then says nothing later
        await nap.wake("2", worker)
        for i, lost in enumerate([answer(500), BROKEN, HANGS]):
            nap.engine(worker).script.append(lost)
            await nap.sleep(f"lost {i}", worker)
            assert nap.body(f"lost {i}", 502)["success"] is False
            assert worker.memory is ASLEEP
            assert nap.disk.durable == {worker.url: FALLING}
        asked = len(nap.engine(worker).asked)
        await nap.sleep("known", worker)
        assert "results" in nap.body("known")
        await nap.sleep("repeated", worker)
        assert nap.body("repeated")["sleeping_workers"] == 1
        assert len(nap.engine(worker).asked) == asked + 1

        nap.engine(worker).script.append(answer(500))
        await nap.wake("lost", worker)
        assert nap.body("lost", 502)["success"] is False
        assert worker.memory is ASLEEP
        assert nap.disk.durable == {worker.url: FALLING}
        await nap.sleep("then", worker)  # it may be awake
        assert "results" in nap.body("then")
        assert nap.engine(worker).paths[-2:] == ["resume", "release"]

    play(body)


@pytest.mark.parametrize("sleeping", [False, True])
def test_the_state_is_what_the_worker_said(sleeping: bool) -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.engine(a).script.append(answer(200, success=True, sleeping=sleeping))
        await nap.sleep("sleep", a, b)
        body = nap.body("sleep", 200 if sleeping else 502)
        assert body["success"] is sleeping
        assert a.memory is (ASLEEP if sleeping else AWAKE)
        assert b.memory is ASLEEP
        nap.engine(b).script.append(answer(200, success=True, sleeping=sleeping))
        await nap.wake("wake", b)
        assert nap.body("wake", 502 if sleeping else 200)["success"] is not sleeping
        assert b.memory is (ASLEEP if sleeping else AWAKE)
        await nap.sleep("again", b)
        assert ("message" in nap.body("again")) is sleeping

    play(body)


def test_one_that_was_never_asked_is_what_it_was() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        nap.engine(worker).script.append(REFUSED)
        await nap.sleep("sleep", worker)
        nap.body("sleep", 502)
        assert worker.memory is AWAKE
        assert nap.disk.durable == {}
        await nap.sleep("again", worker)
        nap.engine(worker).script.append(REFUSED)
        await nap.wake("wake", worker)
        nap.body("wake", 502)
        assert worker.memory is ASLEEP
        assert nap.disk.durable == {worker.url: ASLEEP}
        await nap.sleep("repeated", worker)
        assert nap.body("repeated")["sleeping_workers"] == 1

    play(body)


def test_one_that_turns_unhealthy_holds_nobody_up() -> None:
    async def body(nap: Nap) -> None:
        draining, hanging, well = nap.add("a"), nap.add("b"), nap.add("c")
        lease = nap.busy(draining, HoldKind.JOB)
        nap.engine(hanging).script.append(HANGS)
        nap.nursery.start_soon(nap.sleep, "sleep", draining, hanging, well)
        await trio.sleep(100)
        nap.fall_ill(draining)
        nap.fall_ill(hanging)
        await settle()
        body = nap.body("sleep", 502)
        assert [row["status_code"] for row in body["results"]] == [502, 502, 200]
        assert [w.memory for w in (draining, hanging, well)] == [FALLING, ASLEEP, ASLEEP]
        assert nap.engine(draining).asked == []
        # It was named, and follows: the GPU was given away.
        nap.recover(draining)
        await trio.sleep(100)
        assert nap.engine(draining).asked == []  # the job is still there
        lease.release()
        await settle()
        assert nap.engine(draining).paths == ["release"]
        assert draining.memory is ASLEEP

    play(body)


def test_one_that_turns_unhealthy_in_the_moment_before() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        nap.nursery.start_soon(nap.sleep, "sleep", worker)
        await trio.sleep(0.0005)  # its intent is being written
        nap.fall_ill(worker)
        await settle()
        assert nap.body("sleep", 502)["results"][0]["body"]["code"] == "worker_failed"
        assert worker.memory is FALLING
        nap.recover(worker)
        await settle()
        assert worker.memory is ASLEEP

    play(body)


def test_one_that_is_done_is_held_up_by_nobody() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.engine(a).script.append(HANGS)
        nap.nursery.start_soon(nap.sleep, "sleep", a, b)
        await settle()
        await nap.wake("wake", b)
        assert routable(b)
        assert nap.ended == {"wake": 0.0}

    play(body)


async def removed_as_it_falls_asleep(nap: Nap) -> None:
    worker = nap.add("a")
    nap.engine(worker).takes = 5.0
    nap.nursery.start_soon(nap.sleep, "sleep", worker)
    await trio.sleep(1)
    nap.registry.remove(worker)


def test_one_that_is_removed_during_its_call() -> None:
    async def body(nap: Nap) -> None:
        await removed_as_it_falls_asleep(nap)
        told: list[events.Event] = []
        nap.registry.subscribe(told.append)
        await trio.sleep(5)
        assert nap.body("sleep")["success"] is True
        assert told == []

    play(body)


def test_one_that_is_removed_during_its_call_and_registered_again_is_awake() -> None:
    async def body(nap: Nap) -> None:
        await removed_as_it_falls_asleep(nap)
        again = nap.add("a")
        assert not routable(again)
        assert nap.disk.records == {again.url: Memory.WAKING}
        await trio.sleep(10)
        assert nap.engine(again).paths == ["release", "resume"]
        assert not nap.engine(again).asleep
        assert routable(again)
        assert nap.disk.records == {}

    play(body)


def test_one_that_is_removed_as_it_wakes_and_registered_again_is_awake() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        await nap.sleep("sleep", worker)
        nap.engine(worker).takes = 5.0
        nap.nursery.start_soon(nap.wake, "wake", worker)
        await trio.sleep(1)
        nap.registry.remove(worker)
        again = nap.add("a")
        assert not routable(again)
        await trio.sleep(10)
        assert not nap.engine(again).asleep
        assert routable(again)

    play(body)


def test_one_that_is_removed_holds_nobody_up() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.busy(b, HoldKind.JOB)
        nap.nursery.start_soon(nap.sleep, "sleep", a, b)
        await trio.sleep(100)
        nap.registry.remove(b)
        await settle()
        assert [row["worker_url"] for row in nap.body("sleep")["results"]] == [a.url]
        assert nap.engine(b).asked == []
        assert nap.disk.durable == {a.url: ASLEEP}
        nap.registry.remove(a)
        await nap.sleep("gone", a, b)
        assert nap.refused("gone") == "no_workers"
        # Forgotten is forgotten: who joins is awake.
        assert routable(nap.add("a"))
        assert nap.disk.records == {}

    play(body)


def test_sleeps_wakes_and_changes_take_turns() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        async with nap.operations.take([b]):  # a change, say
            nap.nursery.start_soon(nap.sleep, "sleep", a, b)
            await trio.sleep(50)
            assert nap.engine(a).asked == []
            assert routable(a)  # it has not begun
            nap.nursery.start_soon(nap.wake, "wake", b)
            await settle()
        await settle()
        assert nap.engine(a).paths == ["release"]
        assert nap.engine(b).paths == ["release", "resume"]
        assert (a.memory, b.memory) == (ASLEEP, AWAKE)

    play(body)


@pytest.mark.parametrize("begun", [False, True])
def test_the_client_leaves(begun: bool) -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        lease = nap.busy(worker)
        async with trio.open_nursery() as client:
            if begun:
                client.start_soon(nap.sleep, "sleep", worker)
                await settle()
                client.cancel_scope.cancel()
            else:
                async with nap.operations.take([worker]):
                    client.start_soon(nap.sleep, "sleep", worker)
                    await settle()
                    client.cancel_scope.cancel()
                    await settle()
        lease.release()
        await settle()
        assert nap.outcomes == {}
        assert worker.memory is (ASLEEP if begun else AWAKE)
        assert not nap.operations.busy(worker)

    play(body)


def test_the_client_leaves_in_the_moment_of_its_turn() -> None:
    async def body(nap: Nap) -> None:
        done = set()
        for i in range(30):
            worker = nap.add(f"w{i}")
            async with trio.open_nursery() as client:
                async with nap.operations.take([worker]):
                    client.start_soon(nap.sleep, "sleep", worker)
                    await settle()
                client.cancel_scope.cancel()
            await settle()
            asleep = worker.memory is ASLEEP
            assert asleep or worker.memory is AWAKE
            assert len(nap.engine(worker).asked) == asleep
            assert (worker.url in nap.disk.durable) is asleep
            assert (worker.url in nap.disk.records) is asleep
            done.add(asleep)
        assert done == {False, True}  # all or nothing, whichever of them was seen first

    play(body)


def test_what_is_done_is_durable_first() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.fall_ill(b)
        await nap.sleep("sleep", a, b)
        assert nap.engine(a).durable == [FALLING]
        assert nap.disk.durable == {a.url: ASLEEP, b.url: FALLING}
        await nap.wake("wake", a, b)
        assert nap.engine(a).durable == [FALLING, FALLING]  # a wake counts once it has succeeded
        assert nap.disk.durable == {b.url: WAKING}

    play(body)


def test_a_disk_that_fails() -> None:
    async def body(nap: Nap) -> None:
        worker = nap.add("a")
        for name in ("sleep", "wake"):
            nap.disk.failing = "disk full"
            async with nap.operations.take([worker]):  # it is not even waited for
                await getattr(nap, name)("early", worker)
            assert nap.refused("early") == "state_unavailable"
            nap.disk.failing = None
            nap.disk.fails_at = nap.disk.commits + 1
            before = worker.memory, dict(nap.disk.records), len(nap.engine(worker).asked)
            await getattr(nap, name)("at the intent", worker)
            assert nap.refused("at the intent") == "state_unavailable"
            assert before == (
                worker.memory,
                dict(nap.disk.records),
                len(nap.engine(worker).asked),
            )
            nap.disk.fails_at = nap.disk.commits + 2
            await getattr(nap, name)("at the outcome", worker)
            assert nap.refused("at the outcome") == "state_unavailable"
            assert worker.memory is (ASLEEP if name == "sleep" else AWAKE)
            # Said again, it is acknowledged only once it is durable.
            await getattr(nap, name)("again", worker)
            assert "message" in nap.body("again")
            assert nap.disk.durable == nap.disk.records
            assert (worker.url in nap.disk.durable) == (name == "sleep")

    play(body)


def test_nobody_to_call() -> None:
    async def body(nap: Nap) -> None:
        a, b = nap.add("a"), nap.add("b")
        nap.fall_ill(a)
        nap.registry.administer(b, AdminEvent.QUARANTINE)
        for work in (nap.sleep, nap.wake):
            await work("x", a, b)
            assert nap.refused("x") == "no_workers"
        assert nap.disk.records == {}
        assert a.memory is b.memory is AWAKE

    play(body)


def test_a_stop_of_the_router_leaves_nothing_behind() -> None:
    seen: list[Nap] = []

    async def body(nap: Nap) -> None:
        seen.append(nap)
        draining, hanging = nap.add("a"), nap.add("b")
        nap.busy(draining)
        nap.engine(hanging).script.append(HANGS)
        nap.nursery.start_soon(nap.sleep, "sleep", draining, hanging)
        await settle()

    play(body)  # ends in the middle of it
    assert not any(map(seen[0].operations.busy, seen[0].registry))
    assert set(seen[0].disk.durable.values()) == {FALLING}


def test_broken_off_half_way_it_goes_on_by_itself() -> None:
    """At a stop of the router, say: whatever the moment, the record is true and nothing is held."""

    async def body(nap: Nap) -> None:
        for i in range(12):
            worker = nap.add(f"w{i}")
            nap.engine(worker).takes = 0.002
            with trio.move_on_after(i * 0.0005):
                await nap.memory.sleep([worker], Call(RELEASE, 1800.0, b"{}"))
            await settle()
            assert not nap.operations.busy(worker)
            assert worker.memory in (AWAKE, ASLEEP)
            assert nap.engine(worker).asleep is (worker.memory is ASLEEP)
            assert (nap.disk.records.get(worker.url) is ASLEEP) is (worker.memory is ASLEEP)

    play(body)
