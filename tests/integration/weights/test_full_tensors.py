"""Updates of tensors that replace all weights bring back workers that missed earlier ones; answers
name the workers that stay behind."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours, restart
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    SLEEP,
    TENSOR,
    TENSORS,
    WAKE,
    current,
    ledger,
    refitted,
)

LARGE = {**TENSORS, "label": "x" * 1_200_000}  # so that it is not held


async def _missed(pool: Deployment, b: Member) -> Member:
    """The worker has restarted after an update of tensors, and stays behind."""
    assert (await pool.http.post(TENSOR, json=TENSORS)).json()["behind"] == []
    b = await restart(pool, b, **IMAGES)
    await until(lambda: b.known.incarnation == 2 and b.known.health == "healthy")
    await until(lambda: b.known.stuck)
    assert "update all weights" in (b.known.weights_reason or "")
    return b


async def _push(pool: Deployment, body: dict[str, Any] = TENSORS, **query: str) -> dict[str, Any]:
    answer = await pool.http.post(TENSOR, json=body, params=query)
    said: dict[str, Any] = answer.json()
    assert answer.status_code == (200 if said["success"] else 502)
    assert [row["status_code"] for row in said["results"]] == [200, 200]
    return said


@pytest.mark.parametrize("how", ["query", "body", "streamed", "streamed body", "flag"])
def test_a_worker_that_restarted_comes_back_with_the_next_full_update(
    run_pool: RunPool, how: str
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b = await _missed(pool, b)
        said = await _push(pool, **({"full": "false"} if how == "flag" else {}))
        assert (said["success"], said["behind"]) == (False, [b.url])
        assert not current(b)
        match how:
            case "query":
                said = await _push(pool, full="true")
            case "body":
                said = await _push(pool, {**TENSORS, "full": True})
            case "streamed":
                said = await _push(pool, LARGE, full="true")
            case "streamed body":
                said = await _push(pool, {**LARGE, "full": True})
            case _:
                said = await _push(pool)
        assert (said["success"], said["behind"], said["weight_version"]) == (True, [], 3)
        assert current(a, b)
        said = await _push(pool, full="false")
        assert said["success"]

    settings = {"tensor_updates": "full"} if how == "flag" else {}
    run_pool(test, IMAGES, IMAGES, **settings)


def test_a_full_update_leaves_nothing_to_replay(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        assert (await pool.http.post(TENSOR, json=TENSORS)).status_code == 200
        assert (await ledger(pool))["replay"]
        assert (await pool.http.post(f"{TENSOR}?full=true", json=TENSORS)).status_code == 200
        shown = await ledger(pool)
        assert (shown["replay"], shown["replayable"]) == ([], False)

    run_pool(test, IMAGES)


def test_a_sleeper_that_cannot_be_told_later_is_behind(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": b.id})
        answer = await pool.http.post(DISK, json={"model_path": "v1"})
        assert (answer.status_code, answer.json()["behind"]) == (200, [])  # it is replayed
        answer = await pool.http.post(TENSOR, json=TENSORS)
        said = answer.json()
        assert (answer.status_code, said["success"], said["behind"]) == (502, False, [b.url])
        assert [row["worker_url"] for row in said["deferred"]] == [b.url]
        await pool.http.post(WAKE)
        assert (await _push(pool, full="true"))["success"]
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


def test_a_dead_worker_does_not_fail_the_training_of_the_others(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.kill()
        await until(lambda: b.known.health == "unhealthy")
        said = (await pool.http.post(TENSOR, json=TENSORS)).raise_for_status().json()
        assert (said["success"], said["behind"]) == (True, [])
        assert [row["worker_url"] for row in said["deferred"]] == [b.url]
        assert b.known.weights == "behind"

    run_pool(test, IMAGES, IMAGES)


def test_a_commit_names_who_it_does_not_reach(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b = await _missed(pool, b)
        begun = await pool.http.post("/weights/begin", json={})
        txn = begun.json()["txn"]
        part = {"model_path": "v1", "target_modules": ["transformer"]}
        assert (await pool.http.post(f"{DISK}?txn={txn}", json=part)).status_code == 200
        done = await pool.http.post("/weights/commit", json={"txn": txn})
        assert (done.status_code, done.json()["behind"]) == (502, [b.id])

    run_pool(test, IMAGES, IMAGES)


def test_sync_says_at_once_that_only_a_full_update_helps(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b = await _missed(pool, b)
        sync = {"timeout": 86_400}
        said = is_ours(await pool.http.post("/weights/sync", json=sync), 409, "full_update_needed")
        assert f"{b.id} ({b.known.weights_reason})" in said["error"]
        assert a.id not in said["error"]
        assert {row["worker_id"] for row in said["workers"]} == {a.id, b.id}
        assert (await _push(pool, full="true"))["success"] is True
        assert (await pool.http.post("/weights/sync", json=sync)).json()["success"] is True

    run_pool(test, IMAGES, IMAGES)


def test_full_is_said_only_of_tensors_and_plainly(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        answer = await pool.http.post(f"{DISK}?full=true", json={"model_path": "v1"})
        is_ours(answer, 400, "invalid_field")
        for query, body in (("?full=perhaps", {}), ("", {"full": "yes"})):
            answer = await pool.http.post(f"{TENSOR}{query}", json={**TENSORS, **body})
            is_ours(answer, 400, "invalid_field")
        assert not a.asked("POST", TENSOR)
        streamed = await pool.http.post(TENSOR, json={**LARGE, "full": "yes"})
        is_ours(streamed, 400, "invalid_field")
        assert (await ledger(pool))["weight_version"] == 0

    run_pool(test, IMAGES)
