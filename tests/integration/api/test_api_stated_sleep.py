"""Sleep past the router: statements are believed, and a sleeping engine that nobody announced is
found by its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from router.control import memory
from router.pool.lifecycle import reasons
from tests.integration.api.pools import IMAGES, Member, RunPool, direct_to, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.lives import Lives, run_lives
from tests.integration.weights.refits import current, has, refitted

SLEEP, WAKE = "/release_memory_occupation", "/resume_memory_occupation"
ROLLOUT = "/rollout/generate"
GROUP = {"prompt": "x", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 1}


async def directly(member: Member, path: str) -> None:
    async with direct_to(member.url) as worker:
        assert (await worker.post(path, json={})).status_code == 200


async def rollout(pool: Deployment) -> httpx.Response:
    return await pool.http.post(ROLLOUT, json=GROUP)


async def state(pool: Deployment, *members: Member, sleeping: bool) -> httpx.Response:
    ids = [member.id for member in members]
    return await pool.http.post("/workers/sleeping", json={"workers": ids, "sleeping": sleeping})


def test_a_statement_is_believed_and_nobody_is_called(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for sleeping, shown in ((True, "asleep"), (True, "asleep"), (False, "awake")):
            said = await pool.http.put(f"/workers/{a.id}", json={"sleeping": sleeping})
            assert said.json()["worker"]["memory"] == shown
            assert (await rollout(pool)).status_code == 200
        answer = await state(pool, a, b, sleeping=True)
        assert [worker["memory"] for worker in answer.json()["workers"]] == ["asleep"] * 2
        is_ours(await rollout(pool), 503, "pool_asleep")
        assert (await pool.http.post(SLEEP)).json()["sleeping_workers"] == 2
        assert not a.asked("POST", SLEEP)
        await state(pool, a, b, sleeping=False)
        assert (await rollout(pool)).status_code == 200
        assert not a.asked("POST", WAKE)

    run_pool(test, IMAGES, IMAGES)


def test_what_it_slept_through_is_replayed_before_it_serves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await directly(b, SLEEP)
        await state(pool, b, sleeping=True)
        said = await refitted(pool, "v1")
        assert [row["worker_url"] for row in said["deferred"]] == [b.url]
        await directly(b, WAKE)
        await state(pool, b, sleeping=False)
        await until(lambda: current(a, b))
        assert has(b, "v1")

    run_pool(test, IMAGES, IMAGES)


def test_a_statement_outlives_the_router(tmp_path: Path) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as pool:
            sim = await pool.simulated(**IMAGES)
            a = Member(sim, await pool.register(sim.url))
            await state(pool, a, sleeping=True)
        async with lives.router() as pool:
            assert [worker.memory for worker in pool.running.parts.registry] == ["asleep"]
            [known] = pool.running.parts.registry
            await until(lambda: known.health == "healthy")
            await state(pool, Member(sim, known), sleeping=False)
        async with lives.router() as pool:
            assert [worker.memory for worker in pool.running.parts.registry] == ["awake"]

    run_lives(test, tmp_path)


def test_a_statement_stands_in_line(run_pool: RunPool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        begun = (await pool.http.post("/weights/begin", json={})).json()
        monkeypatch.setattr(memory, "_PATIENCE", 0.05)
        is_ours(await state(pool, a, sleeping=True), 409, "worker_busy")
        assert a.known.memory == "awake"
        monkeypatch.undo()
        answers: list[httpx.Response] = []

        async def say() -> None:
            answers.append(await state(pool, a, sleeping=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(say)
            await pool.http.post("/weights/commit", json={"txn": begun["txn"]})
        assert answers[0].status_code == 200
        assert a.known.memory == "asleep"

    run_pool(test, IMAGES)


@pytest.mark.parametrize("known_by", ["wake", "statement", "restart"])
def test_a_sleeping_engine_gets_nothing_more(run_pool: RunPool, known_by: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await directly(a, SLEEP)
        met: httpx.Response | None = None
        while met is None:  # until the policy has chosen the sleeper
            answer = await rollout(pool)
            met = answer if answer.status_code != 200 else None
        assert (met.status_code, met.headers["x-worker-id"]) == (500, a.id)
        assert "Server is sleeping." in met.text  # the worker's own answer
        assert reasons(a.known) == ["suspect_asleep"]
        for _ in range(6):
            assert (await rollout(pool)).headers["x-worker-id"] == b.id
        assert len(a.asked("POST", ROLLOUT)) == 1
        match known_by:
            case "wake":
                woken = await pool.http.post(WAKE)
                assert [row["worker_url"] for row in woken.json()["results"]] == [a.url]
                assert not a.sim.scheduler.asleep
            case "statement":
                await directly(a, WAKE)
                await state(pool, a, sleeping=False)
            case _:
                pool.running.parts.registry.reincarnate(a.known, "it was started again")
                await until(lambda: a.known.capabilities is not None)
        await until(lambda: reasons(a.known) == [])
        assert a.known.free_slots == a.known.max_concurrency

    run_pool(test, IMAGES, IMAGES, ejection_max_pause=600.0)


def test_after_a_while_one_request_tries_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.put(f"/workers/{a.id}", json={"max_concurrency": 4})
        await directly(a, SLEEP)
        # Both go to it again only after the pause; what waits has hope.
        for _ in range(2):
            assert (await rollout(pool)).status_code == 500
            assert a.known.dozing
        await directly(a, WAKE)
        a.sim.faults.add("slow", factor=1e6, count=1)
        answers: list[int] = []

        async def one() -> None:
            answers.append((await rollout(pool)).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)
            waiting = pool.running.parts.dispatcher.queue
            await until(lambda: a.sim.scheduler.running and waiting.waiting == 2)
            assert len(a.known.holds) == 1  # the others wait for its outcome
            a.sim.scheduler.hurry()
        assert answers == [200] * 3
        assert a.known.free_slots == 4

    run_pool(test, IMAGES, ejection_max_pause=0.2)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ({"workers": []}, "missing_field"),
        ({"sleeping": True}, "missing_field"),
        ({"workers": "a", "sleeping": True}, "invalid_field"),
        ({"workers": [], "sleeping": "yes"}, "invalid_field"),
        ({"workers": [], "sleeping": True, "model": "m"}, "unsupported_fields"),
    ],
)
def test_statements_that_say_nothing(run_pool: RunPool, said: dict[str, Any], code: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        is_ours(await pool.http.post("/workers/sleeping", json=said), 400, code)
        unknown = {"workers": [a.id, "nobody"], "sleeping": True}
        is_ours(await pool.http.post("/workers/sleeping", json=unknown), 404, "unknown_worker")
        assert a.known.memory == "awake"

    run_pool(test, IMAGES)
