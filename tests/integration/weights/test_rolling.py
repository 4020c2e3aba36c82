"""Rolling changes: a few workers at a time, while the others serve on with the old version."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours, restart
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
    refit,
    refitted,
)

ENDLESS = {"factor": 200_000, "count": 1}  # a generation of a minute, ended by `hurry`
SMALL = {"prompt": "x", "size": "64x64", "num_inference_steps": 1}


async def occupy(pool: Deployment, nursery: trio.Nursery, *members: Member) -> None:
    """Give each worker a generation that lasts until `hurry`."""
    for member in members:
        member.sim.faults.add("slow", **ENDLESS)
        nursery.start_soon(pool.image)
    await until(lambda: all(member.sim.scheduler.running for member in members))


def turn(*members: Member) -> list[str]:
    return [member.known.weights for member in members]


@asynccontextmanager
async def rolling(
    pool: Deployment, *members: Member, **more: object
) -> AsyncIterator[list[httpx.Response]]:
    """A refit that rolls over busy workers, one by one, once it is the first one's turn; its
    answer is added at the end."""
    said: list[httpx.Response] = []

    async def change() -> None:
        body = {"model_path": "v1", **more}
        said.append(await pool.http.post(DISK, json=body, params={"rolling": "1"}))

    async with trio.open_nursery() as nursery:
        await occupy(pool, nursery, *members)
        nursery.start_soon(change)
        waiting = ["current"] * (len(members) - 1)
        await until(lambda: turn(*members) == ["updating", *waiting])
        yield said


def test_the_others_serve_the_old_version_until_their_turn(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        async def image(**headers: str) -> tuple[str, str]:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            answer = await pool.http.post("/v1/images/generations", json=SMALL, headers=named)
            assert answer.status_code == 200, answer.text
            return answer.headers["x-weight-version"], answer.headers["x-worker-id"]

        async with rolling(pool, a, b, c) as said:
            c.sim.scheduler.hurry()
            assert await image() == ("0", c.id)
            a.sim.scheduler.hurry()
            await until(lambda: turn(a, b, c) == ["current", "updating", "current"])
            assert has(a, "v1")
            assert not said
            known = await ledger(pool)
            assert known["weight_version"] == 1
            assert [w["weight_version"] for w in known["workers"]] == [1, 0, 0]
            assert [w["routable"] for w in known["workers"]] == [True, False, True]
            assert await image(x_exact_weight_version="0") == ("0", c.id)
            for _ in range(3):
                assert await image(x_min_weight_version="1") == ("1", a.id)
                assert await image(x_max_weight_lag="0") == ("1", a.id)
            assert (await image(x_max_weight_lag="1"))[0] in ("0", "1")
            one = {"workers": [c.id], "timeout": 0.05}
            sync = await pool.http.post("/weights/sync", json=one)
            assert sync.status_code == 504  # it is current, and not up to date
            assert paths(c) == []
            b.sim.scheduler.hurry()
            await until(lambda: said)
        assert said[0].status_code == 200
        assert (said[0].json()["success"], said[0].json()["weight_version"]) == (True, 1)
        assert [row["worker_url"] for row in said[0].json()["results"]] == [a.url, b.url, c.url]
        assert current(a, b, c)
        for member in (a, b, c):
            assert has(member, "v1")
            assert paths(member) == [DISK]
        assert {(await image())[0] for _ in range(6)} == {"1"}

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_lag_counts_versions_whatever_their_numbers(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        async def image(lag: int, exact: int) -> tuple[str, str]:
            named = {"x-max-weight-lag": str(lag), "x-exact-weight-version": str(exact)}
            answer = await pool.http.post("/v1/images/generations", json=SMALL, headers=named)
            return answer.headers["x-weight-version"], answer.headers["x-worker-id"]

        for number in (10, 20):
            body = {"model_path": f"v{number}", "weight_version": number}
            assert (await pool.http.post(DISK, json=body)).status_code == 200
        async with rolling(pool, a, b, c, weight_version=30):
            c.sim.scheduler.hurry()
            a.sim.scheduler.hurry()
            await until(lambda: turn(a, b, c) == ["current", "updating", "current"])
            assert await image(1, 20) == ("20", c.id)
            assert await image(0, 30) == ("30", a.id)
            b.sim.scheduler.hurry()
        assert await image(0, 30) in [("30", member.id) for member in (a, b, c)]

    run_pool(test, *[IMAGES] * 3)


@pytest.mark.parametrize(("rolling", "fenced"), [("2", 2), ("34%", 2), ("1%", 1), ("9", 4)])
def test_so_many_are_fenced_at_once(run_pool: RunPool, rolling: str, fenced: int) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery, *members)
            nursery.start_soon(lambda: refitted(pool, "v1", rolling=rolling))
            wanted = ["updating"] * fenced + ["current"] * (4 - fenced)
            await until(lambda: turn(*members) == wanted)
            for member in members:
                assert turn(*members).count("updating") <= fenced
                member.sim.scheduler.hurry()
        assert all(has(member, "v1") for member in members)

    run_pool(test, *[IMAGES] * 4)


def test_loras_and_small_tensors_roll_too(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for path, body in ((TENSOR, TENSORS), (SET, {"lora_nickname": "x", "lora_path": "l/x"})):
            async with trio.open_nursery() as nursery:
                await occupy(pool, nursery, a, b)
                nursery.start_soon(lambda: pool.http.post(f"{path}?rolling=1", json=body))  # noqa: B023
                await until(lambda: turn(a, b) == ["updating", "current"])
                a.sim.scheduler.hurry()
                await until(lambda: turn(a, b) == ["current", "updating"])
                b.sim.scheduler.hurry()
            assert current(a, b)
            assert paths(a) == paths(b)
            assert paths(b)[-1] == path
        assert (await ledger(pool))["weight_version"] == 2

    run_pool(test, IMAGES, IMAGES)


@pytest.mark.parametrize("path", [DISK, SET])
def test_a_refusal_by_the_first_calls_no_other(run_pool: RunPool, path: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        body = {"model_path": "/nonexistent/x", "lora_nickname": "x", "lora_path": "bad/x"}
        answer = await pool.http.post(path, json=body, params={"rolling": "2"})
        assert answer.status_code == (400 if path == DISK else 502)
        said = answer.json()
        assert (said["success"], said["weight_version"]) == (False, 0)
        assert [row["worker_url"] for row in said["results"]] == [a.url, b.url]
        assert [paths(member) for member in (a, b, c)] == [[path], [path], []]
        assert current(a, b, c)
        assert (await ledger(pool))["latest_issued"] == 0
        assert {(await pool.image()).status_code for _ in range(3)} == {200}
        if path == DISK:
            await refitted(pool, "v1", rolling="1")
            assert all(has(member, "v1") for member in (a, b, c))

    run_pool(test, *[IMAGES] * 3)


def test_a_refusal_in_the_middle_leaves_that_one_behind(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        b.sim.faults.add("fail_next_update", status=400, message="busy")
        answer = await refit(pool, "v1", rolling="1")
        assert answer.status_code == 502
        assert answer.json()["weight_version"] == 1
        assert [row["status_code"] for row in answer.json()["results"]] == [200, 400, 200]
        assert has(c, "v1")
        await until(lambda: current(a, b, c))
        assert has(b, "v1")

    run_pool(test, *[IMAGES] * 3)


def test_a_first_that_is_gone_does_not_end_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        async with rolling(pool, a, b, c) as said:
            assert (await pool.http.delete(f"/workers/{a.id}")).status_code == 200
            await until(lambda: turn(b, c) == ["updating", "current"])
            b.sim.scheduler.hurry()
            c.sim.scheduler.hurry()
            await until(lambda: said)
            a.sim.scheduler.hurry()
        assert [row["status_code"] for row in said[0].json()["results"]] == [502, 200, 200]
        assert has(b, "v1")
        assert has(c, "v1")

    run_pool(test, *[IMAGES] * 3)


def test_those_that_join_or_restart_meanwhile_are_brought_up(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        async with rolling(pool, a, b) as said:
            a.sim.scheduler.hurry()
            await until(lambda: turn(a, b, c) == ["current", "updating", "current"])
            again = await restart(pool, c, **IMAGES)
            sim = await pool.simulated(**IMAGES)
            joined = Member(sim, await pool.register(sim.url))
            await until(lambda: has(again, "v1") and has(joined, "v1"))
            await until(lambda: current(again, joined))
            assert not said
            b.sim.scheduler.hurry()
            await until(lambda: said)
        # Its old process did not get the change.
        assert [row["status_code"] for row in said[0].json()["results"]] == [200, 200, 502]
        assert said[0].json()["behind"] == []
        assert paths(again) == [DISK]
        assert current(a, b, again, joined)

    run_pool(test, *[IMAGES] * 3)


def test_one_that_is_behind_takes_no_turn(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        c.sim.faults.add("fail_next_update", count=3, status=400, message="busy")
        assert (await refit(pool, "v1")).status_code == 502
        await until(lambda: c.known.weights == "failed")
        async with trio.open_nursery() as nursery:
            await occupy(pool, nursery, a, b)
            nursery.start_soon(lambda: refit(pool, "v2", rolling="1"))
            await until(lambda: turn(a, b)[0] == "updating" and len(paths(c)) >= 3)
            a.sim.scheduler.hurry()
            b.sim.scheduler.hurry()
        await until(lambda: current(a, b, c))
        assert all(has(member, "v2") for member in (a, b, c))

    run_pool(test, *[IMAGES] * 3)


def test_a_new_run_ends_the_turns(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        async with rolling(pool, a, b, c) as said:
            a.sim.scheduler.hurry()
            await until(lambda: turn(a, b, c) == ["current", "updating", "current"])
            assert (await pool.http.post("/weights", json={"run": "two"})).status_code == 200
            b.sim.scheduler.hurry()
            await until(lambda: said)
            c.sim.scheduler.hurry()
        await until(lambda: current(a, b, c))
        assert paths(c) == []
        assert all(has(member, "image/a") for member in (a, b, c))
        assert (await pool.image()).headers["x-weight-version"] == "0"

    run_pool(test, *[IMAGES] * 3)


def test_where_it_cannot_be_given(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        async def no(path: str, content: object = None) -> str:
            answer = await pool.http.post(path, json=content or {"model_path": "v1"})
            return str(is_ours(answer, 400, "invalid_field")["error"])

        for value in ("0", "-1", "1.5", "", "0%", "101%", "x", "2 %", "%"):
            assert "1% to 100%" in await no(f"{DISK}?rolling={value.replace('%', '%25')}")
        assert "same moment" in await no("/update_weights_from_distributed?rolling=1")
        assert "same moment" in await no("/flush_cache?rolling=1")
        assert "transaction" in await no("/weights/begin?rolling=1", {"label": "x"})
        assert "transaction" in await no(f"{DISK}?txn=x&rolling=1")
        assert "?unwrap=" in await no(f"{DISK}?unwrap=true&rolling=1")
        large = {"serialized_named_tensors": ["x" * (3 << 20)]}
        assert "1 MiB" in await no(f"{TENSOR}?rolling=1", large)
        assert paths(a) == []
        await refitted(pool, "v1", rolling="100%")
        # As people type it.
        answer = await pool.http.post(f"{DISK}?rolling=50%", json={"model_path": "v2"})
        assert answer.status_code == 200
        assert (await ledger(pool))["weight_version"] == 2

    run_pool(test, IMAGES)
