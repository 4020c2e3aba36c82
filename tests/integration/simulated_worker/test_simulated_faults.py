"""Faults on demand, over HTTP and in the process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from simulated_worker import SimulatedWorker

Run = Callable[..., None]
SMALL: dict[str, Any] = {"prompt": "c", "size": "16x16", "num_inference_steps": 2, "seed": 1}


async def alone(worker: SimulatedWorker, path: str = "/health") -> httpx.Response:
    """A request on a connection of its own."""
    async with httpx.AsyncClient(base_url=worker.url, trust_env=False) as client:
        return await client.get(path)


def test_the_catalogue_and_bad_faults(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        told = (await client.get("/simulate")).json()
        assert {"refuse", "hang", "slow_health", "fail_next_update", "die_at_byte", "crash"} < set(
            told["faults"]
        )
        bodies: list[Any] = [{"fault": "zz"}, {"fault": "slow", "factor": "x"}, {}, []]
        for body in bodies:
            assert (await client.post("/simulate", json=body)).status_code == 400
        await client.post("/simulate", json={"fault": "slow", "factor": 3, "count": 2})
        told = (await client.get("/simulate")).json()
        assert told["active"] == [{"fault": "slow", "left": 2, "factor": 3, "count": 2}]

    run_worker(test)


def test_refuse_until_cleared_through_the_control_port(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        await client.get("/health")
        await client.post("/simulate", json={"fault": "refuse"})
        with pytest.raises(httpx.ConnectError):
            await alone(worker)
        assert (await client.get("/health")).status_code == 200
        control = f"http://127.0.0.1:{worker.port + 1}"
        async with httpx.AsyncClient(base_url=control, trust_env=False) as other:
            await other.post("/simulate", json={"fault": "clear"})
        assert (await alone(worker)).status_code == 200

    run_worker(test, keep_alive=True)


def test_refuse_for_a_while(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        fault = worker.faults.add("refuse", seconds=0.5)
        with pytest.raises(OSError, match="all attempts"):
            await trio.open_tcp_stream("127.0.0.1", worker.port)
        await worker.faults.over(fault)
        assert fault.remaining <= 0
        await trio.testing.wait_all_tasks_blocked()
        assert (await alone(worker)).status_code == 200

    run_worker(test)


def test_hang_ends_with_the_client_or_the_fault(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("hang", path="/health", count=2)
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/health", timeout=0.05)
        while worker.log.requests[-1].client_gone is None:
            await trio.sleep(0.001)
        assert (await client.get("/liveness")).status_code == 200
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self_ending, client)
            while len(worker.log.requests) < 3:
                await trio.sleep(0.001)
            worker.faults.clear()
        assert (await client.get("/health")).status_code == 200

    async def self_ending(client: httpx.AsyncClient) -> None:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/health")

    run_worker(test)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"kind": "drop"}, httpx.RemoteProtocolError),
        ({"kind": "drop", "reset": True}, httpx.ReadError),
        ({"kind": "garbage"}, httpx.RemoteProtocolError),
        ({"kind": "die_at_byte", "byte": 3}, httpx.RemoteProtocolError),
        ({"kind": "die_at_byte", "byte": 3, "reset": True}, httpx.ReadError),
        ({"kind": "die_at_byte", "byte": 0}, httpx.RemoteProtocolError),
    ],
)
def test_broken_answers(run_worker: Run, fault: dict[str, Any], error: type[Exception]) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        settings = {**fault, "count": 1, "path": "/model_info"}
        kind = settings.pop("kind")
        worker.faults.add(kind, **settings)
        assert (await client.get("/health")).status_code == 200
        with pytest.raises(error):
            await client.get("/model_info")
        assert worker.log.requests[-1].faults == [kind]
        assert (await client.get("/model_info")).status_code == 200

    run_worker(test)


def test_a_body_cut_at_a_byte_has_exactly_that_many(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("die_at_byte", byte=7)
        got = bytearray()

        async def read(answer: httpx.Response) -> None:
            async for piece in answer.aiter_raw():
                got.extend(piece)

        async with client.stream("GET", "/health") as answer:
            assert answer.headers["content-length"] == "15"
            with pytest.raises(httpx.RemoteProtocolError):
                await read(answer)
        assert got == b'{"statu'
        assert worker.log.requests[-1].sent_bytes == 7

    run_worker(test)


def test_other_statuses(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("status", path="/server_info", status=404, body={"detail": "Not Found"})
        worker.faults.add("status", path="/health", status=500, body="x", content_type="text/plain")
        answer = await client.get("/server_info")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
        answer = await client.get("/health")
        assert (answer.status_code, answer.text) == (500, "x")
        assert answer.headers["content-type"] == "text/plain"

    run_worker(test)


def test_slow_health_and_slow_bodies_take_their_time(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("slow_health", by=0.05)
        worker.faults.add("drip", path="/model_info", bytes_per_second=4000)
        assert (await client.get("/server_info")).status_code == 200
        for path in ("/health", "/model_info"):
            began = time.monotonic()
            assert (await client.get(path)).status_code == 200
            assert time.monotonic() - began >= 0.05

    run_worker(test)


def test_slow_generations(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("slow", factor=50, count=1)
        for _ in range(2):
            await client.post("/v1/images/generations", json=SMALL)
        slow, quick = (entry.seconds for entry in worker.log.generations())
        assert slow >= 50 * 0.01 * 0.02 > quick

    run_worker(test)


def test_warming(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        health = await client.get("/health")
        assert (health.status_code, health.content) == (503, b"")
        assert "content-type" not in health.headers
        assert (await client.get("/liveness")).status_code == 200
        assert (await client.get("/model_info")).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await client.get("/v1/models", timeout=0.02)
        assert (await client.get("/v1/models")).status_code == 200
        assert (await client.get("/health")).status_code == 200
        worker.faults.add("warming")
        assert (await client.get("/health_generate")).status_code == 503
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.get, "/v1/models")
            await trio.sleep(0.01)
            worker.faults.clear()

    run_worker(test, warmup_seconds=75)  # 1.5 s: three answers come before


def test_a_dead_scheduler(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        reason = "Scheduler worker exited; restart the server."
        results: list[httpx.Response] = []

        async def post(path: str, body: dict[str, Any]) -> None:
            results.append(await client.post(path, json=body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(post, "/v1/images/generations", SMALL)
            while not worker.scheduler.running:
                await trio.sleep(0.001)
            nursery.start_soon(post, "/update_weights_from_disk", {"model_path": "m"})
            while not worker.scheduler.queue:
                await trio.sleep(0.001)
            await client.post("/simulate", json={"fault": "kill_scheduler"})
        assert sorted(answer.status_code for answer in results) == [500, 500]
        assert {"success": False, "message": reason} in [
            answer.json() for answer in results if answer.text.startswith("{")
        ]
        health = await client.get("/health")
        assert (health.status_code, health.json()) == (
            503,
            {"status": "unhealthy", "error": reason},
        )
        for path in ("/v1/images/generations", "/release_memory_occupation", "/nope"):
            answer = await client.post(path)
            assert (answer.status_code, answer.json()) == (503, {"error": reason})
        assert (await client.get("/v1/models")).status_code == 200
        worker.faults.clear()
        assert (await client.get("/health")).status_code == 200

    run_worker(test, speed=0.001, time_scale=0.1)


def test_a_restart_forgets_everything_but_the_port(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        await client.post("/release_memory_occupation")
        before = (await client.get("/simulate/log")).json()["incarnation"]
        idle = await trio.open_tcp_stream("127.0.0.1", worker.port)
        await client.post("/simulate", json={"fault": "restart", "down": 0.02})
        with pytest.raises(trio.BrokenResourceError):
            await idle.receive_some()
        await idle.aclose()
        while True:
            try:
                told = (await alone(worker, "/simulate")).json()
            except httpx.TransportError:
                await trio.sleep(0.005)
            else:
                break
        assert told["state"]["model_path"] == "m/0"
        assert not told["state"]["asleep"]
        log = (await alone(worker, "/simulate/log")).json()
        assert log["incarnation"] != before

    run_worker(test, model_path="m/0")


def test_kill_resets_connections_and_closes_the_port(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        idle = await trio.open_tcp_stream("127.0.0.1", worker.port)
        await client.get("/health")
        await client.post("/simulate", json={"fault": "crash"})
        with pytest.raises(trio.BrokenResourceError):
            await idle.receive_some()
        await idle.aclose()
        with pytest.raises(httpx.ConnectError):
            await alone(worker)
        await worker.ended.wait()

    run_worker(test)


def test_a_hurry_ends_what_runs_or_else_what_runs_next(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        async def image() -> None:
            answer = await client.post("/v1/images/generations", json=SMALL, timeout=None)
            assert answer.status_code == 200

        async with trio.open_nursery() as nursery:
            nursery.start_soon(image)
            while not worker.scheduler.running:
                await trio.sleep(0.005)
            worker.scheduler.hurry()
        worker.scheduler.hurry()
        await image()
        with trio.move_on_after(0.2) as scope:
            await image()
        assert scope.cancelled_caught

    run_worker(test, time_scale=1e6)
