"""LoRA calls at a process that never had the LoRA: they do nothing to it, and must not count."""

from __future__ import annotations

import pytest

from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    MERGE,
    SET,
    TENSOR,
    TENSORS,
    UNMERGE,
    current,
    has,
    refitted,
)

LORA = {"lora_nickname": "ink", "lora_path": "loras/ink"}
PUSHED = {**TENSORS, "weight_update_mode": "lora_merge"}


async def replaced(member: Member) -> None:
    before = member.known.incarnation
    member.sim.faults.add("restart", down=0)
    await until(lambda: member.known.incarnation > before and member.known.capabilities is not None)


def test_a_merge_brings_the_lora_to_a_process_that_never_had_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SET, json=LORA)
        await pool.http.post(UNMERGE, json={})
        await replaced(b)
        await until(lambda: current(a, b))  # nothing acts, so nothing is replayed
        await pool.http.post(MERGE, json={})
        await until(lambda: current(a, b))
        assert a.sim.scheduler.loras.identity
        assert b.sim.scheduler.loras.identity == a.sim.scheduler.loras.identity

    run_pool(test, IMAGES, IMAGES)


@pytest.mark.parametrize("body", [LORA, PUSHED], ids=["set", "pushed"])
def test_an_unmerge_makes_a_process_current_that_lacks_the_lora(
    run_pool: RunPool, body: dict[str, object]
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SET if body is LORA else TENSOR, json=body)
        await replaced(b)
        await pool.http.post(UNMERGE, json={})
        await until(lambda: current(a, b))
        assert not b.sim.scheduler.loras.identity

    run_pool(test, IMAGES, IMAGES)


def test_a_lora_does_not_wait_for_workers_that_wait_for_weights(run_pool: RunPool) -> None:
    """It would forbid the update that alone can help them."""

    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(TENSOR, json=TENSORS)
        await replaced(a)
        await until(lambda: a.known.stuck)
        is_ours(await pool.http.post(SET, json=LORA), 503, "no_workers")
        await refitted(pool, "v2")
        assert has(a, "v2")
        assert current(a)

    run_pool(test, IMAGES)
