"""LoRAs that come as tensors, which cannot be sent again, and workers that missed a call."""

from __future__ import annotations

from typing import Any

from tests.integration.api.pools import IMAGES, Member, RunPool, restart
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    MERGE,
    SET,
    SLEEP,
    TENSOR,
    TENSORS,
    UNMERGE,
    WAKE,
    current,
    has,
    paths,
    refit,
    refitted,
)

PUSH = {**TENSORS, "weight_update_mode": "lora_merge"}
INK = {"lora_nickname": "ink", "lora_path": "loras/ink"}


async def change(pool: Deployment, path: str, body: dict[str, Any]) -> tuple[int, list[str]]:
    """The version after a change, and who is behind."""
    said = (await pool.http.post(path, json=body)).json()
    return said["weight_version"], said["behind"]


def acts(member: Member) -> str:
    return str(member.sim.scheduler.loras.identity)


def test_an_unmerge_that_was_lost_is_made_up_for(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await change(pool, TENSOR, PUSH)
        assert acts(a) == acts(b) != ""
        b.sim.faults.add("drop", path=UNMERGE, count=1)
        version, _ = await change(pool, UNMERGE, {})
        assert version == 2
        await until(lambda: current(a, b))
        assert acts(a) == acts(b) == ""
        assert paths(b) == [TENSOR, MERGE, UNMERGE, MERGE, UNMERGE]

    run_pool(test, IMAGES, IMAGES)


def test_a_worker_whose_unmerge_was_lost_takes_another(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await change(pool, TENSOR, PUSH)
        a.sim.faults.add("drop", path=UNMERGE, count=1)
        assert (await change(pool, UNMERGE, {}))[0] == 1
        await until(lambda: a.known.stuck)
        assert "take the LoRA out" in str(a.known.weights_reason)
        assert (await change(pool, UNMERGE, {}))[0] == 2
        await until(lambda: current(a))
        assert acts(a) == ""

    run_pool(test, IMAGES)


def test_a_fresh_worker_waits_with_the_weights_below_for_the_next_push(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        await change(pool, TENSOR, PUSH)
        again = await restart(pool, b, **IMAGES)
        await until(lambda: paths(again) == [DISK] and b.known.stuck)
        assert has(again, "v1")
        assert (await change(pool, TENSOR, PUSH)) == (3, [b.url])
        assert (await change(pool, TENSOR, {**PUSH, "full": True})) == (4, [])
        assert current(a, b)
        assert acts(a) == acts(again) != ""

    run_pool(test, IMAGES, IMAGES)


def test_an_update_comes_before_a_lora_that_waits(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        for path, body in ((SET, INK), (DISK, {"model_path": "v1"})):
            said = (await pool.http.post(path, json=body)).json()
            assert (said["success"], said["pending"]) == (True, True)
        await pool.http.post(WAKE)
        await until(lambda: current(a))
        assert paths(a) == [DISK, SET]
        assert acts(a) != ""
        assert (await refit(pool, "v2")).json()["code"] == "lora_active"

    run_pool(test, IMAGES)
