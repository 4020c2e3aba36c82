"""A new run of a trainer begins anew with the weights; the same run goes on."""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from typing import Any

import httpx
import pytest
import trio

from router.pool import events
from router.store.store import Store
from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours, restart
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    SET,
    SLEEP,
    WAKE,
    current,
    has,
    ledger,
    paths,
    refit,
    refitted,
)
from tests.integration.weights.test_router_restarts import RunWorld, World, run_world
from tests.integration.weights.test_transactions import begin, call, end

__all__ = ["run_world"]


async def _state(pool: Deployment, **said: Any) -> dict[str, Any]:
    answer = await pool.http.post("/weights", json=said)
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


async def _refit(pool: Deployment, *_: Member) -> None:
    await refitted(pool, "v1")


@pytest.mark.parametrize(
    ("first", "then", "goes_on"),
    [
        ({}, {}, True),
        ({"run_id": "one"}, {"run_id": "one"}, True),
        ({"run_id": "one"}, {"run_id": "two"}, False),
        ({"run_id": "one"}, {}, False),
        ({}, {"run_id": "one"}, False),
        ({"run_id": "one"}, {"run_id": "one", "fresh_weights": True}, False),
        ({}, {"fresh_weights": True}, False),
    ],
)
def test_versions_go_on_while_the_run_is_the_same(
    run_world: RunWorld,
    caplog: pytest.LogCaptureFixture,
    first: dict[str, Any],
    then: dict[str, Any],
    goes_on: bool,
) -> None:
    async def test(world: World) -> None:
        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await until(lambda: current(a, b))
            known = await ledger(pool)
            assert known["weight_version"] == (1 if goes_on else 0)
            assert known["latest_issued"] == 1
            assert known["run"] == then.get("run_id")
            for member in (a, b):
                # They had the weights of the run before; those of the start are loaded again.
                assert has(member, "v1" if goes_on else a.known.capabilities.model_path)
            answer = await pool.image()
            assert answer.headers["x-weight-version"] == str(known["weight_version"])
            assert (await refitted(pool, "w1"))["weight_version"] == 2

        await world.router(_refit, **first)
        with caplog.at_level(logging.WARNING, "router.control"):
            await world.router(after, **then)
        lines = [line for line in caplog.messages if "going on with weight version" in line]
        assert len(lines) == goes_on
        for line in lines:
            assert re.search(r"model image/a: .* version 1 \(v1\), issued \d+ \w+ ago", line)
            assert "--fresh-weights" in line

    run_world(test)


def test_a_request_names_the_run_and_a_restart_does_not_undo_it(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            start = a.known.capabilities.model_path
            served: list[bool] = []  # whether a worker that may serve has the weights of its start

            def observe(event: events.Event) -> None:
                if isinstance(event, events.FacetChanged) and event.new == "current":
                    [member] = [m for m in (a, b) if m.known is event.worker]
                    served.append(has(member, start))

            pool.running.parts.registry.subscribe(observe, events.FacetChanged)
            said = await _state(pool, run="two")
            assert said["begun_anew"] == ["image/a"]
            await until(lambda: current(a, b))
            assert served == [True, True]
            assert a.known.weight_version == 0
            assert (await _state(pool, run="two"))["begun_anew"] == []
            await refitted(pool, "w1")

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            known = await ledger(pool)
            assert (known["weight_version"], known["run"]) == (2, "two")
            await until(lambda: current(a, b))
            assert has(b, "w1")

        await world.router(before, run_id="one")
        await world.router(after, run_id="one")

    run_world(test)


def test_what_is_the_run_and_what_the_weights_are(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1", model="image/a")
        await refitted(pool, "v1", model="video/b")
        said = await _state(pool, run="two", model="image/a", weight_version=0)
        assert (said["begun_anew"], said["weight_version"]) == (["image/a"], 0)
        assert current(a, b)  # it is said that it has what it should
        assert len(paths(a)) == 1
        assert b.known.weight_version == 1
        # Its own run is known: only the other model begins anew.
        assert (await _state(pool, run="two"))["begun_anew"] == ["video/b"]

    run_pool(test, IMAGES, VIDEOS)


def test_no_worker_loads_anything_before_its_weights_are_said(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        made = len(paths(a)), len(paths(b))
        write = Store.commit

        async def commit(store: Store) -> None:  # a slow disk: what is due begins meanwhile
            for _ in range(100):
                await trio.lowlevel.checkpoint()
            await write(store)

        monkeypatch.setattr(Store, "commit", commit)
        said = await _state(pool, run="two", model="image/a", weight_version=1)
        assert (said["begun_anew"], said["weight_version"]) == (["image/a"], 1)
        assert current(a, b)
        assert (len(paths(a)), len(paths(b))) == made

    run_pool(test, IMAGES, IMAGES)


def test_a_refused_attestation_begins_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *_: Member) -> None:
        await refitted(pool, "v1", model="image/a")
        said = {"run": "two", "weight_version": 0}  # of which model?
        is_ours(await pool.http.post("/weights", json=said), 400, "ambiguous_target")
        assert (await _state(pool, run="two"))["begun_anew"] == ["image/a"]

    run_pool(test, IMAGES, VIDEOS)


def test_a_lora_of_the_run_before_is_taken_out(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        lora = {"lora_nickname": "ink", "lora_path": "loras/ink"}
        assert (await pool.http.post(SET, json=lora)).status_code == 200
        await _state(pool, run="two")
        await until(lambda: current(a))
        assert a.sim.scheduler.loras.identity == ""
        # Its weights were never changed: nothing is loaded.
        assert [path for path in paths(a) if "lora" not in path] == []

    run_pool(test, IMAGES)


@pytest.mark.parametrize("said", [{"run": ""}, {"run": 7}, {"run": "two", "workers": []}])
def test_a_run_is_a_name_and_of_no_worker(run_pool: RunPool, said: dict[str, Any]) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        is_ours(await pool.http.post("/weights", json=said), 400, "invalid_field")
        unknown = await pool.http.post("/weights", json={"run": "two", "model": "nobody"})
        is_ours(unknown, 404, "unknown_model")
        assert (await ledger(pool))["weight_version"] == 1

    run_pool(test, IMAGES)


async def _starts_anew(pool: Deployment, *members: Member) -> None:
    """The run changes while something of the old one is under way: nothing of it stays."""
    assert (await _state(pool, run="two"))["begun_anew"] == ["image/a"]
    await _has_begun_anew(pool, *members)


async def _has_begun_anew(pool: Deployment, *members: Member) -> None:
    await until(lambda: current(*members))
    assert all(has(member, "image/a") for member in members)
    assert (await pool.image()).headers["x-weight-version"] == "0"
    known = await ledger(pool)
    assert (known["weight_version"], known["label"], known["pending"]) == (0, None, [])


@pytest.mark.parametrize("slow", [0, 1])
def test_a_change_under_way_is_not_of_the_new_run(run_pool: RunPool, slow: int) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for member in members[slow:]:
            member.sim.faults.add("delay", path=DISK, by=0.5, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refit, pool, "v1")
            # With `slow` the change has its version before the run ends.
            await until(lambda: all(DISK in paths(m) for m in members))
            await until(lambda: all(m.known.weight_version == 1 for m in members[:slow]))
            await _starts_anew(pool, *members)
        assert (await refitted(pool, "w1"))["weight_version"] == 1 + slow

    run_pool(test, IMAGES, IMAGES)


def test_a_pending_change_under_way_is_not_of_the_new_run(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        assert (await refit(pool, "v1")).json()["pending"] is True
        a.sim.faults.add("delay", path=DISK, by=0.5, count=1)
        await pool.http.post(WAKE)
        await until(lambda: DISK in paths(a))
        await _starts_anew(pool, a)

    run_pool(test, IMAGES)


def test_a_replay_under_way_is_not_of_the_new_run(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        a = await restart(pool, a, **IMAGES)
        a.sim.faults.add("delay", path=DISK, by=0.5, count=1)
        await until(lambda: DISK in paths(a))
        await _starts_anew(pool, a)

    run_pool(test, IMAGES)


def test_an_open_transaction_is_not_of_the_new_run(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        txn = await begin(pool)
        assert (await call(pool, txn, DISK, {"model_path": "v1"})).status_code == 200
        assert (await _state(pool, run="two"))["begun_anew"] == ["image/a"]
        error = is_ours(await end(pool, "commit", txn), 409, "nothing_applied")
        assert "new run" in error["error"]
        await _has_begun_anew(pool, a)

    run_pool(test, IMAGES)


def test_a_router_that_dies_does_not_bring_the_old_run_back(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            for member in (a, b):
                member.sim.faults.add("delay", path=DISK, by=0.5, count=1)
            pool.nursery.start_soon(_and_dies, pool)
            await until(lambda: DISK in paths(a) and DISK in paths(b))
            assert (await _state(pool, run="two"))["begun_anew"] == ["image/a"]

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await _has_begun_anew(pool, a, b)

        await world.router(before)
        await world.router(after)

    run_world(test)


async def _and_dies(pool: Deployment) -> None:
    with suppress(httpx.HTTPError):
        await refit(pool, "v1")


def test_what_cannot_begin_before_the_start_weights_are_back_says_why(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refitted, pool, "v1")
            await until(lambda: paths(a) == [DISK])
            a.sim.scheduler.hurry()
        await _state(pool, run="two")
        begun = await pool.http.post("/weights/begin", json={"lora": True})
        refused = is_ours(begun, 503, "no_workers")
        assert "can take this call now" in refused["error"]
        assert [row["reasons"] for row in refused["deferred"]] == [["weights_behind"]]

        def back() -> bool:
            a.sim.scheduler.hurry()
            return current(a)

        await until(back)

    run_pool(test, {**IMAGES, "load_seconds": 60, "time_scale": 1.0})
