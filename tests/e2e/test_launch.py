"""Workers launched by the built file: signals at bad moments, and what is left then."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from router.launch import processes
from tests.e2e.processes import WITHIN, ask, wait_for

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

MARK = "LAUNCH_TEST"


def launcher(folder: Path, pyz: Path, workers: int, *extra: str) -> Path:
    path = folder / "launch.yaml"
    path.write_text(
        "launcher:\n"
        "  model: demo/image\n"
        f"  num_workers: {workers}\n"
        "  num_gpus_per_worker: 0\n"
        "  worker_base_port: 0\n"
        "  master_port_base: 0\n"
        "  scheduler_port_base: 0\n"
        f"  log_dir: {folder / 'logs'}\n"
        f"  worker_env: {{{MARK}: {folder.name}}}\n"
        f"  command: [{sys.executable}, {pyz}, simulate-worker]\n"
        f"  worker_extra_args: [--time-scale, '0.1', {', '.join(extra)}]\n"
    )
    return path


@contextlib.contextmanager
def router(
    pyz: Path, config: Path, *flags: str, before: Sequence[str] = ()
) -> Iterator[subprocess.Popen[bytes]]:
    """A router with its log beside the configuration; whatever it leaves is killed."""
    log = config.with_name("router.log")
    command = [*before, sys.executable, pyz, "--host", "127.0.0.1", "--port", "0"]
    with log.open("ab") as output:
        running = subprocess.Popen(
            [*command, "--launcher-config", config, *flags],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        for process in left(config):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def left(config: Path) -> list[processes.Process]:
    name = config.parent.name
    return processes.marked(MARK, [name])[name]


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_during_the_start_leaves_nothing(
    router_pyz: Path, tmp_path: Path, twice: bool
) -> None:
    config = launcher(tmp_path, router_pyz, 3, "--load-seconds", "'60'")
    with router(router_pyz, config) as running:
        wait_for(r"(worker \S+ added)", tmp_path / "router.log", running)
        time.sleep(random.uniform(0, 1.5))  # any moment will do
        running.send_signal(signal.SIGINT)
        if twice:
            time.sleep(0.05)
            running.send_signal(signal.SIGINT)
        status = running.wait(WITHIN)
        # The second may come when all is done, and Python about to exit.
        good = (0, 130, -signal.SIGINT) if twice else (0,)
        assert status in good, (tmp_path / "router.log").read_text()
        assert left(config) == []


def test_workers_end_with_a_clean_stop_and_stay_if_they_are_to(
    router_pyz: Path, tmp_path: Path
) -> None:
    config = launcher(tmp_path, router_pyz, 1, "--load-seconds", "'0'")
    for keep in (True, False):
        with router(router_pyz, config, *(["--keep-workers"] if keep else [])) as running:
            wait_for(r"(is ready after)", tmp_path / "router.log", running)
            running.terminate()
            assert running.wait(WITHIN) == 0
            assert bool(left(config)) is keep
        (tmp_path / "router.log").unlink()


# The first terminal that the first process of a session opens is the one of its session.
ON_A_TERMINAL = (
    "import os, sys; os.close(os.open(sys.argv[1], os.O_RDWR)); os.execv(sys.argv[2], sys.argv[2:])"
)


@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_terminal_and_quit_stop_it_as_cleanly_as_ctrl_c(
    router_pyz: Path, tmp_path: Path, closed: bool
) -> None:
    config = launcher(tmp_path, router_pyz, 1, "--load-seconds", "'0'")
    ours, terminal = os.openpty()
    before = (sys.executable, "-c", ON_A_TERMINAL, os.ttyname(terminal))
    with router(router_pyz, config, before=before) as running:
        wait_for(r"(is ready after)", tmp_path / "router.log", running)
        running.send_signal(signal.SIGQUIT if not closed else signal.SIGHUP)
        if closed:
            wait_for(r"(settings reloaded)", tmp_path / "router.log", running)
            os.close(terminal)
            os.close(ours)
        assert running.wait(WITHIN) == 0
        assert left(config) == []
    assert "INFO    stopped" in (tmp_path / "router.log").read_text()


CONTAINER = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def test_as_process_1_of_a_container_it_waits_for_orphans(router_pyz: Path, tmp_path: Path) -> None:
    try:
        subprocess.run([*CONTAINER, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("namespaces for processes cannot be made here")
    wrapper = tmp_path / "wrapper.sh"
    worker = f"exec {sys.executable} {router_pyz} simulate-worker"
    leaving = f"{MARK}=orphan-{tmp_path.name} sleep 1 >/dev/null 2>&1 &"
    wrapper.write_text(f'#!/bin/sh\n({leaving})\n({leaving})\n{worker} "$@"\n')
    wrapper.chmod(0o755)
    config = launcher(tmp_path, router_pyz, 1, "--load-seconds", "'0'")
    text = re.sub(r"command: .*", f"command: {wrapper}", config.read_text())
    config.write_text(text)
    with router(router_pyz, config, before=CONTAINER) as running:
        wait_for(r"(is ready after)", tmp_path / "router.log", running)
        (first,) = children(running.pid)
        end = time.monotonic() + WITHIN
        while processes.marked(MARK, [f"orphan-{tmp_path.name}"])[f"orphan-{tmp_path.name}"]:
            assert time.monotonic() < end
            time.sleep(0.05)
        while len(children(first)) > 1:  # the program; zombies would stay
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(first, signal.SIGTERM)
        assert running.wait(WITHIN) == 0
        assert left(config) == []
    assert "INFO    stopped" in (tmp_path / "router.log").read_text()


def test_exit_status_where_no_worker_can_be_started(router_pyz: Path, tmp_path: Path) -> None:
    config = launcher(tmp_path, router_pyz, 2)
    text = config.read_text()
    config.write_text(re.sub(r"command: .*", "command: /bin/false\n  restart: never", text))
    with router(router_pyz, config) as running:
        assert running.wait(WITHIN) == 1
        log = (tmp_path / "router.log").read_text()
        assert "exited with status 1" in log
        assert "error: no launched worker could start" in log
        assert "Traceback" not in log


def test_a_program_that_is_not_there_is_told_before_the_port_opens(
    router_pyz: Path, tmp_path: Path
) -> None:
    config = launcher(tmp_path, router_pyz, 9)
    text = config.read_text()
    config.write_text(re.sub(r"command: .*", "command: /no/such/program", text))
    with router(router_pyz, config) as running:
        assert running.wait(WITHIN) == 1
        assert (tmp_path / "router.log").read_text().splitlines()[-1] == (
            "sglang-d-router: error: Launcher image: the program /no/such/program cannot be found"
            " or executed"
        )
        assert "listening" not in (tmp_path / "router.log").read_text()


def test_logs_without_a_state_directory_are_gone_with_their_router(
    router_pyz: Path, tmp_path: Path
) -> None:
    config = launcher(tmp_path, router_pyz, 1, "--load-seconds", "'0'")
    config.write_text(re.sub(r" *log_dir: .*\n", "", config.read_text()))
    with router(router_pyz, config) as running:
        log = tmp_path / "router.log"
        folder = Path(wait_for(r"the logs of launched workers are in (\S+)", log, running))
        wait_for(r"(is ready after)", log, running)
        assert [file.name for file in folder.iterdir()] == ["image-0.log"]
        running.terminate()
        assert running.wait(WITHIN) == 0
        assert not folder.exists()


def test_the_workers_of_a_router_in_service_can_be_seen(router_pyz: Path, tmp_path: Path) -> None:
    config = launcher(tmp_path, router_pyz, 1, "--load-seconds", "'0'")
    with router(router_pyz, config) as running:
        log = tmp_path / "router.log"
        url = wait_for(r"listening on (http://\S+)", log, running)
        wait_for(r"(is ready after)", log, running)
        (worker,) = ask("GET", f"{url}/workers")["workers"]
        assert worker["launch"]["phase"] == "ready"
        path = f"{url}/workers/{worker['worker_id']}/logs?tail=5"
        with urllib.request.urlopen(path, timeout=WITHIN) as answer:
            lines = answer.read().decode().splitlines()
        assert any("serving demo/image" in line for line in lines) or len(lines) == 5
