"""What it costs to lose nothing at a restart.

1. How long a start takes with 1,000 workers and many assets, beside an empty one.
2. The longest pause of the event loop while a snapshot is made.
3. How many jobs per second are registered durably, beside `--state-dir none`. The jobs are over as
   soon as they are submitted, so that following them does not hide what the disk costs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio
from support.load import tiny
from support.processes import Cores, answers, cpu_seconds, free_port, running, script_command
from support.upstream import MODEL, host_of

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from router.control.persistence import OwnerRecord  # noqa: E402
from router.pool.assets import AssetKind  # noqa: E402
from router.pool.worker import Capabilities, Origin, WorkerRecord  # noqa: E402
from router.store import files  # noqa: E402
from router.store import store as store_module  # noqa: E402
from router.store.changes import Changes  # noqa: E402
from router.store.journal import Journal  # noqa: E402
from router.store.records import unstructured  # noqa: E402
from router.store.snapshot import Pace, compact  # noqa: E402
from router.store.store import Store  # noqa: E402

WORKERS = 1_000
ROUTER = [sys.executable, "-m", "router", "--host", "127.0.0.1", "--log-level", "error"]


def fill(folder: Path, assets: int, port: int, workers: int = WORKERS) -> None:
    """A state directory with a snapshot of so many workers and assets."""
    folder.mkdir(parents=True)
    changes = Changes()
    can = Capabilities(models=(MODEL,), task_types=("T2I", "T2V"), dp_size=8)
    for number in range(workers):
        url = f"http://{host_of(number)}:{port}"
        record = WorkerRecord(url, number, Origin.REGISTERED, registered=True, capabilities=can)
        changes.put(record.table, record.key, unstructured(record))
        owner = OwnerRecord(number, url, 1, AssetKind.VIDEO)
        changes.put(owner.table, owner.key, unstructured(owner))
    for order in range(1, assets + 1):
        changes.put(f"assets/{order % workers}", str(uuid.uuid4()), -order)
    journal = Journal.create(folder, 1)
    journal.append(changes, 1)
    journal.close()
    second = Journal.create(folder, 2, 1, journal.after)
    second.close()
    compact(folder, 0, 2, Pace(hurried=True))
    # As after a long run: the snapshot, the one before it, and no longer the first journal.
    Journal.create(folder, 3, 1, second.after).close()
    compact(folder, 2, 3, Pace(hurried=True))


def healthy(port: int) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/health")
    count: int = json.loads(connection.getresponse().read())["healthy_workers"]
    connection.close()
    return count


@contextmanager
def router(*flags: str) -> Iterator[tuple[int, float]]:
    """A router, and when it was started."""
    port = free_port()
    begun = time.monotonic()
    process = subprocess.Popen([*ROUTER, "--port", str(port), *flags], cwd=ROOT)
    try:
        yield port, begun
    finally:
        process.kill()
        process.wait()


def start_seconds(folder: str, worker: str | None) -> list[float]:
    """Seconds until the port answers, until a request would be served, and until all workers are
    healthy."""
    flags = ["--state-dir", folder] + (["--worker-urls", worker] if worker else [])
    with router(*flags) as (port, begun):
        took = []
        for path in ("/live", "/ready"):
            while not answers(port, path, within=60):
                time.sleep(0.005)
            took.append(time.monotonic() - begun)
        while worker is None and healthy(port) < WORKERS:
            time.sleep(0.2)
        took.append(time.monotonic() - begun)
    return took


def restarts(scratch: Path, rounds: int, *, quick: bool) -> None:
    port = free_port()
    print(f"\nSeconds from the start of the process, {WORKERS} restored workers\n")
    print("| | port answers | a request is served | all workers are healthy | size |")
    print("| --- | --- | --- | --- | --- |")
    command = [*script_command("upstream.py", port), str(WORKERS)]
    with running(command, port, cores=None, log=scratch / "up.log", path="/health"):
        cases: list[tuple[str, int | None]] = [("empty, one static worker", None), ("no assets", 0)]
        cases += [("100,000 assets", 100_000)] + ([] if quick else [("1,000,000", 1_000_000)])
        for name, assets in cases:
            folder, took, size = scratch / f"start-{assets}", [], 0
            if assets is not None:
                fill(folder, assets, port)
                size = files.snapshot(folder, 3).stat().st_size
            for _ in range(rounds):
                worker = f"http://127.0.0.1:{port}" if assets is None else None
                took.append(start_seconds(str(folder), worker))
            cells = [f"{statistics.median(column):.2f}" for column in zip(*took, strict=True)]
            print(f"| {name} | {' | '.join(cells)} | {size / 1e6:.1f} MB |", flush=True)


async def longest_pause(folder: Path, *, snapshot: bool, seconds: float) -> tuple[float, float]:
    """The longest pause of the event loop and the longest commit, in milliseconds, while eight
    tasks register jobs."""
    store = Store.open(folder)
    pause = slowest = 0.0

    async def tick() -> None:
        nonlocal pause
        while True:
            begun = time.perf_counter()
            await trio.sleep(0.001)
            pause = max(pause, time.perf_counter() - begun - 0.001)

    async def register(number: int) -> None:
        nonlocal slowest
        count = 0
        while True:
            count += 1
            begun = time.perf_counter()
            store.put_row("jobs", f"{number}-{count % 100}", {"url": "http://w:1", "work": 1.0})
            await store.commit()
            slowest = max(slowest, time.perf_counter() - begun)
            await trio.sleep(0.001)

    async with store.running(), trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        for number in range(8):
            nursery.start_soon(register, number)
        await trio.sleep(0.5)
        pause = slowest = 0.0
        before = max(files.numbered(folder, "snapshot"))
        begun = time.monotonic()
        if snapshot:
            await store._compact()
            assert max(files.numbered(folder, "snapshot")) > before
            seconds = time.monotonic() - begun
        else:
            await trio.sleep(seconds)
        print(f"| {seconds:.1f} s | {pause * 1e3:.1f} | {slowest * 1e3:.1f} |", flush=True)
        nursery.cancel_scope.cancel()
    return pause, slowest


def pauses(scratch: Path, *, quick: bool) -> None:
    print("\nMilliseconds at most, while eight tasks register jobs\n")
    print("| | takes | pause of the event loop | a commit |")
    print("| --- | --- | --- | --- |")
    for assets in (100_000,) if quick else (100_000, 1_000_000):
        folder = scratch / f"pause-{assets}"
        fill(folder, assets, 1)
        print("| no snapshot ", end="")
        trio.run(lambda folder=folder: longest_pause(folder, snapshot=False, seconds=2.0))
        print(f"| a snapshot of {assets:,} assets ", end="")
        trio.run(lambda folder=folder: longest_pause(folder, snapshot=True, seconds=0.0))


def fsyncs(folder: Path, seconds: float = 1.0) -> float:
    """Small appends that reach the disk, one after the other, per second."""
    count = 0
    with (folder / "fsyncs").open("wb") as file:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            os.write(file.fileno(), b"x" * 400)
            files.sync(file.fileno())
            count += 1
    return count / seconds


def jobs(scratch: Path, slices: int) -> None:
    """Both routers run all the time and take turns of a second, in changing order: what else the
    machine and its disk have to do then hits both alike."""
    cores = Cores.choose()
    rest = cores.rest if cores else None
    tested = cores.tested if cores else None
    disk = [fsyncs(scratch)]
    rates: dict[str, list[float]] = {"none": [], "durable": []}
    costs: dict[str, list[float]] = {"none": [], "durable": []}
    up = free_port()
    with contextlib.ExitStack() as stack:
        worker = script_command("upstream.py", up)
        log = scratch / "up.log"
        stack.enter_context(running(worker, up, cores=rest, log=log, path="/health"))
        servers = {}
        for name in rates:
            port = free_port()
            folder = "none" if name == "none" else str(scratch / "jobs")
            command = [
                *ROUTER, "--port", str(port), "--worker-urls", f"http://127.0.0.1:{up}",
                "--state-dir", folder, "--worker-concurrency", "10000", "--shutdown-timeout", "1",
            ]  # fmt: skip
            log = scratch / f"router-{name}.log"
            servers[name] = stack.enter_context(
                running(command, port, cores=tested, log=log, path="/ready")
            )
        for number in range(slices + 1):
            for name in sorted(rates, reverse=number % 2 == 0):
                server = servers[name]
                before = cpu_seconds(server.pid) or 0.0
                rate = tiny(
                    server.port, connections=64, seconds=1, folder=scratch, path="/v1/videos"
                )
                if number:  # the first one warms up
                    rates[name].append(rate.per_second)
                    used = (cpu_seconds(server.pid) or 0.0) - before
                    costs[name].append(used / rate.requests * 1e6)
            disk.append(fsyncs(scratch, 0.2))
    middle = statistics.median
    shares = [ours / theirs for ours, theirs in zip(rates["durable"], rates["none"], strict=True)]
    print(f"\nJobs registered per second at 64 connections, medians of {slices} seconds each\n")
    print("| | per second | CPU us each | least and most per second |")
    print("| --- | --- | --- | --- |")
    for name, found in rates.items():
        ends = f"{min(found):.0f} to {max(found):.0f}"
        print(f"| {name} | {middle(found):.0f} | {middle(costs[name]):.0f} | {ends} |")
    print(f"\nshare: {middle(shares):.2f} (wanted: at least 0.85); ", end="")
    print(f"fsyncs/s of the disk: {middle(disk):.0f} ({min(disk):.0f} to {max(disk):.0f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, fewer assets")
    parser.add_argument("--only", choices=["restarts", "pauses", "jobs"], help="one of the three")
    parser.add_argument("--folder", help="where to write; its disk is the one that is measured")
    options = parser.parse_args()
    if options.folder is not None and not Path(options.folder).is_dir():
        parser.error(f"argument --folder: {options.folder} is no folder")
    store_module._LEAST = 1 << 40  # snapshots are made when we say so
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        scratch, rounds = Path(name), 1 if options.quick else 3
        if options.only in (None, "restarts"):
            restarts(scratch, rounds, quick=options.quick)
        if options.only in (None, "pauses"):
            pauses(scratch, quick=options.quick)
        if options.only in (None, "jobs"):
            jobs(scratch, 6 if options.quick else 20)


if __name__ == "__main__":
    main()
