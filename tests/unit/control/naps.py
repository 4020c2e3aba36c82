"""A pool of scripted workers under sleep and wake, in virtual time."""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio
import trio.testing
from attrs import Factory, define

from router.control.agent import Agents
from router.control.calls import Row, send
from router.control.client import Answer, Call, ControlClient, Unreachable
from router.control.memory import MemoryControl
from router.control.operations import Operations
from router.control.replay import Replayer
from router.control.worker_memory import SleepRecord, WorkerMemory
from router.dispatch import Dispatcher
from router.errors import RouterError, StateUnavailable
from router.pool import policies
from router.pool.cost import Speeds
from router.pool.lifecycle import Probe, routable
from router.pool.match import Facts, Need
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Hold, HoldKind, Lease, Memory, Origin, Worker
from router.store.store import Store

RELEASE, RESUME = "/release_memory_occupation", "/resume_memory_occupation"
BODY = b'{"tags": ["weights"]}'
HANGS, FORGOTTEN = "hangs", "forgotten"
REFUSED = Unreachable("connection refused", refused=True, sent=False)
BROKEN = Unreachable("the connection broke")

Outcome = tuple[int, dict[str, Any]] | RouterError


@define(eq=False)
class Disk:
    """A store: what was put, and what of it would be found by the next router."""

    records: dict[str, Memory] = Factory(dict)
    durable: dict[str, Memory] = Factory(dict)
    failing: str | None = None
    commits: int = 0
    fails_at: int = 0  # the commit that fails, from 1
    launched: bool = False  # whether workers were launched

    def restored(self, kind: type[SleepRecord]) -> dict[str, SleepRecord]:
        assert kind is SleepRecord
        return {url: SleepRecord(url, memory) for url, memory in self.durable.items()}

    def rows(self, table: str) -> dict[str, Any]:
        assert table == "launches"
        return {"image/0": {}} if self.launched else {}

    def put(self, record: SleepRecord) -> None:
        self.records[record.key] = record.memory

    def delete(self, kind: type[SleepRecord], key: str) -> None:
        self.records.pop(key, None)

    def check(self) -> None:
        if self.failing is not None:
            raise StateUnavailable(self.failing)

    async def commit(self) -> None:
        asked = dict(self.records)
        await trio.sleep(0.001)
        self.commits += 1
        self.check()
        if self.commits == self.fails_at:
            raise StateUnavailable("disk full")
        self.durable = asked


@define(eq=False)
class Engine:
    """A worker's side: what it was asked when, and what it answers to memory calls."""

    disk: Disk
    url: str
    takes: float = 0.0
    asleep: bool = False
    script: deque[Any] = Factory(deque)  # for the next calls: an answer, an error, HANGS
    asked: list[tuple[float, str]] = Factory(list)
    bodies: list[bytes] = Factory(list)
    durable: list[Memory | None] = Factory(list)  # at each call
    idle: list[bool] = Factory(list)  # at each call
    worker: Worker | None = None

    async def call(self, path: str, body: bytes, within: float) -> Answer:
        assert self.worker is not None
        self.asked.append((round(trio.current_time(), 1), path))
        self.bodies.append(body)
        self.durable.append(self.disk.durable.get(self.url))
        self.idle.append(not self.worker.holds)
        assert not routable(self.worker)
        said = self.script.popleft() if self.script else None
        if said == HANGS:
            await trio.sleep(within)
            raise Unreachable("no answer", timed_out=True)
        await trio.sleep(self.takes)
        if isinstance(said, Unreachable):
            raise said
        if said is None:
            self.asleep = path == RELEASE
            return answer(success=True, sleeping=self.asleep)
        assert isinstance(said, Answer)
        self.asleep = said.json().get("sleeping", self.asleep)  # it does not lie
        return said

    @property
    def paths(self) -> list[str]:
        return ["release" if path == RELEASE else "resume" for _, path in self.asked]

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.asked]


def answer(status: int = 200, **body: Any) -> Answer:
    return Answer(status, json.dumps(body).encode())


@define(eq=False)
class Nap:
    """The scene. `outcomes` of calls by name, as they end."""

    nursery: trio.Nursery
    disk: Disk
    registry: Registry
    dispatcher: Dispatcher
    memory: MemoryControl
    operations: Operations
    engines: dict[str, Engine]
    outcomes: dict[str, Outcome] = Factory(dict)
    ended: dict[str, float] = Factory(dict)
    granted: dict[str, Lease | RouterError] = Factory(dict)

    def add(self, name: str, *, healthy: bool = True, origin: Origin = Origin.REGISTERED) -> Worker:
        worker = self.registry.add(f"http://{name}:1", origin)
        self.engine(worker).worker = worker
        if healthy:
            self.recover(worker)
        return worker

    def engine(self, worker: Worker) -> Engine:
        return self.engines[worker.url]

    def recover(self, worker: Worker) -> None:
        """Its probes are well again."""
        self.registry.probed(worker, Probe.OK)
        self.registry.probed(worker, Probe.OK)
        self.registry.learned(worker, Capabilities(models=("m",)))

    def fall_ill(self, worker: Worker) -> None:
        self.registry.probed(worker, Probe.BACKEND_DEAD, "it died")

    def replace(self, worker: Worker) -> None:
        """Another process, awake as it is at its start."""
        self.engine(worker).asleep = False
        self.registry.reincarnate(worker, "its idle connection was closed")
        self.registry.learned(worker, Capabilities(models=("m",)))

    def busy(self, worker: Worker, kind: HoldKind = HoldKind.GENERATION) -> Lease:
        """Let it work on something, until the lease ends."""
        hold = Hold(worker, worker.incarnation, kind, since=trio.current_time())
        return self.registry.lease(worker, hold)

    async def sleep(self, name: str, *workers: Worker) -> None:
        await self._do(name, RELEASE, workers)

    async def wake(self, name: str, *workers: Worker) -> None:
        await self._do(name, RESUME, workers)

    async def _do(self, name: str, path: str, workers: tuple[Worker, ...]) -> None:
        call = Call(path, 1800.0, BODY)
        work = self.memory.sleep if path == RELEASE else self.memory.wake
        try:
            self.outcomes[name] = await work(list(workers), call)
        except RouterError as error:
            self.outcomes[name] = error
        self.ended[name] = round(trio.current_time(), 1)

    def body(self, name: str, status: int = 200) -> dict[str, Any]:
        """The body of an answer that has come."""
        outcome = self.outcomes[name]
        assert not isinstance(outcome, RouterError), outcome
        assert outcome[0] == status, outcome
        return outcome[1]

    def refused(self, name: str) -> str:
        """The code of a refusal that has come."""
        outcome = self.outcomes[name]
        assert isinstance(outcome, RouterError), outcome
        return outcome.code

    async def generate(self, name: str) -> None:
        """Ask for a worker, and keep the lease."""
        try:
            self.granted[name] = await self.dispatcher.lease(Facts(need=Need.SLOT))
        except RouterError as error:
            self.granted[name] = error

    def crash(self) -> dict[str, Memory]:
        """What a router that starts after this moment finds."""
        return dict(self.disk.durable)


def seen(rows: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """Deferred rows, short."""
    return [(row["worker_url"][7], row["reasons"]) for row in rows]


async def settle() -> None:
    """Let everything happen that takes no time, or nearly none."""
    await trio.testing.wait_all_tasks_blocked()
    await trio.sleep(0.01)


Body = Callable[[Nap], Awaitable[None]]


def play(
    body: Body,
    *,
    durable: dict[str, Memory] | None = None,
    static: dict[str, Memory] | None = None,
    well: bool = False,
    launched: bool = False,
) -> None:
    """Run the scene. `durable`: what the store holds at the start; `static`: workers that are
    there from the start, in which state; `well`: they are probed before anything is followed;
    `launched`: the router before has launched workers."""

    async def main() -> None:
        disk = Disk(records=dict(durable or {}), durable=dict(durable or {}))
        disk.launched = launched
        registry = Registry()
        dispatcher = Dispatcher(registry, policies.make("least-request", Speeds()))
        operations = Operations()
        engines: dict[str, Engine] = _Engines(disk)

        under_way: Counter[tuple[str, str]] = Counter()

        class Client:
            def is_calling(self, url: str, path: str) -> bool:
                return under_way[url, path] > 0

            async def call(self, url: str, call: Call) -> Answer:
                assert call.method == "POST"
                assert isinstance(call.body, bytes)
                under_way[url, call.path] += 1
                try:
                    return await engines[url].call(call.path, call.body, call.within)
                finally:
                    under_way[url, call.path] -= 1

        worker_memory = WorkerMemory(registry, cast(Store, disk))
        client = cast(ControlClient, Client())
        replays = cast(Replayer, NoReplays(client))
        agents = Agents(registry, dispatcher, client, operations, worker_memory, replays)
        memory = MemoryControl(agents)
        with trio.fail_after(100_000):
            async with trio.open_nursery() as nursery:
                nap = Nap(nursery, disk, registry, dispatcher, memory, operations, engines)
                for name, state in (static or {}).items():
                    worker = nap.add(name, healthy=False, origin=Origin.STATIC)
                    worker.memory = state
                worker_memory.restore()
                for worker in registry if well else ():
                    nap.recover(worker)
                await nursery.start(operations.run)
                await nursery.start(agents.run)
                await body(nap)
                nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


class NoReplays:
    """Weights are nobody's concern here."""

    restarted: set[Worker]

    def __init__(self, client: ControlClient) -> None:
        self.restarted = set()
        self._client = client

    def lacks(self, worker: Worker) -> tuple[bool, bool]:
        return False, False

    async def call(self, worker: Worker, call: Call) -> Row:
        return await send(self._client, worker, call)


class _Engines(defaultdict[str, Engine]):
    def __init__(self, disk: Disk) -> None:
        super().__init__()
        self.disk = disk

    def __missing__(self, url: str) -> Engine:
        engine = self[url] = Engine(self.disk, url)
        return engine
