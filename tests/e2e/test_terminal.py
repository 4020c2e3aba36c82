"""The commands of the built file that ask a running router, as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define

from tests.e2e.processes import WITHIN, process, wait_until_ready

ASKING = ("status", "workers", "queue", "weights", "jobs", "bench", "sleep", "wake", "sync")
NAMING = ("logs", "drain", "undrain", "quarantine", "recover", "remove", "restart", "refit")


@pytest.fixture(scope="module")
def demo(router_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a router with two launched workers."""
    log = tmp_path_factory.mktemp("demo") / "log"
    command = (router_pyz, "demo", "--port", "0", "--time-scale", "0.05")
    with process(log, r"router +(http://\S+)", *command) as url:
        wait_until_ready(url)
        yield url


@define
class Done:
    status: int
    out: str
    err: str

    @property
    def rows(self) -> dict[str, str]:
        """The lines by their first word."""
        lines = (line.split(maxsplit=1) for line in self.out.splitlines() if line)
        return {words[0]: words[1] if len(words) > 1 else "" for words in lines}


def run(pyz: Path, *line: str, url: str | None = None, cwd: Path | None = None) -> Done:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SGLANG_D_ROUTER_")}
    if url is not None:
        environment["SGLANG_D_ROUTER_URL"] = url
    done = subprocess.run(
        [sys.executable, str(pyz), *line],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * WITHIN,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("name", ["status", "workers", "queue", "weights", "jobs"])
def test_tables(name: str, router_pyz: Path, demo: str) -> None:
    done = run(router_pyz, name, url=demo)
    assert (done.status, done.err) == (0, "")
    assert 0 < max(map(len, done.out.splitlines())) <= 80
    assert "\x1b" not in done.out
    as_json = run(router_pyz, name, "--json", "--url", demo)
    assert as_json.status == 0
    assert isinstance(json.loads(as_json.out), dict)


def test_actions(router_pyz: Path, demo: str) -> None:
    def do(*line: str) -> dict[str, str]:
        done = run(router_pyz, *line, url=demo)
        assert (done.status, done.err) == (0, ""), done
        return done.rows

    assert do("quarantine", "worker-0")["worker-0"].startswith("quarantined")
    assert "quarantined" in do("workers")["worker-0"]
    assert do("recover", "worker-0")["worker-0"].startswith("recovered")
    assert do("drain", "worker-1") == {"worker-1": "drained"}
    assert do("undrain", "worker-1") == {"worker-1": "enabled"}
    assert do("sleep", "worker-0") == {"worker-0": "asleep"}
    assert do("wake") == {"worker-0": "awake"}
    told = do("refit", "demo/step-1")
    assert (told["worker-0"], told["worker-1"]) == ("updated", "updated")
    assert do("sync")["worker-1"].startswith("version ")
    assert do("scale", "2")["worker"] == "2 workers"
    assert run(router_pyz, "drain", "nobody", url=demo).status == 1


def test_a_bench(router_pyz: Path, demo: str) -> None:
    line = ("bench", "--prompts", "4", "--concurrency", "2", "--mix", "image=3,video=1")
    done = run(router_pyz, *line, "--size", "64x64", "--json", url=demo)
    assert done.status == 0, done
    found = json.loads(done.out)
    assert found["succeeded"] == 4
    assert {*found["latency_seconds"]} == {"image", "video"}
    assert run(router_pyz, "jobs", url=demo).out.count("video") >= 1


def test_logs(router_pyz: Path, demo: str) -> None:
    done = run(router_pyz, "logs", "worker-0", "-n", "2", url=demo)
    assert (done.status, len(done.out.splitlines())) == (0, 2)
    scaled = run(router_pyz, "scale", "3", url=demo).rows
    assert scaled["worker-2"] == "starting"
    follow = [sys.executable, str(router_pyz), "logs", "worker-2", "-f", "--url", demo]
    deadline = time.monotonic() + WITHIN
    while "worker-2  ready" not in run(router_pyz, "workers", url=demo).out:
        assert time.monotonic() < deadline
    with subprocess.Popen(follow, stdout=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stdout.readline()
        restarted = run(router_pyz, "restart", "worker-2", url=demo)
        assert restarted.rows == {"worker-2": "restarting"}
        assert run(router_pyz, "remove", "worker-2", url=demo).rows == {"worker-2": "removed"}
        following.stdout.read()
        assert following.wait(WITHIN) == 0


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_followed_log(router_pyz: Path, demo: str) -> None:
    follow = [sys.executable, str(router_pyz), "logs", "worker-0", "-f", "--url", demo]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        assert following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(WITHIN) == 130
        assert following.stderr.read() == b""


@contextlib.contextmanager
def unused_url() -> Iterator[str]:
    """An address that nothing else takes meanwhile, and at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("name", [*ASKING, *NAMING, "scale"])
def test_no_router_is_one_sentence_and_status_3(name: str, router_pyz: Path) -> None:
    words = ["1"] * (name in (*NAMING, "scale"))
    with unused_url() as url:
        done = run(router_pyz, name, *words, url=url)
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("sglang-d-router: error: No router answers at http://127.0.0.1:")
    assert done.err.endswith(": connection refused\n")


@pytest.mark.parametrize("name", [*ASKING, *NAMING, "scale", "top", "completion", "check-config"])
def test_wrong_arguments_are_status_2(name: str, router_pyz: Path) -> None:
    done = run(router_pyz, name, "--nonsense", "x", "y", "z")
    assert (done.status, done.out) == (2, "")
    assert done.err.splitlines()[-1] == f"Try 'sglang-d-router {name} --help'."


def test_a_worker_is_no_router(router_pyz: Path, demo: str) -> None:
    (worker, _) = json.loads(run(router_pyz, "workers", "--json", url=demo).out)["workers"][:2]
    done = run(router_pyz, "queue", "--url", worker["url"])
    assert done.status == 3
    assert "older than this program" in done.err


def test_a_reader_that_has_enough_is_no_error(router_pyz: Path, demo: str) -> None:
    line = f"'{sys.executable}' '{router_pyz}' workers worker-0 --url {demo} | true"
    done = subprocess.run(["sh", "-c", line], capture_output=True, timeout=WITHIN, check=True)
    assert done.stderr == b""


def test_commands_without_a_router(router_pyz: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("port: 1\nprot: 2\n")
    done = run(router_pyz, "check-config", "r.yaml", cwd=tmp_path)
    assert done.status == 1
    assert done.err.startswith("r.yaml:2: prot: unknown key (did you mean port?)")
    assert run(router_pyz, "help", "top").out.startswith("Usage: sglang-d-router top")
    assert run(router_pyz, "version").out == run(router_pyz, "-V").out
    (tmp_path / "script").write_text(run(router_pyz, "completion", "bash").out)
    line = "source ./script; COMP_WORDS=(router.pyz che) COMP_CWORD=1; compopt() { :; };"
    line += " _sglang_d_router; echo ${COMPREPLY[*]}"
    told = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert told.stdout == "check-config\n"
    assert run(router_pyz, "top").err.endswith("status and workers print the same once\n")


class Terminal:
    """A terminal of 24 rows and 80 columns, in which one command runs."""

    def __init__(self, *command: str) -> None:
        import pty  # not on Windows

        self.master, slave = pty.openpty()
        self.size(24, 80)
        self.before = self.settings()
        environment = {**os.environ, "TERM": "xterm"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, env=environment
        )
        self.slave = slave  # kept open: what is written stays readable
        self.text = ""

    def size(self, rows: int, columns: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def settings(self) -> object:
        import termios

        return termios.tcgetattr(self.master)

    def until(self, words: str) -> None:
        """Read on until these words have come; forget what came before them."""
        end = time.monotonic() + WITHIN
        while words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.master], [], [], 0.1)[0]:
                self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text.partition(words)[2]

    def ends(self) -> int:
        """Its exit status, once the terminal is as it was."""
        self.until("\x1b[?1049l")  # back to the ordinary screen
        status = self.process.wait(WITHIN)
        assert self.settings() == self.before
        return status

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def terminal(router_pyz: Path, demo: str) -> Iterator[Terminal]:
    pytest.importorskip("termios")
    made = Terminal(sys.executable, str(router_pyz), "top", "--url", demo)
    try:
        yield made
    finally:
        made.close()


def test_top_follows_resizes_and_ends_at_q(terminal: Terminal, router_pyz: Path, demo: str) -> None:
    terminal.until("\x1b[?1049h")  # the other screen
    terminal.until("worker-1")
    assert run(router_pyz, "quarantine", "worker-1", url=demo).status == 0
    terminal.until("quarantined")
    assert run(router_pyz, "recover", "worker-1", url=demo).status == 0
    terminal.until("q: quit\x1b[0m" + " " * 73 + "\r")
    terminal.size(12, 40)
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.until("q: quit\x1b[0m" + " " * 33 + "\r")
    os.write(terminal.master, b"xq")
    assert terminal.ends() == 0


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_top_ends_at_signals(name: str, terminal: Terminal) -> None:
    terminal.until("q: quit")
    terminal.process.send_signal(getattr(signal, name))
    assert terminal.ends() == 0


def test_top_connects_again(router_pyz: Path, tmp_path: Path) -> None:
    pytest.importorskip("termios")
    with unused_url() as url:
        pass
    port = url.rpartition(":")[2]
    command = (router_pyz, "--host", "127.0.0.1", "--port", port, "--state-dir", "none")
    with process(tmp_path / "first", r"listening on (http://\S+)", *command):
        terminal = Terminal(sys.executable, str(router_pyz), "top", "--url", url)
        terminal.until("no workers")
    try:
        terminal.until("trying again")
        with process(tmp_path / "second", r"listening on (http://\S+)", *command):
            while "trying again" in terminal.text or "no workers" not in terminal.text:
                terminal.until("\x1b[H")
                terminal.until("q: quit")
            os.write(terminal.master, b"q")
            assert terminal.ends() == 0
    finally:
        terminal.close()
