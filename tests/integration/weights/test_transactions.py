"""Changes of many calls, or past the router: begin, commit, abort."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from tests.integration.api.pools import IMAGES, Member, RunPool, direct_to, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    SET,
    TENSOR,
    TENSORS,
    current,
    has,
    ledger,
    paths,
    refitted,
)


async def begin(pool: Deployment, **more: Any) -> str:
    answer = await pool.http.post("/weights/begin", json=more)
    assert answer.status_code == 200, answer.text
    txn = answer.json()["txn"]
    assert isinstance(txn, str)
    return txn


async def call(pool: Deployment, txn: str, path: str, body: Any) -> httpx.Response:
    return await pool.http.post(path, json=body, params={"txn": txn})


async def end(pool: Deployment, how: str, txn: str, **more: Any) -> httpx.Response:
    return await pool.http.post(f"/weights/{how}", json={"txn": txn, **more})


def test_many_calls_are_one_version(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool, model="image/a", label="two halves")
        assert {a.known.weights, b.known.weights} == {"updating"}
        for module in ("vae", "transformer"):
            body = {"model_path": "v1", "target_modules": [module]}
            answer = await call(pool, txn, DISK, body)
            assert answer.json()["success"] is True
            assert answer.json()["weight_version"] == 0
        async with trio.open_nursery() as nursery:
            answers: list[httpx.Response] = []

            async def image() -> None:
                answers.append(await pool.image())

            nursery.start_soon(image)
            await until(lambda: pool.running.parts.dispatcher.queue.waiting == 1)
            done = await end(pool, "commit", txn)
        assert done.json()["weight_version"] == 1
        assert done.json()["label"] == "two halves"
        assert answers[0].headers["x-weight-version"] == "1"
        assert current(a, b)
        assert len((await ledger(pool))["replay"]) == 2
        is_ours(await end(pool, "commit", txn), 404, "unknown_transaction")
        is_ours(await call(pool, txn, DISK, {"model_path": "x"}), 404, "unknown_transaction")

    run_pool(test, IMAGES, IMAGES)


def test_pushes_past_the_router(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        async with direct_to(a.url) as worker:
            await worker.post(TENSOR, json=TENSORS)
        assert (await end(pool, "commit", txn, label="pushed")).json()["weight_version"] == 1
        assert current(a)
        assert (await ledger(pool))["replayable"] is False

    run_pool(test, IMAGES)


@pytest.mark.parametrize("seen", [False, True])
def test_a_worker_that_dies_in_a_push_is_named(run_pool: RunPool, seen: bool) -> None:
    """The router sees no push past it, but it sees the end of a process."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        for member in (a, b):
            async with direct_to(member.url) as worker:
                await worker.post(TENSOR, json=TENSORS)
        pool.running.parts.registry.suspect(b.known, "for a test")
        if seen:  # before the commit
            await until(lambda: b.known.incarnation == 2 and b.known.suspicion is None)
        done = await end(pool, "commit", txn)
        assert done.status_code == 502
        said = done.json()
        assert (said["success"], said["weight_version"]) == (False, 1)
        assert (said["workers"], said["behind"]) == ([a.id], [b.id])
        await until(lambda: b.known.suspicion is None)
        assert (a.known.weights, b.known.weights) == ("current", "behind")

    run_pool(test, IMAGES, IMAGES)


def test_an_abort_brings_back_what_was_touched(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        txn = await begin(pool)
        await call(pool, txn, DISK, {"model_path": "half", "target_modules": ["vae"]})
        answer = await end(pool, "abort", txn)
        assert answer.json()["unknown"] == [a.id, b.id]
        await until(lambda: current(a, b))
        assert has(a, "v1")
        assert has(b, "v1")
        assert (await ledger(pool))["weight_version"] == 1

        txn = await begin(pool)
        before = len(paths(a))
        is_ours(await end(pool, "abort", txn, touched=["http://x:1"]), 404, "unknown_worker")
        await end(pool, "abort", txn, touched=[])
        assert current(a, b)
        assert len(paths(a)) == before

    run_pool(test, IMAGES, IMAGES)


def test_one_that_is_forgotten_ends_by_itself(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await begin(pool, timeout=0.2)
        await until(lambda: current(a))
        assert has(a, "image/a")
        assert "not committed in time" in (await ledger(pool))["last_error"]
        assert (await refitted(pool, "v1"))["weight_version"] == 1

    run_pool(test, IMAGES)


def test_a_call_that_fails_on_some(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        b.sim.faults.add("fail_next_update", status=500)
        assert (await call(pool, txn, DISK, {"model_path": "v1"})).status_code == 502
        answer = await end(pool, "commit", txn)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert (answer.json()["workers"], answer.json()["behind"]) == ([a.id], [b.id])
        await until(lambda: current(a, b))
        assert has(b, "v1")

    run_pool(test, IMAGES, IMAGES)


def test_a_mistyped_call_spoils_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        assert (await call(pool, txn, DISK, {"model_path": "bad/x"})).status_code == 400
        assert (await call(pool, txn, DISK, {"model_path": "v1"})).status_code == 200
        assert (await end(pool, "commit", txn)).json()["weight_version"] == 1
        assert has(a, "v1")

    run_pool(test, IMAGES)


def test_a_mistyped_lora_wraps_and_spoils_nothing_else(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        bad = {"lora_nickname": "x", "lora_path": "bad/x"}
        assert (await call(pool, txn, SET, bad)).status_code == 502
        is_ours(await call(pool, txn, DISK, {"model_path": "v1"}), 409, "lora_active")
        assert (await call(pool, txn, SET, {**bad, "lora_path": "x"})).status_code == 200
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


@pytest.mark.parametrize("padding", [0, 1_200_000])
def test_a_pushed_lora_in_a_transaction(run_pool: RunPool, padding: int) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        assert (await call(pool, txn, DISK, {"model_path": "v1"})).status_code == 200
        body = {**TENSORS, "padding": "x" * padding, "weight_update_mode": "lora_merge"}
        assert (await call(pool, txn, TENSOR, body)).status_code == 200
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert current(a)
        is_ours(await pool.http.post(DISK, json={"model_path": "v2"}), 409, "lora_active")
        assert [row["path"] for row in (await ledger(pool))["replay"]] == [DISK, TENSOR]

    run_pool(test, IMAGES)


def test_a_pushed_lora_that_fails_in_a_transaction_may_have_wrapped(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        a.sim.faults.add("fail_next_update", status=500)
        body = {**TENSORS, "weight_update_mode": "lora_merge"}
        assert (await call(pool, txn, TENSOR, body)).status_code == 502
        is_ours(await end(pool, "commit", txn), 409, "nothing_applied")
        assert a.known.weights == "behind"
        is_ours(await pool.http.post(DISK, json={"model_path": "v2"}), 409, "lora_active")

    run_pool(test, IMAGES)


def test_a_commit_after_a_refused_call_is_refused(run_pool: RunPool) -> None:
    """Its version would be one that no worker has."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for before in ([], ["v1"]):
            txn = await begin(pool)
            for path in [*before, "bad/x"]:
                await call(pool, txn, DISK, {"model_path": path})
            is_ours(await end(pool, "commit", txn), 409, "nothing_applied")
            await until(lambda: current(a, b))
            assert has(a, "image/a")
            assert (await ledger(pool))["weight_version"] == 0

    run_pool(test, IMAGES, IMAGES)


def test_nobody_has_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        a.sim.faults.add("fail_next_update", status=500, effect="partial")
        await call(pool, txn, DISK, {"model_path": "v1"})
        is_ours(await end(pool, "commit", txn), 409, "nothing_applied")
        await until(lambda: current(a))
        assert has(a, "image/a")

    run_pool(test, IMAGES)


def test_a_worker_that_leaves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        assert (await call(pool, txn, DISK, {"model_path": "v1"})).status_code == 200
        answer = await end(pool, "commit", txn)
        assert answer.json()["behind"] == [b.id]
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})
        await until(lambda: current(a, b))
        assert has(b, "v1")

    run_pool(test, IMAGES, IMAGES)


def test_others_wait_for_its_end_and_are_dropped_with_their_clients(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        with trio.move_on_after(0.1):
            await begin(pool)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refitted, pool, "v2")
            await trio.sleep(0.1)
            assert paths(a) == []
            await call(pool, txn, DISK, {"model_path": "v1"})
            await end(pool, "commit", txn)
        assert has(a, "v2")
        assert a.known.weight_version == 2

    run_pool(test, IMAGES)


def test_a_begin_that_no_worker_can_follow(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=1e6, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            await until(lambda: a.sim.scheduler.running)
            refused = await pool.http.post("/weights/begin", json={})
            is_ours(refused, 503, "no_workers")
            assert "did not end" in refused.json()["left"][a.id]
            assert current(a)
            a.sim.scheduler.hurry()
        assert (await refitted(pool, "v1"))["weight_version"] == 1

    run_pool(test, IMAGES, drain_timeout=0.3)


def test_an_abort_during_a_call_of_its_own(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        a.sim.faults.add("delay", path=DISK, by=5.0, count=1)
        answers: list[httpx.Response] = []

        async def load() -> None:
            answers.append(await call(pool, txn, DISK, {"model_path": "v1"}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(load)
            await until(lambda: paths(a) == [DISK])
            assert (await end(pool, "abort", txn)).json()["unknown"] == [a.id]
        assert answers[0].status_code == 502
        await until(lambda: current(a), within=20)
        assert has(a, "image/a")

    run_pool(test, IMAGES)
