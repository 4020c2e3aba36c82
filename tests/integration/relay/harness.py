"""A router in this process between raw clients and scripted workers."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import trio
from attrs import Factory, define

from router import service
from router.pool.lifecycle import routable
from router.server import open_listeners
from router.settings import RouterSettings
from tests.integration.relay.wire import SOON, Gone, Message, Wire, response
from tests.patience import fail_after, stretched

_CONTROL = (b"/health", b"/v1/models", b"/server_info", b"/model_info", b"/v1/list_loras")


def run(main: Callable[[], Awaitable[None]], *, within: float = 20) -> None:
    """Run `main`; hanging is a failure."""

    async def bounded() -> None:
        with fail_after(within):
            await main()

    trio.run(bounded)


async def until(holds: Callable[[], object], what: str = "it", within: float = SOON) -> None:
    """Wait until `holds()`."""
    with trio.move_on_after(stretched(within)):
        while not holds():
            await trio.sleep(0.002)
    assert holds(), f"{what} did not come about within {within:g} s"


# Workers.


@define(eq=False)
class Peer(Wire):
    """The worker's side of a connection on which the router relays. `number` counts them."""

    number: int = 0

    async def request(self) -> Message:
        """The next request with its body."""
        message = await self.head()
        await self.read_body(message)
        return message

    async def read_body(self, message: Message) -> None:
        length = message["content-length"]
        chunks = message["transfer-encoding"] is not None
        known = int(length) if length is not None else None if chunks else 0
        assert not (length is not None and chunks), "two framings"
        await self.body(message, length=known)


Script = Callable[[Peer], Awaitable[None]]


@define(eq=False)
class ScriptedWorker:
    """A worker that tells the router that it is well, and does as its script says otherwise.

    The script gets each connection on which the router relays, before anything was read from it.
    """

    script: Script
    listener: trio.SocketListener
    tls: ssl.SSLContext | None = None
    model: str = "model"
    task_types: tuple[str, ...] = ("T2I",)
    # What `GET /v1/list_loras` is answered; a worker answers once its work is done.
    barrier: Callable[[], bytes] = lambda: response(200, body=b"{}")
    connections: int = 0  # that were given to the script
    open: int = 0  # of those, the ones whose script still runs
    probes: int = 0
    accepting: trio.CancelScope = Factory(trio.CancelScope)

    @property
    def port(self) -> int:
        return int(self.listener.socket.getsockname()[1])

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as nursery:
            task_status.started()
            try:
                with self.accepting:
                    while True:
                        stream = await self.listener.accept()
                        nursery.start_soon(self._serve, stream)
            finally:
                self.listener.socket.close()

    def refuse(self) -> None:
        """Accept no more connections. Those that are open stay."""
        self.accepting.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        peer = Peer(stream, stream.socket)
        try:
            if self.tls is not None:
                peer.stream = trio.SSLStream(stream, self.tls, server_side=True)
                await peer.more()
                begin = peer.rest
            else:
                begin = await self._glance(stream.socket)
            if begin.startswith(tuple(b"GET %s HTTP" % path for path in _CONTROL)) and (
                b"sglang-d-router" in begin
            ):
                await self._control(peer)
            elif begin:
                peer.number = self.connections
                self.connections += 1
                self.open += 1
                try:
                    await self.script(peer)
                finally:
                    self.open -= 1
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError, Gone):
            pass  # the router has left, or the script: what that means is for the test to say
        finally:
            stream.socket.close()

    async def _glance(self, sock: trio.socket.SocketType) -> bytes:
        """The beginning of what comes first, which stays unread."""
        while True:
            begin = await sock.recv(4096, socket.MSG_PEEK)
            if not begin or b"\r\n\r\n" in begin or len(begin) == 4096:
                return begin
            await trio.sleep(0.002)

    async def _control(self, peer: Peer) -> None:
        while True:
            message = await peer.head()
            if message.target == b"/v1/list_loras":
                await peer.send(self.barrier())
                continue
            self.probes += 1
            body: dict[str, Any] = {
                b"/health": {"status": "ok"},
                b"/v1/models": {
                    "data": [{"id": self.model, "supported_task_types": self.task_types}]
                },
                b"/server_info": {"dp_size": 1},
                b"/model_info": {"supported_task_types": self.task_types},
            }[message.target]
            await peer.send(response(200, body=json.dumps(body).encode()))


async def listen(backlog: int = 128) -> trio.SocketListener:
    sock = trio.socket.socket()
    await sock.bind(("127.0.0.1", 0))
    sock.listen(backlog)
    return trio.SocketListener(sock)


# Clients.


@define(eq=False)
class Client(Wire):
    """A client's side of a connection to the router."""

    async def answer(self, method: str = "GET") -> Message:
        """One answer. A broken one is returned as far as it came, not `complete`."""
        message = Message(b"", [], complete=False)
        try:
            message = await self.head()
            assert message.status >= 200, "an interim answer"
            message.complete = False
            length = message["content-length"]
            if method == "HEAD" or message.status in (204, 304):
                length = b"0"
            await self.body(message, length=int(length) if length is not None else None)
        except Gone:
            pass
        return message

    async def ask(self, data: bytes) -> Message:
        """Send a request and read its answer."""
        await self.send(data)
        return await self.answer(data.split(b" ")[0].decode())


# The router.


@define(eq=False)
class Routed:
    """A router with its workers."""

    running: service.Running
    workers: list[ScriptedWorker]
    nursery: trio.Nursery
    clients: list[Client] = Factory(list)

    @property
    def worker(self) -> ScriptedWorker:
        [worker] = self.workers
        return worker

    async def client(self, *, buffer: int | None = None) -> Client:
        """A new connection; `buffer` bounds what the kernel receives ahead, in bytes."""
        sock = trio.socket.socket()
        if buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await sock.connect(("127.0.0.1", self.running.port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Client(trio.SocketStream(sock), sock)
        self.clients.append(client)
        return client

    async def ask(self, data: bytes) -> Message:
        """Send a request on a new connection and read its answer."""
        client = await self.client()
        try:
            return await client.ask(data)
        finally:
            client.close()

    @property
    def active(self) -> int:
        """Leases on all workers."""
        return sum(worker.active_requests for worker in self.running.parts.registry)

    @property
    def users(self) -> int:
        """Exchanges that have, or wait for, a connection to a worker."""
        return sum(pool.users for pool in self.running.upstream._pools.values())

    def idle(self, worker: ScriptedWorker) -> int:
        return self.running.upstream.idle(worker.url)

    async def settled(self) -> None:
        """Nothing is left of any exchange: no lease, no connection but the idle ones."""
        await until(lambda: self.active == 0, "the end of all leases")
        await until(lambda: self.users == 0, "the end of all use of connections")


@contextlib.asynccontextmanager
async def routed(
    *scripts: Script | ScriptedWorker, healthy: bool = True, **settings: Any
) -> AsyncIterator[Routed]:
    """A router before a worker for each script, all found well.

    At the end of the block all clients leave; then no lease and no used connection may be left.
    `healthy=False`: do not wait until the workers were found well.
    """
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        workers = [
            item if isinstance(item, ScriptedWorker) else ScriptedWorker(item, await listen())
            for item in scripts
        ]
        for worker in workers:
            await nursery.start(worker.run)
        listeners = open_listeners("127.0.0.1", 0)
        urls = tuple(settings.pop("worker_urls", ())) or tuple(worker.url for worker in workers)
        given = RouterSettings(
            host="127.0.0.1",
            port=0,
            worker_urls=urls,
            **{"routing_algorithm": "round-robin", "shutdown_timeout": 5.0} | settings,
        )
        running = await nursery.start(service.serve, given, listeners, stop)
        router = Routed(running, workers, nursery)
        if healthy:
            registry = running.parts.registry
            await until(lambda: all(map(routable, registry)), "health of all workers")
        try:
            yield router
        finally:
            for client in router.clients:
                client.close()
        await router.settled()
        stop.set()
        await until(lambda: not running_tasks(router), "the router's end", 5)
        nursery.cancel_scope.cancel()


def running_tasks(router: Routed) -> int:
    """How many tasks of the router are left."""
    return sum(1 for task in router.nursery.child_tasks if task.name.endswith(".serve"))


# Scripts that many tests need.


def answering(*answers: bytes, record: list[Message] | None = None) -> Script:
    """Reads whole requests and gives the answers in turn, the last one for ever."""
    turns = itertools.chain(answers, itertools.repeat(answers[-1]))

    async def script(peer: Peer) -> None:
        while True:
            message = await peer.request()
            if record is not None:
                record.append(message)
            await peer.send(next(turns))

    return script


async def never(peer: Peer) -> None:
    """Reads what comes, and never answers."""
    while True:
        peer.rest = b""
        await peer.more()


def exchange(
    data: bytes, *answers: bytes | Script, reading: str | None = None
) -> tuple[Message, Message]:
    """One exchange: what the worker got, and what the client got."""
    seen: list[Message] = []
    got: list[Message] = []
    script = answers[0] if callable(answers[0]) else answering(*answers, record=seen)  # type: ignore[arg-type]

    async def main() -> None:
        async with routed(script) as router:
            client = await router.client()
            await client.send(data)
            got.append(await client.answer(reading or data.split(b" ")[0].decode()))

    run(main)
    return (seen[0] if seen else Message(b"", [])), got[0]


def failing(
    sends: bytes = b"", *, reads: str = "all", ends: str = "close", record: list[Message] | None
) -> Script:
    """Reads as much as it is told, sends some bytes, and ends the connection."""

    async def script(peer: Peer) -> None:
        if reads == "all":
            message = await peer.request()
            if record is not None:
                record.append(message)
        elif reads == "head":
            await peer.head()
        elif reads == "some":
            await peer.exactly(8_000_000, Message(b"", []))
        if sends:
            await peer.send(sends)
        if ends == "reset":
            peer.reset()
        elif ends == "hang":
            await trio.sleep_forever()
        else:
            peer.close()

    return script


async def pour(client: Client, size: int, piece: int = 64 * 1024) -> None:
    """Upload so many bytes; ends where the connection does."""
    data = bytes(piece)
    try:
        while size > 0:
            await client.send(data[:size])
            size -= piece
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
