"""Speed and memory of the relay, beside nginx as a proxy and the upstream without any.

    python tests/benchmarks/relay.py                      all of it: about ten minutes
    python tests/benchmarks/relay.py --quick              one short round: about a minute
    python tests/benchmarks/relay.py --only tiny --only 100
    python tests/benchmarks/relay.py --from result.json --markdown

Rounds alternate between the targets; figures are medians. The server under test has a core of its
own, the upstream and the clients share the others. docs/performance.md has the figures and says
what is wanted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from attrs import define, frozen
from support import load, nginx
from support.processes import (
    Cores,
    Memory,
    Server,
    cpu_seconds,
    free_port,
    router_command,
    running,
    script_command,
)
from support.report import DIRECT, MACHINE, NGINX, ROUTER, STOCK, Case, as_json, tables

MB = 1_000_000
UPLOAD = 64 * MB
IDLE = 5000
_SIZES = {2 * MB: True, 100 * MB: True, 200 * MB: False, 500 * MB: False}  # real bytes or a hole


@frozen
class Plan:
    """How long and how often."""

    rounds: int
    seconds: float  # of a measurement that can be of any length
    times: int  # transfers of a measurement that is made of whole ones
    slow_seconds: float
    stall_seconds: float


@define
class Bench:
    """The servers that are there all the time, and ways to start others."""

    plan: Plan
    folder: Path
    cores: Cores | None
    program: Sequence[str]  # how the router is run
    worker: Server
    sink: Server  # takes uploads, which nginx would answer before it has them

    @contextlib.contextmanager
    def router(self, upstream: Server) -> Iterator[Server]:
        port = free_port()
        with self._tested(
            router_command(self.program, port, upstream.port), port, "router", "/health"
        ) as server:
            yield server

    @contextlib.contextmanager
    def proxy(self) -> Iterator[Server]:
        port = free_port()
        command = nginx.proxy_command(
            self.folder, port, worker=self.worker.port, sink=self.sink.port
        )
        with self._tested(command, port, "nginx", "/health") as server:
            yield server

    @contextlib.contextmanager
    def stock(self) -> Iterator[Server]:
        port = free_port()
        with self._tested(script_command("stock.py", port), port, "stock", "/") as server:
            yield server

    @contextlib.contextmanager
    def proxies(self, upstream: Server) -> Iterator[dict[str, Server]]:
        """What stands between client and worker: the router, and nginx if installed."""
        with contextlib.ExitStack() as opened:
            found = {}
            if nginx.BINARY:
                found[NGINX] = opened.enter_context(self.proxy())
            found[ROUTER] = opened.enter_context(self.router(upstream))
            yield found

    def _tested(
        self, command: Sequence[str], port: int, name: str, path: str
    ) -> contextlib.AbstractContextManager[Server]:
        cores = self.cores.tested if self.cores else None
        log = self.folder / f"{name}-{port}.log"
        return running(command, port, cores=cores, log=log, path=path)


Measure = Callable[[Bench, Case], None]


def tiny(connections: int, bench: Bench, case: Case) -> None:
    with bench.proxies(bench.worker) as proxies, bench.stock() as stock:
        targets = {DIRECT: bench.worker, **proxies, STOCK: stock}
        ask = partial(load.tiny, connections=connections, folder=bench.folder)
        for server in targets.values():
            ask(server.port, seconds=0.5)
        for target, server in _alternating(bench, targets, case):
            before = cpu_seconds(server.pid)
            rate = ask(server.port, seconds=bench.plan.seconds)
            case.add(target, per_second=rate.per_second, p50=rate.p50, p99=rate.p99)
            if before is not None:
                spent = (cpu_seconds(server.pid) or 0) - before
                case.add(target, cpu_us=spent / rate.requests * 1e6)


def two_megabytes(bench: Bench, case: Case) -> None:
    ask = partial(load.download_parallel, path=_body(2 * MB), connections=8)
    with bench.proxies(bench.worker) as proxies:
        for target, server in _alternating(bench, {DIRECT: bench.worker, **proxies}, case):
            case.add(target, gb_per_second=ask(server.port, seconds=bench.plan.seconds))


def hundred_megabytes(bench: Bench, case: Case) -> None:
    ask = partial(load.download, path=_body(100 * MB), times=bench.plan.times)
    with bench.proxies(bench.worker) as proxies:
        for target, server in _alternating(bench, {DIRECT: bench.worker, **proxies}, case):
            case.add(target, gb_per_second=ask(server.port))


def uploads(bench: Bench, case: Case) -> None:
    ask = partial(load.upload, path="/upload", size=UPLOAD, times=bench.plan.times)
    with bench.proxies(bench.sink) as proxies:
        for target, server in _alternating(bench, {DIRECT: bench.sink, **proxies}, case):
            case.add(target, gb_per_second=ask(server.port))


def parallel_memory(bench: Bench, case: Case) -> None:
    def four(server: Server) -> None:
        load.download_parallel(server.port, _body(200 * MB), connections=4, seconds=None)

    _growth(bench, case, bench.worker, four)


def slow_readers(bench: Bench, case: Case) -> None:
    def sixteen(server: Server) -> None:
        seconds = bench.plan.slow_seconds
        load.read_slowly(
            server.port, _body(200 * MB), connections=16, rate=20 * MB, seconds=seconds
        )

    _growth(bench, case, bench.worker, sixteen)


def stalled_reader(bench: Bench, case: Case) -> None:
    def one(server: Server) -> None:
        with load.stalled_reader(server.port, _body(500 * MB)):
            time.sleep(bench.plan.stall_seconds)

    _growth(bench, case, bench.worker, one)


def stalled_upload(bench: Bench, case: Case) -> None:
    def one(server: Server) -> None:
        sent = load.stalled_upload(server.port, "/stall", UPLOAD, seconds=bench.plan.stall_seconds)
        if sent == UPLOAD:
            raise RuntimeError("the upload to a worker that reads nothing was taken whole")

    _growth(bench, case, bench.sink, one, only=ROUTER)


def idle(bench: Bench, case: Case) -> None:
    if _open_files() < IDLE + 100:
        print("   skipped: too few open files are allowed", file=sys.stderr)
        return
    with bench.proxies(bench.worker) as proxies:
        for target, server in _alternating(bench, proxies, case, rounds=1):
            memory = Memory(server.pid)
            with load.idle_clients(server.port, IDLE):
                case.add(target, rss_mb=memory.now(), growth_mb=memory.growth())


def _growth(
    bench: Bench,
    case: Case,
    upstream: Server,
    act: Callable[[Server], None],
    *,
    only: str | None = None,
) -> None:
    """The growth of a fresh process that has relayed a little before, so that everything is
    imported."""
    for _ in range(bench.plan.rounds):
        with bench.proxies(upstream) as proxies:
            for target, server in _alternating(bench, proxies, case, rounds=1):
                if only not in (None, target):
                    continue
                load.download(server.port, _body(2 * MB), times=5)
                memory = Memory(server.pid)
                act(server)
                case.add(target, growth_mb=memory.growth())


CASES: dict[str, tuple[str, Measure]] = {
    "1 connection": ("tiny", partial(tiny, 1)),
    "8 connections": ("tiny", partial(tiny, 8)),
    "32 connections": ("tiny", partial(tiny, 32)),
    "256 connections": ("tiny", partial(tiny, 256)),
    "2 MB, 8 connections": ("throughput", two_megabytes),
    "100 MB": ("throughput", hundred_megabytes),
    "64 MB upload": ("throughput", uploads),
    "4 x 200 MB in parallel": ("memory", parallel_memory),
    "16 x 200 MB to slow readers": ("memory", slow_readers),
    "500 MB, reader stalled": ("memory", stalled_reader),
    "64 MB upload, worker stalled": ("memory", stalled_upload),
    "5,000 idle clients, in all": ("memory", idle),
}


def _alternating(
    bench: Bench, targets: dict[str, Server], case: Case, *, rounds: int | None = None
) -> Iterator[tuple[str, Server]]:
    for _ in range(rounds or bench.plan.rounds):
        for target, server in targets.items():
            print(f"   {case.name}: {target}", file=sys.stderr)
            yield target, server


def _body(size: int) -> str:
    return f"/bodies/{size}"


@contextlib.contextmanager
def prepared(plan: Plan, program: Sequence[str]) -> Iterator[Bench]:
    """The bench with its upstreams; ends every process at the end of the block."""
    cores = Cores.choose()
    rest = cores.rest if cores else None
    memory = Path("/dev/shm")
    place = memory if memory.is_dir() else None
    with tempfile.TemporaryDirectory(dir=place) as name, contextlib.ExitStack() as opened:
        folder = Path(name)
        start = partial(running, cores=rest, path="/health")
        port = free_port()
        sink = opened.enter_context(
            start(script_command("upstream.py", port), port, log=folder / "sink.log")
        )
        worker = sink
        if nginx.BINARY:
            _make_bodies(folder / "bodies")
            port = free_port()
            worker = opened.enter_context(
                start(nginx.upstream_command(folder, port), port, log=folder / "worker.log")
            )
        if cores:
            os.sched_setaffinity(0, cores.rest)
        yield Bench(plan, folder, cores, program, worker, sink)


def _make_bodies(folder: Path) -> None:
    folder.mkdir()
    for size, real in _SIZES.items():
        with (folder / str(size)).open("wb") as file:
            if real:
                file.write(bytes(range(250)) * (size // 250))
            else:
                file.truncate(size)


def _open_files() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < IDLE + 100 and (hard == resource.RLIM_INFINITY or hard > soft):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return int(soft)


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    if options.stored is not None:
        stored = json.loads(options.stored.read_text(encoding="utf-8"))
        cases = [Case(row["name"], row["kind"], row["figures"]) for row in stored["cases"]]
        print(tables(cases, markdown=options.markdown))
        return 0
    if options.quick:
        plan = Plan(options.rounds or 1, 1.0, 2, 2.0, 1.5)
    else:
        plan = Plan(options.rounds or 3, 4.0, 5, 8.0, 4.0)
    if options.pyz is not None:
        program = [sys.executable, str(options.pyz.resolve())]
    else:
        program = [sys.executable, "-m", "router"]
    # Whoever ends us wants our servers ended as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cases = []
    with prepared(plan, program) as bench:
        for name, (kind, measure) in CASES.items():
            if not options.only or any(part in name or part == kind for part in options.only):
                if kind == "memory" and not Memory.readable():
                    print(f"   {name}: skipped, /proc is not there", file=sys.stderr)
                    continue
                case = Case(name, kind)
                measure(bench, case)
                cases.append(case)
    about: dict[str, Any] = {
        "upstream": "nginx" if nginx.BINARY else "Python",
        "load": "wrk" if load.WRK else "Python",
        "rounds": plan.rounds,
    }
    if options.json is not None:
        content = json.dumps(as_json(cases, about), indent=1)
        options.json.write_text(content + "\n", encoding="utf-8")
    if not options.markdown:
        words = [f"{key}={value}" for key, value in {**MACHINE, **about}.items()]
        print(" ".join(words), end="\n\n")
    print(tables(cases, markdown=options.markdown))
    return 0


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--pyz", type=Path, help="measure this router.pyz instead of the checkout")
    add("--rounds", type=int, help="rounds (default 3)")
    add("--quick", action="store_true", help="one short round; a check of the benchmark itself")
    add(
        "--only", action="append", metavar="CASE",
        help="only cases whose name contains this, or of the kind tiny, throughput or memory",
    )  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write all figures there")
    add("--markdown", action="store_true", help="print the tables as in docs/performance.md")
    add(
        "--from", dest="stored", type=Path, metavar="FILE",
        help="measure nothing: print the tables of an earlier --json",
    )  # fmt: skip
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
