"""WebSockets through a whole router, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)

from router import dispatch, service
from router.front.asgi import link_of
from router.pool.worker import Health
from router.relay import websocket
from router.server import ServerLimits, open_listeners, serve
from router.settings import RouterSettings
from tests.patience import fail_after

INFO = {
    "/health": {"status": "ok"},
    "/server_info": {"dp_size": 1},
    "/model_info": {"output_types": ["VIDEO"]},
}


class Worker:
    """A worker that answers probes and gives WebSockets to `session` (accepted already)."""

    def __init__(
        self,
        session: Callable[..., Awaitable[None]],
        *,
        accept: bool = True,
        model: str = "m",
    ) -> None:
        self.session = session
        self.info = {
            **INFO,
            "/v1/models": {"object": "list", "data": [{"id": model, "task_type": "T2V"}]},
        }
        self.accept = accept
        self.scopes: list[Any] = []
        self.closes: list[tuple[int, str | None]] = []
        self.sent = 0
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            body = json.dumps(self.info.get(scope["path"], {})).encode()
            status = 200 if scope["path"] in self.info else 404
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body})
            return
        self.scopes.append(scope)
        assert (await receive())["type"] == "websocket.connect"
        if self.accept:
            await send(
                {
                    "type": "websocket.accept",
                    "subprotocol": (scope["subprotocols"] or [None])[-1],
                    "headers": [(b"x-from-worker", b"1")],
                }
            )
        await self.session(self, receive, send)

    async def hear(self, receive: Any) -> Any:
        """The next message; a close is noted and returns None."""
        message = await receive()
        if message["type"] == "websocket.receive":
            return message["text"] if message["text"] is not None else message["bytes"]
        self.closes.append((message["code"], message.get("reason")))
        return None


async def echo(worker: Worker, receive: Any, send: Any) -> None:
    while (message := await worker.hear(receive)) is not None:
        kind = "text" if isinstance(message, str) else "bytes"
        await send({"type": "websocket.send", kind: message})


class Client:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.pending: list[Event] = []
        self.over = False

    async def send(self, event: Event) -> None:
        await self.stream.send_all(self.ws.send(event))

    async def event(self) -> Event | None:
        while not self.pending:
            if self.over:
                return None
            try:
                data = bytes(await self.stream.receive_some(65536))
            except trio.BrokenResourceError:
                data = b""
            self.over = not data
            self.ws.receive_data(data or None)
            self.pending += list(self.ws.events())
        return self.pending.pop(0)

    async def message(self) -> str | bytes | tuple[int, str | None]:
        """The next whole message, or (code, reason) of the close."""
        parts: Any = None
        while True:
            event = await self.event()
            if isinstance(event, Message):
                parts = event.data if parts is None else parts + event.data
                if event.message_finished:
                    return bytes(parts) if not isinstance(parts, str) else parts
            elif isinstance(event, CloseConnection):
                return int(event.code), event.reason
            elif event is None:
                return 1006, None

    async def open(self, path: str = "/v1/realtime_video/generate", **options: Any) -> Event | None:
        await self.send(Request(host="router", target=path, **options))
        return await self.event()


@asynccontextmanager
async def pool(
    *workers: Worker, stop: trio.Event | None = None, **settings: Any
) -> AsyncIterator[tuple[service.Running, Callable[[], Awaitable[Client]]]]:
    with fail_after(20):
        async with trio.open_nursery() as nursery:
            for worker in workers:
                listeners = open_listeners("127.0.0.1", 0)
                worker.url = service.address_of(listeners[0])
                run = partial(serve, limits=ServerLimits(), stop=trio.Event())
                await nursery.start(run, worker, listeners)
            options = RouterSettings(worker_urls=tuple(w.url for w in workers), **settings)
            running: service.Running = await nursery.start(
                service.serve,
                options,
                open_listeners("127.0.0.1", 0),
                trio.Event() if stop is None else stop,
            )
            registry = running.parts.registry
            for record in registry:
                await running.parts.watchman.first_contact(record, within=5)
            clients: list[Client] = []

            async def connect() -> Client:
                client = Client(await trio.open_tcp_stream("127.0.0.1", running.port))
                clients.append(client)
                return client

            yield running, connect
            for client in clients:
                await trio.aclose_forcefully(client.stream)
            while any(record.active_requests for record in registry):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()


def run(test: Callable[[], Awaitable[None]]) -> None:
    trio.run(test)


def test_messages_pass_unchanged_and_in_order() -> None:
    async def main() -> None:
        worker = Worker(echo)
        async with pool(worker) as (running, connect):
            client = await connect()
            answer = await client.open(extra_headers=[(b"x-request-id", b"abc"), (b"X-A", b"1")])
            assert isinstance(answer, AcceptConnection)
            headers = dict(answer.extra_headers)
            assert headers[b"x-from-worker"] == b"1"
            assert headers[b"x-request-id"] == b"abc"
            record = next(iter(running.parts.registry))
            assert headers[b"x-worker-id"] == record.worker_id.encode()
            assert headers[b"x-weight-version"] == b"0"
            assert record.active_requests == 1

            big = bytes(range(256)) * 20_000  # 5 MB
            sent: list[str | bytes] = ["héllo", b"\x00\x01", "", b"", big, "last"]
            async with trio.open_nursery() as nursery:

                async def talk() -> None:
                    for message in sent:
                        kind = TextMessage if isinstance(message, str) else BytesMessage
                        await client.send(kind(message))

                nursery.start_soon(talk)
                assert [await client.message() for _ in sent] == sent
            seen = dict(worker.scopes[0]["headers"])
            assert seen[b"x-a"] == b"1"
            assert seen[b"x-request-id"] == b"abc"
            assert seen[b"host"].decode() == worker.url.removeprefix("http://")
            assert seen[b"x-forwarded-for"] == b"127.0.0.1"

    run(main)


def test_fragments_arrive_joined_and_pings_are_answered() -> None:
    async def main() -> None:
        async with pool(Worker(echo)) as (_, connect):
            client = await connect()
            await client.open("/any/path?q=%20x")
            await client.send(TextMessage("one ", message_finished=False))
            await client.send(Ping(b"hi"))
            await client.send(TextMessage("two"))
            assert isinstance(await client.event(), Pong)
            assert await client.message() == "one two"

    run(main)


def test_path_query_and_subprotocol_pass() -> None:
    async def main() -> None:
        worker = Worker(echo)
        async with pool(worker) as (_, connect):
            client = await connect()
            answer = await client.open("/openpi/policy?a=%2F&b", subprotocols=["p1", "p2"])
            assert isinstance(answer, AcceptConnection)
            assert answer.subprotocol == "p2"
            assert worker.scopes[0]["raw_path"] == b"/openpi/policy"
            assert worker.scopes[0]["query_string"] == b"a=%2F&b"

    run(main)


def test_the_model_of_a_session_is_named_in_the_query_or_a_header() -> None:
    async def main() -> None:
        workers = {model: Worker(echo, model=model) for model in ("one", "two")}
        async with pool(*workers.values()) as (_, connect):
            path = "/v1/realtime_video/generate"
            for model, worker in workers.items():
                named = [(b"Model", model.encode())]
                for target, headers in ((f"{path}?model={model}", []), ("/x", named)):
                    client = await connect()
                    answer = await client.open(target, extra_headers=headers)
                    assert isinstance(answer, AcceptConnection)
                    await client.send(CloseConnection(code=1000))
                    assert await client.message() == (1000, "")
                assert len(worker.scopes) == 2
            for refused, status in (
                (path, 400),
                (f"{path}?model=ONE", 404),
                (f"{path}?model=one&model=two", 400),
            ):
                answer = await (await connect()).open(refused)
                assert isinstance(answer, RejectConnection)
                assert answer.status_code == status
            assert [len(worker.scopes) for worker in workers.values()] == [2, 2]

    run(main)


def test_close_of_the_client_reaches_the_worker() -> None:
    async def main() -> None:
        worker = Worker(echo)
        async with pool(worker) as (_, connect):
            client = await connect()
            await client.open()
            await client.send(CloseConnection(code=4002, reason="enough"))
            assert await client.message() == (4002, "enough")
            while not worker.closes:
                await trio.sleep(0.01)
            assert worker.closes == [(4002, "enough")]

    run(main)


def test_close_of_the_worker_reaches_the_client() -> None:
    async def bye(worker: Worker, receive: Any, send: Any) -> None:
        await send({"type": "websocket.send", "text": "bye"})
        await send({"type": "websocket.close", "code": 4001, "reason": "because"})

    async def main() -> None:
        async with pool(Worker(bye)) as (_, connect):
            client = await connect()
            await client.open()
            assert await client.message() == "bye"
            assert await client.message() == (4001, "because")

    run(main)


def test_vanished_client_is_told_to_the_worker() -> None:
    async def main() -> None:
        worker = Worker(echo)
        async with pool(worker) as (running, connect):
            client = await connect()
            await client.open()
            await trio.aclose_forcefully(client.stream)
            while not worker.closes:
                await trio.sleep(0.01)
            assert worker.closes[0][0] == 1001
            record = next(iter(running.parts.registry))
            while record.active_requests:
                await trio.sleep(0.01)

    run(main)


def test_vanished_worker_is_told_to_the_client() -> None:
    async def vanish(worker: Worker, receive: Any, send: Any) -> None:
        link_of(worker.scopes[-1]).abort()

    async def main() -> None:
        async with pool(Worker(vanish)) as (_, connect):
            client = await connect()
            await client.open()
            assert (await client.message())[0] == 1011

    run(main)


@pytest.mark.parametrize(
    "sent", [b"\x83\x00", b"\x81\x82\0\0\0\0hi", b"\x81\x01\xff", b"\x88\x01x"]
)
def test_the_client_is_not_blamed_for_what_the_worker_sent(sent: bytes) -> None:
    async def blunder(worker: Worker, receive: Any, send: Any) -> None:
        await link_of(worker.scopes[-1])._connection.write([sent])
        await receive()

    async def main() -> None:
        async with pool(Worker(blunder)) as (_, connect):
            client = await connect()
            await client.open()
            code, reason = await client.message()
            assert code == 1011
            assert "the worker broke the protocol" in reason

    run(main)


@pytest.mark.parametrize("body", [b"denied", b""])
def test_refusal_is_passed_on(body: bytes) -> None:
    async def deny(worker: Worker, receive: Any, send: Any) -> None:
        headers = [(b"x-why", b"no"), (b"content-type", b"text/plain")]
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": body})

    async def main() -> None:
        async with pool(Worker(deny, accept=False)) as (_, connect):
            client = await connect()
            answer = await client.open()
            assert isinstance(answer, RejectConnection)
            assert answer.status_code == 403
            headers = dict(answer.headers)
            assert headers[b"x-why"] == b"no"
            assert headers[b"x-weight-version"] == b"0"
            received = b""
            while isinstance(event := await client.event(), RejectData):
                received += event.data
                if event.body_finished:
                    break
            assert received == body

    run(main)


def test_without_workers_it_is_refused_with_our_error() -> None:
    async def main() -> None:
        async with pool() as (_, connect):
            client = await connect()
            answer = await client.open()
            assert isinstance(answer, RejectConnection)
            assert answer.status_code == 503
            event = await client.event()
            assert isinstance(event, RejectData)
            assert json.loads(bytes(event.data))["code"] == "no_workers"

    run(main)


@pytest.mark.parametrize(
    ("wanted", "status", "code"),
    [
        (b"1", 409, "weight_version_unknown"),
        (b"new", 409, "weight_version_unknown"),
        (b"-1", 400, "invalid_header"),
    ],
)
def test_weights_that_nobody_has_are_refused(wanted: bytes, status: int, code: str) -> None:
    async def main() -> None:
        worker = Worker(echo)
        async with pool(worker) as (_, connect):
            client = await connect()
            answer = await client.open(extra_headers=[(b"X-Min-Weight-Version", wanted)])
            assert isinstance(answer, RejectConnection)
            assert answer.status_code == status
            event = await client.event()
            assert isinstance(event, RejectData)
            assert json.loads(bytes(event.data))["code"] == code
            assert not worker.scopes

    run(main)


def test_unreachable_worker_is_passed_over() -> None:
    async def main() -> None:
        good, gone = Worker(echo), Worker(echo)
        options = {"health_check_interval": 1000, "worker_concurrency": 3}
        async with pool(good, gone, **options) as (running, connect):
            record = running.parts.registry.find(gone.url)
            assert record is not None
            assert record.health is Health.HEALTHY
            with open_listeners("127.0.0.1", 0)[0] as closed:
                record.url = service.address_of(closed)
            for _ in range(3):
                client = await connect()
                assert isinstance(await client.open(), AcceptConnection)
                await client.send(TextMessage("x"))
                assert await client.message() == "x"
            assert len(good.scopes) == 3

    run(main)


def test_too_large_messages_close_the_session() -> None:
    async def flood(worker: Worker, receive: Any, send: Any) -> None:
        if await worker.hear(receive) == "send":
            await send({"type": "websocket.send", "bytes": b"x" * 70_000})
        await worker.hear(receive)

    async def main() -> None:
        worker = Worker(flood)
        async with pool(worker, websocket_max_message=65536) as (_, connect):
            client = await connect()
            await client.open()
            await client.send(TextMessage("send"))
            assert (await client.message())[0] == 1009
            client = await connect()
            await client.open()
            await client.send(BytesMessage(b"y" * 70_000))
            assert (await client.message())[0] == 1009

    run(main)


PIECE = b"z" * 65536


async def flood(worker: Worker, receive: Any, send: Any) -> None:
    for _ in range(4000):  # 250 MB
        await send({"type": "websocket.send", "bytes": PIECE})
        worker.sent += 1


async def stands_still(worker: Worker) -> None:
    """Wait until a worker cannot send any more."""
    last = -1
    while worker.sent != last:
        last = worker.sent
        await trio.sleep(0.3)


def test_slow_client_slows_the_worker() -> None:
    async def main() -> None:
        worker = Worker(flood)
        async with pool(worker) as (_, connect):
            client = await connect()
            await client.open()
            await stands_still(worker)
            # What kernels and the two servers hold; far from what it wanted to send.
            assert worker.sent * len(PIECE) < 32 * 1024 * 1024
            for _ in range(100):
                assert await client.message() == PIECE

    run(main)


def test_a_client_that_takes_nothing_does_not_keep_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatch, "_SESSION_GRACE", 0.1)
    monkeypatch.setattr(websocket, "_FAREWELL", 0.1)

    async def main() -> None:
        worker = Worker(flood)
        async with pool(worker) as (running, connect):
            client = await connect()
            await client.open()
            await stands_still(worker)
            [record] = running.parts.registry
            assert await running.parts.dispatcher.idle(record, 30)

    run(main)


def test_stop_closes_sessions_with_1012() -> None:
    async def main() -> None:
        worker, stop = Worker(echo), trio.Event()
        async with pool(worker, stop=stop, shutdown_timeout=1.0) as (_, connect):
            client = await connect()
            await client.open()
            await client.send(TextMessage("x"))
            assert await client.message() == "x"
            stop.set()
            assert (await client.message())[0] == 1012
            while not worker.closes:
                await trio.sleep(0.01)

    run(main)
