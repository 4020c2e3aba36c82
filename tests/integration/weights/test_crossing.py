"""Events that cross a weight change: workers join, leave and wake while it is being made."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio

from router.pool.weights import Change, Ledgers
from router.pool.worker import Worker
from router.store.journal import Journal
from router.store.store import Store
from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until
from tests.integration.lives import Lives, run_lives
from tests.integration.weights.refits import (
    DISK,
    SLEEP,
    TENSOR,
    TENSORS,
    WAKE,
    current,
    has,
    paths,
    refit,
    refitted,
)


async def join(pool: Deployment) -> Member:
    sim = await pool.simulated(**IMAGES)
    await pool.http.post("/workers", json={"url": sim.url})
    return Member(sim, pool.running.parts.registry.get(sim.url))


def test_a_worker_that_joins_while_a_pending_change_is_made(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP, json={})
        assert (await refit(pool, "v1")).json()["pending"] is True
        a.sim.faults.add("delay", path=DISK, by=0.4, count=1)
        await pool.http.post(WAKE, json={})
        await until(lambda: paths(a) == [DISK])
        b = await join(pool)
        assert not current(b)
        await until(lambda: current(a, b), within=10)
        assert has(a, "v1")
        assert has(b, "v1")

    run_pool(test, IMAGES)


def test_a_worker_that_joins_during_the_full_change_after_tensors(run_pool: RunPool) -> None:
    """Nothing can replay tensors, so only the full change makes the joiner current."""

    async def test(pool: Deployment, a: Member) -> None:
        assert (await pool.http.post(TENSOR, json=TENSORS)).status_code == 200
        a.sim.faults.add("delay", path=DISK, by=0.4, count=1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refitted, pool, "v2")
            await until(lambda: paths(a) == [TENSOR, DISK])
            b = await join(pool)
        await until(lambda: current(a, b), within=10)
        assert has(b, "v2")

    run_pool(test, IMAGES)


def test_a_worker_that_leaves_the_first_change_and_registers_again(run_pool: RunPool) -> None:
    """It may have applied the change or not: it must not serve as if nothing had happened."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refit, pool, "v1")
            await until(lambda: paths(a) and paths(b))
            await pool.http.delete(f"/workers/{a.id}")
            await pool.http.delete(f"/workers/{b.id}")
        for member in (a, b):
            await pool.http.post("/workers", json={"url": member.url})
        for member in (a, b):
            known = pool.running.parts.registry.get(member.url)

            def brought_back(member: Member = member, known: Worker = known) -> bool:
                member.sim.scheduler.hurry()  # one load after the other
                return known.weights == "current"

            await until(brought_back, within=10)
            # Brought back to the weights of its start, which version 0 stands for.
            assert has(member, IMAGES["model_path"])
            assert paths(member) == [DISK, DISK]

    # A worker loads in the order in which it was asked to: a late answer alone would not show it.
    slow = {**IMAGES, "load_seconds": 60, "time_scale": 1.0}
    run_pool(test, slow, slow)


def test_a_worker_that_is_removed_while_the_intent_is_written(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not called: it may be registered again by then, and serve."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        open_intent, commit = Ledgers.open, Store.commit

        def opened(ledgers: Ledgers, change: Change, workers: Iterable[Worker]) -> None:
            open_intent(ledgers, change, workers)
            monkeypatch.setattr(Store, "commit", removing)

        async def removing(store: Store) -> None:
            monkeypatch.setattr(Store, "commit", commit)
            pool.running.parts.registry.remove(b.known)
            await commit(store)

        monkeypatch.setattr(Ledgers, "open", opened)
        assert (await refit(pool, "v1")).status_code == 502
        assert (paths(a), paths(b)) == ([DISK], [])

    run_pool(test, IMAGES, IMAGES)


def test_a_change_that_waits_behind_a_wake_with_a_pending_change(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP, json={})
        assert (await refit(pool, "v1")).json()["pending"] is True
        a.sim.faults.add("delay", path=WAKE, by=0.3, count=1)
        answers: dict[str, Any] = {}

        async def change(path: str) -> None:
            answers[path] = await refit(pool, path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: pool.http.post(WAKE, json={}))
            await until(lambda: a.asked("POST", WAKE))
            for path in ("v2", "v3"):
                nursery.start_soon(change, path)
                await trio.sleep(0.05)
        assert {path: said.status_code for path, said in answers.items()} == {"v2": 200, "v3": 200}
        await until(lambda: current(a))
        assert has(a, "v3")

    run_pool(test, IMAGES)


def test_a_pending_change_that_cannot_be_written_pauses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its end looks for what else there is to do: that is no reason to try again at once."""

    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def tries() -> int:
        return sum(" waits: " in record.getMessage() for record in caplog.records)

    async def test(lives: Lives) -> None:
        async with lives.router() as pool:
            sim = await pool.simulated(**IMAGES)
            await pool.register(sim.url)
            a = Member(sim, pool.running.parts.registry.get(sim.url))
            await pool.http.post(SLEEP, json={})
            assert (await refit(pool, "v1")).json()["pending"] is True
            sim.faults.add("delay", path=WAKE, by=0.3, count=1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: pool.http.post(WAKE, json={}))
                await until(lambda: a.asked("POST", WAKE))
                with monkeypatch.context() as patch:
                    patch.setattr(Journal, "append", disk_full)
                    await until(tries)
                    for _ in range(200):
                        await trio.lowlevel.checkpoint()
                    assert tries() <= 2
            await until(lambda: current(a), 15)
            assert has(a, "v1")

    run_lives(test, tmp_path)


def test_a_begin_that_a_full_disk_refused_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def test(lives: Lives) -> None:
        async with lives.router() as pool:
            sim = await pool.simulated(**IMAGES)
            await pool.register(sim.url)
            with monkeypatch.context() as patch:
                patch.setattr(Journal, "append", disk_full)
                is_ours(await pool.http.post("/weights/begin", json={}), 503, "state_unavailable")
            await until(lambda: pool.running.parts.store.failing is None)
        async with lives.router() as pool:
            known = pool.running.parts.registry.get(sim.url)
            await until(lambda: known.health == "healthy")
            await until(lambda: known.weights == "current")
            assert (await pool.image()).status_code == 200

    run_lives(test, tmp_path)
