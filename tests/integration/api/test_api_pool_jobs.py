"""Job lists, reads by id and lists of models within a named pool."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from router.control import jobs
from router.pool.worker import Worker
from simulated_worker import SimulatedWorker
from tests.integration.api.pools import IMAGES, VIDEOS, RunPool, direct_to, is_ours
from tests.integration.api.test_api_jobs import VIDEO
from tests.integration.api.test_api_pools import reward
from tests.integration.deployment import Deployment, answer, run_deployed, until, when


async def join(pool: Deployment, name: str, **fields: Any) -> tuple[SimulatedWorker, Worker]:
    sim = await pool.simulated(**{**VIDEOS, **fields})
    said = await pool.http.post("/workers", json={"url": sim.url, "pool": name})
    assert said.status_code == 200, said.text
    known = pool.running.parts.registry.get(sim.url)
    await until(lambda: known.health == "healthy")
    return sim, known


async def listed(pool: Deployment, query: str = "", **headers: str) -> list[str]:
    got = await pool.http.get(f"/v1/videos{query}", headers=headers)
    assert got.status_code == 200, got.text
    return [job["id"] for job in got.json()["data"]]


def test_lists_and_reads_stay_in_the_pool() -> None:
    async def test(pool: Deployment) -> None:
        made: dict[str, str] = {}
        sims: dict[str, SimulatedWorker] = {}
        for name in ("policy", "teacher"):
            sims[name], _ = await join(pool, name)
            job = await pool.http.post(f"/v1/videos?pool={name}", json=VIDEO)
            made[name] = job.json()["id"]
        assert await listed(pool, "?order=asc") == [made["policy"], made["teacher"]]
        sims["teacher"].log.requests.clear()
        assert await listed(pool, "?pool=policy") == [made["policy"]]
        assert await listed(pool, **{"X-Pool": "policy"}) == [made["policy"]]
        targets = [entry.target.partition("?")[0] for entry in sims["teacher"].log.requests]
        assert "/v1/videos" not in targets
        assert await listed(pool, "?pool=teacher") == [made["teacher"]]
        # A cursor has its place in every pool.
        assert await listed(pool, f"?pool=teacher&order=asc&after={made['policy']}") == [
            made["teacher"]
        ]
        ours, theirs = f"/v1/videos/{made['policy']}", f"/v1/videos/{made['teacher']}"
        assert (await pool.http.get(f"{ours}?pool=policy")).json()["id"] == made["policy"]
        for method, path in (
            ("GET", f"{theirs}?pool=policy"),
            ("DELETE", f"{theirs}?pool=policy"),
            ("GET", f"{theirs}/content?pool=policy"),
            ("GET", f"/v1/videos?id={made['teacher']}&pool=policy"),
        ):
            said = is_ours(await pool.http.request(method, path), 404, "unknown_asset")
            assert said["pool"] == "teacher"
            assert "'teacher'" in said["error"]
        named = {"X-Pool": "policy"}
        for path in (theirs, f"/v1/videos?id={made['teacher']}"):
            is_ours(await pool.http.get(path, headers=named), 404, "unknown_asset")
        read = await pool.http.get(f"/v1/videos?id={made['teacher']}&pool=teacher")
        assert read.json()["id"] == made["teacher"]
        two = await pool.http.get(f"{ours}?pool=policy", headers={"X-Pool": "teacher"})
        is_ours(two, 400, "ambiguous_target")
        deleted = await pool.http.delete(f"{theirs}?pool=teacher")
        assert deleted.json()["status"] == "deleted"

    run_deployed(test)


def test_only_the_pool_is_asked_for_an_unknown_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_NEGATIVE", 1000.0)

    async def test(pool: Deployment) -> None:
        (policy, _), (teacher, known) = await join(pool, "policy"), await join(pool, "teacher")
        async with direct_to(teacher.url) as direct:
            job = (await direct.post("/v1/videos", json=VIDEO)).json()["id"]

        def asked(sim: SimulatedWorker) -> int:
            return sum(f"/v1/videos/{job}" in entry.target for entry in sim.log.requests)

        for _ in range(2):  # the second time without a question
            said = await pool.http.get(f"/v1/videos/{job}?pool=policy")
            assert "pool" not in is_ours(said, 404, "unknown_asset")
        assert (asked(policy), asked(teacher)) == (1, 0)
        # A worker that moves into the pool may know the id.
        moved = await pool.http.put(f"/workers/{known.worker_id}", json={"pool": "policy"})
        assert moved.status_code == 200
        found = await pool.http.get(f"/v1/videos/{job}?pool=policy")
        assert found.json()["id"] == job
        assert found.headers["x-worker-id"] == known.worker_id

    run_deployed(test)


def test_what_one_pool_lacks_another_may_have() -> None:
    async def test(pool: Deployment) -> None:
        await join(pool, "policy")
        teacher, _ = await join(pool, "teacher")
        async with direct_to(teacher.url) as direct:
            job = (await direct.post("/v1/videos", json=VIDEO)).json()["id"]
        is_ours(await pool.http.get(f"/v1/videos/{job}?pool=policy"), 404, "unknown_asset")
        found = await pool.http.get(f"/v1/videos/{job}")
        assert found.json()["id"] == job

    run_deployed(test)


@pytest.mark.parametrize(
    "path",
    ["/v1/videos", "/v1/meshes", "/v1/videos/x", "/v1/images/x/content", "/v1/models", "/weights"],
)
def test_an_unknown_pool_is_an_error(path: str) -> None:
    async def test(pool: Deployment) -> None:
        await join(pool, "policy")
        for query, headers in (("?pool=NOSUCH", {}), ("", {"X-Pool": "NOSUCH"})):
            said = await pool.http.get(path + query, headers=headers)
            assert is_ours(said, 404, "unknown_pool")["pools"] == ["policy"]

    run_deployed(test)


def test_a_pool_without_workers_keeps_its_weights() -> None:
    async def test(pool: Deployment) -> None:
        _, known = await join(pool, "policy", **IMAGES)
        await join(pool, "teacher", **IMAGES)
        done = await pool.http.post(
            "/update_weights_from_disk?pool=policy", json={"model_path": "demo/step-1"}
        )
        assert done.json()["success"]
        await pool.http.delete(f"/workers/{known.worker_id}")
        (shown,) = (await pool.http.get("/weights?pool=policy")).json()["models"]
        assert (shown["weight_version"], shown["workers"]) == (1, [])
        is_ours(await pool.http.get("/v1/videos?pool=policy"), 503, "no_workers")

    run_deployed(test)


def test_an_unknown_path_names_the_pools_of_plain_workers() -> None:
    async def test(pool: Deployment) -> None:
        await reward(pool)
        alone = is_ours(await pool.http.post("/score", json={}), 503, "no_workers")
        assert "?pool= or X-Pool: reward" in alone["error"]
        assert alone["pools"] == ["reward"]
        await join(pool, "policy")
        said = is_ours(await pool.http.post("/score", json={}), 404, "unknown_path")
        assert "?pool= or X-Pool: reward" in said["error"]
        assert said["pools"] == ["reward"]
        scored = await pool.http.post("/score", json={}, headers={"X-Pool": "reward"})
        assert scored.json() == {"score": 1}

    run_deployed(test)


def test_without_plain_workers_an_unknown_path_names_no_pool(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *_: object) -> None:
        said = is_ours(await pool.http.post("/score", json={}), 404, "unknown_path")
        assert "pool" not in said["error"]
        assert "pools" not in said

    run_pool(test, IMAGES)


def test_one_scrape_of_the_workers_serves_all_who_ask() -> None:
    async def test(pool: Deployment) -> None:
        gate = trio.Event()
        slow = await pool.script(**{"/metrics": when(gate, answer(200, body=b"x 1\n"))})
        await pool.register(slow.url)
        answers: list[httpx.Response] = []

        async def scrape() -> None:
            answers.append(await pool.http.get("/engine_metrics"))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as leaving:  # the first leaves; the others get the answer
                async with trio.open_nursery() as first:
                    first.start_soon(scrape)
                    await until(lambda: "GET /metrics" in slow.asked)
                    for _ in range(5):
                        nursery.start_soon(scrape)
                    operations = pool.running.parts.weights.operations
                    await until(lambda: [o._waiting for o in operations._line] == [6])
                    leaving.cancel()
            await until(lambda: [o._waiting for o in operations._line] == [5])
            gate.set()
        assert slow.asked.count("GET /metrics") == 1
        assert [a.status_code for a in answers] == [200] * 5
        assert all(b"\nx{" in a.content or a.content.startswith(b"x{") for a in answers)
        await scrape()
        assert slow.asked.count("GET /metrics") == 2

    run_deployed(test)
