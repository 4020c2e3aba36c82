"""The router is killed with SIGKILL at random moments under load; what it told is there again.

`CRASH_ROUNDS` says how often (nox -s crash: 50), `CRASH_SEED` repeats what was.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from attrs import define, field

from router.store.reading import Loaded, load
from tests.e2e.processes import WITHIN, wait_for, wait_until_ready, worker

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "5"))
SEED = int(os.environ.get("CRASH_SEED", random.randrange(2**32)))
LEARNER = "m/learner"
VIDEO = {"prompt": "a kite", "size": "64x64", "num_frames": 2, "num_inference_steps": 1}

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9")


@define(eq=False)
class Truth:
    """What the router has told, and what it was asked and has not answered yet."""

    jobs: set[str] = field(factory=set)
    # By what it is about. An answer that never came may have been acted on or not.
    told: dict[str, Any] = field(factory=dict)
    asked: dict[str, Any] = field(factory=dict)
    # Of weights: the highest number that was told or found, how many changes were told as made, and
    # the last one that was told.
    version: int = 0
    changes: int = 0
    told_step: int = 0
    steps: int = 0  # that were asked for

    def may_be(self, key: str, found: Any) -> bool:
        return found in (self.told.get(key), self.asked.get(key, self.told.get(key)))


@define(eq=False)
class Load:
    """Clients of the router, each on a connection of its own, until it is gone."""

    truth: Truth
    port: int
    sleeper: str
    learner: str
    rng: random.Random

    def clients(self) -> list[Callable[[http.client.HTTPConnection], None]]:
        others = [self.register, self.quarantine, self.sleep, self.refit]
        return [self.submit, self.submit, self.submit, *others]

    def run(self) -> None:
        with ThreadPoolExecutor(len(self.clients())) as pool:
            for done in [pool.submit(self._go_on, client) for client in self.clients()]:
                done.result()

    def _go_on(self, client: Callable[[http.client.HTTPConnection], None]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN)
        with (
            contextlib.suppress(OSError, http.client.HTTPException),
            contextlib.closing(connection),
        ):
            while True:
                client(connection)

    def submit(self, connection: http.client.HTTPConnection) -> None:
        status, job = ask(connection, "POST", "/v1/videos", VIDEO)
        if status == 200:
            self.truth.jobs.add(job["id"])

    def register(self, connection: http.client.HTTPConnection) -> None:
        url = f"http://127.0.0.1:{self.rng.randrange(1, 20)}"
        there = not self.truth.told.get(url)
        self.truth.asked[url] = there
        if there:
            status, _ = ask(connection, "POST", "/workers", {"url": url})
        else:
            status, _ = ask(connection, "DELETE", f"/workers/{url}")
        assert status in (200, 404), status  # 404: deleted just before the router was killed
        self.truth.told[url] = there
        del self.truth.asked[url]

    def quarantine(self, connection: http.client.HTTPConnection) -> None:
        key = "quarantined"
        dead = not self.truth.told.get(key)
        self.truth.asked[key] = dead
        status, told = ask(connection, "PUT", "/workers/http://127.0.0.1:21", {"is_dead": dead})
        assert status == 200, told
        self.truth.told[key] = dead
        del self.truth.asked[key]

    def sleep(self, connection: http.client.HTTPConnection) -> None:
        key = "asleep"
        asleep = not self.truth.told.get(key)
        # A wake that is under way may be on the disk as either.
        self.truth.asked[key] = asleep
        path = "/release_memory_occupation" if asleep else "/resume_memory_occupation"
        status, told = ask(connection, "POST", f"{path}?workers={self.sleeper}")
        if status == 200:
            self.truth.told[key] = asleep
            del self.truth.asked[key]
        else:
            assert status == 503, told  # not probed yet
            time.sleep(0.02)

    def refit(self, connection: http.client.HTTPConnection) -> None:
        self.truth.steps += 1
        body = {"model_path": f"step-{self.truth.steps}"}
        path = f"/update_weights_from_disk?workers={self.learner}"
        status, told = ask(connection, "POST", path, body)
        if status == 200:
            self.truth.told_step = self.truth.steps
            if not told.get("pending"):  # else it gets its number later, or a later one replaces it
                self.truth.changes += 1
                assert told["weight_version"] > self.truth.version, "a number was given twice"
            self.truth.version = max(self.truth.version, told["weight_version"])
        else:
            assert status == 503, told  # not probed yet
            time.sleep(0.02)


def connected(port: int) -> contextlib.closing[http.client.HTTPConnection]:
    return contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=WITHIN))


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None
) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@contextlib.contextmanager
def running(pyz: Path, folder: Path, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    command = [pyz, "--host", "127.0.0.1", "--port", "0", "--health-check-interval", "0.2"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command, "--state-dir", folder],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        url = wait_for(r"listening on (http://\S+)", log, process)
        yield process, int(url.rpartition(":")[2])
    finally:
        process.kill()
        process.wait()


def verify(truth: Truth, found: Loaded, sleeper: str) -> None:
    """What is on the disk against what was told."""
    names = [name for name in found.tables if name.startswith("assets/")]
    known = {asset for name in names for asset in found.tables[name]}
    assert truth.jobs <= known, f"lost: {truth.jobs - known}"
    workers = found.tables["workers"]
    for number in range(1, 20):
        url = f"http://127.0.0.1:{number}"
        assert truth.may_be(url, url in workers) or url not in truth.told
    admin = workers["http://127.0.0.1:21"]["admin"]
    assert truth.may_be("quarantined", admin == "quarantined")
    assert truth.may_be("asleep", workers[sleeper]["memory"] == "asleep")
    ledger = found.tables.get("ledgers", {}).get(LEARNER, {"version": 0, "issued": 0})
    assert ledger["issued"] >= ledger["version"] >= truth.version
    truth.version = ledger["issued"]
    for key in list(truth.asked):  # now it is known which of the two it is
        del truth.asked[key]
    for number in range(1, 20):
        url = f"http://127.0.0.1:{number}"
        truth.told[url] = url in workers
    truth.told["quarantined"] = admin == "quarantined"
    truth.told["asleep"] = workers[sleeper]["memory"] == "asleep"


def verify_weights(truth: Truth, router: http.client.HTTPConnection, learner: str) -> None:
    """The last change that was told is made in the end, or a later one, and the worker has it."""
    end = time.monotonic() + WITHIN
    while True:
        _, weights = ask(router, "GET", "/weights")
        [ledger] = (some for some in weights["models"] if some["model"] == LEARNER)
        [row] = (row for row in ledger["workers"] if row["worker_url"] == learner)
        if row["routable"] and not ledger["pending"]:
            break
        assert time.monotonic() < end, ledger
        time.sleep(0.02)
    version = ledger["weight_version"]
    assert version >= max(truth.version, truth.changes)
    assert int((ledger["label"] or "step-0").removeprefix("step-")) >= truth.told_step
    assert (row["weights"], row["weight_version"]) == ("current", version)
    with connected(int(learner.rpartition(":")[2])) as direct:
        sums = "POST", "/get_weights_checksum", {"module_names": None}
        has = ask(direct, *sums)
        last = ledger["replay"][-1]
        assert ask(direct, "POST", last["path"], last["body"])[0] == 200
        assert ask(direct, *sums) == has  # it had them already


def test_what_was_told_survives_kill_9(router_pyz: Path, tmp_path: Path) -> None:
    print(f"CRASH_SEED={SEED} CRASH_ROUNDS={ROUNDS}")
    rng, truth, folder = random.Random(SEED), Truth(), tmp_path / "state"
    with (
        worker(router_pyz, tmp_path / "a.log") as one,
        worker(router_pyz, tmp_path / "b.log") as two,
        worker(router_pyz, tmp_path / "c.log", "m/sleeper", "T2I") as sleeper,
        worker(router_pyz, tmp_path / "d.log", LEARNER, "T2I") as learner,
        contextlib.ExitStack() as stack,
    ):
        with running(router_pyz, folder, tmp_path / "router.log") as (process, port):
            connection = stack.enter_context(connected(port))
            for url in (one, two, sleeper, learner, "http://127.0.0.1:21"):
                assert ask(connection, "POST", "/workers", {"url": url})[0] == 200
            truth.told |= {"quarantined": False, "asleep": False}
        for round_ in range(ROUNDS):
            log = tmp_path / f"router-{round_}.log"
            with running(router_pyz, folder, log) as (process, port):
                load_ = Load(truth, port, sleeper, learner, random.Random(rng.random()))
                clients = ThreadPoolExecutor(1)
                busy = clients.submit(load_.run)
                time.sleep(rng.uniform(0.05, 1.2))
                process.kill()
                process.wait()
                busy.result(WITHIN)
                clients.shutdown()
            assert "Traceback" not in log.read_text(encoding="utf-8")
            verify(truth, load(folder), sleeper)
        recorded = load(folder).tables
        with running(router_pyz, folder, tmp_path / "last.log") as (process, port):
            wait_until_ready(f"http://127.0.0.1:{port}")
            connection = stack.enter_context(connected(port))
            for job in truth.jobs:
                assert ask(connection, "GET", f"/v1/videos/{job}")[0] == 200
            _, workers = ask(connection, "GET", "/workers")
            there = {worker["url"]: worker for worker in workers["workers"]}
            for url in (url for url in truth.told if url.startswith("http")):
                assert (url in there) == truth.told[url]
            for owner in recorded["owners"].values():  # they are still what made their jobs
                assert there[owner["url"]]["incarnation"] == owner["incarnation"]
            verify_weights(truth, connection, learner)
            before = load(folder)
            process.terminate()
            assert process.wait(WITHIN) == 0
        after = load(folder)
        assert after.batches == 0, "SIGTERM leaves a snapshot of everything"
        for name in ("workers", "jobs", "ledgers", "weights", "sleeps", "changes"):
            assert after.tables.get(name) == before.tables.get(name)
        assert len(truth.jobs) > ROUNDS
        assert truth.told_step > 0
    assert threading.active_count() < 10
