"""Sleep and wake without a target go to all workers of all models, each in its model's line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest
import trio

from router.control.memory import MemoryControl
from router.errors import StateUnavailable
from router.pool.worker import Memory, Worker
from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until

SLEEP, WAKE = "/release_memory_occupation", "/resume_memory_occupation"


def memories(*members: Member) -> list[str]:
    return [str(member.known.memory) for member in members]


def urls(answer: httpx.Response) -> list[str]:
    return [row["worker_url"] for row in answer.json()["results"]]


def test_all_sleep_and_all_wake(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for path, state in ((SLEEP, "asleep"), (WAKE, "awake")):
            answer = await pool.http.post(path)
            assert (answer.status_code, answer.json()["success"]) == (200, True)
            assert urls(answer) == [member.url for member in members]
            assert memories(*members) == [state] * 3
        again = await pool.http.post(WAKE)
        assert again.json() == {"message": "All workers are already active", "active_workers": 3}
        # A change of weights names its model.
        change: dict[str, Any] = {"model_path": "v2"}
        answer = await pool.http.post("/update_weights_from_disk", json=change)
        is_ours(answer, 400, "ambiguous_target")

    run_pool(test, IMAGES, VIDEOS, IMAGES)


def test_what_holds_one_model_up_holds_up_no_other(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        begun = await pool.http.post("/weights/begin", json={"model": "video/b"})
        answers: list[httpx.Response] = []

        async def sleep() -> None:
            answers.append(await pool.http.post(SLEEP))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            await until(lambda: a.known.memory == "asleep")
            # It stands in line with the changes of the other model.
            assert memories(a, b) == ["asleep", "awake"]
            assert not b.asked("POST", SLEEP)
            woken = await pool.http.post(WAKE, params={"model": "image/a"})
            assert urls(woken) == [a.url]
            await pool.http.post("/weights/abort", json={"txn": begun.json()["txn"], "touched": []})
        assert answers[0].status_code == 200
        assert urls(answers[0]) == [a.url, b.url]
        assert memories(a, b) == ["awake", "asleep"]

    run_pool(test, IMAGES, VIDEOS)


def test_one_model_that_fails_is_a_row_of_the_answer(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        a.sim.faults.add("fail_next_update", path=SLEEP, status=500)
        answer = await pool.http.post(SLEEP)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert [row["status_code"] for row in answer.json()["results"]] == [500, 200]
        assert b.known.memory == "asleep"

    run_pool(test, IMAGES, VIDEOS)


def test_one_model_for_which_nothing_can_be_stored(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        intend = MemoryControl._intend

        async def fail(control: MemoryControl, intents: Mapping[Worker, Memory]) -> None:
            if b.known in intents:
                raise StateUnavailable("no room")
            await intend(control, intents)

        monkeypatch.setattr(MemoryControl, "_intend", fail)
        answer = await pool.http.post(SLEEP)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        codes = [row["body"].get("code") for row in answer.json()["results"]]
        assert codes == [None, "state_unavailable"]
        assert memories(a, b) == ["asleep", "awake"]
        answer = await pool.http.post(SLEEP, params={"workers": b.id})
        is_ours(answer, 503, "state_unavailable")

    run_pool(test, IMAGES, VIDEOS)


def test_a_model_that_is_down_follows_when_it_is_back(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        answer = await pool.http.post(SLEEP)
        assert (answer.status_code, urls(answer)) == (200, [a.url])
        assert [row["worker_url"] for row in answer.json()["deferred"]] == [b.url]
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})
        await until(lambda: memories(a, b) == ["asleep", "asleep"])

    run_pool(test, IMAGES, VIDEOS)
