"""A whole router in this process, simulated workers behind it, and workers that follow a script."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import trio
from attrs import Factory, define

from router import service
from router.pool.worker import Worker
from router.server import open_listeners
from router.settings import Live, RouterSettings
from router.store.store import Store
from simulated_worker import SimulatedWorker, WorkerConfig
from simulated_worker import serve as serve_worker
from tests.patience import fail_after

IMAGE = {"prompt": "a red kite", "size": "64x64", "num_inference_steps": 1}


@define(eq=False)
class Deployment:
    """A running router. `http` is a client of it."""

    running: service.Running
    http: httpx.AsyncClient
    nursery: trio.Nursery
    started: list[SimulatedWorker] = Factory(list)
    scripted: list[ScriptedWorker] = Factory(list)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.running.port}"

    async def simulated(self, **config: Any) -> SimulatedWorker:
        """A simulated worker that is ready at once; not registered."""
        quick = {"time_scale": 0.01, "warmup_seconds": 0.0, "load_seconds": 0.0, **config}
        worker: SimulatedWorker = await self.nursery.start(
            serve_worker, WorkerConfig(port=0, **quick)
        )
        self.started.append(worker)
        return worker

    async def script(
        self, *, host: str = "127.0.0.1", port: int = 0, **answers: Any
    ) -> ScriptedWorker:
        """A worker that follows a script; not registered."""
        worker = ScriptedWorker(answers=answers, host=host, port=port)
        self.scripted.append(worker)
        await self.nursery.start(worker.run)
        return worker

    async def register(self, url: str) -> Worker:
        """Register by HTTP, and wait until it is routable."""
        (await self.http.post("/workers", params={"url": url})).raise_for_status()
        worker = self.running.parts.registry.get(url)
        await until(lambda: worker.health == "healthy")
        return worker

    async def image(self, **more: Any) -> httpx.Response:
        return await self.http.post("/v1/images/generations", json={**IMAGE, **more})


@asynccontextmanager
async def deployed(
    *,
    listeners: list[socket.socket] | None = None,
    store: Store | None = None,
    again: Callable[[], RouterSettings] | None = None,
    **settings: Any,
) -> AsyncIterator[Deployment]:
    """A router until the block ends; then it must end by itself, in time. `again` reads its
    settings for a reload."""
    options = {
        "host": "127.0.0.1",
        "health_check_interval": 0.05,
        "shutdown_timeout": 2.0,
        **settings,
    }
    stop = trio.Event()
    listeners = listeners or open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as outer, trio.open_nursery() as nursery:
        given = RouterSettings(port=0, **options)
        reload = service.Reload(Live(given), again)
        serve = partial(service.serve, given, listeners, stop, store, reload=reload)
        running = await nursery.start(serve)
        address = f"http://127.0.0.1:{running.port}"
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=None) as http:
            deployment = Deployment(running, http, outer)
            yield deployment
        stop.set()
        for worker in deployment.started:
            worker.kill()
        for script in deployment.scripted:
            script.stop()


async def until(condition: Callable[[], object], within: float = 5.0) -> None:
    """Wait for what happens elsewhere in this process."""
    with fail_after(within):
        while not condition():
            await trio.sleep(0.005)


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run `main`; hanging is a failure."""

    async def bounded() -> None:
        with fail_after(25):
            await main()

    trio.run(bounded, strict_exception_groups=True)


Handler = Callable[[trio.SocketStream], Awaitable[None]]


@define(eq=False)
class ScriptedWorker:
    """A worker whose every answer is given: bytes to send, or a handler of the connection.

    A path that is not in `answers` is answered as a healthy worker of the model `m` would.
    """

    answers: dict[str, bytes | Handler] = Factory(dict)
    asked: list[str] = Factory(list)  # method and path, in order
    connections: set[trio.SocketStream] = Factory(set)
    port: int = 0
    host: str = "127.0.0.1"
    heads: list[bytes] = Factory(list)  # of the requests, in order
    _scope: trio.CancelScope = Factory(trio.CancelScope)
    _listener: socket.socket | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self.listen()
                    task_status.started()
                    while True:
                        await self._accept(nursery)
        finally:
            self.refuse()

    async def _accept(self, nursery: trio.Nursery) -> None:
        if self._listener is None:
            await trio.sleep(0.005)
            return
        try:
            await trio.lowlevel.wait_readable(self._listener)
            accepted, _ = self._listener.accept()
        except (OSError, AttributeError, trio.ClosedResourceError):
            return  # closed, or the client has left already
        nursery.start_soon(self._serve, trio.SocketStream(trio.socket.from_stdlib_socket(accepted)))

    def stop(self) -> None:
        self._scope.cancel()

    def listen(self) -> None:
        """Listen again, where it did before."""
        self._listener = socket.create_server((self.host, self.port))
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections; those there are stay."""
        if self._listener is not None:
            trio.lowlevel.notify_closing(self._listener)
            self._listener.close()
            self._listener = None

    def hang_up(self, *, reset: bool = False) -> None:
        """End all connections, as a process does that dies."""
        for stream in list(self.connections):
            if reset:
                linger = struct.pack("ii", 1, 0)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            stream.socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections.add(stream)
        try:
            buffer = b""
            while True:
                while b"\r\n\r\n" not in buffer:
                    piece = await stream.receive_some()
                    if not piece:
                        return
                    buffer += piece
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                while len(buffer) < length:
                    piece = await stream.receive_some()
                    if not piece:
                        return
                    buffer += piece
                buffer = buffer[length:]
                method, path, _ = head.split(b" ", 2)
                self.heads.append(head)
                self.asked.append(f"{method.decode()} {path.decode()}")
                answer = self.answers.get(path.decode(), DEFAULTS.get(path.decode(), NOT_FOUND))
                if isinstance(answer, bytes):
                    await stream.send_all(answer)
                else:
                    await answer(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.connections.discard(stream)
            await trio.aclose_forcefully(stream)


def answer(status: int = 200, content: Any = None, body: bytes | None = None) -> bytes:
    """The bytes of an answer."""
    if body is None:
        body = b"" if content is None else json.dumps(content).encode()
    return b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


NOT_FOUND = answer(404, {"detail": "Not Found"})
DEFAULTS: dict[str, bytes] = {
    "/health": answer(200, {"status": "ok"}),
    "/v1/models": answer(200, {"data": [{"id": "m", "task_type": "T2I"}]}),
    "/server_info": answer(200, {"model_path": "m", "dp_size": 1}),
    "/model_info": answer(200, {"task_type": "T2I"}),
    "/v1/images/generations": answer(200, {"id": "i", "data": []}),
}


async def never(stream: trio.SocketStream) -> None:
    """Read the request and say nothing."""
    await trio.sleep_forever()


def when(gate: trio.Event, then: bytes) -> Handler:
    """Answer once the gate is open."""

    async def handler(stream: trio.SocketStream) -> None:
        await gate.wait()
        await stream.send_all(then)

    return handler


def at_pace(data: bytes, seconds: float) -> Handler:
    """Answer byte by byte."""

    async def handler(stream: trio.SocketStream) -> None:
        for byte in data:
            await stream.send_all(bytes([byte]))
            await trio.sleep(seconds)

    return handler


Test = Callable[[Deployment], Awaitable[None]]
RunRouter = Callable[..., None]


def run_deployed(test: Test, **settings: Any) -> None:
    """Run a test against a router of these settings."""

    async def main() -> None:
        async with deployed(**settings) as deployment:
            await test(deployment)

    run(main)
