"""Servers as processes of their own, each pinned to its cores, all ended with the block."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
_START = 30.0  # seconds


@frozen
class Cores:
    """The server under test has a core of its own; everybody else shares the rest."""

    tested: frozenset[int]
    rest: frozenset[int]

    @classmethod
    def choose(cls) -> Cores | None:
        """None where cores cannot be chosen, or there is only one."""
        if not hasattr(os, "sched_getaffinity"):
            return None
        first, *rest = sorted(os.sched_getaffinity(0))
        return cls(frozenset({first}), frozenset(rest)) if rest else None


@frozen
class Server:
    """A server that answers on loopback."""

    port: int
    pid: int


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def running(
    command: Sequence[str], port: int, *, cores: frozenset[int] | None, log: Path, path: str
) -> Iterator[Server]:
    """Run a server until the end of the block; enters when GET `path` is a 200.

    Raises RuntimeError, with what it wrote, if it does not start.
    """
    mine = os.sched_getaffinity(0) if cores else None
    if cores:  # a child has the cores of its parent from its first instruction on
        os.sched_setaffinity(0, cores)
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=ROOT
            )
    finally:
        if mine:
            os.sched_setaffinity(0, mine)
    try:
        deadline = time.monotonic() + _START
        while not answers(port, path):
            if process.poll() is not None or time.monotonic() > deadline:
                written = log.read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"{' '.join(command)} did not start:\n{written[-2000:]}")
            time.sleep(0.05)
        yield Server(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


def answers(port: int, path: str, *, within: float = 5) -> bool:
    """Whether a GET is 200; it may take so many seconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=within)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def router_command(program: Sequence[str], port: int, worker: int) -> list[str]:
    return [
        *program, "--host", "127.0.0.1", "--port", str(port),
        "--worker-urls", f"http://127.0.0.1:{worker}", "--shutdown-timeout", "1",
        "--log-level", "warning",
    ]  # fmt: skip


def script_command(name: str, port: int) -> list[str]:
    """The command of a server of this folder."""
    return [sys.executable, str(HERE / name), str(port)]


def cpu_seconds(pid: int) -> float | None:
    """The processor time that a process has used; None where that cannot be read."""
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except OSError:
        return None
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


class Memory:
    """The resident memory of a process, in MB (10^6 bytes). Linux only."""

    def __init__(self, pid: int) -> None:
        self._folder = Path("/proc", str(pid))
        self._before = self.now()
        (self._folder / "clear_refs").write_text("5")  # the peak counts from here

    def now(self) -> float:
        return self._read("VmRSS")

    def growth(self) -> float:
        """From the start of the measurement to its peak."""
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> float:
        for line in (self._folder / "status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024 / 1e6
        raise LookupError(name)

    @staticmethod
    def readable() -> bool:
        return Path("/proc/self/clear_refs").exists()
