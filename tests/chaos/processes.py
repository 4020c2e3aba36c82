"""The processes: workers that are killed, frozen and started again, and a router that is too."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import trio
from attrs import define, field

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0  # seconds for anything that must come about by itself
_TAIL = 30  # lines of a log that are shown
_USUAL = re.compile(r'"(GET|POST) /(health|v1/images/generations) HTTP/1.1" 200')


@define(eq=False)
class Process:
    """A program at a fixed port, which is started again and again; all of it in one log."""

    name: str
    command: list[str]
    port: int
    log: Path
    running: subprocess.Popen[bytes] | None = None
    frozen: bool = field(init=False, default=False)
    # Somebody is at it: no other hand may touch it.
    taken: bool = field(init=False, default=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def alive(self) -> bool:
        return self.running is not None and self.running.poll() is None

    def start(self) -> None:
        inherited = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
        path = os.pathsep.join([str(ROOT), str(ROOT / "sglang")])
        with self.log.open("ab") as output:
            self.running = subprocess.Popen(
                [sys.executable, "-m", *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**inherited, "PYTHONPATH": path},
                cwd=self.log.parent,
                start_new_session=True,
            )

    def kill(self) -> None:
        """As the system's out-of-memory killer does."""
        self.frozen = False
        if self.running is not None:
            self.running.kill()
            self.running.wait()

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        self.frozen = False

    def _signal(self, number: int) -> None:
        if self.alive and self.running is not None:
            self.running.send_signal(number)

    async def listens(self) -> None:
        """Wait until it accepts connections, and start it again if it could not."""
        with trio.fail_after(PATIENCE):
            while True:
                if not self.alive:
                    self.start()  # its port may have been taken for a moment
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    await trio.sleep(0.05)
                else:
                    await stream.aclose()
                    return

    def tail(self) -> str:
        """The end of its log, without what is always there."""
        with contextlib.suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()
            telling = [line for line in lines if not _USUAL.search(line)]
            return "\n".join([f"--- {self.name} at {self.url}: {self.log}", *telling[-_TAIL:]])
        return f"--- {self.name}: no log"


def free_ports(count: int) -> list[int]:
    """Ports that are free, each with the next; below those that the system gives to connections,
    so that they stay free while their process is down."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = random.randrange(20_000, 32_000, 2)
            with contextlib.suppress(OSError):
                for each in (port, port + 1):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", each))
                found.append(port)
    return found


def worker(name: str, port: int, model_path: str, served_as: str, logs: Path) -> Process:
    """A simulated worker that makes images in real time."""
    flags = {
        "port": port,
        "model-path": model_path,
        "served-model-name": served_as,
        "supported-task-types": "T2I",
        "strict-ports": "true",
        "warmup-seconds": 0.2,
        "load-seconds": 0.1,
    }
    command = ["simulated_worker", *(f"--{name}={value}" for name, value in flags.items())]
    return Process(name, command, port, logs / f"{name}.log")


def router(port: int, logs: Path, urls: list[str], **settings: object) -> Process:
    flags = {"host": "127.0.0.1", "port": port, "health-check-interval": 0.5, **settings}
    command = ["router"]
    for name, value in flags.items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    command += ["--worker-urls", *urls]
    return Process("router", command, port, logs / "router.log")
