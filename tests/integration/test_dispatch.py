"""Late binding over real sockets: slots, waiting, jobs, ghosts, turns, retries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from router import service
from router.server import open_listeners
from router.settings import RouterSettings
from simulated_worker import SimulatedWorker, WorkEntry
from tests.integration.deployment import Deployment, RunRouter, run, until
from tests.patience import fail_after, stretched

Json = dict[str, Any]

LONG = 60
"""Seconds of a generation that lasts until the test ends it by `scheduler.hurry()`."""


def image(seconds: float, **more: Any) -> Json:
    """An image that takes a simulated worker of time scale 1 about so long."""
    steps = max(1, round((seconds - 0.01) * 42e6 / (64 * 64)))
    return {"prompt": "p", "size": "64x64", "num_inference_steps": steps, **more}


def video(seconds: float) -> Json:
    steps = max(1, round((seconds - 0.01) * 800e6 / (64 * 64 * 10)))
    return {"prompt": "p", "size": "64x64", "num_frames": 10, "num_inference_steps": steps}


async def worker_of(router: Deployment, worker: SimulatedWorker) -> Json:
    answer = await router.http.get(f"/workers/{worker.url}")
    content: Json = answer.raise_for_status().json()["worker"]
    return content


async def registered(router: Deployment, **config: Any) -> SimulatedWorker:
    """A routable simulated worker in real time; slower where the machine is loaded, so that what
    a test does meanwhile has its time."""
    worker = await router.simulated(**{"time_scale": stretched(1.0), **config})
    await router.register(worker.url)
    return worker


def at_once(entries: list[WorkEntry]) -> int:
    """The most generations that the worker had at a time, waiting ones included."""
    moments = [(entry.queued, 1) for entry in entries]
    moments += [(entry.end or math.inf, -1) for entry in entries]
    most = count = 0
    for _, step in sorted(moments):
        count += step
        most = max(most, count)
    return most


@asynccontextmanager
async def meanwhile():  # type: ignore[no-untyped-def]
    """A nursery that is cancelled at the end of the block."""
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


async def post(
    router: Deployment, answers: list[httpx.Response], content: Json, **more: Any
) -> None:
    answers.append(await router.http.post("/v1/images/generations", json=content, **more))


def test_nobody_gets_more_than_its_slots(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        one = await registered(router)
        two = await registered(router, dp_size=2)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(24):
                nursery.start_soon(post, router, answers, image(0.05))
        assert [answer.status_code for answer in answers] == [200] * 24
        assert at_once(one.log.generations()) == 1
        assert at_once(two.log.generations()) == 2
        assert len(two.log.generations()) > len(one.log.generations()) > 4
        for worker in (one, two):
            state = await worker_of(router, worker)
            assert (state["slots_in_use"], state["active_requests"]) == (0, 0)
            assert state["outstanding_seconds"] == 0
            assert state["seconds_per_unit_of_work"]["/v1/images/generations"] > 0

    run_router(test)


def test_slots_can_be_set_while_requests_wait(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router, dp_size=3)
        assert (await worker_of(router, worker))["max_concurrency"] == 1
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: router.running.parts.dispatcher.queue.waiting == 2)
            changed = await router.http.put(
                f"/workers/{worker.url}", json={"max_concurrency": "auto"}
            )
            assert changed.json()["worker"]["max_concurrency"] == 3
            await until(lambda: len(worker.scheduler.running) == 3)
            worker.scheduler.hurry()
        assert at_once(worker.log.generations()) == 3

    run_router(test, worker_concurrency=1)


def test_a_slot_is_free_while_a_slow_client_still_reads(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router, rollout_bytes=30_000_000)
        rollout = {"prompt": "p", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 1}
        async with router.http.stream("POST", "/rollout/generate", json=rollout) as slow:
            assert slow.status_code == 200
            state = await worker_of(router, worker)
            assert (state["slots_in_use"], state["active_requests"]) == (0, 1)
            with fail_after(3):
                assert (await router.image()).status_code == 200
            assert (await worker_of(router, worker))["active_requests"] == 1
            size = sum([len(piece) async for piece in slow.aiter_raw(1024 * 1024)])
        assert size > 30_000_000
        await until(lambda: not router.running.parts.registry.get(worker.url).leases)

    run_router(test)


def test_who_leaves_while_waiting_never_reaches_a_worker(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        queue = router.running.parts.dispatcher.queue
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: worker.scheduler.running)
            async with meanwhile() as leaving:
                leaving.start_soon(post, router, answers, image(0.05, prompt="leaves"))
                await until(lambda: queue.waiting == 1)
            await until(lambda: queue.waiting == 0)
            worker.scheduler.hurry()
            nursery.start_soon(post, router, answers, image(0.05, prompt="stays"))
        assert len(answers) == 2
        prompts = [entry.facts["prompt"] for entry in worker.log.generations()]
        assert prompts == ["p", "stays"]

    run_router(test)


def test_who_leaves_while_it_generates_leaves_a_ghost(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        async with meanwhile() as leaving:
            leaving.start_soon(post, router, answers, image(LONG, prompt="ghost"))
            await until(lambda: worker.scheduler.running)
        record = router.running.parts.registry.get(worker.url)
        await until(lambda: record.ghosts == 1)
        state = await worker_of(router, worker)
        assert (state["ghosts"], state["slots_in_use"], state["active_requests"]) == (1, 1, 0)
        worker.scheduler.hurry()
        assert (await router.image(prompt="next")).status_code == 200
        ghost, following = worker.log.generations()
        assert ghost.end is not None
        assert following.queued >= ghost.end  # not sent before the work was done
        await until(lambda: not record.holds)

    run_router(test)


def test_nine_jobs_on_three_idle_workers_are_three_each(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        workers = [await registered(router, model_path="wan/m") for _ in range(3)]

        async def submit() -> None:
            (await router.http.post("/v1/videos", json=video(0.6))).raise_for_status()

        async with trio.open_nursery() as nursery:
            for _ in range(9):
                nursery.start_soon(submit)
        assert [len(worker.log.generations()) for worker in workers] == [3, 3, 3]
        states = [await worker_of(router, worker) for worker in workers]
        assert [state["jobs"] for state in states] == [3, 3, 3]
        assert all(state["outstanding_seconds"] > 0 for state in states)
        # The router sees by itself that they have ended.
        records = [router.running.parts.registry.get(worker.url) for worker in workers]
        await until(lambda: not any(record.holds for record in records))
        assert all(entry.end is not None for w in workers for entry in w.log.generations())
        # Learnt from what each took, not from how long it waited for the ones before.
        unit = 64 * 64 * 10 * video(0.6)["num_inference_steps"] / 1e6
        slow = workers[0].config.time_scale
        for state in [await worker_of(router, worker) for worker in workers]:
            took = state["seconds_per_unit_of_work"]["video"] * unit / slow
            assert 0.5 < took < 1.2

    run_router(test)


def test_images_avoid_a_worker_with_a_job(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        tasks = ("T2I", "T2V")
        workers = [await registered(router, task_types=tasks) for _ in range(2)]
        answer = await router.http.post("/v1/videos", json=video(LONG))
        job = answer.json()["id"]
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(post, router, answers, image(0.03))
        kinds = [Counter(entry.kind for entry in w.log.generations()) for w in workers]
        assert sorted(map(dict, kinds), key=str) == [{"image": 4}, {"video": 1}]
        for worker in workers:
            worker.scheduler.hurry()
        # A passing poll tells that it has ended.
        status = ""
        with fail_after(5):
            while status != "completed":
                status = (await router.http.get(f"/v1/videos/{job}")).json()["status"]
                await trio.sleep(0.02)
        for worker in workers:
            assert (await worker_of(router, worker))["slots_in_use"] == 0
        for _ in range(4):
            await router.image()
        assert all("image" in {e.kind for e in w.log.generations()} for w in workers)

    run_router(test)


def test_a_deleted_job_that_runs_is_a_ghost(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router, model_path="wan/m")
        answer = await router.http.post("/v1/videos", json=video(LONG))
        await until(lambda: worker.scheduler.running)
        deleted = await router.http.delete(f"/v1/videos/{answer.json()['id']}")
        assert deleted.status_code == 200
        state = await worker_of(router, worker)
        assert (state["jobs"], state["ghosts"], state["slots_in_use"]) == (0, 1, 1)
        worker.scheduler.hurry()
        record = router.running.parts.registry.get(worker.url)
        await until(lambda: not record.holds)
        assert worker.log.generations()[0].end is not None

    run_router(test)


def test_a_full_queue_and_the_end_of_patience(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: answers)
            (full,) = answers
            assert (full.status_code, full.json()["code"]) == (503, "queue_full")
            assert 1 <= int(full.headers["retry-after"]) <= 300
            await until(lambda: len(answers) == 2)
            late = answers[1]
            assert (late.status_code, late.json()["code"]) == (503, "queue_timeout")
            assert 1 <= int(late.headers["retry-after"]) <= 300
            worker.scheduler.hurry()
        assert answers[2].status_code == 200

    run_router(test, queue_size=1, queue_timeout=0.3)


def test_bodies_that_wait_are_bounded(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(post, router, answers, {**image(LONG), "pad": "x" * 700})
            for answered in (1, 2):
                await until(lambda: len(answers) == answered)  # noqa: B023
                await until(lambda: worker.scheduler.running)
                worker.scheduler.hurry()
        assert (answers[0].status_code, answers[0].json()["code"]) == (503, "queue_full")
        assert [answer.status_code for answer in answers[1:]] == [200, 200]

    run_router(test, queue_bytes=1200)


def test_what_waits_is_told(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        empty = (await router.http.get("/queue")).json()
        assert (empty["waiting"], empty["oldest_wait_seconds"], empty["groups"]) == (0, 0, [])
        async with meanwhile() as nursery:
            nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: worker.scheduler.running)
            for client in ("a", "a", "b"):
                headers = {"x-client-id": client}
                nursery.start_soon(
                    lambda h: post(router, answers, image(0.1, model="m"), headers=h), headers
                )
            await until(lambda: router.running.parts.dispatcher.queue.waiting == 3)
            await trio.sleep(0.05)
            told = (await router.http.get("/queue")).json()
        assert (told["waiting"], told["limit"]) == (3, 10_000)
        assert 0 < told["drain_rate_per_second"] <= 1
        rows = {row["client"]: row for row in told["groups"]}
        assert {client: row["waiting"] for client, row in rows.items()} == {"a": 2, "b": 1}
        assert {(row["model"], row["task"]) for row in rows.values()} == {("m", "image")}
        assert 0.05 <= rows["a"]["oldest_wait_seconds"] <= told["oldest_wait_seconds"] < 5

    run_router(test)


def test_clients_take_turns(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        queue = router.running.parts.dispatcher.queue

        def ask(client: str, prompt: str) -> Callable[[], Any]:
            headers = {"x-client-id": client}
            return lambda: post(router, answers, image(0.05, prompt=prompt), headers=headers)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: worker.scheduler.running)
            for _ in range(12):
                nursery.start_soon(ask("burst", "burst"))
            await until(lambda: queue.waiting == 12)
            nursery.start_soon(ask("single", "single"))
            await until(lambda: queue.waiting == 13)
            worker.scheduler.hurry()
        prompts = [entry.facts["prompt"] for entry in worker.log.generations()]
        assert prompts.index("single") <= 2
        assert len(prompts) == 14

    run_router(test)


@pytest.mark.parametrize("again", [False, True])
def test_a_worker_that_is_removed_in_flight(run_router: RunRouter, again: bool) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, router, answers, image(LONG))
            await until(lambda: worker.scheduler.running)
            nursery.start_soon(post, router, answers, image(0.01))
            await until(lambda: router.running.parts.dispatcher.queue.waiting == 1)
            (await router.http.delete(f"/workers/{worker.url}")).raise_for_status()
            await until(lambda: answers)
            assert answers[0].json()["code"] == "no_workers"
            if again:
                await router.register(worker.url)
            worker.scheduler.hurry()
        assert answers[1].status_code == 200
        if again:
            assert (await router.image()).status_code == 200
            state = await worker_of(router, worker)
            assert (state["slots_in_use"], state["active_requests"]) == (0, 0)

    run_router(test)


def test_a_worker_that_restarts_has_all_its_slots(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await registered(router, model_path="wan/m", task_types=("T2V", "T2I"))
        for _ in range(3):
            (await router.http.post("/v1/videos", json=video(60))).raise_for_status()
        record = router.running.parts.registry.get(worker.url)
        assert len(record.holds) == 3
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, router, answers, image(0.05))
            await until(lambda: router.running.parts.dispatcher.queue.waiting == 1)
            worker.faults.add("restart", down=0.1)
        assert answers[0].status_code == 200  # it waited for the new process
        await until(lambda: record.incarnation == 2)  # a look at a job may have told before
        await until(lambda: not record.holds)

    run_router(test, health_check_failure_threshold=100)


def test_refusing_workers_cost_no_client_anything(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        dead = [await router.script() for _ in range(5)]  # more than the retries
        for script in dead:
            await router.register(script.url)
        alive = await registered(router, model_path="m", task_types=("T2I",))
        for script in dead:
            script.refuse()
            script.hang_up()
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(post, router, answers, image(0.02))
        assert [answer.status_code for answer in answers] == [200] * 30
        assert len(alive.log.generations()) == 30
        assert all("POST /v1/images/generations" not in script.asked for script in dead)

    # Long enough that no probe is due but those that trouble asks for.
    run_router(test, health_check_interval=30)


def test_if_every_candidate_refuses_it_is_502(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        dead = [await router.script() for _ in range(2)]
        for script in dead:
            await router.register(script.url)
        for script in dead:
            script.refuse()
        answer = await router.image()
        assert (answer.status_code, answer.json()["code"]) == (502, "connect_failed")
        assert answer.json()["retry_safe"] is True

    run_router(test, health_check_interval=30)


def test_no_second_generation_on_a_kept_connection(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        async def break_off(stream: trio.SocketStream) -> None:
            raise trio.BrokenResourceError  # the request was read, and no answer comes

        first, other = await router.script(), await router.script()
        await router.register(first.url)
        assert (await router.image()).status_code == 200
        first.answers["/v1/images/generations"] = break_off
        await router.register(other.url)
        (await router.http.put(f"/workers/{other.url}", json={"draining": True})).raise_for_status()
        failed = await router.image()
        assert failed.status_code == 502
        assert failed.json()["retry_safe"] is False
        assert first.asked.count("POST /v1/images/generations") == 2
        assert "POST /v1/images/generations" not in other.asked
        # Its slot comes back by the barrier, which such a worker answers with 404.
        record = router.running.parts.registry.get(first.url)
        await until(lambda: not record.holds)

    run_router(test)


def test_a_session_waits_a_moment_for_a_slot(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.dispatch._SESSION_PATIENCE", 0.2)

    async def test(router: Deployment) -> None:
        worker = await registered(router)
        async with meanwhile() as nursery:
            nursery.start_soon(post, router, [], image(LONG))
            await until(lambda: worker.scheduler.running)
            stream = await trio.open_tcp_stream("127.0.0.1", router.running.port)
            async with stream:
                begun = trio.current_time()
                await stream.send_all(
                    b"GET /v1/realtime_video/generate HTTP/1.1\r\nhost: x\r\n"
                    b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
                    b"sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
                )
                head = await stream.receive_some()
                assert head.startswith(b"HTTP/1.1 503 ")
                assert trio.current_time() - begun >= 0.2

    run_router(test)


def test_a_stop_refuses_what_waits_and_finishes_what_runs() -> None:
    async def main() -> None:
        stop = trio.Event()
        listeners = open_listeners("127.0.0.1", 0)
        settings = RouterSettings(host="127.0.0.1", port=0, shutdown_timeout=5.0)
        answers: list[httpx.Response] = []
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                running = await nursery.start(service.serve, settings, listeners, stop)
                address = f"http://127.0.0.1:{running.port}"
                async with httpx.AsyncClient(base_url=address, trust_env=False) as http:
                    router = Deployment(running, http, outer)
                    worker = await registered(router)
                    async with trio.open_nursery() as clients:
                        clients.start_soon(post, router, answers, image(LONG))
                        await until(lambda: worker.scheduler.running)
                        clients.start_soon(post, router, answers, image(0.1))
                        await until(lambda: running.parts.dispatcher.queue.waiting == 1)
                        stop.set()
                        await until(lambda: answers)
                        worker.scheduler.hurry()
            worker.kill()
        refused, finished = answers
        assert (refused.status_code, refused.json()["code"]) == (503, "shutting_down")
        assert finished.status_code == 200

    run(main)
