"""Two-way relay of WebSocket messages between one client and one worker.

Text and binary messages pass unchanged and in order; each side reads only as fast as the other
takes. Fragments are joined, and pings are answered on each side separately.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

import trio
from attrs import define, field
from wsproto.events import AcceptConnection, Request

from ..errors import RouterError, WorkerFailed, WorkerTimeout
from ..front.asgi import Receive, Scope, Send, link_of
from ..front.drain import Drain, Draining
from ..front.errors import error_answer, log_end, log_error
from ..net.hops import Instance
from ..pool.match import Facts, Need
from ..pool.worker import Lease, Task, Worker
from . import headers as heads
from .attempts import Attempts, TryAnother
from .body import one_model, one_pool, queried, wishes
from .connection import Broken, Connection
from .upstream import ConnectFailed, ConnectTimeout, Upstream
from .worker_socket import (
    GOING_AWAY,
    INTERNAL_ERROR,
    NO_STATUS,
    NORMAL,
    RESTARTING,
    TOO_BIG,
    Close,
    Refused,
    WorkerSocket,
)

logger = logging.getLogger("router.relay")

_HANDSHAKE = 30.0  # seconds for a worker to accept or refuse
_FAREWELL = 2.0  # seconds for a client to take the end of a session that the router ends


class ClientSocket:
    """The client's side of a session, over an ASGI `websocket` scope of our server shell."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.scope = scope
        self.link = link_of(scope)
        self.path: str = scope["path"]
        self.headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self.subprotocols: list[str] = list(scope["subprotocols"])
        self.peer: str | None = scope["client"][0] if scope["client"] else None
        self.record = self.link.record
        self.accepted = False
        self.target = self.link.target

    async def connected(self) -> bool:
        """Wait for the handshake's request. False if the client left before."""
        message = await self._receive()
        return bool(message["type"] == "websocket.connect")

    async def accept(self, subprotocol: str | None, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.accepted = True
        await self._send(
            {"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers)}
        )

    async def refuse(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> None:
        """Answer the handshake with an HTTP status instead."""
        await self._send(
            {"type": "websocket.http.response.start", "status": status, "headers": list(headers)}
        )
        await self._send({"type": "websocket.http.response.body", "body": body})

    async def receive(self) -> str | bytes | Close:
        """The next message, or how the client ended the session."""
        message = await self._receive()
        if message["type"] != "websocket.receive":
            return Close(message.get("code") or NO_STATUS, message.get("reason"))
        text: str | None = message.get("text")
        return text if text is not None else bytes(message["bytes"])

    async def send(self, message: str | bytes) -> None:
        """Send one message; returns when the client has room for more."""
        kind = "text" if isinstance(message, str) else "bytes"
        await self._send({"type": "websocket.send", kind: message})

    async def close(self, close: Close) -> None:
        await self._send({"type": "websocket.close", "code": close.code, "reason": close.reason})


def handshake_request(client: ClientSocket, connection: Connection) -> Request:
    """The handshake for the worker: the client's, without the headers of the client's own hop."""
    own = heads.for_worker(
        [(n, v) for n, v in client.headers if not n.lower().startswith(b"sec-websocket-")],
        host=connection.host_header,
        request_id=client.record.request_id.encode(),
        peer=client.peer,
        scheme=b"https" if client.scope["scheme"] == "wss" else b"http",
        framing=None,
    )
    own = connection.trust.present(own)
    extra = [(name, value) for name, value in own if name not in (b"host", b"content-length")]
    return Request(
        host=connection.host_header.decode(),
        target=client.target.decode("latin-1"),
        subprotocols=client.subprotocols,
        extra_headers=extra,
    )


def response_headers(
    headers: Sequence[tuple[bytes, bytes]], client: ClientSocket, lease: Lease, address: str | None
) -> list[tuple[bytes, bytes]]:
    """The headers of the worker's handshake that the client gets."""
    own = heads.for_client(
        [(n, v) for n, v in headers if not n.lower().startswith(b"sec-websocket-")],
        request_id=client.record.request_id.encode(),
        worker_id=lease.worker.worker_id.encode(),
        weight_version=lease.weight_version,
        bodiless=False,
        url=lease.worker.url,
        address=address,
    )
    return [(name.lower(), value) for name, value in own]


async def shake_hands(
    client: ClientSocket, connection: Connection, lease: Lease, largest: int
) -> WorkerSocket | None:
    """Open the worker's side and accept the client's. None if the worker refused and the client got
    the refusal. Raises Broken or WorkerTimeout before the client is answered."""
    socket, worker = WorkerSocket(connection, largest), lease.worker
    accepted: AcceptConnection | None = None
    try:
        with trio.move_on_after(_HANDSHAKE):
            accepted = await socket.open(handshake_request(client, connection))
    except Refused as refusal:
        headers = response_headers(refusal.headers, client, lease, connection.address)
        headers = [(n, v) for n, v in headers if n != b"content-length"]
        headers.append((b"content-length", b"%d" % len(refusal.body)))
        await client.refuse(refusal.status, headers, refusal.body)
        return None
    if accepted is None:
        raise WorkerTimeout(
            f"Worker {worker.url} did not answer the WebSocket handshake within {_HANDSHAKE:g} s",
            code="response_timeout",
            details={"worker_url": worker.url, "retry_safe": True},
        )
    await client.accept(
        accepted.subprotocol,
        response_headers(accepted.extra_headers, client, lease, connection.address),
    )
    return socket


async def converse(
    client: ClientSocket, worker: WorkerSocket, restarting: trio.Event, evicted: trio.Event
) -> None:
    """Pass messages both ways until one side ends the session or the router ends it: because it is
    `restarting`, or because the worker must be idle (`evicted`).

    If cancelled (the client's connection broke), the worker still gets a close frame.
    """
    farewell = Close(GOING_AWAY)  # for the worker

    async def upwards(scope: trio.CancelScope) -> None:
        nonlocal farewell
        while True:
            message = await client.receive()
            if isinstance(message, Close):
                farewell = message.to_worker()
                break
            try:
                await worker.send(message)
            except Broken:
                # `downwards` still reads and gets the reason.
                await trio.sleep_forever()
        scope.cancel()

    async def downwards(scope: trio.CancelScope) -> None:
        nonlocal farewell
        while True:
            try:
                message = await worker.receive()
            except Broken as error:
                message = Close(INTERNAL_ERROR, str(error)[:100])
            if isinstance(message, Close):
                farewell = Close(message.code) if message.code == TOO_BIG else Close(NORMAL)
                await client.close(message.to_client())
                break
            await client.send(message)
        scope.cancel()

    async def end(scope: trio.CancelScope, when: trio.Event, why: str) -> None:
        await when.wait()
        nursery.start_soon(give_up)
        await client.close(Close(RESTARTING, why))
        scope.cancel()

    async def give_up() -> None:
        # The server shields what it sends: only a reset ends it early.
        await trio.sleep(_FAREWELL)
        client.link.abort()

    try:
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            nursery.start_soon(upwards, scope)
            nursery.start_soon(downwards, scope)
            nursery.start_soon(end, scope, restarting, "the router is restarting")
            nursery.start_soon(end, scope, evicted, "the worker is about to change")
    finally:
        await worker.close(farewell)


@define(eq=False)
class WebSocketRelay:
    """Relays WebSocket sessions. `largest` bounds a message, in bytes. Setting `restarting` closes
    open sessions with 1012."""

    attempts: Attempts
    upstream: Upstream
    largest: int
    restarting: trio.Event
    instance: Instance = field(factory=Instance)
    drain: Drain = field(factory=Drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = ClientSocket(scope, receive, send)
        if not await client.connected():
            return
        self.drain.busy += 1
        with trio.CancelScope() as leaving:
            client.link.on_gone(leaving.cancel)
            try:
                if self.drain.active:
                    raise Draining
                task = Task.VIDEO if client.path.startswith("/v1/realtime_video") else None
                client.headers = self.instance.passed_by(client.headers)
                name, group, asked, pool, priority = wishes(
                    client.headers, client.record.most_urgent
                )
                named = heads.value(client.headers, b"model")
                facts = Facts(
                    model=one_model(
                        queried(client.target, "model"), named.decode("latin-1") if named else None
                    ),
                    task=task,
                    need=Need.SESSION,
                    client=name,
                    kind="session",
                    asked=asked,
                    pool=one_pool(queried(client.target, "pool"), pool),
                    group=group,
                    priority=priority,
                )
                client.record.client, client.record.model = facts.client, facts.model
                await self.attempts.run(facts, partial(self._session, client))
            except RouterError as error:
                log_error(logger, client.record, error)
                await _refuse(client, error)
            finally:
                client.link.on_gone(None)
                self.drain.busy -= 1
                if self.drain.active:
                    self.drain.look()
        if leaving.cancelled_caught and (how := client.link.how_left()):
            log_end(logger, client.record, *how)

    async def _session(self, client: ClientSocket, lease: Lease) -> None:
        worker = lease.worker
        client.record.lease(worker.url)
        try:
            async with self.upstream.connection(
                worker.url, fresh=True, within=_HANDSHAKE
            ) as connection:
                self.attempts.check(lease)
                socket = await shake_hands(client, connection, lease, self.largest)
                if socket is not None:
                    evicted = trio.Event()
                    lease.evict = evicted.set
                    await converse(client, socket, self.restarting, evicted)
        except (ConnectFailed, ConnectTimeout) as error:
            error.details["worker_url"] = worker.url
            raise TryAnother(error) from error
        except Broken as error:
            raise TryAnother(_broken(worker, error)) from error


async def _refuse(client: ClientSocket, error: RouterError) -> None:
    """Send the client an error: as an HTTP answer, or as a close if the session was accepted."""
    if client.accepted:
        await client.close(Close(INTERNAL_ERROR, error.code))
        return
    headers, body = error_answer(client.record, error)
    await client.refuse(error.status, headers, body)


def _broken(worker: Worker, error: Broken) -> WorkerFailed:
    """The error for a worker that broke off before the session began."""
    return WorkerFailed(
        f"Worker {worker.url} failed before the WebSocket was open: {error}",
        code=error.code,
        details={"worker_url": worker.url, "retry_safe": True},
    )
