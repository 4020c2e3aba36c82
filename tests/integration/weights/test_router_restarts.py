"""The router dies in the middle, and starts again on what its store holds."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from router import service
from router.errors import StateUnavailable
from router.server import open_listeners
from router.settings import RouterSettings
from router.store.journal import Journal
from router.store.store import Store
from simulated_worker import SimulatedWorker, WorkerConfig
from simulated_worker import serve as serve_worker
from tests.integration.api.pools import Member, is_ours, restart
from tests.integration.deployment import Deployment, run, until
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
    ledger,
    paths,
    refit,
    refitted,
)


class World:
    """Workers that outlive routers, and what is on the disk."""

    def __init__(self, nursery: trio.Nursery, folder: Path) -> None:
        self.nursery = nursery
        self.folder = folder
        self.deaths = 0
        self.workers: list[SimulatedWorker] = []

    async def worker(self) -> SimulatedWorker:
        config = WorkerConfig(
            port=0, model_path="image/a", time_scale=0.01, warmup_seconds=0, load_seconds=0
        )
        worker: SimulatedWorker = await self.nursery.start(serve_worker, config)
        self.workers.append(worker)
        return worker

    async def router(self, test: Callable[..., Awaitable[None]], **settings: Any) -> None:
        """A router of these workers until the test returns; then it is gone at once."""
        stop, store = trio.Event(), Store.open(self.folder)
        listeners = open_listeners("127.0.0.1", 0)
        urls = tuple(worker.url for worker in self.workers)
        options = {"host": "127.0.0.1", "health_check_interval": 0.05, **settings}
        async with trio.open_nursery() as nursery:
            given = RouterSettings(port=0, worker_urls=urls, **options)
            running = await nursery.start(service.serve, given, listeners, stop, store)
            address = f"http://127.0.0.1:{running.port}"
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=None) as http:
                pool = Deployment(running, http, self.nursery)
                registry = running.parts.registry
                members = [Member(sim, registry.get(sim.url)) for sim in self.workers]
                await until(lambda: all(m.known.health == "healthy" for m in members))
                await test(pool, *members)
                # As after a kill: what is on the disk now is what the next one finds.
                self.deaths += 1
                left = self.folder.with_name(f"state-{self.deaths}")
                shutil.copytree(self.folder, left)
                self.folder = left
            nursery.cancel_scope.cancel()
        store.close()


@pytest.fixture
def run_world(tmp_path: Path) -> Callable[..., None]:
    """`run_world(test, count)`: `test(world)` with so many workers."""

    def go(test: Callable[[World], Awaitable[None]], count: int = 2) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                world = World(nursery, tmp_path / "state")
                for _ in range(count):
                    await world.worker()
                await test(world)
                for worker in world.workers:
                    worker.kill()

        run(main)

    return go


RunWorld = Callable[..., None]


def test_versions_go_on_and_what_cannot_be_proven_is_replayed(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            # Only this one has made something that it can be known by.
            made = await pool.image()
            assert made.headers["x-worker-id"] == a.id

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await until(lambda: current(a, b))
            known = await ledger(pool)
            assert (known["weight_version"], known["label"]) == (1, "v1")
            assert has(a, "v1")
            assert paths(b) == [DISK, DISK]
            assert (await refitted(pool, "v2"))["weight_version"] == 2

        await world.router(before)
        await world.router(after)

    run_world(test)


def test_the_version_of_one_that_lags_is_not_made_up(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            assert (await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})).is_success
            await refitted(pool, "v2")

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await until(lambda: current(a) and b.known.suspicion is None)
            known = {row["worker_url"]: row for row in (await ledger(pool))["workers"]}
            assert known[a.sim.url]["weight_version"] == 2
            assert known[b.sim.url]["weight_version"] is None
            assert (await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})).is_success
            await until(lambda: current(a, b))
            assert b.known.weight_version == 2

        await world.router(before)
        await world.router(after)

    run_world(test)


def test_a_worker_that_was_replaced_meanwhile(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member) -> None:
            await refitted(pool, "v1")

        async def after(pool: Deployment, a: Member) -> None:
            answer = await pool.image()
            assert answer.headers["x-weight-version"] == "1"
            assert has(a, "v1")

        await world.router(before)
        sim = world.workers[0]
        sim.kill()
        await sim.ended.wait()
        config = WorkerConfig(port=sim.port, strict_ports=True, model_path="image/a",
                              time_scale=0.01, warmup_seconds=0, load_seconds=0)  # fmt: skip
        world.workers[0] = await world.nursery.start(serve_worker, config)
        await world.router(after)

    run_world(test, 1)


async def all_have_v2(pool: Deployment, a: Member, b: Member) -> None:
    await until(lambda: current(a, b))
    assert has(a, "v2")
    assert has(b, "v2")
    known = await ledger(pool)
    assert (known["weight_version"], known["pending"]) == (2, [])


@pytest.mark.parametrize("when", ["before any has it", "after one has it"])
def test_a_change_that_was_under_way_is_made(run_world: RunWorld, when: str) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            b.sim.faults.add("delay", path=DISK, by=0.5, count=1)
            if when == "before any has it":
                a.sim.faults.add("delay", path=DISK, by=0.5, count=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refit, pool, "v2")
                await until(lambda: len(paths(b)) == 2)
                if when == "after one has it":
                    await until(lambda: has(a, "v2") and current(a))
                nursery.cancel_scope.cancel()

        await world.router(before)
        await world.router(all_have_v2)

    run_world(test)


async def leave_a_partial_change(pool: Deployment, a: Member) -> None:
    """The router ends while it is made; the next one can make it once it has replayed v1."""
    await refitted(pool, "v1")
    a.sim.faults.add("delay", path=DISK, by=0.5, count=3)
    part = {"model_path": "v2", "target_modules": ["transformer"]}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: pool.http.post(DISK, json=part))
        await until(lambda: len(paths(a)) == 2)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("what", ["tensors", "a transaction"])
def test_what_cannot_wait_comes_after_a_change_that_was_under_way(
    run_world: RunWorld, what: str
) -> None:
    """Which waits itself until the worker has been brought up to what came before that."""

    async def test(world: World) -> None:
        async def after(pool: Deployment, a: Member) -> None:
            assert len((await ledger(pool))["pending"]) == 1
            txn = {}
            if what == "a transaction":
                txn = {"txn": (await pool.http.post("/weights/begin", json={})).json()["txn"]}
            answer = await pool.http.post(TENSOR, json=TENSORS, params=txn)
            assert answer.status_code == 200, answer.text
            if txn:
                assert (await pool.http.post("/weights/commit", json=txn)).is_success
            assert paths(a)[2:] == [DISK, DISK, TENSOR]
            assert current(a)
            assert (await ledger(pool))["pending"] == []

        await world.router(leave_a_partial_change)
        await world.router(after)

    run_world(test, 1)


@pytest.mark.parametrize("done", [0, 1])
def test_a_rolling_change_that_was_under_way_comes_to_all(run_world: RunWorld, done: int) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            gate = (a, b)[done]
            gate.sim.faults.add("hang", path=DISK, count=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: refit(pool, "v2", rolling="1"))
                await until(lambda: len(paths(gate)) == 2)
                assert b.known.weights == ("updating" if done else "current")
                nursery.cancel_scope.cancel()

        await world.router(before)
        await world.router(all_have_v2)

    run_world(test)


def test_a_client_that_gives_up_breaks_off_no_change_that_came_before(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def after(pool: Deployment, a: Member) -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: pool.http.post("/weights/begin", json={}))
                await until(lambda: paths(a)[2:] == [DISK, DISK])
                nursery.cancel_scope.cancel()
            await until(lambda: current(a))
            known = await ledger(pool)
            assert (known["weight_version"], known["pending"]) == (2, [])
            assert paths(a)[2:] == [DISK, DISK]

        await world.router(leave_a_partial_change)
        await world.router(after)

    run_world(test, 1)


def test_a_bad_change_that_was_under_way_is_void(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")
            for member in (a, b):
                member.sim.faults.add("delay", path=DISK, by=0.5, count=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(refit, pool, "/nonexistent/x")
                await until(lambda: len(paths(b)) == 2)
                nursery.cancel_scope.cancel()

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await until(lambda: current(a, b))
            assert has(a, "v1")
            assert has(b, "v1")
            known = await ledger(pool)
            assert known["weight_version"] == 1
            assert "/nonexistent/x" in known["last_error"]

        await world.router(before)
        await world.router(after)

    run_world(test)


def test_a_tensor_change_that_was_under_way_leaves_them_behind(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member) -> None:
            await refitted(pool, "v1")
            a.sim.faults.add("hang", path=TENSOR, count=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: pool.http.post(TENSOR, json=TENSORS))
                await until(lambda: paths(a)[-1] == TENSOR)
                nursery.cancel_scope.cancel()

        async def after(pool: Deployment, a: Member) -> None:
            await until(lambda: current(a))
            assert has(a, "v1")  # which is what can be proven

        await world.router(before)
        await world.router(after)

    run_world(test, 1)


def test_an_open_transaction_is_not_trusted(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member) -> None:
            await refitted(pool, "v1")
            txn = (await pool.http.post("/weights/begin", json={})).json()["txn"]
            half = {"model_path": "half", "target_modules": ["vae"]}
            await pool.http.post(DISK, json=half, params={"txn": txn})

        async def after(pool: Deployment, a: Member) -> None:
            await until(lambda: current(a))
            assert has(a, "v1")

        await world.router(before)
        await world.router(after)

    run_world(test, 1)


def test_what_waits_for_sleepers_waits_on(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member) -> None:
            await pool.http.post(SLEEP)
            await refitted(pool, "v1")

        async def after(pool: Deployment, a: Member) -> None:
            is_ours(await pool.image(), 503, "pool_asleep")
            assert len((await ledger(pool))["pending"]) == 1
            await pool.http.post(WAKE)
            answer = await pool.image()
            assert answer.headers["x-weight-version"] == "1"
            assert has(a, "v1")

        await world.router(before)
        await world.router(after)

    run_world(test, 1)


def test_a_lora_after_a_restart(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member) -> None:
            await refitted(pool, "v1")
            await pool.http.post(SET, json={"lora_nickname": "x", "lora_path": "loras/x"})

        async def after(pool: Deployment, a: Member) -> None:
            await until(lambda: current(a))
            assert a.known.weight_version == 2
            assert a.sim.scheduler.loras.identity
            is_ours(await refit(pool, "v3"), 409, "lora_active")
            again = await restart(pool, a, model_path="image/a")
            world.workers[0] = again.sim
            await until(lambda: paths(again) == [MERGE, UNMERGE, DISK, SET] and current(a))

        await world.router(before)
        await world.router(after)

    run_world(test, 1)


def test_nothing_is_begun_that_cannot_be_made_durable(
    run_world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        async def here(pool: Deployment, a: Member) -> None:
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", disk_full)
                for _ in range(2):
                    is_ours(await refit(pool, "v1"), 503, "state_unavailable")
                assert paths(a) == []
                assert current(a)
            await until(lambda: pool.running.parts.store.failing is None)
            await refitted(pool, "v1")

        await world.router(here)

    run_world(test, 1)


def test_a_disk_that_fails_in_the_middle_fences_nobody_for_ever(
    run_world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        async def here(pool: Deployment, a: Member, b: Member) -> None:
            for member in (a, b):
                member.sim.faults.add("delay", path=DISK, by=0.2, count=1)

            async def break_it() -> None:
                await until(lambda: paths(a) and paths(b))
                monkeypatch.setattr(Journal, "append", disk_full)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_it)
                is_ours(await refit(pool, "v1"), 503, "state_unavailable")
            assert current(a, b)
            assert a.known.weight_version == 1
            with pytest.raises(StateUnavailable):
                await pool.running.parts.store.commit()

        await world.router(here)

    run_world(test)


def test_a_transaction_outlives_a_full_disk(
    run_world: RunWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World) -> None:
        async def here(pool: Deployment, a: Member) -> None:
            http, store = pool.http, pool.running.parts.store
            txn = (await http.post("/weights/begin", json={})).json()["txn"]
            await refitted(pool, "v1", txn=txn)
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", disk_full)
                is_ours(await http.post("/weights", json={"weight_version": 0}), 503, FULL)
                for path in ("/weights/commit", "/weights/sync"):
                    body = {"txn": txn} if path == "/weights/commit" else {}
                    is_ours(await http.post(path, json=body), 503, FULL)
            await until(lambda: store.failing is None)
            done = await http.post("/weights/commit", json={"txn": txn})
            assert done.status_code == 200, done.text
            assert done.json()["weight_version"] == 1
            assert current(a)

        await world.router(here)

    run_world(test, 1)


FULL = "state_unavailable"


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_short_absence_may_be_trusted(run_world: RunWorld) -> None:
    async def test(world: World) -> None:
        async def before(pool: Deployment, a: Member, b: Member) -> None:
            await refitted(pool, "v1")

        async def after(pool: Deployment, a: Member, b: Member) -> None:
            await until(lambda: current(a, b))
            assert (await pool.image()).headers["x-weight-version"] == "1"
            assert (paths(a), paths(b)) == ([DISK], [DISK])  # nothing was replayed

        await world.router(before)
        await world.router(after, trust_downtime=60.0)

    run_world(test)
