"""Calls of a transaction to some of its workers: each worker gets a body of its own."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from router.control.order import SIGNALS
from router.pool.weights.recipe import GROUPS
from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, direct_to, is_ours
from tests.integration.deployment import (
    Deployment,
    ScriptedWorker,
    answer,
    run_deployed,
    until,
    when,
)
from tests.integration.weights.refits import (
    DISK,
    SET,
    SLEEP,
    TENSOR,
    TENSORS,
    UNMERGE,
    WAKE,
    current,
    has,
    ledger,
    paths,
    refitted,
)
from tests.integration.weights.test_collectives import asked, two
from tests.integration.weights.test_transactions import begin, end

DONE, FAILED = answer(200, {"success": True}), answer(500, {"success": False})
LARGE = {**TENSORS, "padding": "x" * 1_200_000}  # so that it is not held


async def push(
    pool: Deployment, txn: str, *workers: str, path: str = TENSOR, body: Any = TENSORS
) -> httpx.Response:
    named = {"workers": ",".join(workers)} if workers else {}
    return await pool.http.post(path, json=body, params={"txn": txn, **named})


@pytest.mark.parametrize("padding", [0, 1_200_000])
def test_buckets_of_different_bodies_are_one_version(run_pool: RunPool, padding: int) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool, weight_version=7)

        async def buckets(member: Member) -> None:
            for bucket in "xy":
                body = {**TENSORS, "from": f"{member.id} {bucket}", "padding": "x" * padding}
                said = (await push(pool, txn, member.id, body=body)).json()
                assert (said["success"], said["txn"]) == (True, txn)
                assert [row["worker_url"] for row in said["results"]] == [member.url]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(buckets, a)
            nursery.start_soon(buckets, b)
        done = (await end(pool, "commit", txn)).json()
        assert (done["success"], done["weight_version"]) == (True, 7)
        assert done["workers"] == [a.id, b.id]
        assert current(a, b)
        assert [paths(member) for member in (a, b)] == [[TENSOR] * 2] * 2
        assert (await ledger(pool))["replayable"] is False

    run_pool(test, IMAGES, IMAGES)


def test_calls_run_side_by_side_but_for_one_worker_in_turn() -> None:
    async def test(pool: Deployment) -> None:
        (a, b), (known, other) = await two(pool)
        over = trio.Event()
        a.answers[TENSOR], b.answers[TENSOR] = when(over, DONE), DONE
        a.answers[DISK] = b.answers[DISK] = DONE
        txn = await begin(pool)
        ends: list[str] = []

        async def call(what: str, path: str, *workers: str) -> None:
            body = {**TENSORS, "model_path": "v1"}
            assert (await push(pool, txn, *workers, path=path, body=body)).status_code == 200
            ends.append(what)

        async def commit() -> None:
            assert (await end(pool, "commit", txn)).json()["success"] is True
            ends.append("commit")

        line = pool.running.parts.transactions._open[txn].turns._line
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "first", TENSOR, known.worker_id)
            await until(lambda: asked(a, TENSOR) == 1)
            nursery.start_soon(call, "second", DISK, known.worker_id)
            await until(lambda: len(line) == 2)
            await call("other", TENSOR, other.worker_id)
            await call("more", DISK, other.worker_id)
            assert len(line) == 2
            nursery.start_soon(call, "all", DISK)
            await until(lambda: len(line) == 3)
            nursery.start_soon(commit)
            await until(lambda: len(line) == 4)
            assert (ends, asked(a, DISK), asked(b, DISK)) == (["other", "more"], 0, 1)
            over.set()
        assert ends == ["other", "more", "first", "second", "all", "commit"]
        assert (asked(a, DISK), asked(b, DISK)) == (2, 2)

    run_deployed(test)


def test_one_that_no_such_call_named_is_behind(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        assert (await push(pool, txn)).status_code == 200  # the same for all
        assert (await push(pool, txn, a.id)).status_code == 200
        answer = await end(pool, "commit", txn)
        assert (answer.status_code, answer.json()["success"]) == (502, False)
        assert (answer.json()["workers"], answer.json()["behind"]) == ([a.id], [b.id])
        assert b.known.weights == "behind"
        assert current(a)

    run_pool(test, IMAGES, IMAGES)


def test_the_commit_may_say_who_has_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member, c: Member) -> None:
        txn = await begin(pool, workers=[a.id, b.id])
        assert (await push(pool, txn, a.id)).status_code == 200
        is_ours(await end(pool, "commit", txn, workers=[c.id]), 400, "invalid_field")
        is_ours(await end(pool, "commit", txn, workers=["http://x:1"]), 404, "unknown_worker")
        done = (await end(pool, "commit", txn, workers=[a.id, b.id])).json()
        assert done["workers"] == [a.id, b.id]
        assert current(a, b)

        txn = await begin(pool, workers=[a.id, b.id])  # b is pushed to past the router
        b.sim.faults.add("fail_next_update", status=500)
        assert (await push(pool, txn)).status_code == 502
        done = (await end(pool, "commit", txn, workers=[a.id, b.id])).json()
        assert (done["workers"], done["behind"]) == ([a.id], [b.id])

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_worker_that_is_not_of_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool, workers=[a.id])
        for body in (TENSORS, LARGE):
            said = is_ours(await push(pool, txn, a.id, b.id, body=body), 400, "invalid_field")
            assert said["workers"] == [b.id]
            assert b.id in said["error"]
        is_ours(await push(pool, txn, "http://x:1"), 404, "unknown_worker")
        query = {"txn": txn, "model": "image/a"}
        is_ours(await pool.http.post(TENSOR, json=TENSORS, params=query), 400, "invalid_field")
        assert paths(a) == paths(b) == []
        assert (await push(pool, txn, a.id)).status_code == 200
        assert (await end(pool, "commit", txn)).json()["workers"] == [a.id]

    run_pool(test, IMAGES, IMAGES)


def test_one_that_has_left(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        refused = await push(pool, txn, b.id)
        assert refused.status_code == 502
        assert [row["body"]["code"] for row in refused.json()["results"]] == ["left_change"]
        assert (await push(pool, txn, a.id)).status_code == 200
        assert (await push(pool, txn, a.id, b.id)).status_code == 502
        assert [paths(a), paths(b)] == [[TENSOR] * 2, []]
        done = (await end(pool, "commit", txn)).json()
        assert (done["workers"], done["behind"]) == ([a.id], [b.id])

    run_pool(test, IMAGES, IMAGES)


def test_a_part_of_a_disk_update_cannot_be_replayed(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        b.sim.faults.add("fail_next_update", status=500)
        for member, status in ((a, 200), (b, 502)):
            answer = await push(pool, txn, member.id, path=DISK, body={"model_path": "v1"})
            assert answer.status_code == status
        assert (await end(pool, "commit", txn)).json()["behind"] == [b.id]
        assert ((await ledger(pool))["replay"], b.known.weights) == ([], "behind")
        await refitted(pool, "v2")
        assert has(a, "v2")
        assert has(b, "v2")

    run_pool(test, IMAGES, IMAGES)


def test_a_call_for_some_that_failed_is_missing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        for member in (a, b):
            assert (await push(pool, txn, member.id)).status_code == 200
        bad = {"model_path": "bad/x"}  # a refusal that changes nothing
        assert (await push(pool, txn, a.id, path=DISK, body=bad)).status_code == 400
        done = (await end(pool, "commit", txn)).json()
        assert (done["workers"], done["behind"]) == ([b.id], [a.id])

    run_pool(test, IMAGES, IMAGES)


def test_all_of_its_workers_by_name_are_all(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        bad, good = {"model_path": "bad/x"}, {"model_path": "v1"}
        assert (await push(pool, txn, a.id, b.id, path=DISK, body=bad)).status_code == 400
        assert (await push(pool, txn, a.id, b.id, path=DISK, body=good)).status_code == 200
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert len((await ledger(pool))["replay"]) == 1

    run_pool(test, IMAGES, IMAGES)


def test_a_lora_of_each_worker(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool)
        lora = {"lora_nickname": "x", "lora_path": "x"}
        assert (await push(pool, txn, a.id, path=SET, body=lora)).status_code == 200
        merge = {**TENSORS, "weight_update_mode": "lora_merge"}
        assert (await push(pool, txn, b.id, body=merge)).status_code == 200
        for member in (a, b):
            refused = await push(pool, txn, member.id, path=DISK, body={"model_path": "v1"})
            assert is_ours(refused, 409, "lora_active")["workers"] == [member.id]
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert current(a, b)
        known = await ledger(pool)
        assert ([row["path"] for row in known["replay"]], known["replayable"]) == ([TENSOR], False)

    run_pool(test, IMAGES, IMAGES)


def test_what_brings_no_weights_names_nobody() -> None:
    async def test(pool: Deployment) -> None:
        (a, b), (known, other) = await two(pool)
        brackets = ("/begin_weight_update", "/end_weight_update")
        txn = await begin(pool)
        for path in (*GROUPS, *SIGNALS, *brackets):
            a.answers[path] = DONE
            said = (await push(pool, txn, known.worker_id, path=path)).json()
            assert (said["success"], len(said["results"])) == (True, 1)
            assert [asked(script, path) for script in (a, b)] == [1, 0]
        done = (await end(pool, "commit", txn)).json()
        assert done["workers"] == [known.worker_id, other.worker_id]

    run_deployed(test)


def test_questions_are_for_its_workers(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool, workers=[a.id])
        path = "/get_weights_checksum"
        said = (await push(pool, txn, path=path, body={})).json()
        assert [row["worker_url"] for row in said["results"]] == [a.url]
        is_ours(await push(pool, txn, b.id, path=path, body={}), 400, "invalid_field")

    run_pool(test, IMAGES, IMAGES)


def test_large_tensors_in_a_pool_of_two_models(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn = await begin(pool, model="image/a")
        assert (await push(pool, txn, body=LARGE)).status_code == 200
        assert [paths(a), paths(b)] == [[TENSOR], []]
        assert (await end(pool, "commit", txn)).json()["success"] is True
        is_ours(await push(pool, txn, body=LARGE), 404, "unknown_transaction")

    run_pool(test, IMAGES, VIDEOS)


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/v1/images/generations", 400, "invalid_field"),
        ("/rollout/generate", 400, "invalid_field"),
        ("/v1/videos", 400, "invalid_field"),
        (SLEEP, 400, "invalid_field"),
        (WAKE, 400, "invalid_field"),
        ("/update_weights_from_ipc", 501, "unknown_weight_call"),
        ("/any/thing", 501, "unknown_weight_call"),
    ],
)
def test_what_is_no_part_of_it_does_not_wait(
    run_pool: RunPool, path: str, status: int, code: str
) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        is_ours(await push(pool, txn, path=path, body={"prompt": "x"}), status, code)
        assert not a.asked("POST", path)
        assert (await end(pool, "abort", txn, touched=[])).status_code == 200

    run_pool(test, IMAGES)


CALLS = st.lists(st.tuples(st.sets(st.integers(0, 2)), st.sets(st.integers(0, 2))), max_size=4)


@settings(max_examples=15, deadline=None)
@given(CALLS)
def test_a_commit_names_the_workers_that_have_all(calls: list[tuple[set[int], set[int]]]) -> None:
    """Each call has the workers that it names (none: all), and the workers that fail it."""

    async def test(pool: Deployment) -> None:
        scripts: list[ScriptedWorker] = [await pool.script() for _ in range(3)]
        ids = [(await pool.register(script.url)).worker_id for script in scripts]
        txn = await begin(pool)
        for named, failing in calls:
            for i, script in enumerate(scripts):
                script.answers[TENSOR] = FAILED if i in failing else DONE
            told = await push(pool, txn, *(ids[i] for i in sorted(named)))
            reached = named or {0, 1, 2}
            assert told.json()["success"] is not bool(reached & failing)
        parts = [named for named, _ in calls if named and len(named) < 3]
        good = {
            i
            for i in range(3)
            if not any(i in (named or {i}) and i in failing for named, failing in calls)
            and (not parts or any(i in named for named in parts))
        }
        done = (await end(pool, "commit", txn)).json()
        if good:
            assert done["workers"] == [ids[i] for i in sorted(good)]
            assert done["behind"] == [name for name in ids if name not in done["workers"]]
        else:
            assert done["code"] == "nothing_applied"

    run_deployed(test)


LORA = {"lora_nickname": "x", "lora_path": "x"}


async def set_directly(*members: Member) -> None:
    for member in members:
        async with direct_to(member.url) as worker:
            assert (await worker.post(SET, json=LORA)).status_code == 200


def test_a_lora_pushed_past_the_router(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        for version in (2, 3):  # the second finds wrapped workers
            txn = await begin(pool, lora=True)
            await set_directly(a, b)
            done = (await end(pool, "commit", txn)).json()
            assert (done["success"], done["weight_version"]) == (True, version)
            assert current(a, b)
        said = is_ours(await pool.http.post(DISK, json={"model_path": "v2"}), 409, "lora_active")
        assert said["workers"] == [a.id, b.id]
        known = await ledger(pool)
        assert [row["path"] for row in known["replay"]] == [DISK, TENSOR]
        assert known["replayable"] is False

    run_pool(test, IMAGES, IMAGES)


def test_wrapped_workers_take_part_only_in_a_lora_transaction(run_pool: RunPool) -> None:
    """In any other each update would be refused half-way."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await pool.http.post(SET, json=LORA)).status_code == 200
        said = is_ours(await pool.http.post("/weights/begin", json={}), 409, "lora_active")
        assert said["workers"] == [a.id, b.id]
        assert '"lora": true' in said["error"]
        assert "?unwrap=true" in said["error"]
        await until(lambda: current(a, b))  # nothing holds them
        txn = await begin(pool, lora=True)
        new = {"lora_nickname": "y", "lora_path": "y"}
        assert (await push(pool, txn, path=SET, body=new)).status_code == 200
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


def test_no_update_in_a_lora_transaction(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        is_ours(await pool.http.post("/weights/begin", json={"lora": "yes"}), 400, "invalid_field")
        txn = await begin(pool, lora=True)
        for path, body in ((DISK, {"model_path": "v1"}), (TENSOR, TENSORS), (TENSOR, LARGE)):
            is_ours(await push(pool, txn, path=path, body=body), 409, "lora_active")
        assert (await push(pool, txn, path=SET, body=LORA)).status_code == 200
        assert (await end(pool, "commit", txn)).json()["success"] is True
        assert [row["path"] for row in (await ledger(pool))["replay"]] == [SET]
        assert a.sim.scheduler.loras.identity

    run_pool(test, IMAGES)


def test_an_aborted_lora_is_taken_out_and_no_weights_are_loaded(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        txn = await begin(pool, lora=True)
        await set_directly(a)
        assert (await end(pool, "abort", txn, touched=[a.id])).json()["unknown"] == [a.id]
        await until(lambda: current(a, b))
        assert has(a, "v1")
        assert [paths(a)[-1], paths(b)[-1]] == [UNMERGE, DISK]
        said = is_ours(await pool.http.post(DISK, json={"model_path": "v2"}), 409, "lora_active")
        assert said["workers"] == [a.id]

    run_pool(test, IMAGES, IMAGES)


def test_an_abort_ends_a_call_whose_body_still_comes(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        txn, aborted = await begin(pool), trio.Event()
        answers: list[httpx.Response] = []

        async def body() -> AsyncIterator[bytes]:
            yield json.dumps(TENSORS).encode()[:-1] + b" " * 1_200_000
            await aborted.wait()
            for _ in range(40):  # more than is held on the way
                yield b" " * 1_000_000
            yield b"}"

        async def send() -> None:
            query = {"txn": txn, "workers": a.id}
            with suppress(httpx.TransportError):  # the answer comes before the end of the body
                answers.append(await pool.http.post(TENSOR, content=body(), params=query))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await until(lambda: pool.running.parts.agents.client.is_calling(a.url, TENSOR))
            assert (await end(pool, "abort", txn)).json()["unknown"] == [a.id, b.id]
            aborted.set()
        assert [answer.status_code for answer in answers] in ([502], [])
        await until(lambda: current(a, b) and not pool.running.parts.weights.operations._line)

    run_pool(test, IMAGES, IMAGES)
