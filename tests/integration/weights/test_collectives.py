"""Calls that all workers get at the same moment, and calls that no worker gets."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from attrs import define, field

from router.control.refit import GROUPS, SIGNALS
from router.pool.weights.recipe import COLLECTIVES
from router.pool.worker import Worker
from router.relay.routes import ROUTES, How
from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import (
    Deployment,
    ScriptedWorker,
    answer,
    run_deployed,
    until,
    when,
)
from tests.integration.weights.refits import current, ledger

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
        assert {row["body"]["code"] for row in said["results"]} == {"left_change"}
        assert [asked(script, DISTRIBUTED) for script in scripts] == [0, 0]
        assert {worker.weights for worker in workers} == {"current"}

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
