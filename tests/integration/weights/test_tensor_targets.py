"""Tensor changes wait until all of their targets are idle; some leave meanwhile."""

from __future__ import annotations

import httpx
import pytest
import trio
import trio.testing

from tests.integration.api.pools import IMAGES, Member, RunPool
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import TENSOR, TENSORS, current, paths

LARGE = {**TENSORS, "padding": "x" * 1_200_000}  # so that it is not held


@pytest.mark.parametrize("how", ["quarantined", "removed", "dead"])
def test_one_that_leaves_while_another_is_busy(run_pool: RunPool, how: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("slow", factor=1e6, count=1)
        answers: list[httpx.Response] = []

        async def change() -> None:
            answers.append(await pool.http.post(TENSOR, json=LARGE))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            nursery.start_soon(pool.image)
            await until(lambda: b.sim.scheduler.running and not a.known.leases)
            nursery.start_soon(change)
            await until(lambda: a.known.weights == "updating")
            await trio.testing.wait_all_tasks_blocked(0.02)
            if how == "quarantined":
                await pool.http.put(f"/workers/{a.id}", json={"is_dead": True})
            elif how == "removed":
                await pool.http.delete(f"/workers/{a.id}")
            else:
                a.sim.kill()
                await until(lambda: a.known.health != "healthy")
            assert not paths(b)  # it is busy still
            b.sim.scheduler.hurry()
        said = answers[0].json()
        assert (answers[0].status_code, said["weight_version"]) == (502, 1)
        assert [row["body"].get("code") for row in said["results"]] == ["left_change", None]
        assert current(b)
        assert not paths(a)
        if how == "quarantined":
            assert a.known.weights == "behind"

    run_pool(test, IMAGES, IMAGES)
