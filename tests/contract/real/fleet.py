"""Start real SGLang workers on this machine's CPU, run something against them, end them.

    python tests/contract/real/fleet.py --python VENV/bin/python --state DIR -- COMMAND

Without a command they serve until Ctrl-C. VENV is where requirements.txt is installed. The command
finds the workers in the environment: see tests/contract/conftest.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
PORTS_PER_WORKER = 4  # serve.py
START_SECONDS = 300.0
STOP_SECONDS = 10.0
WORKERS = {  # role -> name and model
    "image": ("tiny-flux", "FLUX.1-dev"),
    "video": ("tiny-wan", "Wan2.1-T2V-1.3B-Diffusers"),
    "lora": ("tiny-flux", "FLUX.1-dev"),
    "pool-1": ("tiny-flux", "FLUX.1-dev"),
    "pool-2": ("tiny-flux", "FLUX.1-dev"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", required=True, help="a Python that has sglang")
    parser.add_argument("--state", type=Path, required=True, help="folder for models and logs")
    parser.add_argument("command", nargs="*", help="what to run meanwhile")
    options = parser.parse_args(arguments)
    state: Path = options.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(KeyboardInterrupt), fleet(options.python, state) as found:
        if options.command:
            environment = {**os.environ, **found}
            return subprocess.run(options.command, env=environment, check=False).returncode
        for name, value in found.items():
            print(f"export {name}={value}")
        print("Ctrl-C ends them", flush=True)
        while True:
            time.sleep(3600)
    return 0


@contextlib.contextmanager
def fleet(python: str, state: Path) -> Iterator[dict[str, str]]:
    """What the environment of a command should say about the workers, which serve meanwhile."""
    models = state / "models"
    subprocess.run([python, HERE / "tiny_models.py", models], check=True, stderr=subprocess.DEVNULL)
    tiny = models / "tiny"
    ports = dict(zip(WORKERS, free_ports(len(WORKERS)), strict=True))
    specs = [f"{name}={ports[role]}={tiny / model}" for role, (name, model) in WORKERS.items()]
    log = state / "fleet.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            [python, HERE / "serve.py", state, *specs],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    urls = {role: f"http://127.0.0.1:{port}" for role, port in ports.items()}
    try:
        wait_until_healthy(list(urls.values()), running, log)
        yield {
            "REAL_WORKERS": ",".join(f"{role}={url}" for role, url in urls.items()),
            "REAL_MODELS": str(tiny),
            "REAL_PYTHON": python,
        }
    finally:
        end(running)


def free_ports(count: int) -> list[int]:
    """As many ports, each free together with the next three; below those that connections take."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            port = random.randrange(20_000, 32_000, PORTS_PER_WORKER)
            with contextlib.suppress(OSError):
                for each in range(port, port + PORTS_PER_WORKER):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", each))
                found.append(port)
    return found


def wait_until_healthy(urls: list[str], running: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end_at = time.monotonic() + START_SECONDS
    waiting = list(urls)
    while waiting:
        if running.poll() is not None or time.monotonic() > end_at:
            tail = log.read_text(encoding="utf-8", errors="replace")[-4000:]
            sys.exit(f"{tail}\nno worker became healthy at {', '.join(waiting)}; see {log}")
        try:
            with opener.open(f"{waiting[0]}/health", timeout=5):
                waiting.pop(0)
        except OSError:
            time.sleep(0.2)


def end(running: subprocess.Popen[bytes]) -> None:
    """Everything in the group: the workers, and their schedulers."""
    for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(seconds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
