"""The composition root: builds the parts and owns the top nursery.

A crash of any part is fatal and loud: it ends the process with a traceback rather than leaving
a router that answers without one of its parts.
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import sys
import tempfile
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import cast

import trio
from attrs import evolve, frozen

from .control.client import ControlClient
from .control.errands import Errands
from .control.follow import Follower
from .control.held import Transactions
from .control.jobs import JobControl
from .control.keeper import Keeper
from .control.memory import MemoryControl
from .control.recovery import Recovery
from .control.refit import WeightControl
from .control.replay import Replayer
from .control.retire import Retirer
from .control.turns import Turns
from .control.watch import Watchman
from .control.witness import Verdict, Witness
from .dispatch import Dispatcher, QueueLimits
from .errors import StartError, describe, unwrapped
from .launch import adoption, display
from .launch.base import Backend, Planner
from .launch.fleet import Fleet
from .launch.launcher import Launcher, Shared
from .launch.local import LocalBackend
from .launch.planner import make_planners
from .observe import logs
from .pool import ids, policies
from .pool.assets import AssetMap
from .pool.cost import Speeds
from .pool.registry import Registry
from .pool.weights import ChangeRecord, LedgerRecord, Ledgers, WeightRecord
from .pool.worker import Worker
from .relay.access import AdminKey
from .relay.asgi import Relay
from .relay.attempts import Attempts
from .relay.client import App
from .relay.forward import Forwarder, Limits
from .relay.upstream import Upstream
from .relay.websocket import WebSocketRelay
from .server import ServerLimits, open_listeners
from .server import serve as serve_http
from .settings import LauncherSettings, QueueOrder, RouterSettings
from .store.opening import StateRefused, default_folder
from .store.store import Store
from .web.app import create_app
from .web.parts import CallLimits, Parts

logger = logging.getLogger("router.service")

_SESSION_GRACE = 10.0  # seconds that open WebSocket sessions get at a stop
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@frozen
class Running:
    """A router that accepts connections."""

    port: int
    parts: Parts
    upstream: Upstream
    fleet: Fleet


def run(settings: RouterSettings) -> int:
    """Serve until a signal says stop; the exit status. Raises StartError if it cannot start."""
    logs.configure(settings.effective_log_level)
    raise_open_files_limit()
    # Before the port answers.
    settings = evolve(settings, admin_api_key=admin_key(settings), admin_api_key_file=None)
    store = open_store(settings)
    try:
        listeners = open_listeners(settings.host, settings.port)
        spare_the_collector()
        with unwrapped():
            main = partial(_until_signalled, settings, listeners, store)
            return trio.run(main, strict_exception_groups=True)
    finally:
        store.close()


def open_store(settings: RouterSettings) -> Store:
    """The store that the settings name. Raises StateRefused."""
    given = settings.state_dir
    if given == "none":
        return Store()
    if given is None and settings.port == 0:
        logger.info("no state is kept: the port is another one each time; give a --state-dir")
        return Store()
    folder: Path | None = None
    try:
        folder = default_folder(settings.port) if given is None else Path(given)
        return Store.open(
            folder.absolute(), fresh=settings.fresh, best_effort=settings.state_best_effort
        )
    except (OSError, RuntimeError) as error:  # the latter where the user has no home
        if given is not None:
            raise StateRefused(
                f"The state directory {folder} cannot be used: {describe(error)}"
            ) from error
        where = "" if folder is None else f"{folder} cannot be used: "
        logger.warning(
            "NO STATE IS KEPT: %s%s; give a --state-dir, or none", where, describe(error)
        )
        return Store()


async def _until_signalled(
    settings: RouterSettings, listeners: list[socket.socket], store: Store
) -> int:
    stop = trio.Event()
    status = 0
    async with trio.open_nursery() as nursery:

        async def obey_signals(task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            with trio.open_signal_receiver(*_SIGNALS) as signals:
                task_status.started()
                number = await anext(signals)
                logger.info(
                    "%s: finishing what is in flight, for at most %g s; once more ends at once",
                    signal.Signals(number).name,
                    settings.shutdown_timeout,
                )
                stop.set()
                number = await anext(signals)
                logger.warning("%s again: ending at once", signal.Signals(number).name)
                status = 128 + number
                nursery.cancel_scope.cancel()

        # Before the port answers: whoever sees it may send a signal.
        await nursery.start(obey_signals)
        for listener in listeners:
            logger.info("listening on %s", address_of(listener))
        await serve(settings, listeners, stop, store)
        nursery.cancel_scope.cancel()
    logger.info("stopped")
    return status


async def serve(
    settings: RouterSettings,
    listeners: list[socket.socket],
    stop: trio.Event,
    store: Store | None = None,
    *,
    task_status: trio.TaskStatus[Running] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a router on these listeners until `stop` is set and what was in flight has ended.

    Without a store nothing outlives it. Raises StateRefused if the store's records make no sense.
    """
    store = store or Store()
    async with store.running():
        await _serve(settings, listeners, stop, store, task_status)
        await store.finish()


async def _serve(
    settings: RouterSettings,
    listeners: list[socket.socket],
    stop: trio.Event,
    store: Store,
    task_status: trio.TaskStatus[Running],
) -> None:
    registry = Registry(
        failure_threshold=settings.health_check_failure_threshold,
        concurrency=settings.worker_concurrency,
        trust_weights=settings.trust_external_weights,
    )
    registry.subscribe(logs.log_event)
    # Before the dispatcher: it hears first of what makes a worker unroutable.
    ledgers = Ledgers(registry, paper=store, gating=not settings.trust_external_weights)
    ledgers.restore(
        store.restored(LedgerRecord).values(),
        store.restored(WeightRecord).values(),
        store.restored(ChangeRecord).values(),
    )
    speeds = Speeds(trio.current_time)
    patience = settings.queue_timeout
    dispatcher = Dispatcher(
        registry,
        policies.make(settings.routing_algorithm, speeds),
        limits=QueueLimits(
            size=settings.queue_size,
            patience=settings.timeout if patience is None else patience,
            longest_first=settings.queue_order is QueueOrder.LONGEST_FIRST,
            jobs_per_worker=settings.max_jobs_per_worker,
        ),
        speeds=speeds,
        failure_threshold=settings.health_check_failure_threshold,
    )
    upstream = Upstream(settings.connect_timeout, settings.max_connections)
    attempts = Attempts(registry, dispatcher, settings.retries, ledgers.latest_issued)
    forwarder = Forwarder(
        attempts,
        upstream,
        Limits(
            response=settings.timeout,
            idle=settings.idle_timeout,
            peek=settings.peek_limit,
            request_bytes=settings.max_request_bytes,
        ),
    )
    restarting = trio.Event()
    websockets = WebSocketRelay(attempts, upstream, settings.websocket_max_message, restarting)
    limits = ServerLimits(
        body=settings.idle_timeout,
        shutdown=settings.shutdown_timeout,
        websocket_message=settings.websocket_max_message,
    )
    async with ControlClient() as client:
        retirer = Retirer(registry, dispatcher)
        fleet = await _fleet(settings, registry, store, retirer)
        errands = Errands()
        assets = AssetMap(settings.max_assets)
        witness = Witness(assets, client, [partial(_prove, fleet)])
        watchman = Watchman(registry, client, witness, settings.health_check_interval)
        follower = Follower(registry, dispatcher, assets, client)
        jobs = JobControl(registry, assets, client)
        turns = Turns()
        memory = MemoryControl(
            registry,
            dispatcher,
            client,
            turns,
            store,
            call_timeout=settings.refit_timeout,
            drain_timeout=settings.drain_timeout,
        )
        weights = WeightControl(
            registry,
            dispatcher,
            client,
            ledgers,
            turns,
            store,
            errands,
            drain_timeout=settings.drain_timeout,
            call_timeout=settings.refit_timeout,
        )
        replayer = Replayer(
            registry,
            dispatcher,
            client,
            ledgers,
            turns,
            store,
            weights,
            drain_timeout=settings.drain_timeout,
        )
        recovery = Recovery(registry, dispatcher, assets, jobs)
        keeper = Keeper(store, registry, dispatcher, assets, settings.trust_downtime)
        parts = Parts(
            store=store,
            registry=registry,
            dispatcher=dispatcher,
            watchman=watchman,
            retirer=retirer,
            client=client,
            jobs=jobs,
            ledgers=ledgers,
            weights=weights,
            transactions=Transactions(weights),
            replayer=replayer,
            memory=memory,
            errands=errands,
            launcher=fleet,
            limits=CallLimits(refit=settings.refit_timeout, idle=settings.idle_timeout),
        )
        own = cast(App, create_app(parts))
        app: App = Relay(own, forwarder, websockets, assets, store, jobs.owner)
        key = admin_key(settings)
        if key is not None:
            app = AdminKey(app, key.encode())
        elif not is_loopback(settings.host):
            logger.warning(
                "NO ADMIN KEY: everybody who reaches %s may change workers and weights; "
                "set --admin-api-key-file",
                settings.host,
            )
        restored = keeper.restore(map(ids.normalise_url, settings.worker_urls))
        memory.restore()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(upstream.run)
            nursery.start_soon(
                partial(_wind_down, stop, dispatcher, fleet, restarting, settings.shutdown_timeout)
            )
            await nursery.start(retirer.run)
            await nursery.start(errands.run)
            await nursery.start(replayer.run)
            await nursery.start(memory.run)
            await nursery.start(follower.run)
            await nursery.start(recovery.run, restored)
            await nursery.start(fleet.run)
            keeper.settle()
            told = keeper.summary()
            if told is not None:
                logger.info("resumed from %s: %s; --fresh begins without", store.folder, told)
            await nursery.start(keeper.run)
            await nursery.start(watchman.run)  # the others wait for what it finds
            nursery.start_soon(_give_up, fleet)
            nursery.start_soon(display.show, fleet.views, fleet.changed)
            serving = partial(serve_http, app, listeners, limits=limits, stop=stop)
            async with trio.open_nursery() as front:
                port = listeners[0].getsockname()[1]
                await front.start(serving)
                task_status.started(Running(port, parts, upstream, fleet))
            await fleet.close()
            keeper.put_speeds()
            nursery.cancel_scope.cancel()


async def _fleet(
    settings: RouterSettings, registry: Registry, store: Store, retirer: Retirer
) -> Fleet:
    """The workers that the settings want launched. Raises StartError."""
    local = LocalBackend()
    planners = await make_planners(settings.launchers)
    shared = Shared(
        registry, store, _log_folder(settings, store.folder), keep=settings.keep_workers
    )
    launchers = [
        _launcher(launcher, planner, local)
        for launcher, planner in zip(settings.launchers, planners, strict=True)
    ]
    return Fleet(launchers, shared, retirer.drain_and_remove, {local.name: local})


def _launcher(settings: LauncherSettings, planner: Planner, backend: Backend) -> Launcher:
    return Launcher(
        planner,
        backend,
        workers=settings.num_workers,
        wait_timeout=settings.wait_timeout,
        restart=settings.restart,
        restart_backoff=settings.restart_backoff,
        max_concurrency=settings.max_concurrency,
        log_dir=None if settings.log_dir is None else Path(settings.log_dir).absolute(),
    )


def _log_folder(settings: RouterSettings, state: Path | None) -> Path:
    """Where the output of launched workers goes, if their settings do not say."""
    if state is not None:
        return state / "logs"
    if all(launcher.log_dir is not None for launcher in settings.launchers):
        return Path()
    folder = Path(tempfile.mkdtemp(prefix="sglang-d-router-logs-"))
    logger.info("the logs of the workers are in %s", folder)
    return folder


async def _prove(fleet: Fleet, worker: Worker) -> Verdict:
    """Ask the launcher whether a worker's process is the one that it launched."""
    await trio.lowlevel.checkpoint()
    match fleet.proves(worker):
        case None:
            return Verdict.UNKNOWN
        case same:
            return Verdict.SAME if same else Verdict.OTHER


def reap(folder: Path) -> tuple[set[str], set[str]]:
    """End the workers that a router of this state directory has left running; the names of those
    that lived, and of those that run where this program cannot reach them. Raises StartError."""
    logs.configure("warning")
    if not folder.is_dir():
        raise StartError(f"There is no state directory {folder}")
    try:
        store = Store.open(folder.absolute())
    except OSError as error:
        raise StateRefused(f"{folder} cannot be used: {describe(error)}") from error

    async def end_all() -> tuple[set[str], set[str]]:
        local = LocalBackend()
        async with store.running():
            return await adoption.reap(store, {local.name: local})

    return trio.run(end_all, strict_exception_groups=True)


async def _give_up(fleet: Fleet) -> None:
    """End the router if its own workers have all failed at their start, and there is no other."""
    await fleet.watch_for_collapse()
    raise StartError(
        "no worker could be started, and there is no other; why is above, and in their logs"
    )


async def _wind_down(
    stop: trio.Event,
    dispatcher: Dispatcher,
    fleet: Fleet,
    restarting: trio.Event,
    patience: float,
) -> None:
    """At the stop, refuse what waits for a worker. What has one may finish; but WebSocket sessions
    have no end of their own: give them a moment, then close them."""
    await stop.wait()
    dispatcher.close()
    fleet.stop()
    await trio.sleep(min(_SESSION_GRACE, patience / 2))
    restarting.set()


def address_of(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def admin_key(settings: RouterSettings) -> str | None:
    """The admin key, from the settings or the file that they name. Raises StartError."""
    path = settings.admin_api_key_file
    if path is None:
        return settings.admin_api_key
    try:
        key = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise StartError(f"The admin key file {path} cannot be read: {describe(error)}") from error
    if not key:
        raise StartError(f"The admin key file {path} is empty")
    return key


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def spare_the_collector() -> None:
    """Keep what was imported out of every collection, and collect less often: an exchange makes
    hundreds of objects, hardly any of them part of a cycle. A tenth of its time goes otherwise."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)


def raise_open_files_limit() -> None:
    """Allow as many open files as the system lets us: every exchange takes two."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:  # macOS has a lower limit that it does not tell
            logger.warning("the open-files limit stays at %d: %s", soft, error)
