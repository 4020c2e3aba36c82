"""A router from start to end: it owns the top nursery.

A crash of the shared core (registry, queue, ledgers, store), or of a task that serves all workers
or clients, is fatal and loud: it ends the process with a traceback. A crash at one connection or in
a task about one worker ends there (`router.boundary`).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio
from attrs import evolve, frozen

from ..bus import Bus
from ..control.client import ControlClient
from ..errors import StartError, unwrapped
from ..front.origins import Origins
from ..front.record import ExchangeEnded, ExchangeRecord
from ..launch import display
from ..launch.base import Planner
from ..launch.fleet import Fleet
from ..observe import logs
from ..observe.access import AccessLines
from ..observe.stderr import Output
from ..pool.weights import Ledgers
from ..relay.keys import Keys
from ..relay.upstream import Upstream
from ..server import ServerLimits, inherited_listeners, open_listeners
from ..server import serve as serve_http
from ..settings import AccessLog, Live, LogFormat, RouterSettings
from ..store.store import Store
from ..web.parts import Parts
from .assembly import Assembly, assemble
from .certificates import certificates_of
from .clock import RunningClock
from .launched import give_up, log_folder, make_plans
from .reload import Reload
from .start import (
    Terminal,
    address_of,
    obeyed_signals,
    open_store,
    raise_open_files_limit,
    spare_the_collector,
    static_workers,
    stop_signal,
    trust_of,
)

logger = logging.getLogger("router.service")

_SESSION_GRACE = 10.0  # seconds for open WebSocket sessions at a stop


@frozen
class Running:
    """A router that accepts connections."""

    port: int
    parts: Parts
    upstream: Upstream
    keys: Keys
    fleet: Fleet
    reload: Reload


def run(settings: RouterSettings, again: Callable[[], RouterSettings] | None = None) -> int:
    """Serve until a signal stops the router; returns the exit status. `again` reads the settings
    once more, and raises SettingsError. Raises StartError."""
    reload = Reload(Live(settings), again)
    json = settings.log_format is LogFormat.JSON
    output = logs.configure(settings.effective_log_level, json=json)
    reload.live.follow(lambda now: logs.set_level(now.effective_log_level))
    try:
        return _run(settings, reload, output)
    except StartError as error:
        if not json:
            raise
        logger.critical("%s", error)
        return error.status


def _run(settings: RouterSettings, reload: Reload, output: Output) -> int:
    raise_open_files_limit()
    store = open_store(settings)
    try:
        spare_the_collector()
        with unwrapped():
            main = partial(_until_signalled, reload, store, output)
            return trio.run(main, clock=RunningClock(), strict_exception_groups=True)
    finally:
        store.close()


async def _until_signalled(reload: Reload, store: Store, output: Output) -> int:
    settings = reload.live.settings
    terminal = Terminal()
    stop = trio.Event()
    status = 0
    async with output.aside(), trio.open_nursery() as nursery:

        async def obey_signals(task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            with trio.open_signal_receiver(*obeyed_signals()) as signals:
                task_status.started()
                number = await stop_signal(
                    signals, terminal, lambda: nursery.start_soon(reload.on_signal)
                )
                logger.info(
                    "%s: finishing requests in flight for at most %g s; a second signal ends the"
                    " router at once",
                    number.name,
                    reload.live.settings.shutdown_timeout,
                )
                stop.set()
                number = await stop_signal(
                    signals, terminal, lambda: logger.info("SIGHUP ignored: the router is stopping")
                )
                logger.warning("%s: second signal, ending at once", number.name)
                status = 128 + number
                nursery.cancel_scope.cancel()

        # Before the port answers: a client that sees the port open may send a signal.
        await nursery.start(obey_signals)
        listeners = inherited_listeners()  # before a worker could inherit their environment
        planners = await make_plans(settings, store)
        if listeners:
            host, port = listeners[0].getsockname()[:2]
            settings = evolve(settings, host=host, port=port)
        else:
            listeners = open_listeners(settings.host, settings.port)
        secure = settings.tls_cert is not None
        for listener in listeners:
            logger.info("listening on %s", address_of(listener, secure=secure))
        await serve(settings, listeners, stop, store, planners, reload=reload)
        nursery.cancel_scope.cancel()
    logger.info("stopped")
    return status


async def serve(
    settings: RouterSettings,
    listeners: list[socket.socket],
    stop: trio.Event,
    store: Store | None = None,
    planners: Sequence[Planner] | None = None,
    *,
    reload: Reload | None = None,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a router on these listeners until `stop` is set and requests in flight have ended.

    Without a store nothing survives. Raises StateRefused if the store's records make no sense,
    StartError if planners are missing and cannot be made.
    """
    store = store or Store()
    reload = reload or Reload(Live(settings))
    if planners is None:
        planners = await make_plans(settings, store)
    async with store.running():
        with log_folder(settings, store.folder) as folder:
            launching = planners, folder
            await _serve(settings, reload, listeners, stop, store, launching, task_status)
        await store.finish()


async def _serve(
    settings: RouterSettings,
    reload: Reload,
    listeners: list[socket.socket],
    stop: trio.Event,
    store: Store,
    launching: tuple[Sequence[Planner], Path],
    task_status: trio.TaskStatus[Running],
) -> None:
    websocket_message = settings.websocket_max_message
    limits = reload.live.limits(
        lambda now: ServerLimits(
            body=now.idle_timeout,
            send=now.idle_timeout if now.client_send_timeout is None else now.client_send_timeout,
            shutdown=now.shutdown_timeout,
            websocket_message=websocket_message,
            connections=now.max_client_connections,
        )
    )
    async with ControlClient(trust=trust_of(settings)) as client:
        built = assemble(settings, reload, store, client, *launching)
        parts, fleet, persistence = built.parts, built.fleet, built.persistence
        resumed = persistence.restore(parts.names.restore(static_workers(settings)))
        parts.memory.worker_memory.restore()
        async with trio.open_nursery() as nursery:
            await nursery.start(client.addresses.lookups.run)
            nursery.start_soon(built.upstream.run)
            nursery.start_soon(_wind_down, stop, built, limits)
            await nursery.start(parts.dispatcher.run)
            await nursery.start(parts.agents.operations.run)
            await nursery.start(parts.agents.run)
            await nursery.start(built.follower.run)
            await nursery.start(fleet.run)
            persistence.settle()
            if resumed is not None:
                logger.info(
                    "resumed from %s: %s; --fresh starts without this state", store.folder, resumed
                )
            nursery.start_soon(parts.metrics.run)
            nursery.start_soon(parts.feed.recent.run)
            await nursery.start(persistence.run)
            await nursery.start(parts.watchman.run)  # later tasks rely on its findings
            await nursery.start(parts.names.run)
            nursery.start_soon(give_up, fleet)
            nursery.start_soon(display.show, fleet.views, fleet.changed)
            nursery.start_soon(_access_log(reload.live, parts.registry.bus).run)
            ended = partial(_publish_end, parts.registry.bus)
            serving = partial(serve_http, built.app, listeners, limits=limits, stop=stop)
            serving = partial(serving, on_end=ended, tls=certificates_of(settings, reload))
            serving = partial(serving, origins=Origins(settings.cors_origin))
            async with trio.open_nursery() as front:
                port = listeners[0].getsockname()[1]
                await front.start(serving)
                task_status.started(Running(port, parts, built.upstream, built.keys, fleet, reload))
            ours = [] if settings.keep_workers else _ending(parts.ledgers)
            await fleet.close()
            if not settings.resume_weights:
                parts.runs.ended(ours)
            persistence.put_speeds()
            nursery.cancel_scope.cancel()


def _access_log(live: Live, bus: Bus) -> AccessLines:
    lines = AccessLines(bus)
    auto = logs.on_terminal()
    on = {AccessLog.ON: True, AccessLog.AUTO: auto, AccessLog.OFF: False}
    live.follow(lambda now: lines.switch(on=on[now.access_log]))
    return lines


def _publish_end(bus: Bus, record: ExchangeRecord) -> None:
    bus.publish(ExchangeEnded(record))


def _ending(ledgers: Ledgers) -> list[str]:
    """The models whose workers were all launched by this router, and so end with it."""
    return [ledger.model for ledger in ledgers if ledgers.only_launched(ledger.model)]


async def _wind_down(stop: trio.Event, built: Assembly, limits: ServerLimits) -> None:
    """At the stop, refuse requests that wait for a worker; requests that have a worker may finish.
    WebSocket sessions have no end of their own: close them after a moment."""
    await stop.wait()
    built.parts.dispatcher.close()
    built.parts.feed.over.set()
    built.fleet.stop()
    await trio.sleep(min(_SESSION_GRACE, limits.shutdown / 2))
    built.restarting.set()
