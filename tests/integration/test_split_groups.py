"""Rollouts whose group is split over simulated workers, by a whole router."""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from router.pool.lifecycle import routable
from router.pool.worker import Worker
from router.relay.connection import Connection
from router.relay.upstream import Upstream
from simulated_worker import SimulatedWorker
from simulated_worker.msgpack import decode
from tests.integration.api.pools import Member, RunPool, is_ours, run_with_pool
from tests.integration.deployment import Deployment, until
from tests.integration.test_dispatch import LONG

PATH = "/rollout/generate"
SPLIT = {"x-split": "true"}
MODEL = {"model_path": "m"}
STEPS_PER_SECOND = 42e6 / 64**2


@pytest.fixture
def run_pool() -> RunPool:
    return run_with_pool


def rollout(count: int = 7, **more: Any) -> dict[str, Any]:
    # Seeds of different lengths in msgpack.
    shape = {"width": 64, "height": 64, "num_inference_steps": 2, "rollout_sde_type": "ode"}
    shape["rollout_log_prob_no_const"] = True
    return {"prompt": "a kite", "seed": 126, "num_outputs_per_prompt": count, **shape, **more}


def slow(seconds: float, count: int) -> dict[str, Any]:
    steps = round(seconds * STEPS_PER_SECOND)
    return rollout(count, num_inference_steps=steps, rollout=False)  # no tensors of all steps


def comparable(content: bytes) -> bytes:
    """The very bytes, but for what is never the same in two answers of a worker."""
    for sample in decode(content):
        assert sample["peak_memory_mb"] is None
        seconds = b"\xcb" + struct.pack(">d", sample["inference_time_s"])
        content = content.replace(sample["request_id"].encode(), b"id").replace(seconds, b"s")
    return content


def makers(answer: httpx.Response) -> list[tuple[str, int]]:
    """Who made how many samples, in their order."""
    words = [word.split(";n=") for word in answer.headers["x-split-workers"].split(", ")]
    return [(name, int(count)) for name, count in words]


def seeds(worker: SimulatedWorker) -> list[list[int]]:
    return [entry.facts["seeds"] for entry in worker.log.generations()]


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"rollout_return_dit_trajectory": True, "rollout_return_step_indices": [0]},
        {"rollout": False},
        {"simulate_bytes": 3_000_000},
    ],
)
def test_a_split_group_has_the_bytes_of_the_whole_one(
    run_pool: RunPool, more: dict[str, Any]
) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        body = rollout(**more)
        async with httpx.AsyncClient(base_url=members[0].url, trust_env=False) as direct:
            expected = await direct.post(PATH, json=body)
        before = len(members[0].sim.log.generations())
        answer = await pool.http.post(PATH, json=body, headers=SPLIT)
        assert answer.status_code == 200, answer.text
        same = comparable(answer.content) == comparable(expected.content)
        assert same  # pytest would print megabytes
        assert answer.headers["content-type"] == expected.headers["content-type"]
        assert answer.headers["x-weight-version"] == "0"
        found = makers(answer)
        assert [count for _, count in found] == [3, 2, 2]
        assert answer.headers["x-worker-id"] == found[0][0]
        by_id = {member.id: member for member in members}
        first = 126
        for name, count in found:
            member = by_id.pop(name)
            made = seeds(member.sim)[before if member is members[0] else 0 :]
            assert made == [list(range(first, first + count))]
            first += count
            sent = dict(member.asked("POST", PATH)[-1].headers)
            assert "x-split" not in sent
        assert not by_id
        for member in members:
            assert not member.known.holds

    run_pool(test, MODEL, MODEL, MODEL)


@pytest.mark.parametrize(
    ("headers", "body"),
    [({}, rollout()), ({"x-split": "false"}, rollout()), (SPLIT, rollout(1))],
)
def test_what_is_not_split_passes_unchanged(
    run_pool: RunPool, headers: dict[str, str], body: dict[str, Any]
) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        answer = await pool.http.post(PATH, json=body, headers=headers)
        assert len(decode(answer.content)) == body["num_outputs_per_prompt"]
        assert "x-split-workers" not in answer.headers
        assert answer.headers["content-length"] == str(len(answer.content))
        assert sum(len(seeds(member.sim)) for member in members) == 1

    run_pool(test, MODEL, MODEL)


def test_only_workers_that_are_free_get_parts(run_pool: RunPool) -> None:
    async def test(pool: Deployment, one: Member, two: Member) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, pool, slow(LONG, 1), [])
            await until(lambda: running(one) + running(two) == 1)
            answer = await pool.http.post(PATH, json=rollout(2), headers=SPLIT)
            assert len(decode(answer.content)) == 2
            assert "x-split-workers" not in answer.headers
            for member in (one, two):
                member.sim.scheduler.hurry()

    run_pool(test, {**MODEL, "time_scale": 1.0}, {**MODEL, "time_scale": 1.0})


async def post(pool: Deployment, body: dict[str, Any], answers: list[httpx.Response]) -> None:
    answers.append(await pool.http.post(PATH, json=body, headers=SPLIT, timeout=60))


def running(member: Member) -> int:
    return len(member.sim.scheduler.running)


def test_a_group_that_cannot_be_split_exactly_is_refused(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for wrong in ({"seed": None}, {"rollout_return_denoising_env": True}):
            answer = await pool.http.post(PATH, json=rollout(**wrong), headers=SPLIT)
            is_ours(answer, 400, "cannot_split")
        answer = await pool.http.post(PATH, json=rollout(), headers={"x-split": "yes"})
        is_ours(answer, 400, "invalid_header")
        big = rollout(prompt="x" * 1_000_000)
        is_ours(await pool.http.post(PATH, json=big, headers=SPLIT), 400, "cannot_split")
        assert [seeds(member.sim) for member in members] == [[], []]

    run_pool(test, MODEL, MODEL, peek_limit=1024)


def test_one_part_that_fails_fails_the_whole_and_the_others_go_on(run_pool: RunPool) -> None:
    async def test(pool: Deployment, one: Member, two: Member) -> None:
        one.sim.faults.add("fail_next_generation", message="out of memory")
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, pool, slow(LONG, 4), answers)
            await until(lambda: running(one) and running(two))
            one.sim.scheduler.hurry()
        [answer] = answers
        assert (answer.status_code, answer.json()) == (500, {"detail": "out of memory"})
        assert answer.headers["x-worker-id"] == one.id
        assert answer.headers.get_list("x-should-retry") == ["false"]
        assert "x-split-workers" not in answer.headers
        assert (one.known.ghosts, two.known.ghosts) == (0, 1)
        two.sim.scheduler.hurry()
        await until(lambda: not two.known.holds)

    run_pool(test, {**MODEL, "time_scale": 1.0}, {**MODEL, "time_scale": 1.0})


def test_a_client_that_leaves_leaves_ghosts(run_pool: RunPool) -> None:
    async def test(pool: Deployment, one: Member, two: Member) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, pool, slow(LONG, 4), [])
            await until(lambda: running(one) and running(two))
            nursery.cancel_scope.cancel()
        known: list[Worker] = [one.known, two.known]
        await until(lambda: all(worker.ghosts == 1 for worker in known))
        assert not any(worker.leases for worker in known)
        for member in (one, two):
            member.sim.scheduler.hurry()
        await until(lambda: not any(worker.holds for worker in known))

    run_pool(test, {**MODEL, "time_scale": 1.0}, {**MODEL, "time_scale": 1.0})


def test_a_key_gets_a_split_group_once(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        headers = {**SPLIT, "idempotency-key": "k"}
        first, second = [
            await pool.http.post(PATH, json=rollout(), headers=headers) for _ in range(2)
        ]
        assert second.headers["idempotent-replayed"] == "true"
        assert second.headers["x-split-workers"] == first.headers["x-split-workers"]
        assert len(decode(first.content)) == 7
        same = first.content == second.content
        assert same
        assert [len(seeds(member.sim)) for member in members] == [1, 1]

    run_pool(test, MODEL, MODEL)


def test_a_slow_client_holds_nothing_in_the_router(run_pool: RunPool) -> None:
    """The answers wait at their workers, whose slots are free."""

    async def test(pool: Deployment, *members: Member) -> None:
        body = rollout(2, simulate_bytes=30_000_000)
        async with pool.http.stream("POST", PATH, json=body, headers=SPLIT) as slow_one:
            assert slow_one.status_code == 200
            assert not any(member.known.holds for member in members)
            sent = [member.asked("POST", PATH)[0].sent_bytes for member in members]
            assert all(size < 20_000_000 for size in sent)
            size = sum([len(piece) async for piece in slow_one.aiter_raw(1024 * 1024)])
        assert size > 60_000_000
        await until(lambda: not any(member.known.leases for member in members))

    run_pool(test, MODEL, MODEL)


def test_a_key_is_free_once_the_process_that_failed_its_part_has_ended(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        headers, got = {**SPLIT, "idempotency-key": "k"}, []

        async def ask() -> None:
            got.append(await pool.http.post(PATH, json=slow(60, 6), headers=headers))

        for first, second in ((a, b), (b, a)):  # whichever part it is
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await until(lambda: a.sim.scheduler.running and b.sim.scheduler.running)
                before = first.known.incarnation
                first.sim.faults.add("restart", down=0)
            assert is_ours(got[-1], 502, "worker_disconnected")["retry_safe"] is False
            second.sim.scheduler.hurry()
            await until(lambda: first.known.incarnation > before)  # noqa: B023
            await until(lambda: first.known.health == "healthy" and not second.known.holds)  # noqa: B023
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: a.sim.scheduler.running and b.sim.scheduler.running)
            a.sim.scheduler.hurry()
            b.sim.scheduler.hurry()
        assert got[-1].status_code == 200
        assert "idempotent-replayed" not in got[-1].headers

    run_pool(test, MODEL, MODEL)


@pytest.mark.parametrize("fault", ["refused", "unreached"])
def test_a_key_whose_part_has_failed_for_sure_is_free_once_the_others_have_ended(
    run_pool: RunPool, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Deployment, one: Member, two: Member) -> None:
        headers, got = {**SPLIT, "idempotency-key": "k"}, []
        connection = Upstream.connection

        @asynccontextmanager
        async def late(
            upstream: Upstream, url: str, **more: Any
        ) -> AsyncGenerator[Connection, None]:
            if url == one.known.url and fault == "unreached" and not got:
                await until(lambda: running(two))
            async with connection(upstream, url, **more) as found:
                yield found

        monkeypatch.setattr(Upstream, "connection", late)

        async def ask() -> None:
            got.append(await pool.http.post(PATH, json=slow(LONG, 4), headers=headers))

        async with trio.open_nursery() as nursery:
            if fault == "refused":
                one.sim.faults.add("fail_next_generation", message="out of memory")
                nursery.start_soon(ask)
                await until(lambda: running(one) and running(two))
                one.sim.scheduler.hurry()
            else:
                one.sim.faults.add("refuse")
                nursery.start_soon(ask)
        one.sim.faults.add("clear")
        if fault == "refused":
            assert (got[-1].status_code, got[-1].json()) == (500, {"detail": "out of memory"})
        else:
            assert is_ours(got[-1], 502, "connect_failed")["retry_safe"] is False
        await until(lambda: routable(one.known) and not one.known.holds)
        made = len(seeds(one.sim)), len(seeds(two.sim))
        await ask()
        first, second = ({**got[i].json(), "request_id": ""} for i in (0, 1))
        assert (got[1].status_code, second) == (got[0].status_code, first)
        assert (len(seeds(one.sim)), len(seeds(two.sim))) == made
        two.sim.scheduler.hurry()
        await until(lambda: not two.known.holds)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: one.sim.scheduler.hurry() or two.sim.scheduler.hurry() or got[2:])
        assert got[-1].status_code == 200
        assert "idempotent-replayed" not in got[-1].headers

    timed = {**MODEL, "time_scale": 1.0}
    run_pool(test, timed, timed, retries=0)


def test_a_key_of_which_a_removed_worker_may_make_a_part_is_not_free(run_pool: RunPool) -> None:
    async def test(pool: Deployment, one: Member, two: Member) -> None:
        headers, got = {**SPLIT, "idempotency-key": "k"}, []

        async def ask() -> None:
            got.append(await pool.http.post(PATH, json=slow(LONG, 4), headers=headers))

        async with trio.open_nursery() as nursery:
            one.sim.faults.add("fail_next_generation", message="out of memory")
            nursery.start_soon(ask)
            await until(lambda: running(one) and running(two))
            one.sim.scheduler.hurry()
        await until(lambda: routable(one.known) and not one.known.holds)
        assert (await pool.http.delete(f"/workers/{two.id}")).status_code == 200
        await ask()
        assert [answer.status_code for answer in got] == [500, 500]
        assert got[1].headers["idempotent-replayed"] == "true"
        assert len(seeds(one.sim)) == 1
        two.sim.scheduler.hurry()

    timed = {**MODEL, "time_scale": 1.0}
    run_pool(test, timed, timed, retries=0)
