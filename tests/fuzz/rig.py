"""A batch of cases against a real router, and what must be true after it."""

from __future__ import annotations

import logging
import math
import os
import random
import socket
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from unittest import mock

import httpx
import trio
import trio.testing

from router import service
from router.backoff import Backoff
from router.control import client, follow, health, identity, jobs, watch
from router.net import addresses, lookup
from router.relay import websocket, worker_socket
from router.server import ServerLimits, connection, open_listeners
from router.service import running as running_module
from router.settings import RouterSettings
from router.web import models, weights
from tests.fuzz.mutations import Case
from tests.fuzz.peers import HANG, SOUND, Batch, Worker, play

AT_ONCE = 48
_IDLE = 0.001  # seconds without any event after which the clock goes on to the next deadline
_LIMITS = ServerLimits(
    keep_alive=0.15, send=0.5, head=0.2, body=0.3, linger_time=0.3, shutdown=1.0
)  # fmt: skip
_SETTINGS = {
    "host": "127.0.0.1",
    "routing_algorithm": "random",
    "worker_concurrency": AT_ONCE,
    "ejection_failures": None,
    "ejection_max_pause": 0.1,
    "health_check_interval": 0.2,
    "timeout": 0.5,
    "connect_timeout": 0.5,
    "queue_timeout": 0.5,
    "idle_timeout": 0.3,
    "refit_timeout": 0.4,
    "drain_timeout": 0.4,
    "peek_limit": 1000,
    "max_request_bytes": 200_000,
    "websocket_max_message": 2000,
    "shutdown_timeout": 1.0,
}


class _Tracebacks(logging.Handler):
    """What the log has that it never should."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(logging.INFO)
        self.batch = batch

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            told = "".join(traceback.format_exception(record.exc_info[1]))
            self.batch.fault(f"{message}\n{told}", *self.batch.playing.values())


@contextmanager
def _quick(batch: Batch, ports: Sequence[int]) -> Iterator[None]:
    """Short patience everywhere, no way out to other ports or names, and an ear on the log."""
    first = addresses._first

    async def only_ours(where: Sequence[str], port: int) -> tuple[trio.SocketStream, str]:
        if port not in ports or any(each != "127.0.0.1" for each in where):
            raise ConnectionRefusedError("not of this batch")
        return await first(where, port)

    def nobody(host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "no names here")

    def limits(**_: object) -> ServerLimits:
        return _LIMITS

    with ExitStack() as stack:

        def patch(module: object, **values: object) -> None:
            stack.enter_context(mock.patch.multiple(module, **values))

        patch(running_module, ServerLimits=limits, _SESSION_GRACE=0.2)
        patch(connection, LINGER_PAUSE=0.2, GLANCE=0.05)
        patch(websocket, _HANDSHAKE=0.4, _FAREWELL=0.2)
        patch(worker_socket, _FAREWELL=0.2)
        patch(follow, _LATEST=0.3, _PATIENCE=0.3, _BARRIER=0.5, _AGAIN=0.1)
        patch(jobs, _PATIENCE=0.3)
        patch(health, PROBE_TIMEOUT=0.4)
        patch(watch, PATIENCE_WHILE_BUSY=0.4)
        patch(client, _READING=0.4)
        patch(Backoff, next=lambda _: 0.1)
        patch(identity, CONNECT_TIMEOUT=0.4, _CHALLENGED=0.1, _PATIENCE=0.3)
        patch(models, _PATIENCE=0.3)
        patch(weights, _HELD=0.4, _LONGEST=2.0)
        patch(addresses, _first=only_ours)
        patch(lookup, ask_system=nobody)
        handler = _Tracebacks(batch)
        root, ours = logging.getLogger(), logging.getLogger("router")
        before = ours.level
        root.addHandler(handler)
        ours.setLevel(logging.INFO)
        try:
            yield
        finally:
            ours.setLevel(before)
            root.removeHandler(handler)


def _tasks(nursery: trio.Nursery) -> Counter[str]:
    """Whatever runs in a nursery, by name."""
    found: Counter[str] = Counter()
    pending = [nursery]
    while pending:
        for task in pending.pop().child_tasks:
            found[task.name] += 1
            pending.extend(task.child_nurseries)
    return found


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


async def _until_calm(
    batch: Batch, run: service.Running, nursery: trio.Nursery, rest: float
) -> None:
    """Wait until nothing is left of the cases."""

    def left() -> list[str]:
        pool = run.parts.registry
        found = [f"{w.url} has {w.leases} {list(w.holds)}" for w in pool if w.leases or w.holds]
        if run.parts.dispatcher.queue.waiting:
            found.append(f"{run.parts.dispatcher.queue.waiting} requests wait")
        tasks = _tasks(nursery)
        if tasks.total() > rest:
            found.append(f"{tasks.total()} tasks, not {rest:g}: {tasks}")
        return found

    with trio.move_on_after(HANG):
        while left():
            await trio.sleep(0.005)
    if found := left():
        batch.fault(f"the router is not back where it was: {'; '.join(found)}")


def _sound_client(port: int) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        trust_env=False,
        timeout=HANG,
        # The router drops idle connections so soon that one may end under its next request.
        limits=httpx.Limits(max_keepalive_connections=0),
    )


async def _still_works(batch: Batch, port: int, *, changed: bool) -> None:
    """A sound client is served."""
    async with _sound_client(port) as http:
        path = "/live" if changed else "/v1/images/generations"
        name = SOUND.decode()
        for _ in range(100):  # one of the workers may be unwell still
            answer = (
                await http.get(path)
                if changed
                else await http.post(path, json={"model": "m", "prompt": name})
            )
            if answer.status_code == 200 and (changed or name in answer.text):
                return
            await trio.sleep(0.1)
        known = (await http.get("/list_workers" if changed else "/workers")).text
        batch.fault(f"a sound request has {answer.status_code}: {answer.text[:500]}; {known}")


async def _play_all(batch: Batch, port: int) -> None:
    waiting = iter(batch.cases)

    async def some() -> None:
        for case in waiting:
            await play(batch, case, port)

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(some)


async def _run(batch: Batch, workers: Sequence[Worker], *, changes: bool) -> None:
    stop = trio.Event()
    listeners = open_listeners("127.0.0.1", 0)
    settings = RouterSettings(port=0, **_SETTINGS)
    async with trio.open_nursery() as outside:
        for worker in workers:
            outside.start_soon(worker.run)
        async with trio.open_nursery() as nursery:
            run = await nursery.start(partial(service.serve, settings, listeners, stop))
            async with _sound_client(run.port) as http:
                for worker in workers:
                    url = f"http://127.0.0.1:{worker.port}"
                    (await http.post("/workers", json={"url": url})).raise_for_status()
            if not all(worker.questions for worker in workers):
                batch.fault("workers no longer know the router's own questions")
            await _still_works(batch, run.port, changed=False)
            rest = min([await _count_later(nursery) for _ in range(40)])
            await _play_all(batch, run.port)
            batch.judge()
            for worker in workers:
                worker.mad = None
            # A change may have added workers, and so tasks.
            await _until_calm(batch, run, nursery, math.inf if changes else rest)
            await _still_works(batch, run.port, changed=changes)
            stop.set()
            with trio.move_on_after(HANG):
                while _tasks(nursery):
                    await trio.sleep(0.005)
            if left := _tasks(nursery):
                batch.fault(f"the router did not stop: {left}")
                nursery.cancel_scope.cancel()
        outside.cancel_scope.cancel()


async def _count_later(nursery: trio.Nursery) -> int:
    await trio.sleep(0.005)
    return _tasks(nursery).total()


def run_batch(cases: Sequence[Case], seed: str, *, changes: bool = False) -> Batch:
    """Have one router meet all cases, many at once. Three workers: one answers the router's own
    questions soundly, the others do so only now and then."""
    batch = Batch(cases, seed)
    before = _descriptors()
    by_token = {case.token: case for case in cases}
    workers = [Worker(batch, by_token)]
    workers += [Worker(batch, by_token, mad=random.Random(f"{seed} {n}")) for n in range(2)]
    try:
        with _quick(batch, [worker.port for worker in workers]):
            main = partial(_run, batch, workers, changes=changes)
            trio.run(main, clock=trio.testing.MockClock(autojump_threshold=_IDLE))
    except Exception as error:
        told = "".join(traceback.format_exception(error))
        batch.fault(f"the router ended: {told}", *batch.playing.values())
    finally:
        for worker in workers:
            worker.listener.close()
    if (after := _descriptors()) > before:
        batch.fault(f"{after - before} file descriptors are left open")
    return batch
