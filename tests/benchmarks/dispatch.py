"""How well bursts are shared out, and what one assignment costs.

    python tests/benchmarks/dispatch.py [--quick] [--seed N]

First part: simulated workers, a router in a process of its own, and bursts of generations. The
makespan, from the first request sent to the last generation done, over the lower bound that no
scheduler can beat: all work at all speeds, or the longest generation on the fastest worker.
"push" is the same router with unlimited slots: requests go to a worker at once.

Second part: one group of 16 rollout samples on 8 idle workers, whole and split (`X-Split`).

Third part: the pool alone, with 1,000 workers and 10,000 waiting requests.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import trio
from attrs import field, frozen

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "sglang")]

from router.dispatch import Dispatcher  # noqa: E402
from router.pool import policies  # noqa: E402
from router.pool.cost import Speeds  # noqa: E402
from router.pool.lifecycle import Probe  # noqa: E402
from router.pool.lines import Waiting  # noqa: E402
from router.pool.match import Facts  # noqa: E402
from router.pool.queue import Queue, QueueLimits  # noqa: E402
from router.pool.registry import Registry  # noqa: E402
from router.pool.worker import Capabilities, Hold, HoldKind, Lease, Origin, Worker  # noqa: E402
from simulated_worker import SimulatedWorker, WorkerConfig  # noqa: E402
from simulated_worker import serve as serve_worker  # noqa: E402

# First part.

_OVERHEAD = 0.01  # seconds that a simulated generation takes besides its work
_IMAGE_RATE, _VIDEO_RATE = 42e6, 800e6  # pixels x steps (x frames) per second at speed 1


@frozen
class Burst:
    """Generations that come at once. Seconds are those at speed 1."""

    name: str
    images: tuple[float, ...]
    videos: tuple[float, ...] = ()
    speeds: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    tasks: tuple[str, ...] = ("T2I",)

    @property
    def bound(self) -> float:
        """Seconds that any scheduler takes at least."""
        work = self.images + self.videos
        equal = len(set(work)) == len(set(self.speeds)) == 1
        rounds = -(-len(work) // len(self.speeds)) * work[0] if equal else 0.0
        return max(sum(work) / sum(self.speeds), max(work) / max(self.speeds), rounds)


def bursts(rng: random.Random, total: float, count: int) -> list[Burst]:
    """The bursts of the table: `count` generations that keep four workers busy for `total`
    seconds."""

    def scaled(sizes: list[float], speed: float = 4.0) -> tuple[float, ...]:
        factor = total * speed / sum(sizes)
        return tuple(size * factor for size in sizes)

    log_normal = [rng.lognormvariate(0, 0.6) for _ in range(count)]
    long_ones = [8.0 if i % 10 == 0 else 1.0 for i in range(count)]
    rng.shuffle(long_ones)
    slow = (1.0, 1.0, 1.0, 0.3)
    mixed = scaled([1.0] * (count // 2) + [count / 24] * 12)
    both = ("T2I", "T2V")
    return [
        Burst("(a) equal", scaled([1.0] * count)),
        Burst("(b) log-normal", scaled(log_normal)),
        Burst("(c) one in ten 8x", scaled(long_ones)),
        Burst("(d) 3 fast, 1 slow", scaled(log_normal, sum(slow)), speeds=slow),
        Burst("(e) beside videos", mixed[: count // 2], mixed[count // 2 :], tasks=both),
    ]


@frozen
class Setup:
    """A router to try."""

    name: str
    flags: list[str] = field(factory=list)


PUSH = ["--worker-concurrency", "10000"]
LONGEST = ["--queue-order", "longest-first"]
SETUPS = [
    Setup("push, least-request", PUSH),
    Setup("push, round-robin", [*PUSH, "--routing-algorithm", "round-robin"]),
    Setup("least-request (default)"),
    Setup("round-robin", ["--routing-algorithm", "round-robin"]),
    Setup("random", ["--routing-algorithm", "random"]),
    Setup("least-work", ["--routing-algorithm", "least-work"]),
    Setup("default, longest-first", LONGEST),
    Setup("least-work, longest-first", [*LONGEST, "--routing-algorithm", "least-work"]),
]
QUICK = ("push, least-request", "least-request (default)", "default, longest-first")


@contextmanager
def router(flags: list[str]) -> Iterator[int]:
    """A router process; its port."""
    command = [sys.executable, "-m", "router", "--host", "127.0.0.1", "--port", "0", *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        port = 0
        for line in process.stderr:
            if "listening on" in line:
                port = int(line.rpartition(":")[2])
                break
        try:
            yield port
        finally:
            process.terminate()
            process.communicate(timeout=30)


async def call(port: int, method: str, path: str, content: object = None, more: str = "") -> bytes:
    """One request on a connection of its own; the body of its answer, which must be a 200."""
    body = json.dumps(content).encode() if content is not None else b""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        head = f"{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{more}"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await stream.send_all(head.encode() + body)
        data = bytearray()
        async for piece in stream:
            data += piece
    if b" 200 " not in data[:20]:
        raise RuntimeError(f"{method} {path}: {data[:300]!r}")
    return bytes(data.partition(b"\r\n\r\n")[2])


def image(seconds: float) -> dict[str, object]:
    steps = max(1, round((seconds - _OVERHEAD) * _IMAGE_RATE / 64**2))
    return {"prompt": "p", "size": "64x64", "num_inference_steps": steps}


def video(seconds: float) -> dict[str, object]:
    steps = max(1, round((seconds - _OVERHEAD) * _VIDEO_RATE / (64**2 * 10)))
    return {"prompt": "p", "size": "64x64", "num_frames": 10, "num_inference_steps": steps}


async def makespan(port: int, burst: Burst) -> float:
    """Seconds from the first request of the burst to the end of its last generation."""
    async with trio.open_nursery() as nursery:
        workers: list[SimulatedWorker] = []
        for speed in burst.speeds:
            config = WorkerConfig(
                port=0, speed=speed, warmup_seconds=0, load_seconds=0, task_types=burst.tasks
            )
            workers.append(await nursery.start(serve_worker, config))
        for worker in workers:
            await call(port, "POST", f"/workers?url={worker.url}")
        # What was never seen before is not what is measured: a few that teach the speeds.
        async with trio.open_nursery() as clients:
            for _ in workers:
                clients.start_soon(call, port, "POST", "/v1/images/generations", image(0.1))
        if burst.videos:
            for _ in workers:
                await call(port, "POST", "/v1/videos", video(1.0))
            await trio.sleep(1.6)
        begun = time.monotonic()
        async with trio.open_nursery() as clients:
            for seconds in burst.videos:
                clients.start_soon(call, port, "POST", "/v1/videos", video(seconds))
            for seconds in burst.images:
                clients.start_soon(call, port, "POST", "/v1/images/generations", image(seconds))
        expected = len(burst.images) + len(burst.videos)
        while True:
            done = [
                entry.end
                for worker in workers
                for entry in worker.log.generations()
                if entry.queued >= begun and entry.end is not None
            ]
            if len(done) == expected:
                break
            await trio.sleep(0.01)
        for worker in workers:
            await call(port, "DELETE", f"/workers/{worker.url}")
            worker.kill()
    return max(done) - begun


async def side_by_side(ports: list[int], columns: list[Burst]) -> list[float]:
    """The makespans over their bounds, of all bursts at the same time: they mostly wait."""
    ratios = [0.0] * len(columns)

    async def one(index: int, port: int, burst: Burst) -> None:
        ratios[index] = await makespan(port, burst) / burst.bound

    async with trio.open_nursery() as nursery:
        for index, (port, burst) in enumerate(zip(ports, columns, strict=True)):
            nursery.start_soon(one, index, port, burst)
    return ratios


def burst_table(seed: int, *, quick: bool) -> None:
    total, count = (5.0, 60) if quick else (9.0, 120)
    setups = [setup for setup in SETUPS if not quick or setup.name in QUICK]
    columns = bursts(random.Random(seed), total, count)
    print(f"\nMakespan over the lower bound ({count} generations, {total:g} s of work)\n")
    print("| | " + " | ".join(burst.name for burst in columns) + " |")
    print("| --- |" + " --- |" * len(columns))
    for setup in setups:
        with ExitStack() as stack:
            ports = [stack.enter_context(router(setup.flags)) for _ in columns]
            ratios = trio.run(side_by_side, ports, columns)
        print(f"| {setup.name} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |", flush=True)


# Second part.

GROUP, FLEET = 16, 8


async def group_makespans(port: int, seconds: float, rounds: int) -> list[tuple[float, float]]:
    """Seconds that a client waits for a group, whole and split; `seconds` is one sample's time."""
    async with trio.open_nursery() as nursery:
        workers: list[SimulatedWorker] = []
        for _ in range(FLEET):
            config = WorkerConfig(port=0, warmup_seconds=0, load_seconds=0)
            workers.append(await nursery.start(serve_worker, config))
            await call(port, "POST", f"/workers?url={workers[-1].url}")
        steps = round(seconds * _IMAGE_RATE / 64**2)
        body = {"prompt": "p", "seed": 1, "width": 64, "height": 64, "num_inference_steps": steps}
        body |= {
            "num_outputs_per_prompt": GROUP,
            "rollout_debug_mode": False,
            "rollout_sde_type": "ode",
            "rollout_log_prob_no_const": True,
        }

        async def waited(more: str) -> float:
            begun = time.monotonic()
            await call(port, "POST", "/rollout/generate", body, more)
            return time.monotonic() - begun

        await call(port, "POST", "/v1/images/generations", image(0.1))
        pairs = [(await waited(""), await waited("x-split: true\r\n")) for _ in range(rounds)]
        for worker in workers:
            worker.kill()
    return pairs


def group_table(*, quick: bool) -> None:
    seconds, rounds = (0.1, 1) if quick else (0.5, 5)
    with router([]) as port:
        pairs = trio.run(group_makespans, port, seconds, rounds)
    whole_s, split_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(split / whole for whole, split in pairs)
    print(f"\nOne group of {GROUP} on {FLEET} workers, {seconds:g} s a sample\n")
    print("| | whole | split | share |\n| --- | --- | --- | --- |")
    print(f"| seconds | {whole_s:.2f} | {split_s:.2f} | {ratio:.3f} |", flush=True)


# Third part.

WORKERS, WAITING = 1_000, 10_000


class Pool:
    """A registry with a queue, and what is leased."""

    def __init__(self, policy: str, clients: int = 10) -> None:
        self.registry = Registry()
        speeds = Speeds()
        self.leases: list[Lease] = []
        self.clients = clients
        self.rng = random.Random(1)
        chosen = policies.make(policy, speeds, self.rng)
        self.queue = Queue(chosen, chosen, lambda: self.registry, self.take, lambda *_: None)
        self.registry.subscribe(self.queue.on_event)
        for number in range(WORKERS):
            ready(self.registry, number)

    def take(self, _: Waiting, worker: Worker) -> None:
        hold = Hold(worker, worker.incarnation, HoldKind.GENERATION, "image", 1.0)
        self.leases.append(self.registry.lease(worker, hold))

    def add(self) -> None:
        facts = Facts(model="m", client=str(self.rng.randrange(self.clients)), kind="image")
        self.queue.add(Waiting(facts, self.rng.random(), 0.0))

    def release(self) -> None:
        _some(self.rng, self.leases).release()


def ready(registry: Registry, number: int) -> Worker:
    worker = registry.add(f"http://10.0.{number // 250}.{number % 250}:30000", Origin.STATIC)
    registry.learned(worker, Capabilities(models=("m",), task_types=("T2I",)))
    registry.probed(worker, Probe.OK)
    return worker


def _some(rng: random.Random, leases: list[Lease]) -> Lease:
    """Take any of them out."""
    chosen = rng.randrange(len(leases))
    leases[chosen], leases[-1] = leases[-1], leases[chosen]
    return leases.pop()


def timed(act: Callable[[], None], times: int) -> float:
    """Microseconds of processor time that it takes each time: the median of tenths."""
    parts = []
    for _ in range(10):
        begun = time.process_time()
        for _ in range(times // 10):
            act()
        parts.append((time.process_time() - begun) / (times // 10) * 1e6)
    return statistics.median(parts)


def assignment_table(*, quick: bool) -> None:
    times = 2_000 if quick else 10_000
    print(f"\nMicroseconds of processor time, {WORKERS} workers, {WAITING} waiting requests\n")
    print("| | first 1,000 to idle workers | one more waits | a slot is freed and given |")
    print("| --- | --- | --- | --- |")
    for policy in policies.POLICIES:
        pool = Pool(policy)
        idle = timed(pool.add, WORKERS)
        for _ in range(WAITING):
            pool.add()

        def come_and_go(pool: Pool = pool) -> None:
            pool.add()
            pool.release()

        both = timed(come_and_go, times)
        assert pool.queue.waiting == WAITING
        given = timed(pool.release, times // 2)
        print(f"| {policy} | {idle:.0f} | {max(0.0, both - given):.0f} | {given:.0f} |", flush=True)
    print(f"\nThrough the dispatcher, with a waiting task each: {trio.run(whole):.0f} us")


async def whole() -> float:
    """Microseconds from a release to the next task running with its lease."""
    registry = Registry()
    speeds = Speeds(trio.current_time)
    limits = QueueLimits(size=WAITING)
    dispatcher = Dispatcher(
        registry, policies.make("least-request", speeds), limits=limits, speeds=speeds
    )
    for number in range(WORKERS):
        ready(registry, number)
    facts = Facts(model="m", kind="image")
    rng = random.Random(1)
    running: list[Lease] = []

    async def exchange() -> None:
        running.append(await dispatcher.lease(facts))

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS + WAITING):
            nursery.start_soon(exchange)
        while dispatcher.queue.waiting < WAITING:
            await trio.lowlevel.checkpoint()
        begun = time.process_time()
        for _ in range(WAITING // 10):
            for _ in range(10):
                _some(rng, running).release()
            await trio.lowlevel.checkpoint()
        seconds = time.process_time() - begun
    return seconds / WAITING * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer setups and smaller bursts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only-group", action="store_true", help="only the second part")
    options = parser.parse_args()
    group_table(quick=options.quick)
    if options.only_group:
        return
    assignment_table(quick=options.quick)
    burst_table(options.seed, quick=options.quick)


if __name__ == "__main__":
    main()
