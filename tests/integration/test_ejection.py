"""A broken worker beside sound ones: it does not get what waits."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from router.settings.model import RoutingAlgorithm
from simulated_worker import SimulatedWorker
from tests.integration.deployment import (
    DEFAULTS,
    Deployment,
    RunRouter,
    ScriptedWorker,
    answer,
    until,
)
from tests.integration.test_dispatch import image, registered, video, worker_of
from tests.patience import fail_after

GENERATIONS = "/v1/images/generations"
FAILED = answer(500, body=b"Internal Server Error")


async def burst(router: Deployment, count: int, seconds: float = 0.03) -> list[int]:
    """The statuses of so many images that are asked for at once."""
    got: list[int] = []

    async def ask(number: int) -> None:
        content = image(seconds, prompt=str(number))
        got.append((await router.http.post(GENERATIONS, json=content)).status_code)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(ask, number)
    return got


async def broken(router: Deployment, **config: Any) -> SimulatedWorker:
    worker = await registered(router, **config)
    worker.faults.add("fail_next_generation", count=1000)
    return worker


@pytest.mark.parametrize("policy", RoutingAlgorithm)
@pytest.mark.parametrize("sound", [1, 3])
def test_one_broken_worker_fails_two_of_forty_requests(
    run_router: RunRouter, policy: RoutingAlgorithm, sound: int
) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        for _ in range(sound):
            await registered(router)
        got = await burst(router, 40)
        assert got.count(200) >= 38, got
        state = await worker_of(router, worker)
        assert (state["routable"], state["reasons"]) == (False, ["on_trial"])
        assert "2 failures in a row" in state["trial"]["reason"]
        health = (await router.http.get("/health")).json()
        assert (health["healthy_workers"], health["workers_on_trial"]) == (sound, 1)

    run_router(test, routing_algorithm=policy)


def test_a_worker_whose_answers_break_off_has_not_succeeded(run_router: RunRouter) -> None:
    async def torn(stream: trio.SocketStream) -> None:
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{}")
        await trio.aclose_forcefully(stream)

    async def test(router: Deployment) -> None:
        worker = await router.script(**{GENERATIONS: torn})
        await router.register(worker.url)
        await registered(router, model_path="m")
        failures = 0
        for _ in range(40):
            try:
                (await router.http.post(GENERATIONS, json=image(0.01))).raise_for_status()
            except httpx.RemoteProtocolError:
                failures += 1
        assert failures <= 2

    run_router(test)


@pytest.mark.parametrize("polled", [True, False], ids=["polled", "not polled"])
def test_jobs_that_fail_at_once_do_not_go_to_the_same_worker(
    run_router: RunRouter, polled: bool
) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router, model_path="wan/m")
        for _ in range(3):
            await registered(router, model_path="wan/m")
        jobs: list[str] = []
        for _ in range(20):
            submitted = await router.http.post("/v1/videos", json=video(0.05))
            jobs.append(submitted.raise_for_status().json()["id"])
            if polled:
                await over(router, jobs[-1])
            else:  # the router learns by itself how it ended
                await until(lambda: not any(r.holds for r in router.running.parts.registry))
        statuses = [await over(router, job) for job in jobs]
        assert statuses.count("completed") >= 18, statuses
        assert "a job failed at once" in (await worker_of(router, worker))["trial"]["reason"]

    run_router(test)


async def over(router: Deployment, job: str) -> str:
    while True:
        status: str = (await router.http.get(f"/v1/videos/{job}")).json()["status"]
        if status in ("completed", "failed"):
            return status
        await trio.sleep(0.01)


def test_a_worker_that_is_mended_serves_again(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        await registered(router)
        assert (await burst(router, 10)).count(500) == 2
        record = router.running.parts.registry.get(worker.url)
        assert record.trial is not None
        worker.faults.clear()
        done = len(worker.log.generations())
        with fail_after(10):
            while record.trial is not None:
                assert await burst(router, 4) == [200] * 4
        assert await burst(router, 4) == [200] * 4
        assert len(worker.log.generations()) >= done + 2

    run_router(test, ejection_pause=0.1)


def test_what_waits_gets_the_trial_when_the_pause_is_over(run_router: RunRouter) -> None:
    """Nothing else happens then: the other worker is busy, and nobody comes."""

    async def test(router: Deployment) -> None:
        worker = await broken(router)
        sound = await registered(router)
        assert (await burst(router, 4)).count(500) == 2
        worker.faults.clear()
        got: list[httpx.Response] = []

        async def ask(seconds: float) -> None:
            got.append(await router.http.post(GENERATIONS, json=image(seconds)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, 1e6)
            await until(lambda: sum(r.active_requests for r in router.running.parts.registry) == 1)
            nursery.start_soon(ask, 0.02)
            await until(lambda: got)
            assert got[0].headers["x-worker-id"] == (await worker_of(router, worker))["worker_id"]
            sound.scheduler.hurry()

    run_router(test, ejection_pause=0.02)


def test_nobody_is_ejected_if_all_fail_alike(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        workers = [await broken(router) for _ in range(3)]
        for _ in range(30):
            assert (await router.image()).status_code == 500
        records = [router.running.parts.registry.get(worker.url) for worker in workers]
        assert not any(record.trial for record in records)

    run_router(test)


def test_the_only_worker_is_never_ejected(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        for _ in range(5):
            assert (await router.image()).status_code == 500
        assert (await worker_of(router, worker))["routable"] is True

    run_router(test)


def test_the_last_worker_serves_though_it_is_on_trial(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        sound = await registered(router)
        await burst(router, 6)
        assert (await worker_of(router, worker))["reasons"] == ["on_trial"]
        worker.faults.clear()
        await router.http.put(f"/workers/{sound.url}", json={"is_dead": True})
        with fail_after(3):
            assert (await router.image()).status_code == 200
        assert (await worker_of(router, worker))["routable"] is True  # a success frees it

    run_router(test, ejection_pause=30)


def test_refusals_of_requests_do_not_count(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        refusing = await router.script(**{GENERATIONS: answer(422, {"detail": []})})
        await router.register(refusing.url)
        await router.register((await router.script()).url)
        got = [(await router.image()).status_code for _ in range(12)]
        assert got.count(422) >= 3
        assert router.running.parts.registry.get(refusing.url).trial is None

    run_router(test)


@pytest.mark.parametrize(
    ("status", "pause"),
    [(503, b"Retry-After: 600\r\n"), (429, b"Retry-After: 600\r\n"), (429, b"")],
)
def test_a_worker_that_asks_for_a_pause_gets_one(
    run_router: RunRouter, status: int, pause: bytes
) -> None:
    async def test(router: Deployment) -> None:
        busy = answer(status, {}).replace(b"X\r\n", b"X\r\n" + pause)
        asking = await router.script(**{GENERATIONS: busy})
        await router.register(asking.url)
        await router.register((await router.script()).url)
        got = [(await router.image()).status_code for _ in range(8)]
        assert got.count(status) == 1
        state = (await router.http.get(f"/workers/{asking.url}")).json()["worker"]
        assert (state["reasons"], state["trial"]) == (["backpressure"], None)
        asking.answers[GENERATIONS] = DEFAULTS[GENERATIONS]
        record = router.running.parts.registry.get(asking.url)
        await until(lambda: not record.paused)  # it is bounded, and nobody has to ask

    run_router(test, ejection_max_pause=2.0)


def test_a_pause_of_all_is_waited_for(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        busy = answer(503, {}).replace(b"X\r\n", b"X\r\nRetry-After: 1\r\n")
        worker = await router.script(**{GENERATIONS: busy})
        await router.register(worker.url)
        before = trio.current_time()
        assert (await router.image()).status_code == 503
        worker.answers[GENERATIONS] = DEFAULTS[GENERATIONS]
        assert (await router.image()).status_code == 200
        assert trio.current_time() - before > 0.3

    run_router(test)


async def dies(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def dies_late(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
    await stream.aclose()


@pytest.mark.parametrize("fault", [dies, dies_late])
def test_answers_that_break_off_count(
    run_router: RunRouter, fault: Callable[[trio.SocketStream], Any]
) -> None:
    async def test(router: Deployment) -> None:
        worker: ScriptedWorker = await router.script(**{GENERATIONS: fault})
        await router.register(worker.url)
        await router.register((await router.script()).url)
        record = router.running.parts.registry.get(worker.url)
        for _ in range(40):
            with contextlib.suppress(httpx.RemoteProtocolError):
                await router.image()
            await until(lambda: not record.troubled)
        assert record.trial is not None
        assert worker.asked.count(f"POST {GENERATIONS}") <= 8

    run_router(test)


def test_another_process_begins_without_trial(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        await registered(router)
        await burst(router, 6)
        record = router.running.parts.registry.get(worker.url)
        assert record.trial is not None
        worker.faults.clear()
        worker.faults.add("restart", down=0.05)
        await until(lambda: record.incarnation == 2 and record.health == "healthy", within=10)
        assert record.trial is None

    run_router(test, ejection_pause=30)


def test_no_number_of_failures_counts_if_so_set(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await broken(router)
        await registered(router)
        assert (await burst(router, 12)).count(500) > 4
        assert (await worker_of(router, worker))["routable"] is True

    run_router(test, ejection_failures=None)
