"""Versions whose numbers the trainer chooses."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    SET,
    SLEEP,
    TENSOR,
    TENSORS,
    WAKE,
    current,
    has,
    ledger,
    paths,
    refitted,
)
from tests.integration.weights.test_transactions import begin, call, end

LOW = "weight_version_not_greater"


async def change(pool: Deployment, path: str = "v1", **more: Any) -> Any:
    """A full update from disk that must succeed; its version."""
    answer = await pool.http.post(DISK, json={"model_path": path, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()["weight_version"]


def test_the_number_of_a_change_is_its_version_everywhere(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert await change(pool, "v40", weight_version=40) == 40
        assert (await pool.image()).headers["x-weight-version"] == "40"
        known = await ledger(pool)
        assert (known["weight_version"], known["latest_issued"], known["label"]) == (40, 40, "40")
        assert {w["weight_version"] for w in known["workers"]} == {40}
        assert await change(pool, "v50", weight_version="50", label="step 50") == 50
        assert (await ledger(pool))["label"] == "step 50"
        tensors = {**TENSORS, "weight_version": 60}
        assert (await pool.http.post(TENSOR, json=tensors)).json()["weight_version"] == 60
        lora = {"lora_nickname": "n", "lora_path": "p", "weight_version": 70}
        assert (await pool.http.post(SET, json=lora)).json()["weight_version"] == 70
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


@pytest.mark.parametrize("path", [DISK, TENSOR, SET])
def test_a_number_that_is_not_greater_calls_no_worker(run_pool: RunPool, path: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await change(pool, weight_version=40)
        before = paths(a)
        bodies: dict[str, Any] = {
            DISK: {"model_path": "v2"},
            TENSOR: TENSORS,
            SET: {"lora_nickname": "n", "lora_path": "p"},
        }
        for low in (40, 39, 0, -1):
            body = {**bodies[path], "weight_version": low}
            said = is_ours(await pool.http.post(path, json=body), 409, LOW)
            assert said["weight_version"] == 40
            assert "greater than 40" in said["error"]
        assert paths(a) == before
        # A trainer that begins a new run goes on, with numbers of the router's.
        body = {**bodies[path], "weight_version": "1"}
        assert (await pool.http.post(path, json=body)).json()["weight_version"] == 41
        assert (await ledger(pool))["label"] == "1"

    run_pool(test, IMAGES)


@pytest.mark.parametrize("number", [40, "40"])
def test_a_retry_joins_or_is_made_again_with_its_number(
    run_pool: RunPool, number: int | str
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=DISK, by=0.2, count=1)
        got: list[Any] = []

        async def push() -> None:
            got.append(await change(pool, weight_version=number))

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(push)
        assert (got, paths(a)) == ([40, 40, 40], [DISK])
        await push()
        assert (got[-1], paths(a)) == (40, [DISK, DISK])
        assert await change(pool, "v2", weight_version=41) == 41
        assert has(a, "v2")

    run_pool(test, IMAGES)


def test_the_router_can_count_on_from_the_greatest_number(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        for path, body in (
            (DISK, {"model_path": "v1"}),
            (TENSOR, {**TENSORS, "filler": "x" * 1_200_000}),
            ("/weights/begin", {}),
            ("/weights", {}),
            ("/workers", {"url": "http://127.0.0.1:1"}),
        ):
            answer = await pool.http.post(path, json={**body, "weight_version": 2**52 + 1})
            assert str(2**52) in is_ours(answer, 400, "invalid_field")["error"]
        assert await change(pool, "v1", weight_version=str(2**53)) == 1
        assert await change(pool, "v1", weight_version=2**52) == 2**52
        assert await change(pool, "v2") == 2**52 + 1
        assert (await pool.image()).headers["x-weight-version"] == str(2**52 + 1)
        assert current(a)

    run_pool(test, IMAGES)


def test_a_void_change_leaves_its_number_to_the_next(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        typo = {"model_path": "/nonexistent/typo", "weight_version": 40}
        assert (await pool.http.post(DISK, json=typo)).status_code == 400
        assert await change(pool, "v1", weight_version=40) == 40

    run_pool(test, IMAGES)


def test_what_waits_for_sleepers_keeps_its_number(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        for _ in range(2):  # the second is a retry
            assert await change(pool, "v1", weight_version=40) == 0
        assert len((await ledger(pool))["pending"]) == 1
        low = {"model_path": "v2", "weight_version": 40}
        is_ours(await pool.http.post(DISK, json=low), 409, LOW)
        await pool.http.post(WAKE)
        await until(lambda: current(a))
        assert (await pool.image()).headers["x-weight-version"] == "40"
        assert has(a, "v1")

    run_pool(test, IMAGES)


def test_a_transaction_takes_a_number_at_its_begin_or_commit(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool, weight_version=40)
        await call(pool, txn, DISK, {"model_path": "v1", "weight_version": 7})
        done = (await end(pool, "commit", txn)).json()
        assert (done["weight_version"], done["label"]) == (40, "40")

        is_ours(await pool.http.post("/weights/begin", json={"weight_version": 40}), 409, LOW)
        await until(lambda: current(a))  # nothing holds it
        txn = await begin(pool, label="step 50")
        await call(pool, txn, DISK, {"model_path": "v2"})
        low = is_ours(await end(pool, "commit", txn, weight_version=40), 409, LOW)
        assert f"Transaction {txn} stays open: commit it again" in low["error"]
        done = (await end(pool, "commit", txn, weight_version=50)).json()
        assert (done["weight_version"], done["label"]) == (50, "step 50")

        txn = await begin(pool, weight_version=60)
        await pool.http.post("/weights", json={"weight_version": 70})
        is_ours(await end(pool, "commit", txn), 409, LOW)
        done = (await end(pool, "commit", txn, weight_version=80)).json()
        assert (done["weight_version"], done["label"]) == (80, "80")

        txn = await begin(pool, weight_version="1")
        done = (await end(pool, "commit", txn)).json()
        assert (done["weight_version"], done["label"]) == (81, "1")
        bad = await pool.http.post("/weights/begin", json={"weight_version": 1.5})
        is_ours(bad, 400, "invalid_field")

    run_pool(test, IMAGES)


def test_a_statement_sets_the_number_that_changes_go_on_from(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        answer = await pool.http.post("/weights", json={"weight_version": 40})
        assert answer.json()["latest_issued"] == 40
        low = {"model_path": "v1", "weight_version": 40}
        is_ours(await pool.http.post(DISK, json=low), 409, LOW)
        assert (await refitted(pool, "v1"))["weight_version"] == 41

    run_pool(test, IMAGES)


@pytest.mark.parametrize("first", [True, False])
def test_tensors_that_are_streamed_have_numbers_too(run_pool: RunPool, first: bool) -> None:
    """Whether the number stands before the tensors or after them."""

    async def push(pool: Deployment, number: int | str) -> httpx.Response:
        version, large = {"weight_version": number}, {"filler": "x" * 3_000_000, **TENSORS}
        body = {**version, **large} if first else {**large, **version}
        return await pool.http.post(TENSOR, json=body)

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await push(pool, 40)).json()["weight_version"] == 40
        assert ((await ledger(pool))["label"]) == "40"
        before = [member.sim.scheduler.weights.identity for member in (a, b)]
        said = is_ours(await push(pool, 40), 409, LOW)
        assert said["weight_version"] == 40
        assert "Version 40 stands" in said["error"]
        got = [r for m in (a, b) for r in m.sim.log.requests if r.target == TENSOR]
        whole = [r for r in got if r.body_sha256 is not None]
        assert len(whole) == 2  # those of the first push
        assert len(got) == 2 or not first
        assert [member.sim.scheduler.weights.identity for member in (a, b)] == before
        await until(lambda: current(a, b))
        assert (await push(pool, "1")).json()["weight_version"] == 41
        assert (await push(pool, "step 2")).json()["weight_version"] == 42
        assert ((await ledger(pool))["label"]) == "step 2"
        assert (await push(pool, "50")).json()["weight_version"] == 50
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)
