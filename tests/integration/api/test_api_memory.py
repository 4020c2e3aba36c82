"""Sleep and wake."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until

SLEEP, WAKE = "/release_memory_occupation", "/resume_memory_occupation"


async def health(pool: Deployment) -> dict[str, Any]:
    answer = await pool.http.get("/health")
    body: dict[str, Any] = answer.json()
    assert (answer.status_code == 200) == (body["status"] == "healthy")
    return body


def memories(*members: Member) -> list[str]:
    return [str(member.known.memory) for member in members]


def test_sleep_and_wake(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        slept = await pool.http.post(SLEEP, json={"tags": ["weights"]})
        assert slept.status_code == 200
        assert slept.json()["success"] is True
        assert slept.json()["deferred"] == []
        assert [row["body"]["sleeping"] for row in slept.json()["results"]] == [True, True]
        assert memories(a, b) == ["asleep", "asleep"]
        assert a.sim.scheduler.asleep
        assert b.sim.scheduler.asleep
        is_ours(await pool.image(), 503, "pool_asleep")
        assert (await health(pool))["sleeping_workers"] == 2
        assert a.asked("POST", SLEEP)[0].body_bytes > 0

        woke = await pool.http.post(WAKE)
        assert [row["body"]["sleeping"] for row in woke.json()["results"]] == [False, False]
        assert memories(a, b) == ["awake", "awake"]
        assert (await pool.image()).status_code == 200
        assert (await health(pool))["healthy_workers"] == 2

    run_pool(test, IMAGES, IMAGES)


def test_both_may_be_repeated(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        nothing = await pool.http.post(WAKE)
        message = "All workers are already active"
        assert nothing.status_code == 200
        assert nothing.json() == {"message": message, "active_workers": 2}
        await pool.http.post(SLEEP)
        for _ in range(2):
            nothing = await pool.http.post(SLEEP)
            message = "All workers are already sleeping"
            assert nothing.status_code == 200
            assert nothing.json() == {"message": message, "sleeping_workers": 2}
        assert len(a.asked("POST", SLEEP)) == 1
        assert a.asked("POST", WAKE) == []

    run_pool(test, IMAGES, IMAGES)


def test_those_that_are_awake_are_put_to_sleep(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": a.id})
        assert memories(a, b) == ["asleep", "awake"]
        assert (await pool.image()).headers["x-worker-id"] == b.id
        rest = await pool.http.post(SLEEP)
        assert [row["worker_url"] for row in rest.json()["results"]] == [b.url]
        await pool.http.post(WAKE, params={"workers": b.id})
        assert memories(a, b) == ["asleep", "awake"]
        rest = await pool.http.post(WAKE)
        assert [row["worker_url"] for row in rest.json()["results"]] == [a.url]

    run_pool(test, IMAGES, IMAGES)


def test_one_model_sleeps(run_pool: RunPool) -> None:
    async def test(pool: Deployment, images: Member, videos: Member) -> None:
        await pool.http.post(SLEEP, params={"model": "video/b"})
        assert memories(images, videos) == ["awake", "asleep"]
        assert (await pool.image()).status_code == 200
        job = await pool.http.post("/v1/videos", json={"prompt": "x", "size": "64x64"})
        is_ours(job, 503, "pool_asleep")

    run_pool(test, IMAGES, VIDEOS)


def test_some_fail(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        b.sim.faults.add("fail_next_update", path=SLEEP, status=500)
        c.sim.faults.add("refuse")
        c.sim._abort_connections()
        answer = await pool.http.post(SLEEP)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert [row["status_code"] for row in answer.json()["results"]] == [200, 500, 502]
        # One that may sleep counts as asleep; one that never heard of it does not.
        assert memories(a, b, c) == ["asleep", "asleep", "awake"]
        c.sim.faults.add("clear")
        await until(lambda: c.known.health == "healthy" and not c.known.consecutive_failures)

        a.sim.faults.add("fail_next_update", path=WAKE, status=500)
        answer = await pool.http.post(WAKE)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert memories(a, b, c) == ["asleep", "awake", "awake"]
        assert (await pool.http.post(WAKE)).status_code == 200
        assert memories(a, b, c) == ["awake"] * 3

    run_pool(test, IMAGES, IMAGES, IMAGES, health_check_interval=0.2)


@pytest.mark.parametrize("said", [True, False])
def test_a_worker_that_refuses_and_says_what_it_is(run_pool: RunPool, said: bool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        body = {"success": False, "sleeping": said, "message": "busy"}
        a.sim.faults.add("status", path=SLEEP, status=400, body=body)
        answer = await pool.http.post(SLEEP)
        assert answer.status_code == 400
        assert memories(a) == ["asleep" if said else "awake"]

    run_pool(test, IMAGES)


@pytest.mark.parametrize("status", [400, 404, 405, 422])
def test_a_worker_that_refuses_without_a_word_of_what_it_is(run_pool: RunPool, status: int) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("status", path=SLEEP, status=status, body={"detail": "Not Found"})
        answer = await pool.http.post(SLEEP)
        assert answer.json()["success"] is False
        assert memories(a) == ["awake"]
        assert (await pool.image()).status_code == 200

    run_pool(test, IMAGES)


def test_the_dead_are_deferred_and_counted_once(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": f"{a.id},{b.id}"})
        for member in (a, c):
            member.sim.kill()
        await until(lambda: a.known.health == c.known.health == "unhealthy")
        count = await health(pool)
        assert (count["dead_workers"], count["sleeping_workers"]) == (2, 1)
        assert (count["healthy_workers"], count["total_workers"]) == (0, 3)
        assert count["status"] == "unhealthy"

        again = await pool.http.post(SLEEP)
        assert again.status_code == 200
        assert again.json()["sleeping_workers"] == 1
        assert [row["worker_url"] for row in again.json()["deferred"]] == [c.url]
        assert memories(a, b, c) == ["asleep", "asleep", "falling_asleep"]

        woke = await pool.http.post(WAKE)
        assert woke.status_code == 200
        assert [row["worker_url"] for row in woke.json()["results"]] == [b.url]
        # When they are back they follow.
        assert [row["reasons"] for row in woke.json()["deferred"]] == [["unhealthy", "waking"]] * 2
        assert memories(a, b, c) == ["waking", "awake", "waking"]

        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        is_ours(await pool.http.post(SLEEP), 503, "no_workers")
        is_ours(await pool.http.post(WAKE), 503, "no_workers")

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_second_sleep_answers_when_the_first_is_over(run_pool: RunPool) -> None:
    """Who is told that all sleep uses the GPUs."""

    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=SLEEP, by=0.3)
        answers: list[tuple[dict[str, Any], bool]] = []

        async def sleep() -> None:
            answer = await pool.http.post(SLEEP)
            answers.append((answer.json(), a.sim.scheduler.asleep))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            await until(lambda: a.asked("POST", SLEEP))
            nursery.start_soon(sleep)
        assert [asleep for _, asleep in answers] == [True, True]
        assert answers[1][0] == {
            "message": "All workers are already sleeping",
            "sleeping_workers": 1,
        }

    run_pool(test, IMAGES)


def test_sleep_and_wake_take_turns(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        a.sim.faults.add("delay", path=SLEEP, by=0.3)
        answers: dict[str, httpx.Response] = {}

        async def ask(path: str, *members: Member) -> None:
            names = ",".join(member.id for member in members)
            answers[path + names] = await pool.http.post(path, params={"workers": names})

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, SLEEP, a, b)
            await until(lambda: b.known.memory == "asleep")  # it waits for nobody
            assert a.known.memory == "falling_asleep"
            is_ours(await pool.image(), 503, "pool_asleep")
            nursery.start_soon(ask, WAKE, b, a)
        assert [answer.status_code for answer in answers.values()] == [200, 200]
        assert memories(a, b) == ["awake", "awake"]
        assert not a.sim.scheduler.asleep
        assert not b.sim.scheduler.asleep

        # Many at once, named in either order: nobody waits for ever, and nothing is left half-way.
        a.sim.faults.clear()
        async with trio.open_nursery() as nursery:
            for i in range(6):
                nursery.start_soon(ask, SLEEP if i % 2 else WAKE, *((a, b) if i % 3 else (b, a)))
        for member in (a, b):
            assert member.known.memory == ("asleep" if member.sim.scheduler.asleep else "awake")

    run_pool(test, IMAGES, IMAGES)


def test_a_sleep_that_has_begun_outlives_its_client(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=SLEEP, by=0.3)
        with trio.move_on_after(0.15) as left:
            await pool.http.post(SLEEP)
        assert left.cancelled_caught
        assert memories(a) == ["falling_asleep"]
        await until(lambda: a.known.memory == "asleep")
        assert a.sim.scheduler.asleep

    run_pool(test, IMAGES)


def test_a_worker_that_is_removed_meanwhile(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("delay", path=SLEEP, by=0.3)
        async with trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def sleep() -> None:
                answers.append(await pool.http.post(SLEEP))

            nursery.start_soon(sleep)
            await until(lambda: b.asked("POST", SLEEP))
            await pool.http.delete(f"/workers/{b.id}")
        assert answers[0].status_code == 200
        assert memories(a) == ["asleep"]

    run_pool(test, IMAGES, IMAGES)
