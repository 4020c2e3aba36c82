"""The beginning and the end of a worker. Each test has one of its own."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from tests.contract.conftest import Start
from tests.contract.harness import IMAGE, Process, Worker, eventually, long_request, steps


def tried(worker: Worker, path: str, within: float = 5) -> httpx.Response | None:
    """The answer, None if nobody listens (yet) or no answer came in time."""
    try:
        return worker.http.get(path, timeout=within)
    except httpx.TransportError:
        return None


def until(worker: Worker, process: Process, path: str, status: int) -> None:
    """Waits for the first answer of this status."""

    def answered() -> bool:
        assert process.running.poll() is None, process.log.read_text(encoding="utf-8")
        answer = tried(worker, path)
        return answer is not None and answer.status_code == status

    eventually(answered)


def test_warming_up(start: Start) -> None:
    worker, process = start("image", 1.5)
    until(worker, process, "/liveness", 200)
    for path in ("/health", "/health_generate"):
        answer = worker.http.get(path)
        assert (answer.status_code, answer.content) == (503, b"")
    assert worker.http.get("/server_info").json()["served_model_name"] == worker.name
    assert worker.http.get("/model_info").json()["task_type"] == "T2I"
    assert worker.http.get("/liveness").json() == {"status": "ok"}
    assert tried(worker, "/v1/models", within=0.3) is None  # no answer yet
    began = worker.http.post("/v1/images/generations", json=IMAGE)  # nor to this, until it is warm
    assert began.status_code == 200
    assert worker.http.get("/health").status_code == 200
    assert worker.http.get("/v1/models").json()["data"][0]["id"] == worker.name


def test_a_dead_backend(start: Start) -> None:
    """The port lives on: reads are answered, work is refused."""
    worker, process = start("video", 0)
    until(worker, process, "/health", 200)
    done = worker.video()["id"]
    worker.until(done)
    running, waiting = (
        worker.http.post("/v1/videos", json=long_request(worker)).json()["id"] for _ in range(2)
    )
    worker.until(running, "in_progress")
    kill_backend(worker, process)

    told = eventually(lambda: (a := worker.http.get("/health")).status_code == 503 and a)
    assert told.json()["status"] == "unhealthy"
    assert isinstance(told.json()["error"], str)
    assert worker.http.get("/liveness").status_code == 200
    assert worker.http.get("/v1/models").json()["data"][0]["id"] == worker.name
    # Health looks by itself; what refuses work is told once a second.
    eventually(lambda: worker.http.post("/v1/videos", json={}).status_code == 503)
    for path in ("/v1/videos", "/update_weights_from_disk", "/release_memory_occupation"):
        answer = worker.http.post(path, json={})
        assert answer.status_code == 503
        assert answer.json() == {"error": told.json()["error"]}
    for id in (running, waiting):
        job = worker.until(id)
        assert job["status"] == "failed"
        assert isinstance(job["error"]["message"], str)
    assert worker.http.get(f"/v1/videos/{done}").json()["status"] == "completed"
    assert worker.http.get(f"/v1/videos/{done}/content").content[4:8] == b"ftyp"


def kill_backend(worker: Worker, process: Process) -> None:
    if not worker.real:
        worker.http.post("/simulate", json={"fault": "kill_scheduler"}).raise_for_status()
        return
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the scheduler's process by /proc")
    server = int(process.says(r"worker (\d+) is "))
    for child in Path(f"/proc/{server}/task/{server}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)


def test_sigterm(start: Start) -> None:
    """The port refuses at once; a running image is still answered."""
    worker, process = start("image", 0)
    until(worker, process, "/health", 200)
    body = long_request(worker, num_inference_steps=2 * steps(worker))
    request = httpx.Request("POST", f"{worker.url}/v1/images/generations", json=body)
    head = "POST /v1/images/generations HTTP/1.1\r\nHost: worker\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(request.content)}\r\n\r\n"
    with socket.create_connection(worker.address, timeout=60) as sock:
        sock.sendall(head.encode() + request.content)
        time.sleep(0.3 * worker.while_)
        pid = int(process.says(r"worker (\d+) is ")) if worker.real else process.running.pid
        os.kill(pid, signal.SIGTERM)
        eventually(lambda: refuses(worker))
        answer = sock.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    process.running.wait(60)


def refuses(worker: Worker) -> bool:
    try:
        socket.create_connection(worker.address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
