"""A worker as a process: flags, ports, signals."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker, WorkerConfig, cli
from simulated_worker.config import guess_tasks
from simulated_worker.ports import PortTaken, bind_pair
from tests.patience import fail_after

Run = Callable[..., None]
SOURCES = Path(cli.__file__).parents[1]
QUICK = ["--time-scale", "0.05", "--warmup-seconds", "0", "--port", "0"]


class Process:
    """A worker of its own; `url` once it serves."""

    def __init__(self, *flags: str) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "simulated_worker", "--model-path", "m/flux", *QUICK, *flags],
            cwd=SOURCES,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.lines.append(line.rstrip())
            if " on http" in line:
                self.url = line.rstrip().rpartition(" on ")[2]
                break

    def end(self) -> tuple[int, str]:
        assert self.child.stderr is not None
        rest = self.child.stderr.read()
        return self.child.wait(10), rest


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def begin(*flags: str) -> Process:
        started.append(Process(*flags))
        return started[-1]

    yield begin
    for process in started:
        process.child.kill()
        process.child.wait()
        assert process.child.stderr is not None
        process.child.stderr.close()


def test_unknown_flags_are_said_once_and_sigterm_ends_it(start: Callable[..., Process]) -> None:
    process = start("--attention-backend", "fa3", "--served-model-name", "flux")
    ignored = [line for line in process.lines if "ignored" in line]
    assert len(ignored) == 1
    assert "--attention-backend fa3" in ignored[0]
    answer = httpx.get(f"{process.url}/server_info", trust_env=False).json()
    assert answer["served_model_name"] == "flux"
    process.child.send_signal(signal.SIGTERM)
    assert process.end()[0] == 0


def test_a_running_image_is_answered_after_sigterm(start: Callable[..., Process]) -> None:
    process = start("--speed", "0.1")

    async def main() -> None:
        answers: list[int] = []

        async def image() -> None:
            async with httpx.AsyncClient(base_url=process.url, trust_env=False) as client:
                answer = await client.post("/v1/images/generations", json={"prompt": "x"})
                answers.append(answer.status_code)

        async with trio.open_nursery() as nursery:
            idle = await trio.open_tcp_stream("127.0.0.1", httpx.URL(process.url).port or 0)
            nursery.start_soon(image)
            async with idle, httpx.AsyncClient(base_url=process.url, trust_env=False) as client:
                while not (await client.get("/simulate")).json()["state"]["running"]:
                    await trio.sleep(0.005)
                process.child.send_signal(signal.SIGTERM)
                assert await idle.receive_some() == b""
                with pytest.raises(OSError, match="all attempts"):
                    await trio.open_tcp_stream("127.0.0.1", httpx.URL(process.url).port or 0)
                assert answers == []
        assert answers == [200]

    trio.run(main)
    assert process.end()[0] == 0


def test_a_second_signal_ends_it_at_once(start: Callable[..., Process]) -> None:
    process = start("--speed", "0.0001")
    with socket.create_connection(("127.0.0.1", httpx.URL(process.url).port or 0)) as sock:
        sock.sendall(
            b"POST /v1/images/generations HTTP/1.1\r\nHost: w\r\nContent-Type: application/json"
            b'\r\nContent-Length: 14\r\n\r\n{"prompt":"x"}'
        )
        while not httpx.get(f"{process.url}/simulate", trust_env=False).json()["state"]["running"]:
            pass
        process.child.send_signal(signal.SIGTERM)
        assert process.child.stderr is not None
        while "shutting down" not in process.child.stderr.readline():
            pass
        process.child.send_signal(signal.SIGTERM)
        assert process.end()[0] == 0


def test_the_crash_fault_ends_the_process(start: Callable[..., Process]) -> None:
    process = start()
    httpx.post(f"{process.url}/simulate", json={"fault": "crash"}, trust_env=False)
    assert process.end()[0] == 70


def test_a_taken_port_is_a_sentence_or_a_move(capfd: pytest.CaptureFixture[str]) -> None:
    pair = bind_pair("127.0.0.1", 0, strict=True)
    try:
        flags = ["--model-path", "m", "--port", str(pair.port), "--load-seconds", "0"]
        assert cli.main([*flags, "--strict-ports", "true"]) == 1
        said = capfd.readouterr().err.splitlines()[-1]
        assert said == (
            f"simulate-worker: cannot take port {pair.port} on 127.0.0.1: Address already in use"
        )
        moved = bind_pair("127.0.0.1", pair.port, strict=False)
        assert (moved.port - pair.port) % 42 == 0
        moved.main.close()
        moved.control.close()
    finally:
        pair.main.close()
        pair.control.close()


def test_a_taken_port_above_counts_too() -> None:
    pair = bind_pair("127.0.0.1", 0, strict=True)
    port = pair.port
    pair.main.close()
    try:
        with pytest.raises(PortTaken):
            bind_pair("127.0.0.1", port, strict=True)
    finally:
        pair.control.close()


def test_a_model_that_cannot_be_found_is_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--model-path", "bad/model", "--load-seconds", "0", *QUICK]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == (
        "simulate-worker: Failed to download model: Could not find model at bad/model"
    )


@pytest.mark.parametrize(
    "flags", [[], ["--model-path", "m", "--speed", "0"], ["--model-path", "m", "--port", "x"]]
)
def test_wrong_flags_exit_2(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(flags)
    assert ended.value.code == 2


@pytest.mark.parametrize(
    ("model", "tasks"),
    [
        ("black-forest-labs/FLUX.1-dev", ("T2I",)),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", ("T2V",)),
        ("Wan-AI/Wan2.2-TI2V-5B", ("TI2V",)),
        ("Wan-AI/Wan2.1-I2V-14B", ("I2V",)),
        ("tencent/Hunyuan3D-2", ("I2M",)),
        ("Qwen/Qwen-Image-Edit", ("TI2I",)),
    ],
)
def test_tasks_follow_from_the_name(model: str, tasks: tuple[str, ...]) -> None:
    assert guess_tasks(model) == tasks


def test_cards_tell_the_tasks(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        card: dict[str, Any] = (await client.get("/v1/models")).json()["data"][0]
        assert (card["id"], card["task_type"]) == ("name", "TI2V")
        assert card["supported_task_types"] == ["TI2V", "T2I"]
        info = (await client.get("/model_info")).json()
        assert info["output_types"] == ["IMAGE", "VIDEO"]
        assert not info["is_image_gen"]
        assert (await client.get("/v1/models/name")).json() == card | {
            "created": (await client.get("/v1/models/name")).json()["created"]
        }
        unknown = await client.get("/v1/models/a/b")
        assert unknown.status_code == 404
        assert unknown.json()["error"]["code"] == "model_not_found"

    run_worker(test, served_model_name="name", task_types=("TI2V", "T2I"))


def test_an_older_worker_tells_only_its_task(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        card = (await client.get("/v1/models")).json()["data"][0]
        assert "supported_task_types" not in card
        assert card["task_type"] == "T2I"

    run_worker(test, legacy_models=True)


def test_stop_answers_what_runs_and_loses_jobs() -> None:
    async def main() -> None:
        config = WorkerConfig(model_path="x/wan", time_scale=1, speed=0.001, warmup_seconds=0)
        async with trio.open_nursery() as nursery:
            worker = SimulatedWorker(config)
            await nursery.start(worker.run)
            async with httpx.AsyncClient(base_url=worker.url, trust_env=False) as client:
                await client.post("/v1/videos", json={"prompt": "x"})
                worker.stop()
                with fail_after(5):
                    await worker.ended.wait()
        assert [entry.outcome for entry in worker.log.generations()] == ["running"]

    trio.run(main)
