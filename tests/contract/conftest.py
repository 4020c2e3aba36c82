"""Which workers the contract is tested on.

Simulated ones by default. Real ones where the environment names them, as `real/fleet.py` does:

    REAL_WORKERS  image=URL,video=URL,lora=URL,pool-1=URL,pool-2=URL (any of these)
    REAL_MODELS   the folder with the models that they were started with
    REAL_PYTHON   a Python that has sglang, for the tests that start a worker of their own
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import httpx
import pytest

from tests.contract.behind import Pool, routed, router_before
from tests.contract.harness import (
    REAL,
    SIMULATED,
    TIME_SCALE,
    TINY,
    Process,
    Worker,
    real_worker,
    simulated,
    simulation,
    start_several,
    start_simulated,
)
from tests.launchers import FREE_PORTS


class Start(Protocol):
    def __call__(self, kind: str, warmup: float, port: int = 0) -> tuple[Worker, Process]: ...


def given() -> dict[str, str]:
    """Role -> URL of the real workers."""
    text = os.environ.get("REAL_WORKERS", "")
    return dict(pair.split("=", 1) for pair in text.split(",") if pair)  # type: ignore[misc]


def pytest_report_header() -> str:
    return f"contract: tested on {', '.join(given()) or 'simulated'} workers"


@pytest.fixture(scope="session")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """By role. They are shared: a test leaves them as it found them."""
    if urls := given():
        yield {role: real_worker(role, url) for role, url in urls.items()}
        return
    logs = tmp_path_factory.mktemp("workers")
    with ExitStack() as stack:
        roles = list(SIMULATED)
        yield dict(zip(roles, start_several(roles, logs, stack), strict=True))


def pick(workers: dict[str, Worker], role: str) -> Worker:
    if role not in workers:
        pytest.skip(f"no real worker for {role}")
    return workers[role]


@pytest.fixture(params=["image", "video"])
def worker(request: pytest.FixtureRequest, workers: dict[str, Worker]) -> Worker:
    """What is true of every worker is tested on one of each kind."""
    return pick(workers, request.param)


@pytest.fixture
def image(workers: dict[str, Worker]) -> Worker:
    return pick(workers, "image")


@pytest.fixture
def video(workers: dict[str, Worker]) -> Worker:
    return pick(workers, "video")


@pytest.fixture
def lora(workers: dict[str, Worker]) -> Worker:
    """An image worker for adapters, which change it for good."""
    return pick(workers, "lora")


@pytest.fixture
def more(workers: dict[str, Worker]) -> Worker:
    """A worker for edits, meshes and actions."""
    if "more" not in workers:
        pytest.skip("no tiny model for edits, meshes or actions: simulated only")
    return workers["more"]


@pytest.fixture(scope="module")
def pool(workers: dict[str, Worker], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A router with two image workers and a video worker. For each file one of its own, but the
    real ones are the same for all: a file leaves their weights as they were."""
    logs = tmp_path_factory.mktemp("pool")
    with ExitStack() as stack:
        if urls := given():
            roles = ("pool-1", "pool-2", "video")
            if missing := [role for role in roles if role not in urls]:
                pytest.skip(f"no real worker for {', '.join(missing)}")
            made = [real_worker(role, urls[role]) for role in roles]
        else:
            made = start_several(("image", "image", "video"), logs, stack)
        yield stack.enter_context(routed(made, logs))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """`start(kind, warmup)`: a worker of the test's own, which warms up for that many seconds (a
    real one: for as long as it takes, if that is more than 0). Not waited for. `port`: instead of
    any free one."""
    with ExitStack() as stack:

        def begin(kind: str, warmup: float, port: int = 0) -> tuple[Worker, Process]:
            log = tmp_path / "worker.log"
            if not given():
                warming = f"--warmup-seconds={warmup / float(TIME_SCALE)}"
                begun = start_simulated(kind, log, warming, f"--port={port}")
            else:
                begun = start_real(kind, log, warmup, port)
            stack.callback(begun[1].stop)
            return begun

        yield begin


def start_real(kind: str, log: Path, warmup: float, port: int) -> tuple[Worker, Process]:
    from tests.contract.real.fleet import free_ports

    port = port or free_ports(1)[0]
    worker = real_worker(kind, f"http://127.0.0.1:{port}")
    spec = f"{worker.name}={port}={worker.weights}"
    flags = ["--", "--warmup-mode", "server"] if warmup else []
    process = Process.start(log, real_python(), REAL / "serve.py", log.parent, spec, *flags)
    return worker, process


def real_python() -> str:
    """A Python that has sglang."""
    python = os.environ.get("REAL_PYTHON")
    if python is None:
        pytest.skip("REAL_PYTHON names no Python that has sglang")
    return python


@contextmanager
def router_that_launches(logs: Path) -> Iterator[tuple[httpx.Client, Callable[[str], Worker]]]:
    """A client of a new router that launches an image worker, not waited for; and what is known of
    that worker, given its URL."""
    of_url = partial(real_worker if given() else simulated, "image")
    command: list[str | Path] = list(simulation("image"))
    if given():
        spec = f"{TINY['image'][1]}={{port}}={{model}}"
        command = [real_python(), REAL / "serve.py", logs, spec, "--", "--strict-ports"]
    launcher = {
        "backend": "local",
        "model": of_url("http://unused").weights,
        "num_gpus_per_worker": 0,
        "command": [str(word) for word in command],
        **FREE_PORTS,
    }
    file = logs / "launch.yaml"
    file.write_text(json.dumps({"launcher": launcher}), encoding="utf-8")
    with router_before([], logs, "--launcher-config", str(file)) as client:
        yield client, of_url
