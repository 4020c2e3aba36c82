"""Named pools: who gets a request, a change or a sleep that names one, and what is ambiguous."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from router.settings import RouterSettings
from router.settings.pool_kind import PoolMembers
from tests.integration.api.pools import is_ours
from tests.integration.deployment import (
    Deployment,
    ScriptedWorker,
    answer,
    deployed,
    never,
    run,
    run_deployed,
    until,
    when,
)
from tests.integration.lives import Lives, run_lives

ROLLOUT = {"prompt": "a", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 1}
SAME = {"model_path": "image/a"}


async def join(pool: Deployment, name: str, **fields: object) -> str:
    """The id of a new simulated worker in the pool of this name."""
    sim = await pool.simulated(**SAME)
    said = await pool.http.post("/workers", json={"url": sim.url, "pool": name, **fields})
    assert said.status_code == 200, said.text
    worker = pool.running.parts.registry.get(sim.url)
    await until(lambda: worker.health == "healthy")
    assert said.json()["worker"]["pool"] == name
    return worker.worker_id


def who(answers: list[httpx.Response]) -> Counter[str]:
    return Counter(each.headers.get("x-worker-id", str(each.status_code)) for each in answers)


def test_a_pool_gets_what_names_it_and_a_rollout_must_name_one() -> None:
    async def test(pool: Deployment) -> None:
        policy, teacher = await join(pool, "policy"), await join(pool, "teacher")
        for path, body in (("/rollout/generate", ROLLOUT), ("/v1/images/generations", ROLLOUT)):
            asked = [await pool.http.post(f"{path}?pool=policy", json=body) for _ in range(4)]
            assert who(asked) == {policy: 4}
            headers = {"X-Pool": "teacher"}
            asked = [await pool.http.post(path, json=body, headers=headers) for _ in range(4)]
            assert who(asked) == {teacher: 4}
        for body in (ROLLOUT, {**ROLLOUT, "model": "image/a"}):
            said = is_ours(
                await pool.http.post("/rollout/generate", json=body), 400, "ambiguous_target"
            )
            assert said["pools"] == ["policy", "teacher"]
        old = await pool.http.post("/v1/images/generations", json=ROLLOUT)
        assert old.status_code == 200  # as ever: weights matter only to rollouts
        at_least = {"X-Min-Weight-Version": "1", "X-Pool": "teacher"}
        unissued = await pool.http.post("/rollout/generate", json=ROLLOUT, headers=at_least)
        is_ours(unissued, 409, "weight_version_unknown")
        for path in ("/rollout/generate", "/release_memory_occupation", "/get_weights_checksum"):
            said = is_ours(await pool.http.post(f"{path}?pool=none", json={}), 404, "unknown_pool")
            assert said["pools"] == ["policy", "teacher"]
        once = {"Idempotency-Key": "k", "X-Pool": "policy"}
        made = await pool.http.post("/rollout/generate", json=ROLLOUT, headers=once)
        assert made.headers["x-worker-id"] == policy
        other = await pool.http.post(
            "/rollout/generate", json=ROLLOUT, headers={**once, "X-Pool": "teacher"}
        )
        is_ours(other, 409, "idempotency_mismatch")
        two = await pool.http.post(
            "/rollout/generate?pool=policy", json=ROLLOUT, headers={"X-Pool": "teacher"}
        )
        is_ours(two, 400, "ambiguous_target")

    run_deployed(test)


def test_a_change_reaches_one_pool_of_a_model() -> None:
    async def test(pool: Deployment) -> None:
        policy, teacher = await join(pool, "policy"), await join(pool, "teacher")
        change = {"model_path": "demo/step-1"}
        for query in ("", "?model=image/a"):
            said = is_ours(
                await pool.http.post(f"/update_weights_from_disk{query}", json=change),
                400,
                "ambiguous_target",
            )
            assert said["pools"] == ["policy", "teacher"]
        done = await pool.http.post("/update_weights_from_disk?pool=policy", json=change)
        assert done.json()["success"]
        assert done.json()["weight_version"] == 1
        assert len(done.json()["results"]) == 1
        workers = (await pool.http.get("/workers")).json()["workers"]
        told = {w["worker_id"]: (w["weight_version"], w["weights"], w["routable"]) for w in workers}
        assert told == {policy: (1, "current", True), teacher: (0, "current", True)}
        rollout = await pool.http.post("/rollout/generate?pool=teacher", json=ROLLOUT)
        assert rollout.headers["x-weight-version"] == "0"
        ledgers = (await pool.http.get("/weights")).json()["models"]
        assert {(each["pool"], each["model"]): each["weight_version"] for each in ledgers} == {
            ("policy", "image/a"): 1,
            ("teacher", "image/a"): 0,
        }
        only = (await pool.http.get("/weights?pool=teacher")).json()
        assert [each["pool"] for each in only["models"]] == ["teacher"]
        begun = await pool.http.post("/weights/begin", json={"pool": "teacher"})
        assert begun.json()["workers"] == [teacher]
        assert (begun.json()["pool"], begun.json()["model"]) == ("teacher", "image/a")
        moved = await pool.http.put(f"/workers/{teacher}", json={"pool": "policy"})
        is_ours(moved, 409, "worker_busy")
        aborted = {"txn": begun.json()["txn"], "touched": []}
        assert (await pool.http.post("/weights/abort", json=aborted)).status_code == 200

    run_deployed(test)


def test_one_pool_sleeps_while_another_serves() -> None:
    async def test(pool: Deployment) -> None:
        await join(pool, "policy")
        teacher = await join(pool, "teacher")
        slept = await pool.http.post("/release_memory_occupation?pool=policy", json={})
        assert slept.status_code == 200
        said = await pool.http.post("/rollout/generate?pool=policy", json=ROLLOUT)
        is_ours(said, 503, "pool_asleep")
        assert (await pool.http.get("/ready?pool=policy")).status_code == 503
        assert (await pool.http.get("/ready?pool=teacher")).status_code == 200
        asked = await pool.http.post("/rollout/generate?pool=teacher", json=ROLLOUT)
        assert asked.headers["x-worker-id"] == teacher
        woke = await pool.http.post(
            "/resume_memory_occupation", json={}, headers={"X-Pool": "policy"}
        )
        assert woke.status_code == 200
        asked = await pool.http.post("/rollout/generate?pool=policy", json=ROLLOUT)
        assert asked.status_code == 200

    run_deployed(test)


def test_a_worker_that_moves_gets_the_weights_of_its_new_pool() -> None:
    async def test(pool: Deployment) -> None:
        policy = await join(pool, "policy")
        teacher = await join(pool, "teacher")
        for name, path in (("policy", "demo/step-1"), ("teacher", "demo/step-2")):
            change = {"model_path": path}
            done = await pool.http.post(f"/update_weights_from_disk?pool={name}", json=change)
            assert done.json()["weight_version"] == 1
        moved = await pool.http.put(f"/workers/{policy}", json={"pool": "teacher"})
        assert moved.json()["worker"]["pool"] == "teacher"
        worker = pool.running.parts.registry.get(policy)
        await until(lambda: worker.weights == "current")
        sums = await pool.http.get("/weights?verify=true&pool=teacher")
        (shown,) = sums.json()["models"]
        assert shown["consistent"] is True
        assert {row["worker_id"] for row in shown["workers"]} == {policy, teacher}
        said = is_ours(await pool.http.post("/rollout/generate?pool=policy"), 503, "no_workers")
        assert said["pools"] == ["teacher"]

    run_deployed(test)


def test_pools_outlive_the_router(tmp_path: Path) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as pool:
            policy, teacher = await join(pool, "policy"), await join(pool, "teacher")
            change = {"model_path": "demo/step-1"}
            done = await pool.http.post("/update_weights_from_disk?pool=teacher", json=change)
            assert done.json()["success"]
        async with lives.router() as pool:
            registry = pool.running.parts.registry
            assert {w.worker_id: w.pool for w in registry} == {policy: "policy", teacher: "teacher"}
            one = registry.get(teacher)
            await until(lambda: one.health == "healthy" and one.weights == "current", 10)
            assert one.weight_version == 1
            assert registry.get(policy).weight_version == 0
            for worker in (policy, teacher):
                assert (await pool.http.delete(f"/workers/{worker}")).status_code == 200
            change = {"model_path": "demo/step-2"}
            for name, status, code in (
                ("policy", 404, "unknown_pool"),
                ("teacher", 503, "no_workers"),
            ):
                for path in ("/rollout/generate", "/update_weights_from_disk"):
                    is_ours(await pool.http.post(f"{path}?pool={name}", json=change), status, code)

    run_lives(test, tmp_path)


REWARD = {"/healthz": answer(204), "/health": answer(404), "/score": answer(200, {"score": 1})}


async def reward(pool: Deployment, **more: Any) -> ScriptedWorker:
    """A plain HTTP worker in the pool `reward`."""
    script = await pool.script(**{**REWARD, **more})
    fields = {"url": script.url, "pool": "reward", "kind": "http", "health_path": "/healthz"}
    said = await pool.http.post("/workers", json={**fields, "max_concurrency": 1})
    assert said.status_code == 200, said.text
    worker = pool.running.parts.registry.get(script.url)
    await until(lambda: worker.health == "healthy")
    return script


def test_a_plain_worker_gets_only_what_names_its_pool() -> None:
    async def test(pool: Deployment) -> None:
        policy = await join(pool, "policy")
        script = await reward(pool)
        url = script.url
        scored = await pool.http.post("/score", json={"a": 1}, headers={"X-Pool": "reward"})
        assert scored.json() == {"score": 1}
        assert "x-weight-version" not in scored.headers
        assert not any(b"x-pool" in head.lower() for head in script.heads)
        got = await pool.http.get("/score", headers={"X-Pool": "reward"})
        assert got.json() == {"score": 1}
        asked = [await pool.http.post("/rollout/generate", json=ROLLOUT) for _ in range(4)]
        assert who(asked) == {policy: 4}
        assert (await pool.http.post("/score", json={})).status_code == 404  # the policy's answer
        for path in ("/release_memory_occupation", "/resume_memory_occupation"):
            assert (await pool.http.post(path, json={})).status_code == 200
        change = {"model_path": "demo/step-1"}
        done = await pool.http.post("/update_weights_from_disk", json=change)
        assert [row["worker_url"] for row in done.json()["results"]] != [url]
        refused = await pool.http.post("/update_weights_from_disk?pool=reward", json=change)
        is_ours(refused, 400, "plain_worker")
        asleep = {"workers": [url], "sleeping": True}
        is_ours(await pool.http.post("/workers/sleeping", json=asleep), 400, "plain_worker")
        scored = await pool.http.post("/score", json={}, headers={"X-Pool": "reward"})
        assert scored.status_code == 200  # no change has anything to do with it
        workers = (await pool.http.get("/workers")).json()["workers"]
        assert {(w["pool"], w["kind"]) for w in workers} == {
            ("policy", "sglang"),
            ("reward", "http"),
        }
        assert [each["pool"] for each in (await pool.http.get("/weights")).json()["models"]] == [
            "policy"
        ]
        is_ours(await pool.http.get("/v1/videos/none"), 404, "unknown_asset")
        assert (await pool.http.get("/v1/videos")).json()["data"] == []
        paths = {line.split()[1] for line in script.asked}
        assert paths == {"/healthz", "/score"}

    run_deployed(test)


def test_posts_to_plain_workers_wait_for_a_slot() -> None:
    async def test(pool: Deployment) -> None:
        gate = trio.Event()
        script = await reward(pool, **{"/slow": when(gate, answer(200, {}))})
        asked = script.asked
        headers = {"X-Pool": "reward"}
        told: list[int] = []

        async def post() -> None:
            told.append((await pool.http.post("/slow", json={}, headers=headers)).status_code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post)
            nursery.start_soon(post)
            queue = pool.running.parts.dispatcher.queue
            await until(lambda: queue.waiting == 1 and "POST /slow" in asked)
            shown = (await pool.http.get("/queue")).json()
            assert [row["pool"] for row in shown["groups"]] == ["reward"]
            assert (await pool.http.get("/score", headers=headers)).status_code == 200
            assert asked.count("POST /slow") == 1
            gate.set()
        assert told == [200, 200]

    run_deployed(test)


def test_a_plain_worker_may_end_its_idle_connections() -> None:
    async def test(pool: Deployment) -> None:
        script = await reward(pool)
        worker = pool.running.parts.registry.get(script.url)
        before = len(script.asked)
        script.hang_up()
        await until(lambda: len(script.asked) > before + 2)
        assert (worker.incarnation, worker.suspicion) == (1, None)

    run_deployed(test)


def test_what_a_client_has_left_at_a_plain_worker_ends_by_its_expected_time() -> None:
    async def test(pool: Deployment) -> None:
        script = await reward(pool, **{"/slow": never})
        worker = pool.running.parts.registry.get(script.url)
        async with trio.open_nursery() as nursery:
            headers = {"X-Pool": "reward"}
            nursery.start_soon(partial(pool.http.post, "/slow", json={}, headers=headers))
            await until(lambda: "POST /slow" in script.asked)
            nursery.cancel_scope.cancel()
        await until(lambda: not worker.holds)
        assert not [line for line in script.asked if "lora" in line]

    run_deployed(test)


def test_a_replay_for_the_pool_before_says_nothing_in_the_new_one() -> None:
    async def test(pool: Deployment) -> None:
        gate, path = trio.Event(), "/update_weights_from_disk"
        done = answer(200, {"success": True, "message": ""})
        first = await pool.script(**{path: done})
        late = await pool.script(**{path: when(gate, done)})
        for script in (first, late):
            fields = {"url": script.url, "pool": "policy"}
            if script is late:
                changed = await pool.http.post(f"{path}?pool=policy", json={"model_path": "p"})
                assert changed.json()["weight_version"] == 1
            assert (await pool.http.post("/workers", json=fields)).status_code == 200
            known = pool.running.parts.registry.get(script.url)
            await until(lambda known=known: known.health == "healthy")
        await until(lambda: f"POST {path}" in late.asked)
        moved = await pool.http.put(f"/workers/{known.worker_id}", json={"pool": "teacher"})
        assert moved.json()["worker"]["weights"] == "behind"
        gate.set()
        await until(lambda: known.weights == "current")
        assert late.asked.count(f"POST {path}") == 2  # also the weights of its start
        assert known.weight_version == 0

    run_deployed(test)


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"pool": "a b"}, 400, "invalid_field"),
        ({"pool": 3}, 400, "invalid_field"),
        ({"kind": "grpc"}, 400, "invalid_field"),
        ({"kind": "http"}, 400, "invalid_field"),
        ({"pool": "p", "health_path": "/x"}, 400, "invalid_field"),
        ({"pool": "policy", "kind": "http"}, 409, "wrong_kind"),
    ],
)
def test_wrong_roles_are_refused(fields: dict[str, object], status: int, code: str) -> None:
    async def test(pool: Deployment) -> None:
        await join(pool, "policy")
        sim = await pool.simulated(**SAME)
        is_ours(await pool.http.post("/workers", json={"url": sim.url, **fields}), status, code)
        assert pool.running.parts.registry.find(sim.url) is None

    run_deployed(test)


def test_flags_put_workers_into_pools() -> None:
    async def main() -> None:
        async with deployed() as other:
            sim = await other.simulated(**SAME)
            settings = RouterSettings(pool=[f"teacher={sim.url}"])
            assert settings.pool == (PoolMembers("teacher", (sim.url,)),)
            async with deployed(pool=settings.pool) as pool:
                worker = pool.running.parts.registry.get(sim.url)
                assert (worker.pool, worker.origin) == ("teacher", "static")
                await until(lambda: worker.health == "healthy")
                asked = await pool.http.post("/rollout/generate?pool=teacher", json=ROLLOUT)
                assert asked.status_code == 200
                await pool.http.delete(f"/workers/{worker.worker_id}")
                asked = await pool.http.post("/rollout/generate?pool=teacher", json=ROLLOUT)
                is_ours(asked, 503, "no_workers")
                assert asked.headers["x-should-retry"] == "true"

    run(main)
