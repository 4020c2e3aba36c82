"""Weights of launched workers: their processes end with the router, or before it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import evolve

from router import program
from router.launch.phases import Phase
from router.pool.lifecycle import routable
from router.pool.worker import Worker
from router.settings import LauncherSettings
from tests.integration.deployment import Deployment, until
from tests.integration.lives import Lives
from tests.integration.weights.refits import SLEEP, WAKE, ledger, refit, refitted
from tests.launchers import FREE_PORTS, restarting

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

SIMULATED = (*program.self_command(), "simulate-worker", "--time-scale", "0.01")
Test = Callable[[Lives, LauncherSettings], Awaitable[None]]


@pytest.fixture
def run_launched(tmp_path: Path) -> Callable[[Test], None]:
    """`run_launched(test)`: `test(lives, launcher)`, with a launcher of one simulated worker."""

    def go(test: Test) -> None:
        async def main() -> None:
            async with trio.open_nursery() as nursery:
                lives = Lives(tmp_path / "state", nursery)
                launcher = LauncherSettings(
                    model="demo/image",
                    command=(*SIMULATED, "--load-seconds", "0"),
                    num_gpus_per_worker=0,
                    log_dir=str(tmp_path),
                    **FREE_PORTS,
                    **restarting("1ms"),
                )
                await test(lives, launcher)
                for worker in lives.workers:
                    worker.kill()

        async def bounded() -> None:
            with trio.fail_after(60):
                await main()

        trio.run(bounded, strict_exception_groups=True)

    return go


RunLaunched = Callable[[Test], None]


async def up(pool: Deployment) -> Worker:
    """The launched worker, once it is routable."""
    registry = pool.running.parts.registry
    await until(lambda: [w for w in registry if w.origin == "launched" and routable(w)], 30)
    return next(w for w in registry if w.origin == "launched")


async def truth(worker: Worker) -> Any:
    """What weights the worker's process has, by its own word."""
    async with httpx.AsyncClient(base_url=worker.url, trust_env=False, timeout=15) as http:
        answer = await http.post("/get_weights_checksum", json={"module_names": None})
        return answer.json()


async def loaded(pool: Deployment, worker: Worker, path: str) -> Any:
    """What the worker's process has after a full update from there."""
    await refitted(pool, path)
    return await truth(worker)


async def served(pool: Deployment) -> str:
    """The version that an image was made with."""
    answer = await pool.image()
    assert answer.status_code == 200, answer.text
    version: str = answer.headers["x-weight-version"]
    return version


def kill(pool: Deployment) -> None:
    [view] = pool.running.fleet.views()
    assert view.pid
    os.kill(view.pid, signal.SIGKILL)


def test_one_that_is_killed_is_refitted_before_it_serves(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            base = await truth(worker)
            first = await loaded(pool, worker, "v1")
            assert first != base
            kill(pool)
            await until(lambda: worker.incarnation == 2)
            assert await served(pool) == "1"  # it has waited for the new process
            assert await truth(worker) == first

    run_launched(test)


def test_one_that_dies_asleep_wakes_with_the_right_weights(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            first = await loaded(pool, worker, "v1")
            assert (await pool.http.post(SLEEP, json={})).is_success
            kill(pool)
            await until(lambda: pool.running.fleet.views()[0].phase is Phase.DOWN)
            # Nobody is there to be told, and yet it will be awake.
            answer = await pool.http.post(WAKE, json={})
            assert answer.status_code == 200, answer.text
            said = answer.json()
            assert said["results"] == []
            assert [row["worker_url"] for row in said["deferred"]] == [worker.url]
            assert await served(pool) == "1"
            assert await truth(worker) == first

    run_launched(test)


@pytest.mark.parametrize("goes_on", [{}, {"resume_weights": True}, {"run_id": "one"}])
@pytest.mark.parametrize("trusted", [0.0, 600.0])
def test_a_clean_stop_ends_the_weights_with_the_workers(
    run_launched: RunLaunched, goes_on: dict[str, Any], trusted: float
) -> None:
    """No matter how short the absence was: these processes are others for sure."""

    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        options: dict[str, Any] = {
            "launchers": (launcher,),
            "trust_downtime": trusted,
            **goes_on,
        }
        resume = bool(goes_on)
        async with lives.router(crash=False, **options) as pool:
            worker = await up(pool)
            base = await truth(worker)
            first = await loaded(pool, worker, "v1")
            port = int(worker.url.rpartition(":")[2])
        # At the same address, if nobody has taken the port meanwhile.
        options["launchers"] = (evolve(launcher, worker_base_port=port),)
        async with lives.router(crash=False, **options) as pool:
            worker = await up(pool)
            known = await ledger(pool)
            assert (known["weight_version"], known["latest_issued"]) == (int(resume), 1)
            assert await served(pool) == str(int(resume))
            assert await truth(worker) == (first if resume else base)
            assert (await refitted(pool, "v2"))["weight_version"] == 2  # no number twice

    run_launched(test)


@pytest.mark.parametrize("trusted", [0.0, 600.0])
def test_one_that_ended_with_a_killed_router(run_launched: RunLaunched, trusted: float) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        options: dict[str, Any] = {"launchers": (launcher,), "trust_downtime": trusted}
        async with lives.router(**options) as pool:
            worker = await up(pool)
            first = await loaded(pool, worker, "v1")
        async with lives.router(crash=False, **options) as pool:
            assert await served(pool) == "1"
            assert await truth(await up(pool)) == first

    run_launched(test)


def test_beside_a_worker_that_goes_on_the_ledger_does_too(run_launched: RunLaunched) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            other = await pool.simulated(model_path="demo/image")
            known = await pool.register(other.url)
            await until(lambda: routable(known))
            first = await loaded(pool, worker, "v1")
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            assert (await ledger(pool))["weight_version"] == 1
            assert await truth(worker) == first

    run_launched(test)


async def spoil(pool: Deployment, worker: Worker, times: int = 1) -> None:
    """Leave the worker of unknown weights, and the change void; fail so many times in all."""
    fault = {"fault": "fail_next_update", "status": 500, "effect": "partial", "count": times}
    async with httpx.AsyncClient(base_url=worker.url, trust_env=False) as http:
        (await http.post("/simulate", json=fault)).raise_for_status()
    assert (await refit(pool, "torn")).status_code == 502


def test_what_cannot_be_replayed_is_restarted_once_and_then_failed(
    run_launched: RunLaunched, tmp_path: Path
) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker, fleet = await up(pool), pool.running.fleet
            path = tmp_path / "v1"
            first = await loaded(pool, worker, str(path))
            path.mkdir()  # a folder without weights: it cannot be loaded any more
            await spoil(pool, worker)
            await until(lambda: worker.incarnation == 2, 30)
            await until(lambda: worker.weights == "failed", 30)
            refused = await pool.image()
            assert (refused.status_code, refused.json()["code"]) == (503, "weights_unavailable")
            [told] = (await pool.http.get("/workers")).json()["workers"]
            assert "missing weight files" in told["weights_reason"]
            assert fleet.views()[0].restarts == 1
            path.rmdir()
            assert (await pool.http.post("/weights/sync", json={})).status_code == 200
            assert await served(pool) == "1"
            assert await truth(worker) == first
            assert fleet.views()[0].restarts == 1

    run_launched(test)


def test_a_request_waits_while_one_that_cannot_be_replayed_is_restarted(
    run_launched: RunLaunched,
) -> None:
    async def test(lives: Lives, launcher: LauncherSettings) -> None:
        async with lives.router(crash=False, launchers=(launcher,)) as pool:
            worker = await up(pool)
            base = await truth(worker)
            await spoil(pool, worker, times=2)
            assert not routable(worker)
            await until(lambda: "it is restarted" in (worker.weights_reason or ""), 30)
            assert await served(pool) == "0"
            assert (worker.incarnation, await truth(worker)) == (2, base)

    run_launched(test)
