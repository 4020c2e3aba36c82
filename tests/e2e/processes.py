"""Processes of the built file: a router, and simulated workers."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

WITHIN = 30.0  # seconds for any one process to begin, or for an example to run


@contextlib.contextmanager
def process(log: Path, pattern: str, *command: str | Path) -> Iterator[str]:
    """Run a part of the pool; gives what `pattern` finds in its log. Ends it again: cleanly, or
    the test fails."""
    with log.open("wb") as output:
        running = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        yield wait_for(pattern, log, running)
        running.terminate()
        assert running.wait(WITHIN) == 0, log.read_text(encoding="utf-8")
    finally:
        running.kill()
        running.wait()


def wait_for(pattern: str, log: Path, running: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + WITHIN
    while time.monotonic() < end and running.poll() is None:
        found = re.search(pattern, log.read_text(encoding="utf-8"))
        if found:
            return found[1]
        time.sleep(0.02)
    pytest.fail(f"{pattern!r} did not come: {log.read_text(encoding='utf-8')}")


def worker(
    pyz: Path, log: Path, model: str = "demo/image-and-video", tasks: str = "T2I,TI2I,T2V"
) -> contextlib.AbstractContextManager[str]:
    """A simulated worker; gives its URL."""
    flags = ["--port", "0", "--supported-task-types", tasks, "--time-scale", "0.1"]
    command = [pyz, "simulate-worker", "--model-path", model, *flags]
    return process(log, r"serving .* on (http://\S+)", *command)


def router(pyz: Path, log: Path, *flags: str | Path) -> contextlib.AbstractContextManager[str]:
    """A router on a free port; gives its URL."""
    command = [pyz, *flags, "--host", "127.0.0.1", "--port", "0"]
    return process(log, r"listening on (http://\S+)", *command)


def ask(method: str, url: str) -> Any:
    """The JSON of an answer, past all proxies. Raises OSError."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(urllib.request.Request(url, method=method), timeout=WITHIN) as response:
        return json.load(response)


def wait_until_ready(url: str) -> None:
    end = time.monotonic() + WITHIN
    while True:
        try:
            ask("GET", f"{url}/ready")
            return
        except OSError:  # 503 until the worker's first probe is over
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
