"""The worker itself: ports, connections, and the life of one simulated process."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import trio
from attrs import define, field

from .api_actions import OPENPI_PATH, ActionsApi
from .api_actions import REALTIME_PATH as ACTIONS_PATH
from .api_images import ImagesApi
from .api_info import WARM_UP_BYPASS, InfoApi
from .api_loras import LorasApi
from .api_meshes import MeshesApi
from .api_metrics import MetricsApi
from .api_realtime import PATH as REALTIME_PATH
from .api_realtime import RealtimeApi
from .api_rollout import RolloutApi
from .api_simulate import SimulateApi
from .api_tensors import TensorsApi
from .api_vertex import VertexApi
from .api_videos import VideosApi
from .api_weights import WeightsApi
from .config import WorkerConfig
from .connection import Connection
from .exchange import Exchange
from .faults import Fault, Faults
from .messages import Refusal, Response, response, text_response, to_json, unavailable
from .ports import Pair, bind, bind_pair
from .record import Record, now
from .routing import Table
from .scheduler import Scheduler
from .state import State
from .websockets import Session, WebSocket, WebSocketClosed

_DEED_SECONDS = 0.05


def _no_lines(_: str) -> None:
    pass


@define(eq=False)
class SimulatedWorker:
    """One worker. `run` serves until `stop` or `kill`; `url`, `log` and `faults` are for tests.

    `crash` is called by the crash fault; by default it is `kill`, so that a test's own process
    lives on.
    """

    config: WorkerConfig
    say: Callable[[str], None] = _no_lines
    """Takes the log lines."""
    crash: Callable[[], None] | None = None
    log: Record = field(factory=Record)
    faults: Faults = field(factory=Faults)
    closing: bool = False
    port: int = 0
    ended: trio.Event = field(factory=trio.Event)
    """Set when `run` is over."""
    _pair: Pair | None = None
    _doors: list[trio.socket.SocketType] = field(factory=list)
    _nursery: trio.Nursery | None = None
    _held: list[socket.socket] = field(factory=list)
    _connections: set[Connection] = field(factory=set)
    _state: State | None = None
    _table: Table | None = None
    _realtime: RealtimeApi | None = None
    _actions: ActionsApi | None = None
    _life: trio.CancelScope | None = None
    _whole: trio.CancelScope = field(factory=trio.CancelScope)
    _left: trio.Event = field(factory=trio.Event)
    _stopping: trio.Event = field(factory=trio.Event)
    _restart: Fault | None = None

    @property
    def record(self) -> Record:
        return self.log

    @property
    def url(self) -> str:
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{self.port}"

    @property
    def state(self) -> State:
        """The inside of the current incarnation."""
        assert self._state is not None, "not running"
        return self._state

    @property
    def scheduler(self) -> Scheduler:
        return self.state.scheduler

    def stop(self) -> None:
        """Graceful, as SIGTERM: the port refuses, running images are answered, jobs are lost."""
        self.closing = True
        self._stopping.set()
        self._close_listeners()
        for connection in list(self._connections):
            connection.close_if_idle()

    def kill(self) -> None:
        """At once, as SIGKILL: connections are reset, the port refuses."""
        self.closing = True
        self._close_listeners()
        self._abort_connections()
        self._whole.cancel()

    async def run(
        self, *, task_status: trio.TaskStatus[SimulatedWorker] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves. Reports itself once the port is open.

        Raises `PortTaken` and `WeightsError` before that.
        """
        try:
            with self._whole:
                self._begin()
                self._held = [bind(self.config.host, port) for port in self.config.reserved_ports]
                self._pair = bind_pair(
                    self.config.host, self.config.port, strict=self.config.strict_ports
                )
                self.port = self._pair.port
                task_status.started(self)
                while not self._stopping.is_set():
                    await self._live()
                    if self._restart is not None:
                        await self._be_reborn(self._restart)
        finally:
            self._close_listeners()
            self._abort_connections()
            for sock in self._held:
                sock.close()
            self.ended.set()

    def _begin(self) -> None:
        """A new incarnation: nothing is left of the one before."""
        config = self.config
        self.log.incarnation = Record().incarnation
        self.faults.changed = self._fault_changed
        scheduler = Scheduler.start(config, self.log, self.faults)
        self._state = state = State(
            config,
            self.log,
            self.faults,
            scheduler,
            ready_at=now() + config.warmup_seconds * config.time_scale,
            output_path=os.path.abspath("outputs"),
        )
        self._realtime, self._actions = RealtimeApi(state), ActionsApi(state)
        apis: list[Any] = [
            InfoApi(state),
            ImagesApi(state),
            VideosApi(state),
            WeightsApi(state),
            TensorsApi(state),
            LorasApi(state),
            RolloutApi(state),
            MeshesApi(state),
            MetricsApi(state),
            VertexApi(state),
            self._actions,
            SimulateApi(state),
        ]
        self._table = Table([route for api in apis for route in api.routes()])

    async def _live(self) -> None:
        """One incarnation, until it is stopped or restarted."""
        with trio.CancelScope() as self._life:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.scheduler.run)
                assert self._pair is not None
                self._open(self._pair.main)
                self._open(self._pair.control)
                await self._stopping.wait()
                with trio.move_on_after(self.config.graceful_timeout or float("inf")):
                    while self._connections:
                        await self._left.wait()
                nursery.cancel_scope.cancel()
        self._nursery = None

    def _open(self, listener: socket.socket) -> None:
        assert self._nursery is not None
        door = trio.socket.from_stdlib_socket(listener)
        self._doors.append(door)
        self._nursery.start_soon(self._accept, door)

    async def _accept(self, door: trio.socket.SocketType) -> None:
        assert self._nursery is not None
        while True:
            try:
                sock, _ = await door.accept()
            except (OSError, trio.ClosedResourceError):
                return
            self._nursery.start_soon(self._serve, trio.SocketStream(sock))

    async def _refuse(self, fault: Fault) -> None:
        """Keeps the main port closed until the fault is over."""
        await self.faults.over(fault)
        self._reopen()

    def _reopen(self) -> None:
        """Opens the main port again if a fault closed it."""
        if self._nursery is not None and not self.closing and len(self._doors) < 2:
            self._open(bind(self.config.host, self.port))

    async def _serve(self, stream: trio.SocketStream) -> None:
        record = self.log
        record.accepted += 1
        record.open += 1
        record.most_open = max(record.most_open, record.open)
        connection = Connection(stream, self, record.accepted)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)
            self._left.set()
            self._left = trio.Event()
            record.open -= 1

    async def respond(self, exchange: Exchange) -> Response:
        """The answer to a request: what the middleware of the real worker does, then the table."""
        answer = await self._answer(exchange)
        request = f"{exchange.method} {exchange.target} HTTP/1.1"
        self.say(f'{exchange.connection.peer} - "{request}" {answer.status}')
        return answer

    async def _answer(self, exchange: Exchange) -> Response:
        assert self._table is not None
        try:
            if not exchange.path.startswith("/simulate"):
                if fault := self.faults.take("status", exchange.path):
                    exchange.entry.faults.append("status")
                    return await _other_status(exchange, fault)
                failure = self.scheduler.failure
                if exchange.method == "POST" and failure:
                    raise unavailable(failure)
                if exchange.path not in WARM_UP_BYPASS:
                    await self.state.until_warm()
                if preflight := _preflight(exchange):
                    return preflight
            return await self._table.respond(exchange)
        except Refusal as refusal:
            return refusal.answer

    async def websocket(self, exchange: Exchange) -> None:
        """Serves a session to its end, or refuses the upgrade."""
        socket = WebSocket(exchange)
        session = self._session(exchange.path)
        if session is None:
            exchange.entry.status = 403
            await exchange.connection.refuse_websocket()
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_stop, nursery.cancel_scope)
            with suppress(WebSocketClosed):
                await session(socket)
            nursery.cancel_scope.cancel()
        if self.closing:
            await socket.close(1012, "Service Restart")

    def _session(self, path: str) -> Session | None:
        """What serves a WebSocket at this path, None if nothing does."""
        assert self._realtime is not None
        assert self._actions is not None
        if path == REALTIME_PATH:
            return self._realtime.session
        if self.config.makes("ACTION") and path in (ACTIONS_PATH, OPENPI_PATH):
            return partial(self._actions.session, openpi=path == OPENPI_PATH)
        return None

    async def _cancel_at_stop(self, scope: trio.CancelScope) -> None:
        await self._stopping.wait()
        scope.cancel()

    def _fault_changed(self, fault: Fault) -> None:
        self.say(f"fault: {fault.kind} {fault.settings or ''}")
        if self._state is None or self._nursery is None:
            return
        self._state.scheduler.poke()
        if fault.kind == "refuse" and len(self._doors) == 2:
            door = next(d for d in self._doors if d.getsockname()[1] == self.port)
            self._doors.remove(door)
            door.close()
            self._nursery.start_soon(self._refuse, fault)
        elif fault.kind == "clear":
            self._reopen()
        elif fault.kind in ("crash", "restart"):
            self._nursery.start_soon(self._do, fault)

    async def _do(self, fault: Fault) -> None:
        """Faults that are deeds; a moment later, so that who asked for them gets an answer."""
        await trio.sleep(fault.number("after", _DEED_SECONDS))
        if fault.kind == "crash":
            (self.crash or self.kill)()
        else:
            self._restart = fault
            self._abort_connections()
            assert self._life is not None
            self._life.cancel()

    async def _be_reborn(self, fault: Fault) -> None:
        self._restart = None
        self._close_listeners()
        self._abort_connections()
        self.faults.clear()
        await trio.sleep(fault.number("down", 0.5))
        self._begin()
        self._pair = bind_pair(self.config.host, self.port, strict=True)

    def _close_listeners(self) -> None:
        for door in self._doors:
            door.close()
        self._doors.clear()

    def _abort_connections(self) -> None:
        for connection in list(self._connections):
            connection.abort()


async def serve(
    config: WorkerConfig,
    *,
    task_status: trio.TaskStatus[SimulatedWorker] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs a worker in the caller's nursery: `worker = await nursery.start(serve, config)`."""
    await SimulatedWorker(config).run(task_status=task_status)


def _preflight(exchange: Exchange) -> Response | None:
    """The answer to a browser that asks whether another origin may call; None for the rest."""
    origin, wanted = exchange.header(b"origin"), exchange.header(b"access-control-request-headers")
    asked = exchange.header(b"access-control-request-method")
    if exchange.method != "OPTIONS" or not (origin and asked):
        return None
    headers = [
        (b"vary", b"Origin"),
        (b"access-control-allow-methods", b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"),
        (b"access-control-max-age", b"600"),
        (b"access-control-allow-credentials", b"true"),
        (b"access-control-allow-origin", origin.encode("latin-1")),
        *([(b"access-control-allow-headers", wanted.encode("latin-1"))] if wanted else []),
    ]
    text = text_response("OK", 200)
    return Response(200, [*headers, *text.headers], text.body, cors=False)


async def _other_status(exchange: Exchange, fault: Fault) -> Response:
    await exchange.drop_body()
    body = fault.settings.get("body", {"detail": "simulated"})
    data = body.encode() if isinstance(body, str) else to_json(body)
    return response(
        data, fault.text("content_type", "application/json"), int(fault.number("status", 503))
    )
