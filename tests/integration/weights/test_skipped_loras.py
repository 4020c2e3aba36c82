"""A worker skips a `/v1/set_lora` that equals its last one, whatever came in between, and answers
200. Behind the router, it has the LoRA that its version says."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.integration.api.pools import IMAGES, Member, RunPool, direct_to
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
    paths,
)
from tests.integration.weights.test_transactions import begin, end

INK = {"lora_nickname": "ink", "lora_path": "loras/ink"}
MISSING = {"lora_nickname": "x", "lora_path": "/nonexistent/x"}
HALF = (MERGE, {"strength": 0.5})
PUSH = (TENSOR, {**TENSORS, "weight_update_mode": "lora_merge"})
BETWEEN = pytest.mark.parametrize("between", [HALF, PUSH])
OUT = [MERGE, UNMERGE]

Body = dict[str, Any]


async def change(pool: Deployment, path: str, body: Body, **query: str) -> httpx.Response:
    answer = await pool.http.post(path, json=body, params=query)
    assert answer.status_code == 200, answer.text
    return answer


def acts(member: Member) -> str:
    """The LoRA that acts on the worker."""
    return str(member.sim.scheduler.loras.identity)


async def skipped(pool: Deployment, between: tuple[str, Body], a: Member) -> tuple[str, str]:
    """What acts after a LoRA was set, and after another call."""
    await change(pool, SET, INK)
    styled = acts(a)
    await change(pool, *between)
    other = acts(a)
    assert "" != styled != other != ""
    return styled, other


@BETWEEN
@pytest.mark.parametrize("rolling", [{}, {"rolling": "1"}])
def test_a_lora_that_is_set_again(
    run_pool: RunPool, between: tuple[str, Body], rolling: dict[str, str]
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        styled, other = await skipped(pool, between, a)
        async with direct_to(a.url) as worker:
            assert (await worker.post(SET, json=INK)).status_code == 200
        assert acts(a) == other
        said = (await change(pool, SET, INK, **rolling)).json()
        assert said["weight_version"] == 3
        assert acts(a) == acts(b) == styled
        assert paths(b) == [SET, between[0], SET, *OUT, SET]
        await change(pool, SET, INK)  # this one is rightly skipped
        assert paths(b)[-2:] == [SET, SET]
        assert acts(b) == styled

    run_pool(test, IMAGES, IMAGES)


@BETWEEN
def test_a_refused_lora_leaves_what_acts(run_pool: RunPool, between: tuple[str, Body]) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        _, other = await skipped(pool, between, a)
        said = (await pool.http.post(SET, json=MISSING)).json()
        assert (said["success"], said["weight_version"]) == (False, 2)
        assert current(a)
        assert acts(a) == other

    run_pool(test, IMAGES)


def test_a_refusal_after_a_success_leaves_unknown_loras(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        _, other = await skipped(pool, HALF, a)
        a.sim.faults.add("fail_next_update", path=UNMERGE)
        said = (await pool.http.post(SET, json=INK)).json()
        assert (said["success"], said["weight_version"]) == (False, 2)
        await until(lambda: current(a))
        assert acts(a) == other
        assert paths(a) == [SET, MERGE, SET, *OUT, *OUT, SET, MERGE]

    run_pool(test, IMAGES)


@BETWEEN
def test_a_sleeper_is_set_the_same_lora_again(run_pool: RunPool, between: tuple[str, Body]) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        styled, other = await skipped(pool, between, a)
        await pool.http.post(SLEEP, params={"workers": b.id})
        await change(pool, SET, INK)
        assert acts(b) == other
        await pool.http.post(WAKE, params={"workers": b.id})
        await until(lambda: current(a, b))
        assert acts(a) == acts(b) == styled

    run_pool(test, IMAGES, IMAGES)


@BETWEEN
def test_in_a_transaction(run_pool: RunPool, between: tuple[str, Body]) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await change(pool, SET, INK)
        styled = acts(a)
        txn = await begin(pool, lora=True)
        await change(pool, *between, txn=txn)
        await change(pool, SET, INK, txn=txn)
        assert acts(a) == styled
        await change(pool, *between, txn=txn)
        await change(pool, UNMERGE, {}, txn=txn)
        assert not acts(a)
        await change(pool, SET, INK, txn=txn)
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert (current(a), acts(a)) == (True, styled)

    run_pool(test, IMAGES)


def test_what_acts_on_other_targets_stays(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await change(pool, SET, {**INK, "target": "transformer"})
        styled = acts(a)
        await change(pool, SET, {**INK, "target": ["transformer_2"]})
        outs = [e for e in a.sim.log.requests if e.target.startswith(UNMERGE)]
        assert len(outs) == 1
        assert acts(a) == styled

    run_pool(test, IMAGES)


@BETWEEN
def test_a_lora_that_is_set_again_after_a_statement(
    run_pool: RunPool, between: tuple[str, Body]
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        styled, _ = await skipped(pool, between, a)
        said = await pool.http.post("/weights", json={"weight_version": 7})
        assert said.status_code == 200, said.text
        await change(pool, SET, INK)
        assert acts(a) == styled
        assert current(a)

    run_pool(test, IMAGES)


def test_who_is_said_to_have_a_lora_counts_as_wrapped(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await change(pool, SET, INK)
        sim = await pool.simulated(**IMAGES)
        known = {"url": sim.url, "weight_version": 1}
        assert (await pool.http.post("/workers", json=known)).status_code == 200
        b = Member(sim, pool.running.parts.registry.get(sim.url))
        await until(lambda: b.known.health == "healthy" and current(b))
        refused = await pool.http.post(DISK, json={"model_path": "v2"}, params={"workers": b.id})
        assert refused.json()["code"] == "lora_active"
        assert paths(b) == []

    run_pool(test, IMAGES)
