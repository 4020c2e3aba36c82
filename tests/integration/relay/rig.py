"""The relay without a front: exchanges in memory, scripted workers on real sockets."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence

import trio
from attrs import Factory, define, field

from router.dispatch import Dispatcher
from router.front.record import ExchangeRecord
from router.pool.lifecycle import Probe
from router.pool.policies import RoundRobin
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Origin
from router.relay import split
from router.relay.attempts import Attempts
from router.relay.body import Limits
from router.relay.forward import Forwarder
from router.relay.routes import find
from router.relay.upstream import Upstream
from tests.integration.relay.harness import Script, ScriptedWorker, listen, until
from tests.patience import fail_after

LIMITS = Limits(response=5, idle=5, peek=1000, request_bytes=10_000_000)


@define(eq=False)
class FakeExchange:
    """An Exchange in memory; every call of it awaits."""

    method: str = "POST"
    pieces: Sequence[bytes] = (b"abc",)
    chunked: bool = False
    target: bytes = b"/x"
    path: str = "/x"
    headers: list[tuple[bytes, bytes]] = field(init=False)
    http_version: str = "1.1"
    scheme: str = "http"
    peer: str | None = "127.0.0.1"
    record: ExchangeRecord = Factory(lambda: ExchangeRecord("r1", "POST", "/x"))
    responded: bool = False
    status: int | None = None
    body: bytes = b""
    over: bool = False
    _unread: list[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._unread = list(self.pieces)
        self.headers = [(b"host", b"client"), (b"content-type", b"application/octet-stream")]
        if self.chunked:
            self.headers.append((b"transfer-encoding", b"chunked"))
        elif self.pieces:
            self.headers.append((b"content-length", b"%d" % sum(map(len, self.pieces))))

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._unread.pop(0) if self._unread else b""

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.responded = True
        self.status = status

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        await trio.lowlevel.checkpoint()
        self.body += piece
        self.over = last

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        pass


@define(eq=False)
class Rig:
    """The relay without a front, before scripted workers."""

    registry: Registry
    upstream: Upstream
    forwarder: Forwarder
    workers: list[ScriptedWorker] = Factory(list)

    @property
    def worker(self) -> ScriptedWorker:
        [worker] = self.workers
        return worker

    async def exchange(self, exchange: FakeExchange) -> None:
        route = find(exchange.method, exchange.path)
        exchange.record.route = route.path
        if split.meant(exchange):
            await split.run(self.forwarder, exchange, route)
        else:
            await self.forwarder.run(exchange, route)

    async def nothing_left(self, tasks: int) -> None:
        """No lease, no connection but idle ones, and no more tasks than so many and one for each
        of the workers' ends of those."""
        assert all(not worker.leases for worker in self.registry)
        assert all(pool.users == 0 for pool in self.upstream._pools.values())
        for pool in self.upstream._pools.values():
            assert pool.limit is None or pool.limit.value == self.upstream.max_connections
            assert all(connection.quiet() for connection in pool.idle)
        for worker in self.workers:
            await until(
                lambda: worker.open == self.upstream.idle(worker.url),  # noqa: B023
                "the end of all connections but the idle ones",
            )
        tasks += sum(self.upstream.idle(worker.url) for worker in self.workers)
        await until(lambda: living() <= tasks, "the end of all tasks")


def living() -> int:
    return trio.lowlevel.current_statistics().tasks_living


@contextlib.asynccontextmanager
async def rigged(
    *scripts: Script, max_connections: int | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Rig]:
    """The relay before a worker for each script, all well. Ends with all of them."""
    registry = Registry()
    upstream = Upstream(connect_timeout=5, max_connections=max_connections)
    attempts = Attempts(registry, Dispatcher(registry, RoundRobin()), retries=3)
    rig = Rig(registry, upstream, Forwarder(attempts, upstream, LIMITS))
    async with trio.open_nursery() as nursery:
        for script in scripts:
            worker = ScriptedWorker(script, await listen(), tls=tls)
            await nursery.start(worker.run)
            rig.workers.append(worker)
            record = registry.add(worker.url, Origin.STATIC)
            registry.probed(record, Probe.OK)
            registry.learned(record, Capabilities(models=("model",)))
        nursery.start_soon(upstream.run)
        yield rig
        nursery.cancel_scope.cancel()


@define(eq=False)
class CancelAt(trio.abc.Instrument):
    """Cancels a scope after so many steps of one task and those that it started."""

    scope: trio.CancelScope
    root: trio.lowlevel.Task
    left: int

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._ours(task):
            self.left -= 1
            if self.left == 0:
                self.scope.cancel()

    def _ours(self, task: trio.lowlevel.Task | None) -> bool:
        while task is not None and task is not self.root:
            nursery = task.parent_nursery
            task = nursery.parent_task if nursery is not None else None
        return task is not None


async def cancelled_at(rig: Rig, step: int, exchange: FakeExchange) -> bool:
    """Run the exchange and cancel it at that step. False if it was over before."""
    async with trio.open_nursery() as nursery:
        done = trio.Event()
        caught = False

        async def run() -> None:
            nonlocal caught
            with trio.CancelScope() as scope:
                instrument = CancelAt(scope, trio.lowlevel.current_task(), step)
                trio.lowlevel.add_instrument(instrument)
                try:
                    await rig.exchange(exchange)
                finally:
                    trio.lowlevel.remove_instrument(instrument)
            caught = scope.cancelled_caught
            done.set()

        nursery.start_soon(run)
        with fail_after(5):
            await done.wait()
    return caught
