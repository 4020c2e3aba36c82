"""A change from its beginning to its end: fence, drain, call, unfence, and what it comes to."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from router import dispatch
from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    MERGE,
    SET,
    SLEEP,
    TENSOR,
    TENSORS,
    UNMERGE,
    current,
    has,
    ledger,
    paths,
    refit,
    refitted,
)
from tests.patience import fail_after

SLOW = {"factor": 3000, "count": 1}  # a generation of about a second


def test_numbers_go_up_and_are_told(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await refitted(pool, "v1"))["weight_version"] == 1
        said = await refitted(pool, "v2")
        assert said["weight_version"] == 2
        assert said["deferred"] == []
        answer = await pool.image()
        assert answer.headers["x-weight-version"] == "2"
        shown = (await pool.http.get("/workers")).json()["workers"]
        assert [w["weight_version"] for w in shown] == [2, 2]
        known = await ledger(pool)
        assert (known["weight_version"], known["label"]) == (2, "v2")
        assert known["replay"] == [
            {"weight_version": 2, "path": DISK, "body": {"model_path": "v2"}}
        ]
        labelled = {"model_path": "v3", "label": "step 3"}
        await pool.http.post(DISK, json=labelled)
        assert (await ledger(pool))["label"] == "step 3"

    run_pool(test, IMAGES, IMAGES)


def test_a_change_waits_for_what_runs_and_what_waits_gets_the_new_weights(
    run_pool: RunPool,
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", **SLOW)
        answers: list[httpx.Response] = []

        async def image() -> None:
            answers.append(await pool.image())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(image)
            await until(lambda: a.sim.scheduler.running)
            nursery.start_soon(refitted, pool, "v1")
            await until(lambda: a.known.weights == "updating")
            for _ in range(3):
                nursery.start_soon(image)
            await until(lambda: pool.running.parts.dispatcher.queue.waiting == 3)
            assert paths(a) == []
        assert [r.headers["x-weight-version"] for r in answers] == ["0", "1", "1", "1"]
        assert [r.status_code for r in answers] == [200] * 4

    run_pool(test, IMAGES)


def test_a_job_is_waited_for(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=20, count=1)
        job = {"prompt": "x", "size": "64x64", "seconds": 1}
        assert (await pool.http.post("/v1/videos", json=job)).status_code == 200
        await refitted(pool, "v1")
        work = [(entry.kind, entry.start, entry.end) for entry in a.sim.log.work]
        assert len(work) == 2
        assert work[0][2] <= work[1][1]
        assert a.sim.log.work[1].queued >= work[0][2]

    run_pool(test, VIDEOS)


def test_each_serves_again_as_soon_as_it_has_it(run_pool: RunPool) -> None:
    """One that is busy for long holds nobody else."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("delay", path=DISK, by=1.0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refitted, pool, "v1")
            await until(lambda: has(a, "v1") and current(a))
            assert b.known.weights == "updating"
            answer = await pool.image()
            assert answer.headers["x-worker-id"] == a.id
            assert answer.headers["x-weight-version"] == "1"
            assert b.known.weights == "updating"
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


def test_a_mistyped_path_takes_nobody_out(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for version, start in ((0, "image/a"), (1, "v1")):
            if version:
                await refitted(pool, "v1")
            answer = await refit(pool, "/nonexistent/x")
            assert answer.status_code == 400
            assert answer.json()["success"] is False
            assert answer.json()["weight_version"] == version
            assert current(a, b)
            assert has(a, start)
            assert has(b, start)
            assert (await pool.image()).headers["x-weight-version"] == str(version)
        assert paths(a) == [DISK] * 3  # nothing was replayed
        known = await ledger(pool)
        assert (known["weight_version"], known["latest_issued"]) == (1, 1)
        assert "/nonexistent/x" in known["last_error"]

    run_pool(test, IMAGES, IMAGES)


def test_refusers_serve_on_while_another_is_still_busy(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("slow", **SLOW)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            nursery.start_soon(pool.image)
            await until(lambda: b.sim.scheduler.running)
            nursery.start_soon(refit, pool, "/nonexistent/x")
            await until(lambda: paths(a) and current(a))
            assert b.known.weights == "updating"
            assert (await pool.image()).headers["x-worker-id"] == a.id
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


def test_a_mistyped_lora_takes_nobody_out(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        answer = await pool.http.post(SET, json={"lora_nickname": "x", "lora_path": "bad/x"})
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert answer.json()["weight_version"] == 0
        assert current(a, b)
        assert paths(a) == [SET]
        assert (await pool.image()).status_code == 200
        # Its layers are wrapped all the same: an update would pass over them.
        assert a.sim.scheduler.loras.wrapped
        is_ours(await refit(pool, "v1"), 409, "lora_active")
        is_ours(await pool.http.post(TENSOR, json=TENSORS), 409, "lora_active")
        lora = {"lora_nickname": "x", "lora_path": "loras/x"}
        assert (await pool.http.post(SET, json=lora)).json()["weight_version"] == 1

    run_pool(test, IMAGES, IMAGES)


def test_a_lora_for_no_target_wraps_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        for lora in ({"lora_nickname": "x", "target": "nope"}, {"lora_nickname": ["x", 1]}):
            assert (await pool.http.post(SET, json=lora)).json().get("success", False) is False
        assert not a.sim.scheduler.loras.wrapped
        await refitted(pool, "v1")
        assert has(a, "v1")

    run_pool(test, IMAGES)


def test_other_models_are_left_alone(run_pool: RunPool) -> None:
    async def test(pool: Deployment, image: Member, video: Member) -> None:
        image.sim.faults.add("delay", path=DISK, by=0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: refitted(pool, "v1", model="image/a"))
            await until(lambda: image.known.weights == "updating")
            assert video.known.weights == "current"
        assert current(image, video)
        assert has(image, "v1")
        assert paths(video) == []
        assert video.known.weight_version == 0
        models = (await pool.http.get("/weights")).json()["models"]
        assert {m["model"]: m["weight_version"] for m in models} == {"image/a": 1, "video/b": 0}
        # Its process is replaced: at version 0 that gates nothing.
        video.sim.kill()

    run_pool(test, IMAGES, VIDEOS)


def test_one_that_refuses_is_brought_up_in_the_background(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("fail_next_update", status=400, message="busy")
        answer = await refit(pool, "v1")
        assert answer.status_code == 502
        assert answer.json()["weight_version"] == 1
        await until(lambda: current(a, b))
        assert has(b, "v1")
        assert paths(b) == [DISK, DISK]

    run_pool(test, IMAGES, IMAGES)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 400, "message": "Failed to update module 'x'. All rolled back"},
        {"status": 500, "message": "oops", "effect": "partial"},
    ],
)
def test_void_but_touched_is_brought_back_to_the_ledger(
    run_pool: RunPool, fault: dict[str, Any]
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for path in ("image/a", "v1"):
            if path == "v1":
                await refitted(pool, "v1")
            for member in (a, b):
                member.sim.faults.add("fail_next_update", **fault)
            answer = await refit(pool, "other")
            assert answer.json()["success"] is False
            assert not current(a)
            await until(lambda: current(a, b))
            assert has(a, path)
            assert has(b, path)
        assert (await ledger(pool))["weight_version"] == 1

    run_pool(test, IMAGES, IMAGES)


def test_a_pool_of_failed_workers_refuses_at_once(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("fail_next_update", status=500, count=3)
        await refit(pool, "v1")
        await until(lambda: a.known.weights == "failed")
        body = is_ours(await pool.image(), 503, "weights_unavailable")
        assert body["error"]
        [shown] = (await pool.http.get("/workers")).json()["workers"]
        assert shown["reasons"] == ["weights_failed"]
        assert shown["weight_version"] is None
        assert "simulated failure" in shown["weights_reason"]
        await until(lambda: current(a))  # tried again by itself
        assert has(a, "image/a")

    run_pool(test, IMAGES)


def test_the_same_change_is_joined_and_another_one_waits(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=DISK, by=0.3)
        answers: dict[str, Any] = {}

        async def change(name: str, path: str) -> None:
            answers[name] = await refitted(pool, path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, "first", "v1")
            await until(lambda: paths(a))
            nursery.start_soon(change, "joined", "v1")
            await trio.sleep(0.05)
            nursery.start_soon(change, "other", "v2")
            await trio.sleep(0.05)
            nursery.start_soon(change, "again", "v1")  # not the same: v2 lies between
        assert len(paths(a)) == 3
        versions = {name: said["weight_version"] for name, said in answers.items()}
        assert versions == {"first": 1, "joined": 1, "other": 2, "again": 3}
        assert has(a, "v1")

    run_pool(test, IMAGES)


def test_a_change_whose_client_leaves_before_its_turn_is_dropped(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=DISK, by=0.4, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refitted, pool, "v1")
            await until(lambda: paths(a))
            with trio.move_on_after(0.1):
                await refit(pool, "v2")
        assert (await refitted(pool, "v3"))["weight_version"] == 2
        assert len(paths(a)) == 2

    run_pool(test, IMAGES)


@pytest.mark.parametrize("how", ["quarantined", "removed", "dead"])
def test_a_target_that_leaves_holds_nobody(run_pool: RunPool, how: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("slow", factor=50_000, count=1)
        answers: list[httpx.Response] = []

        async def change() -> None:
            answers.append(await refit(pool, "v1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            nursery.start_soon(pool.image)
            await until(lambda: b.sim.scheduler.running)
            nursery.start_soon(change)
            await until(lambda: has(a, "v1"))
            if how == "quarantined":
                await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
            elif how == "removed":
                await pool.http.delete(f"/workers/{b.id}")
            else:
                b.sim.kill()
            await until(lambda: answers)
            nursery.cancel_scope.cancel()
        said = answers[0].json()
        assert (answers[0].status_code, said["weight_version"]) == (502, 1)
        codes = {"left_change", *(["worker_failed"] if how == "dead" else [])}
        assert said["results"][1]["body"]["code"] in codes
        assert current(a)
        if how == "quarantined":
            assert b.known.weights == "behind"
            await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})

    run_pool(test, IMAGES, IMAGES)


def test_work_that_does_not_end(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("slow", factor=1e6, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            nursery.start_soon(pool.image)
            await until(lambda: b.sim.scheduler.running)
            answer = await refit(pool, "v1")
            assert answer.status_code == 502
            assert [row["status_code"] for row in answer.json()["results"]] == [200, 504]
            assert answer.json()["results"][1]["body"]["code"] == "drain_timeout"
            b.sim.scheduler.hurry()
        await until(lambda: current(a, b))
        assert has(b, "v1")

    run_pool(test, IMAGES, IMAGES, drain_timeout=0.3)


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("path", [MERGE, UNMERGE])
def test_a_merge_or_unmerge_without_a_lora_wraps_nothing(
    run_pool: RunPool, path: str, answered: bool
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        if not answered:
            a.sim.faults.add("drop", path=path, count=1)
        said = await pool.http.post(path, json={"target": "all"})
        assert said.json()["success"] is answered
        await until(lambda: current(a))
        await refitted(pool, "v1")
        txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
        called = await pool.http.post(path, json={"target": "all"}, params={"txn": txn})
        assert called.status_code == 200
        assert (await refit(pool, "v2", txn=txn)).status_code == 200
        assert (await pool.http.post("/weights/commit", json={"txn": txn})).status_code == 200
        await refitted(pool, "v3")
        assert has(a, "v3")

    run_pool(test, IMAGES)


def test_a_lora_forbids_updates_that_would_miss_its_layers(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        lora = {"lora_nickname": "ink", "lora_path": "loras/ink"}
        assert (await pool.http.post(SET, json=lora)).json()["weight_version"] == 2
        for path, body in ((DISK, {"model_path": "v2"}), (TENSOR, TENSORS)):
            said = is_ours(await pool.http.post(path, json=body), 409, "lora_active")
            assert said["workers"] == [a.id, b.id]
            assert "/v1/unmerge_lora_weights" in said["error"]
        assert paths(a) == [DISK, SET]
        assert (await pool.http.post(MERGE, json={"strength": 0.5})).status_code == 200
        assert (await pool.http.post(UNMERGE, json={})).status_code == 200
        known = await ledger(pool)
        assert known["weight_version"] == 4
        assert current(a, b)
        # The way out: new processes, after the LoRA was taken out.
        for member in (a, b):
            member.sim.faults.add("restart", down=0)
        await until(lambda: (a.known.incarnation, b.known.incarnation) == (2, 2))
        await until(lambda: current(a, b))
        await refitted(pool, "v2")
        assert has(a, "v2")

    run_pool(test, IMAGES, IMAGES)


MERGED = {**TENSORS, "weight_update_mode": "lora_merge"}
PADDING = {"padding": "x" * 1_200_000}  # so that the body is not held


@pytest.mark.parametrize(
    "body",
    [MERGED, {**PADDING, **MERGED}, {**MERGED, **PADDING}],
    ids=["small", "behind", "before"],
)
def test_a_pushed_lora_is_a_lora(run_pool: RunPool, body: dict[str, Any]) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        answer = await pool.http.post(TENSOR, json=body)
        assert (answer.status_code, answer.json()["weight_version"]) == (200, 2)
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})
        await until(lambda: b.known.health == "healthy")
        assert (current(a), b.known.weights) == (True, "behind")
        for path, update in ((DISK, {"model_path": "v2"}), (TENSOR, TENSORS)):
            said = is_ours(await pool.http.post(path, json=update), 409, "lora_active")
            assert said["workers"] == [a.id]
        known = await ledger(pool)
        assert [row["path"] for row in known["replay"]] == [DISK, TENSOR]
        assert known["replayable"] is False
        # Another one is welcome, and so is a LoRA in its place.
        assert (await pool.http.post(TENSOR, json=body)).json()["weight_version"] == 3
        lora = {"lora_nickname": "ink", "lora_path": "loras/ink"}
        assert (await pool.http.post(SET, json=lora)).json()["weight_version"] == 4
        await until(lambda: current(a, b))
        assert a.sim.scheduler.loras.identity == b.sim.scheduler.loras.identity != ""

    run_pool(test, IMAGES, IMAGES)


def test_large_tensors_that_are_no_lora_do_not_reach_wrapped_layers(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(TENSOR, json=MERGED)
        before = a.sim.scheduler.loras.identity, a.sim.scheduler.weights.identity
        is_ours(await pool.http.post(TENSOR, json={**TENSORS, **PADDING}), 409, "lora_active")
        assert current(a)
        assert (await ledger(pool))["weight_version"] == 1
        assert (a.sim.scheduler.loras.identity, a.sim.scheduler.weights.identity) == before

    run_pool(test, IMAGES)


def test_a_pushed_lora_that_fails_may_have_wrapped(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("fail_next_update", status=400)
        answer = await pool.http.post(TENSOR, json=MERGED)
        assert (answer.status_code, answer.json()["weight_version"]) == (400, 0)
        await until(lambda: current(a))
        assert paths(a) == [TENSOR, MERGE, UNMERGE]  # what came as tensors is not unmerged alone
        is_ours(await refit(pool, "v1"), 409, "lora_active")

    run_pool(test, IMAGES)


def test_an_unmerge_takes_a_pushed_lora_out(run_pool: RunPool) -> None:
    """A worker skips a LoRA that came as tensors, and answers 200."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(TENSOR, json=MERGED)
        await pool.http.post(SLEEP, params={"workers": b.id})
        assert (await pool.http.post(UNMERGE, json={})).json()["weight_version"] == 2
        assert not a.sim.scheduler.loras.identity
        await pool.http.post("/resume_memory_occupation")
        await until(lambda: current(a, b))
        assert not b.sim.scheduler.loras.identity

    run_pool(test, IMAGES, IMAGES)


def test_a_subset_is_the_new_version_and_the_rest_follows(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        said = await refitted(pool, "v1", workers=a.id)
        assert [row["worker_url"] for row in said["results"]] == [a.url]
        assert not (b.known.weights == "current" and b.known.weight_version == 0)
        await until(lambda: current(a, b))
        assert has(b, "v1")

    run_pool(test, IMAGES, IMAGES)


def test_a_session_is_ended_for_a_change(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "_SESSION_GRACE", 0.1)

    async def test(pool: Deployment, a: Member) -> None:
        lease = pool.running.parts.registry.lease(a.known)
        lease.binding = True
        evicted: list[bool] = []

        def evict() -> None:
            evicted.append(True)
            lease.release()

        lease.evict = evict
        with fail_after(5):
            await refitted(pool, "v1")
        assert evicted

    run_pool(test, IMAGES)


def test_other_calls_that_may_change_something_are_waited_for(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path="/unknown", by=0.4)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pool.http.post("/unknown/thing", json={}))
            nursery.start_soon(lambda: pool.http.get("/unknown/other"))
            await until(lambda: a.known.active_requests == 2)
            nursery.start_soon(refitted, pool, "v1")
            await until(lambda: a.known.weights == "updating")
            await trio.sleep(0.05)
            assert paths(a) == []
        assert has(a, "v1")

    run_pool(test, IMAGES)


def test_gating_can_be_turned_off(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("fail_next_update", status=500)
        assert (await refit(pool, "v1")).status_code == 502
        assert current(a, b)
        await pool.http.post(SLEEP)
        await refit(pool, "v2")
        await pool.http.post("/resume_memory_occupation")
        assert (await pool.image()).status_code == 200

    run_pool(test, IMAGES, IMAGES, trust_external_weights=True)
