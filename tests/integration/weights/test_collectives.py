"""Calls that all workers get at the same moment, and calls that no worker gets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from attrs import define, field

from router.control.order import SIGNALS
from router.pool.weights.recipe import BOUND, COLLECTIVES, GROUPS
from router.pool.worker import Worker
from router.relay.routes import ROUTES, How
from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import (
    Deployment,
    ScriptedWorker,
    answer,
    never,
    run_deployed,
    until,
    when,
)
from tests.integration.weights.refits import DISK, current, ledger

DISTRIBUTED, PAUSE = "/update_weights_from_distributed", "/pause_generation"
BODY = {"names": ["a"], "group_name": "g"}
DONE = answer(200, {"success": True})


@define(eq=False)
class Meeting:
    """Workers answer a call only once all of them have got it."""

    workers: list[ScriptedWorker]
    arrived: int = 0
    all_there: trio.Event = field(factory=trio.Event)

    def at(self, path: str) -> None:
        for worker in self.workers:
            worker.answers[path] = self._arrive

    async def _arrive(self, stream: trio.SocketStream) -> None:
        self.arrived += 1
        if self.arrived == len(self.workers):
            self.all_there.set()
        await self.all_there.wait()
        await stream.send_all(DONE)


async def two(pool: Deployment) -> tuple[list[ScriptedWorker], list[Worker]]:
    scripts = [await pool.script() for _ in range(2)]
    return scripts, [await pool.register(script.url) for script in scripts]


def asked(script: ScriptedWorker, path: str) -> int:
    return script.asked.count(f"POST {path}")


def test_the_table_names_these_calls() -> None:
    together = [route.path for route in ROUTES if route.how is How.TOGETHER]
    assert sorted(together) == sorted([*COLLECTIVES, *GROUPS, *SIGNALS])


@pytest.mark.parametrize("path", sorted(COLLECTIVES))
def test_all_get_a_collective_together_and_once(path: str) -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        Meeting(scripts).at(path)
        said = (await pool.http.post(path, json={**BODY, "label": "step 1"})).json()
        assert (said["success"], said["weight_version"]) == (True, 1)
        assert [row["success"] for row in said["results"]] == [True, True]
        assert [asked(script, path) for script in scripts] == [1, 1]
        assert {worker.weight_version for worker in workers} == {1}
        known = await ledger(pool)
        assert (known["label"], known["replayable"]) == ("step 1", False)

    run_deployed(test)


@pytest.mark.parametrize("path", [*GROUPS, *SIGNALS])
def test_all_get_what_changes_no_weights_together(path: str) -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        Meeting(scripts).at(path)
        said = (await pool.http.post(path, json=BODY)).json()
        assert said["success"] is True
        assert "weight_version" not in said
        assert {worker.weight_version for worker in workers} == {0}

    run_deployed(test)


def test_a_collective_waits_until_all_are_idle_and_a_signal_does_not() -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        over = trio.Event()
        for script in scripts:
            script.answers["/v1/images/generations"] = when(over, answer(200, {"data": []}))
            script.answers[DISTRIBUTED] = script.answers[PAUSE] = DONE
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            await until(lambda: any(worker.leases for worker in workers))
            nursery.start_soon(lambda: pool.http.post(DISTRIBUTED, json=BODY))
            await until(lambda: {worker.weights for worker in workers} == {"updating"})
            assert (await pool.http.post(PAUSE, json={})).json()["success"] is True
            assert [asked(script, PAUSE) for script in scripts] == [1, 1]
            assert [asked(script, DISTRIBUTED) for script in scripts] == [0, 0]
            over.set()
        assert [asked(script, DISTRIBUTED) for script in scripts] == [1, 1]

    run_deployed(test)


def test_no_worker_gets_a_collective_that_another_has_left() -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        over = trio.Event()
        for script in scripts:
            script.answers["/v1/images/generations"] = when(over, answer(200, {"data": []}))
            script.answers[DISTRIBUTED] = DONE
        answers: list[httpx.Response] = []

        async def change() -> None:
            answers.append(await pool.http.post(DISTRIBUTED, json=BODY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.image)
            await until(lambda: any(worker.leases for worker in workers))
            [idle] = [worker for worker in workers if not worker.leases]
            nursery.start_soon(change)
            await until(lambda: {worker.weights for worker in workers} == {"updating"})
            await pool.http.put(f"/workers/{idle.worker_id}", json={"is_dead": True})
            over.set()
        said = answers[0].json()
        assert (answers[0].status_code, said["weight_version"]) == (502, 0)
        codes = {row["worker_url"]: row["body"]["code"] for row in said["results"]}
        [busy] = [worker for worker in workers if worker is not idle]
        assert codes == {idle.url: "left_change", busy.url: "collective_broken"}
        assert [asked(script, DISTRIBUTED) for script in scripts] == [0, 0]
        assert {worker.weights for worker in workers} == {"current"}

    run_deployed(test)


async def hang_up(stream: trio.SocketStream) -> None:
    await trio.aclose_forcefully(stream)


# How a worker fails a collective, and what of its row tells it.
FAILURES = {
    "dies": (hang_up, "worker_failed"),
    "answers": (answer(500, {"success": False, "message": "no such group"}), None),
    "leaves": (never, "left_change"),
}


# Nothing holds the workers that get a call about a group: these cannot leave it.
BREAKS = [(path, how) for path in sorted(BOUND) for how in FAILURES]
BREAKS = [(path, how) for path, how in BREAKS if path not in GROUPS or how != "leaves"]


@pytest.mark.parametrize(("path", "how"), BREAKS)
def test_the_others_of_a_broken_collective_are_given_up(path: str, how: str) -> None:
    """They wait for the one that has failed, whatever `--refit-timeout` is."""

    async def test(pool: Deployment) -> None:
        (breaks, waits), (first, other) = await two(pool)
        breaks.answers[path], code = FAILURES[how]
        waits.answers[path] = never
        for script in (breaks, waits):
            script.answers[DISK] = DONE
        pool.running.parts.agents.grace = 0.2
        answers: list[httpx.Response] = []

        async def call() -> None:
            answers.append(await pool.http.post(path, json=BODY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await until(lambda: asked(breaks, path) and asked(waits, path))
            if how == "leaves":
                await pool.http.put(f"/workers/{first.worker_id}", json={"is_dead": True})
        said = answers[0].json()
        assert (answers[0].status_code, said["success"]) == (502, False)
        bodies = [row["body"] for row in said["results"]]
        assert bodies[0].get("code") == code
        assert bodies[1]["code"] == "collective_broken"
        assert f"{first.url} failed: " in bodies[1]["error"]
        if path in COLLECTIVES:
            assert said["weight_version"] == 0
            await until(lambda: asked(waits, DISK) == 1)  # nobody knows what it has
        await until(lambda: other.weights == "current")

    run_deployed(test)


@pytest.mark.parametrize("path", sorted(BOUND))
def test_no_worker_gets_a_collective_for_a_named_one_that_cannot_be_called(path: str) -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        for script in scripts:
            script.answers[path] = DONE
        out, stays = (worker.worker_id for worker in workers)
        await pool.http.put(f"/workers/{out}", json={"is_dead": True})
        query = {"workers": f"{out},{stays}"}
        said = is_ours(
            await pool.http.post(path, json=BODY, params=query), 503, "collective_broken"
        )
        assert [row["worker_id"] for row in said["deferred"]] == [out]
        assert [asked(script, path) for script in scripts] == [0, 0]
        assert (await pool.http.post(path, json=BODY)).json()["success"] is True  # whom it may have

    run_deployed(test)


def test_a_collective_that_all_but_one_have_done_stands() -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        over = trio.Event()
        scripts[0].answers[DISTRIBUTED] = hang_up
        scripts[1].answers[DISTRIBUTED] = when(over, DONE)
        answers: list[httpx.Response] = []

        async def call() -> None:
            answers.append(await pool.http.post(DISTRIBUTED, json=BODY))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            agent = pool.running.parts.agents._agents[workers[0]]
            await until(lambda: asked(scripts[0], DISTRIBUTED) and agent.claim is None)
            over.set()
        said = answers[0].json()
        assert [row["success"] for row in said["results"]] == [False, True]
        assert (said["weight_version"], workers[1].weights) == (1, "current")

    run_deployed(test)


def test_workers_given_up_have_left_their_transaction() -> None:
    async def test(pool: Deployment) -> None:
        (breaks, waits), (first, other) = await two(pool)
        path, breaks.answers[DISTRIBUTED] = DISTRIBUTED, answer(500, {"success": False})
        waits.answers[path] = never
        for script in (breaks, waits):
            script.answers[DISK] = DONE
        pool.running.parts.agents.grace = 0.2
        txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
        query = {"txn": txn}
        said = (await pool.http.post(path, json=BODY, params=query)).json()
        assert said["results"][1]["body"]["code"] == "collective_broken"
        await until(lambda: other.weights == "current")  # nothing holds it
        assert first.weights == "updating"
        again = (await pool.http.post(path, json=BODY, params=query)).json()
        assert [row["body"]["code"] for row in again["results"]] == ["left_change"]
        assert (
            f"left: {other.worker_id} (This call needs all" in again["results"][0]["body"]["error"]
        )
        assert [asked(script, path) for script in (breaks, waits)] == [1, 1]
        await pool.http.post("/weights/abort", json=query)
        await until(lambda: first.weights == "current")

    run_deployed(test)


def test_one_that_does_not_know_it_is_behind() -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        scripts[0].answers[DISTRIBUTED] = DONE
        refused = await pool.http.post(DISTRIBUTED, json=BODY)
        said = refused.json()
        assert (refused.status_code, said["weight_version"]) == (502, 1)
        assert [row["success"] for row in said["results"]] == [True, False]
        assert [worker.weights for worker in workers] == ["current", "behind"]

    run_deployed(test)


def test_none_that_knows_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        said = (await pool.http.post(DISTRIBUTED, json=BODY)).json()
        assert [row["status_code"] for row in said["results"]] == [404, 404]
        assert said["weight_version"] == 0
        assert current(a, b)

    run_pool(test, IMAGES, IMAGES)


def test_a_version_of_several_collectives() -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        calls = [*GROUPS, DISTRIBUTED, PAUSE]
        for path in calls:
            Meeting(scripts).at(path)
        txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
        for path in calls:
            said = (await pool.http.post(path, json=BODY, params={"txn": txn})).json()
            assert (said["success"], said["txn"], said["weight_version"]) == (True, txn, 0)
        unknown = await pool.http.post("/any/thing", json={}, params={"txn": txn})
        is_ours(unknown, 501, "unknown_weight_call")
        done = (await pool.http.post("/weights/commit", json={"txn": txn})).json()
        assert (done["success"], done["weight_version"]) == (True, 1)
        assert {worker.weights for worker in workers} == {"current"}

    run_deployed(test)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("path", sorted(COLLECTIVES))
def test_no_worker_of_a_transaction_gets_a_collective_after_one_has_left(
    path: str, named: bool
) -> None:
    async def test(pool: Deployment) -> None:
        scripts, workers = await two(pool)
        Meeting(scripts).at(path)
        begun = (await pool.http.post("/weights/begin", json={})).json()
        query = {"txn": begun["txn"], **({"workers": begun["workers"][1]} if named else {})}
        left, stays = begun["workers"]
        await pool.http.put(f"/workers/{left}", json={"is_dead": True})
        refused = await pool.http.post(path, json=BODY, params=query)
        assert refused.status_code == 502
        [row] = refused.json()["results"]
        assert (row["success"], row["body"]["code"]) == (False, "left_change")
        assert f"left: {left} (" in row["body"]["error"]
        assert [asked(script, path) for script in scripts] == [0, 0]
        ended = await pool.http.post("/weights/abort", json={"txn": begun["txn"], "touched": []})
        assert ended.status_code == 200
        assert {w.worker_id for w in workers if w.weights == "current"} >= {stays}

    run_deployed(test)


def test_workers_that_got_calls_of_their_own_are_given_up_too() -> None:
    """And not for what a worker has failed before its present call."""

    async def test(pool: Deployment) -> None:
        (breaks, waits), (first, other) = await two(pool)
        breaks.answers[DISTRIBUTED], waits.answers[DISTRIBUTED] = hang_up, never
        waits.answers[DISK] = DONE
        pool.running.parts.agents.grace = 1.0
        txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
        codes: dict[str, Any] = {}

        async def call(worker: Worker) -> None:
            query = {"txn": txn, "workers": worker.worker_id}
            said = (await pool.http.post(DISTRIBUTED, json=BODY, params=query)).json()
            codes[worker.url] = said["results"][0]["body"].get("code", said["success"])

        await call(first)
        assert codes == {first.url: "worker_failed"}
        over = trio.Event()
        breaks.answers[DISTRIBUTED] = when(over, DONE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, other)
            await until(lambda: asked(waits, DISTRIBUTED))
            nursery.start_soon(call, first)
            await until(lambda: asked(breaks, DISTRIBUTED) == 2)
            await trio.sleep(1.2)
            assert codes == {first.url: "worker_failed"}
            breaks.hang_up()
        assert codes == {first.url: "worker_failed", other.url: "collective_broken"}
        await until(lambda: other.weights == "current")

    run_deployed(test)


def test_a_worker_that_leaves_before_its_own_call_breaks_those_of_others() -> None:
    async def test(pool: Deployment) -> None:
        (_, waits), (first, other) = await two(pool)
        waits.answers[DISTRIBUTED], waits.answers[DISK] = never, DONE
        pool.running.parts.agents.grace = 0.3
        txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
        query = {"txn": txn, "workers": other.worker_id}
        answers: list[httpx.Response] = []

        async def call(path: str) -> None:
            answers.append(await pool.http.post(path, json=BODY, params=query))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, DISTRIBUTED)
            await until(lambda: asked(waits, DISTRIBUTED))
            await pool.http.put(f"/workers/{first.worker_id}", json={"is_dead": True})
        [row] = answers[0].json()["results"]
        assert row["body"]["code"] == "collective_broken"
        assert f"{first.url} failed: it was quarantined" in row["body"]["error"]

    run_deployed(test)


@pytest.mark.parametrize(
    "path",
    ["/load_lora_adapter", "/update_weights_from_ipc", "/v9/Weights/x", "/clear_cache", "/memory"],
)
def test_no_single_worker_gets_what_may_change_weights(run_pool: RunPool, path: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        body: dict[str, Any] = {"lora_name": "x"}
        said = is_ours(await pool.http.post(path, json=body), 501, "unknown_weight_call")
        assert said["hint"]
        assert not a.asked("POST", path)
        assert not b.asked("POST", path)

    run_pool(test, IMAGES, IMAGES)


def test_a_lora_forbids_collectives(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post("/v1/set_lora", json={"lora_nickname": "x", "lora_path": "x"})
        is_ours(await pool.http.post(DISTRIBUTED, json=BODY), 409, "lora_active")

    run_pool(test, IMAGES)
