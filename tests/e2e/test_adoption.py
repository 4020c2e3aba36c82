"""A router that is killed under traffic: its workers go on, and the next one takes them over."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.processes import WITHIN, ask, wait_for
from tests.e2e.test_launch import launcher, left, router

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

WORKERS = 3


def generate(url: str) -> None:
    """One image. Raises OSError."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    body = json.dumps({"prompt": "a red kite", "size": "64x64"}).encode()
    request = urllib.request.Request(f"{url}/v1/images/generations", body)
    request.add_header("content-type", "application/json")
    with direct.open(request, timeout=WITHIN) as response:
        assert response.status == 200
        response.read()


def loads(folder: Path) -> int:
    """How often a model was loaded."""
    return sum(log.read_text().count("] loading ") for log in (folder / "logs").glob("*.log"))


def processes_of(url: str) -> dict[str, int]:
    return {w["url"]: w["launch"]["pid"] for w in ask("GET", f"{url}/workers")["workers"]}


def ready(url: str) -> None:
    end = time.monotonic() + WITHIN
    while ask("GET", f"{url}/health")["healthy_workers"] < WORKERS:
        assert time.monotonic() < end
        time.sleep(0.05)


def until_it_answers(url: str) -> None:
    end = time.monotonic() + WITHIN
    while True:
        try:
            generate(url)
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.01)


@contextlib.contextmanager
def traffic(url: str):  # type: ignore[no-untyped-def]
    stop = threading.Event()

    def go() -> None:
        while not stop.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                generate(url)

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_no_model_is_loaded_again_after_kill_9_under_traffic(
    router_pyz: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = launcher(tmp_path, router_pyz, WORKERS, "--load-seconds", "'0'")
    log, state = tmp_path / "router.log", str(tmp_path / "state")
    for _ in range(2):
        with router(router_pyz, config, "--state-dir", state) as first:
            url = wait_for(r"listening on (http://\S+)", log, first)
            until_it_answers(url)
            ready(url)
            before = processes_of(url)
            with traffic(url):
                time.sleep(0.3)
                os.kill(first.pid, signal.SIGKILL)
                first.wait()
            assert {p.pid for p in left(config)} >= set(before.values())
            log.unlink()
            begun = time.monotonic()
            with router(router_pyz, config, "--state-dir", state) as second:
                url = wait_for(r"listening on (http://\S+)", log, second)
                until_it_answers(url)
                seconds = time.monotonic() - begun
                with capsys.disabled():
                    sys.stdout.write(f"\n[answers {seconds:.2f} s after the restart] ")
                ready(url)
                assert processes_of(url) == before
                assert loads(tmp_path) == WORKERS
                # One whose process died while no router ran is started again, alone.
                os.kill(second.pid, signal.SIGKILL)
                second.wait()
                log.unlink()
                victim = next(iter(before.values()))
                os.kill(victim, signal.SIGKILL)
                with router(router_pyz, config, "--state-dir", state) as third:
                    url = wait_for(r"listening on (http://\S+)", log, third)
                    ready(url)
                    after = processes_of(url)
                    assert len(set(after.values()) & set(before.values())) == WORKERS - 1
                    third.terminate()
                    assert third.wait(WITHIN) == 0
                    assert left(config) == []
                log.unlink()
        for path in (tmp_path / "logs").iterdir():
            path.unlink()


def test_reap(router_pyz: Path, tmp_path: Path) -> None:
    config = launcher(tmp_path, router_pyz, WORKERS, "--load-seconds", "'0'")
    log, state = tmp_path / "router.log", str(tmp_path / "state")
    with router(router_pyz, config, "--state-dir", state) as running:
        wait_for(r"(3 of 3 workers are ready)", log, running)
        for status in (2, 0):  # not while one runs on it
            done = subprocess.run(
                [sys.executable, router_pyz, "reap", state],
                capture_output=True,
                text=True,
                timeout=WITHIN,
                check=False,
            )
            assert done.returncode == status, done.stderr
            running.kill()
            running.wait()
        assert done.stdout == "image-0 was ended\nimage-1 was ended\nimage-2 was ended\n"
        assert left(config) == []


def test_changed_settings_end_the_old_workers_first(router_pyz: Path, tmp_path: Path) -> None:
    config = launcher(tmp_path, router_pyz, 2, "--load-seconds", "'0'")
    log, state = tmp_path / "router.log", str(tmp_path / "state")
    with router(router_pyz, config, "--state-dir", state) as running:
        wait_for(r"(2 of 2 workers are ready)", log, running)
        old = {process.pid for process in left(config)}
        running.kill()
        running.wait()
        log.unlink()
        config.write_text(config.read_text().replace("num_workers: 2", "num_workers: 1"))
        config.write_text(config.read_text().replace("demo/image", "demo/image-2"))
        config.write_text(config.read_text().replace("launcher:\n", "launcher:\n  name: image\n"))
        with router(router_pyz, config, "--state-dir", state) as second:
            wait_for(r"(is ready after)", log, second)
            assert len(left(config)) == 1
            assert not old & {process.pid for process in left(config)}
