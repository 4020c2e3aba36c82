"""The built file as a user runs it: start, signals, mistakes, and the demo."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attrs import define

WITHIN = 30.0  # seconds for anything to happen
posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")


@define
class Program:
    """One run of the built file."""

    process: subprocess.Popen[bytes]
    log: Path
    last_words: str | None = None

    @property
    def text(self) -> str:
        """What it has printed so far, or at all."""
        return self.log.read_text("utf-8") if self.last_words is None else self.last_words

    def wait_for(self, pattern: str) -> re.Match[str]:
        end = time.monotonic() + WITHIN
        while time.monotonic() < end:
            ended = self.process.poll() is not None
            if found := re.search(pattern, self.text):
                return found
            if ended:
                break
            time.sleep(0.02)
        raise AssertionError(f"{pattern!r} not printed:\n{self.text}")

    def ends(self) -> int:
        return self.process.wait(WITHIN)


@contextmanager
def running(pyz: Path, *flags: str, cwd: Path | None = None) -> Iterator[Program]:
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "output"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, str(pyz), *flags],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
            )
        program = Program(process, log)
        try:
            yield program
        finally:
            process.kill()
            process.wait()
            program.last_words = program.text


@contextmanager
def serving(pyz: Path, *flags: str) -> Iterator[tuple[Program, str]]:
    with running(pyz, "--host", "127.0.0.1", "--port", "0", *flags) as program:
        yield program, program.wait_for(r"listening on (http://\S+)")[1]


@contextmanager
def worker(pyz: Path, *flags: str) -> Iterator[tuple[Program, str]]:
    """A simulated worker on a free port."""
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = ["simulate-worker", "--model-path", "m/one", "--port", str(port)]
        command += ["--strict-ports", "true", "--warmup-seconds", "0", "--load-seconds", "0"]
        with running(pyz, *command, *flags) as program:
            url = f"http://127.0.0.1:{port}"
            if answers(program, url):
                yield program, url
                return
    raise AssertionError("no pair of free ports was found")


def answers(program: Program, url: str) -> bool:
    end = time.monotonic() + WITHIN
    while time.monotonic() < end and program.process.poll() is None:
        try:
            if call(f"{url}/health")[0] == 200:
                return True
        except OSError:
            time.sleep(0.02)
    return False


def call(url: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=WITHIN) as response:
            return response.status, json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def until_health(url: str, status: int) -> None:
    end = time.monotonic() + WITHIN
    while call(f"{url}/health")[0] != status:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_demo_check(router_pyz: Path) -> None:
    begun = time.monotonic()
    with running(router_pyz, "demo", "--check", "--port", "0") as program:
        status = program.ends()
        taken = time.monotonic() - begun
    assert status == 0, program.text
    assert "check passed" in program.text
    for step in ("register", "image", "video", "refit", "sleep", "wake"):
        assert re.search(rf"^(ok|skipped) +{step}: ", program.text, re.M), program.text
    # The promise is 30 s on a machine of its own; twice that tells a hang from a busy one.
    assert taken < 60


@posix
def test_demo_ends_everything_on_ctrl_c(router_pyz: Path) -> None:
    with running(router_pyz, "demo", "--port", "0") as program:
        program.wait_for("Ctrl-C stops the demo")
        address = program.wait_for(r"router   (http://\S+)")[1]
        assert call(f"{address}/live") == (200, {"status": "ok"})
        workers = re.findall(r"^worker-\d+ http://127\.0\.0\.1:(\d+)", program.text, re.M)
        assert len(workers) == 2
        program.process.send_signal(signal.SIGINT)
        assert program.ends() == 0
    for port in workers:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(port))) != 0


@posix
def test_demo_goes_on_when_a_worker_dies(router_pyz: Path) -> None:
    with running(router_pyz, "demo", "--port", "0") as program:
        url = program.wait_for(r"worker-0 (http://\S+)")[1]
        program.wait_for("Ctrl-C stops the demo")
        address = program.wait_for(r"router   (http://\S+)")[1]
        with contextlib.suppress(OSError):
            call(f"{url}/simulate", {"fault": "crash"})
        program.wait_for(r"worker-0 exited with status 70 after .*; the end of its log:\n    \S")
        program.wait_for(r"worker-0 is ready after")
        workers = call(f"{address}/workers")[1]["workers"]
        assert [worker["health"] for worker in workers] == ["healthy"] * 2
        assert workers[0]["launch"]["restarts"] == 1
        program.process.send_signal(signal.SIGUSR1)
        program.process.send_signal(signal.SIGHUP)
        assert program.ends() == 0
    assert "Traceback" not in program.text


def test_demo_says_that_its_port_is_taken(router_pyz: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running(router_pyz, "demo", "--port", port) as program:
            assert program.ends() == 1
    assert f"Port {port} on 127.0.0.1 is already in use" in program.text
    assert "Traceback" not in program.text


def test_a_port_in_use_is_one_clear_sentence(router_pyz: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with running(router_pyz, "--host", "127.0.0.1", "--port", port) as program:
            assert program.ends() == 1
    assert program.text.strip() == (
        f"sglang-d-router: error: Port {port} on 127.0.0.1 is already in use by another process."
    )


@posix
def test_the_log_in_json_is_json_from_start_to_end(router_pyz: Path) -> None:
    flags = ["--log-format", "json", "--access-log", "on", "--state-dir", "none"]
    with serving(router_pyz, *flags) as (router, at):
        address = at.rstrip('",}')
        assert call(f"{address}/workers?key=secret")[0] == 200
        port = address.rpartition(":")[2]
        with running(router_pyz, "--host", "127.0.0.1", "--port", port, *flags) as second:
            assert second.ends() == 1
        router.process.send_signal(signal.SIGTERM)
        assert router.ends() == 0
    lines = [json.loads(line) for line in router.text.splitlines()]
    [exchange] = [line for line in lines if line.get("event") == "exchange"]
    assert (exchange["path"], exchange["status"]) == ("/workers", 200)
    assert lines[-1]["message"] == "stopped"
    said = json.loads(second.text.splitlines()[-1])
    assert (said["level"], "already in use" in said["message"]) == ("critical", True)


def test_all_wrong_flags_are_told_at_once(router_pyz: Path) -> None:
    flags = ["--prot", "1", "--port", "abc", "--timeout", "soon", "--routing-algorithm", "best"]
    with running(router_pyz, *flags, "--worker-urls", "http://169.254.169.254") as program:
        assert program.ends() == 2
    for word in ("--prot", "--port", "'abc'", "--timeout", "'soon'", "least-request", "blocked"):
        assert word in program.text
    assert "Traceback" not in program.text


def test_all_mistakes_in_the_file_are_told_at_once(router_pyz: Path, tmp_path: Path) -> None:
    config = tmp_path / "router.yaml"
    config.write_text("port: [1]\nhealth_check_interval: never\nworkrs: 3\n", encoding="utf-8")
    with running(router_pyz, "--config", str(config)) as program:
        assert program.ends() == 2
    for word in ("port:", "health_check_interval:", "workrs: unknown key"):
        assert word in program.text
    config.write_text("port: [1\n", encoding="utf-8")
    with running(router_pyz, "--config", str(config)) as program:
        assert program.ends() == 2
    assert "line " in program.text
    with running(router_pyz, "--config", str(tmp_path / "missing.yaml")) as program:
        assert program.ends() == 2
    assert "No such file" in program.text
    assert "Traceback" not in program.text


@posix
def test_the_first_signal_lets_an_image_finish(router_pyz: Path) -> None:
    with worker(router_pyz) as (_, url), serving(router_pyz, "--worker-urls", url) as (router, at):
        until_health(at, 200)
        ask = {"prompt": "x", "size": "64x64", "num_inference_steps": 4}
        slow = {"fault": "delay", "by": 1.0, "path": "/v1/images/generations", "count": 1}
        call(f"{url}/simulate", slow)
        callers = ThreadPoolExecutor(1)
        answer = callers.submit(call, f"{at}/v1/images/generations", ask)
        end = time.monotonic() + WITHIN
        while not call(f"{at}/workers")[1]["workers"][0]["active_requests"]:
            assert time.monotonic() < end
            time.sleep(0.01)
        router.process.send_signal(signal.SIGTERM)
        router.wait_for("finishing requests in flight")
        assert answer.result(WITHIN)[0] == 200, router.text
        assert router.ends() == 0
        callers.shutdown()


@posix
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(router_pyz: Path, number: signal.Signals) -> None:
    with worker(router_pyz) as (_, url), serving(router_pyz, "--worker-urls", url) as (router, at):
        until_health(at, 200)
        call(f"{url}/simulate", {"fault": "hang", "path": "/v1/images/generations"})
        host, port = at.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"
            )
            end = time.monotonic() + WITHIN
            while not call(f"{at}/workers")[1]["workers"][0]["active_requests"]:
                assert time.monotonic() < end
                time.sleep(0.01)
            router.process.send_signal(number)
            router.wait_for("finishing requests in flight")
            begun = time.monotonic()
            router.process.send_signal(number)
            assert router.ends() == 128 + number
            assert time.monotonic() - begun < 10  # not the 60 s of --shutdown-timeout


@posix
def test_it_lives_on_where_a_closed_terminal_is_to_be_ignored(router_pyz: Path) -> None:
    ignoring = "import os, signal, sys; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
    ignoring += " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"  # as nohup does
    flags = ["-c", ignoring, str(router_pyz), "--host", "127.0.0.1", "--port", "0"]
    with running(Path(flags[0]), *flags[1:]) as program:
        at = program.wait_for(r"listening on (http://\S+)")[1]
        program.process.send_signal(signal.SIGHUP)
        program.process.send_signal(signal.SIGUSR1)
        program.wait_for("SIGUSR1 ignored: the router does not use this signal")
        assert call(f"{at}/live")[0] == 200
        program.process.send_signal(signal.SIGTERM)
        assert program.ends() == 0
    assert "SIGTERM: finishing" in program.text
    assert "SIGHUP" not in program.text


@posix
def test_a_log_that_nobody_reads_stops_nothing(router_pyz: Path) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0", "--verbose"]
    process = subprocess.Popen(
        [sys.executable, str(router_pyz), *flags],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(rb"listening on (http://\S+)", line):
                at = found[1].decode()
                break
        # Each is answered with 503, and leaves a line: far more than a pipe holds.
        for _ in range(500):
            assert call(f"{at}/v1/videos/{'x' * 200}")[0] in (404, 503)
        process.send_signal(signal.SIGTERM)
        assert process.wait(WITHIN) == 0
    finally:
        process.kill()
        process.communicate()


@posix
def test_a_killed_worker_is_noticed_and_comes_back(router_pyz: Path) -> None:
    with serving(router_pyz, "--health-check-interval", "0.2") as (router, at):
        with worker(router_pyz) as (process, url):
            status, added = call(f"{at}/workers", {"url": url})
            assert status == 200
            assert added["worker"]["routable"], added
            process.process.kill()
            process.ends()
            until_health(at, 503)
            status, refused = call(f"{at}/v1/images/generations", {"prompt": "x"})
            assert status == 503
            assert refused["code"] == "no_routable_worker"
            port = url.rpartition(":")[2]
            command = ["simulate-worker", "--model-path", "m/one", "--port", port]
            with running(router_pyz, *command, "--strict-ports", "true"):
                until_health(at, 200)
                status, made = call(f"{at}/v1/images/generations", {"prompt": "x", "size": "64x64"})
                assert status == 200, made
                assert call(f"{at}/workers")[1]["workers"][0]["incarnation"] == 2
        assert "may be another process now" in router.text


def test_it_starts_from_any_folder(router_pyz: Path, tmp_path: Path) -> None:
    flags = ["--host", "127.0.0.1", "--port", "0"]
    with running(router_pyz, *flags, cwd=tmp_path) as program:
        at = program.wait_for(r"listening on (http://\S+)")[1]
        assert call(f"{at}/live")[0] == 200
