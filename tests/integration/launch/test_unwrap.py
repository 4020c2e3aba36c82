"""The way out of a LoRA: launched workers start again, and the others are named."""

from __future__ import annotations

import sys

import httpx
import pytest

from router.pool.lifecycle import routable
from router.settings import LauncherSettings
from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.launch.test_launched_weights import (
    RunLaunched,
    loaded,
    run_launched,
    served,
    truth,
    up,
)
from tests.integration.lives import Lives
from tests.integration.weights.refits import DISK, SET, TENSOR, TENSORS, ledger, refit, refitted

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

__all__ = ["run_launched"]

LORA = {"lora_nickname": "ink", "lora_path": "loras/ink"}
BAD = {"lora_nickname": "ink", "lora_path": "bad/ink"}
MERGED = {**TENSORS, "weight_update_mode": "lora_merge"}


async def sync(pool: Deployment, **query: str) -> httpx.Response:
    return await pool.http.post("/weights/sync", json={"timeout": 30}, params=query)


@pytest.mark.parametrize(
    ("path", "lora", "acts"), [(SET, LORA, True), (SET, BAD, False), (TENSOR, MERGED, True)]
)
def test_a_sync_that_unwraps(
    run_launched: RunLaunched, path: str, lora: dict[str, object], acts: bool
) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            second = await loaded(pool, worker, "v2")
            first = await loaded(pool, worker, "v1")
            await pool.http.post(path, json=lora)
            is_ours(await refit(pool, "v2"), 409, "lora_active")
            version = (await ledger(pool))["weight_version"]

            answer = await sync(pool)
            assert (answer.status_code, answer.json()["restarted"]) == (200, [])
            answer = await sync(pool, unwrap="true")
            assert answer.status_code == 200, answer.text
            assert answer.json()["restarted"] == [worker.worker_id]
            assert worker.incarnation == 2
            # A LoRA that acts no more is a version of its own.
            assert await served(pool) == str(version + acts)
            assert await truth(worker) == first
            await refitted(pool, "v2")
            assert await truth(worker) == second

    run_launched(test)


def test_a_change_that_unwraps(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            first = await loaded(pool, worker, "v1")
            await pool.http.post(SET, json=LORA)
            await refitted(pool, "v1", unwrap="true")
            assert worker.incarnation == 2
            assert await truth(worker) == first
            await refitted(pool, "v1", unwrap="true")  # nothing is left to unwrap
            assert worker.incarnation == 2
            txn = {"txn": "x", "unwrap": "true"}
            is_ours(await refit(pool, "v1", **txn), 400, "invalid_field")

    run_launched(test)


def test_a_transaction_that_unwraps(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            first = await loaded(pool, worker, "v1")
            await pool.http.post(SET, json=LORA)
            said = is_ours(await pool.http.post("/weights/begin", json={}), 409, "lora_active")
            assert said["launched"] == [worker.worker_id]
            begun = await pool.http.post("/weights/begin?unwrap=true", json={})
            assert begun.status_code == 200, begun.text
            txn = {"txn": begun.json()["txn"]}
            assert (await refit(pool, "v1", **txn)).status_code == 200
            assert (await pool.http.post("/weights/commit", json=txn)).status_code == 200
            assert worker.incarnation == 2
            assert await truth(worker) == first

    run_launched(test)


def test_workers_that_the_router_did_not_launch_are_named(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            other = await pool.simulated(model_path="demo/image")
            known = await pool.register(other.url)
            await until(lambda: routable(known))
            await pool.http.post(SET, json=LORA)
            said = is_ours(await sync(pool, unwrap="true"), 409, "lora_active")
            assert said["workers"] == [known.worker_id]
            assert said["restarted"] == [worker.worker_id]
            # Without the LoRA all the same.
            await until(lambda: known.weights == "current" and worker.weights == "current", 30)
            assert not other.scheduler.loras.identity
            assert (await ledger(pool))["weight_version"] == 2
            said = is_ours(await refit(pool, "v1", unwrap="true"), 409, "lora_active")
            assert said["workers"] == [known.worker_id]
            assert worker.incarnation == 2
            assert (await refit(pool, "v1", workers=worker.worker_id)).status_code == 200

    run_launched(test)


def test_a_plain_sync_restarts_what_gets_no_requests_anyway(run_launched: RunLaunched) -> None:
    """Its weights are unknown, and nothing can be loaded over its wrapped layers."""

    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            await refitted(pool, "v0")
            await refitted(pool, "v1")
            await pool.http.post(SET, json=LORA)
            worn = await truth(worker)
            old = {"weight_version": 1, "workers": [worker.worker_id]}
            await pool.http.post("/weights", json=old)
            await until(lambda: worker.stuck)
            answer = await sync(pool)
            assert answer.json()["restarted"] == [worker.worker_id]
            assert (worker.incarnation, await served(pool)) == (2, "3")
            assert await truth(worker) == worn
            assert [row["path"] for row in (await ledger(pool))["replay"]] == [DISK, SET]

    run_launched(test)
