"""Builds the parts of a router and joins them. Nothing runs yet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import trio
from attrs import frozen

from ..control.agent import Agents
from ..control.client import ControlClient
from ..control.follow import Follower
from ..control.identity import ProcessIdentity, trusts_absence
from ..control.jobs import JobControl
from ..control.memory import MemoryControl
from ..control.names import Names
from ..control.operations import Operations
from ..control.persistence import PoolPersistence
from ..control.refit import WeightControl
from ..control.replay import Replayer
from ..control.runs import Runs
from ..control.transactions import Transactions
from ..control.watch import Watchman
from ..control.worker_memory import WorkerMemory
from ..dispatch import Dispatcher
from ..front.asgi import App
from ..front.drain import Drain
from ..front.origins import Origins
from ..launch.base import Planner
from ..launch.fleet import Fleet
from ..launch.launcher import Shared
from ..launch.phases import PhaseChanged
from ..net.addresses import Origin as Address
from ..observe import logs
from ..observe.previews import Previews
from ..observe.recent import Recent
from ..pool import policies
from ..pool.assets import AssetMap
from ..pool.cost import Speeds
from ..pool.ejection import EjectionLimits
from ..pool.queue import QueueLimits
from ..pool.registry import Registry
from ..pool.weights import Change, Ledger, Ledgers, WeightRecord
from ..pool.worker import Origin, Worker
from ..relay.access import AdminKey
from ..relay.asgi import Relay
from ..relay.attempts import Attempts
from ..relay.body import Limits
from ..relay.cors import Cors
from ..relay.forward import Forwarder
from ..relay.idempotency import Idempotency
from ..relay.keys import KeyLimits, Keys
from ..relay.routes import ROUTES, How
from ..relay.upstream import Upstream
from ..relay.websocket import WebSocketRelay
from ..settings import Live, QueueOrder, RouterSettings, TensorUpdates
from ..store.store import Store
from ..web.app import create_app
from ..web.feed import Feed
from ..web.parts import CallLimits, Parts
from .launched import make_fleet, prove, restart
from .measured import measure
from .reload import Reload
from .start import is_loopback, run_of, static_pools, static_roles

logger = logging.getLogger("router.service")


@frozen
class Assembly:
    """A router whose parts are connected. Setting `restarting` closes its WebSocket sessions."""

    app: App
    parts: Parts
    fleet: Fleet
    upstream: Upstream
    keys: Keys
    follower: Follower
    persistence: PoolPersistence
    restarting: trio.Event


def assemble(
    settings: RouterSettings,
    reload: Reload,
    store: Store,
    client: ControlClient,
    planners: Sequence[Planner],
    logs_of_workers: Path,
) -> Assembly:
    """The parts of a router with these settings, of which `reload` renews some. Raises
    StateRefused."""
    live = reload.live
    registry = Registry(
        concurrency=settings.worker_concurrency,
        trust_weights=settings.trust_external_weights,
        ejection=live.limits(
            lambda s: EjectionLimits(s.ejection_failures, s.ejection_pause, s.ejection_max_pause)
        ),
        roles=static_roles(settings),
        pools=static_pools(settings),
    )
    live.follow(logs.listening(registry.bus))
    store.bus = registry.bus
    ledgers = Ledgers(registry, store, gating=not settings.trust_external_weights)
    ledgers.restore(
        store.restored(Ledger).values(),
        store.restored(WeightRecord).values(),
        store.restored(Change).values(),
        trusted=trusts_absence(store.absence, settings.trust_downtime),
    )
    runs = Runs(ledgers, store, registry.bus)
    runs.start(run_of(settings), fresh=settings.fresh_weights)
    dispatcher = _dispatcher(live, registry)
    operations = Operations()
    shared = Shared(registry, store, logs_of_workers, keep=settings.keep_workers)

    async def drain_and_remove(worker: Worker) -> None:
        # A disk that fails must not bring back a worker that its launcher no longer wants.
        registry.retire(worker, "its launcher was scaled down")
        await agents.retired(worker)

    fleet = make_fleet(settings, shared, planners, drain_and_remove)
    assets = AssetMap(settings.max_assets)
    identity = ProcessIdentity(assets, client, [partial(prove, fleet)])
    jobs = JobControl(registry, assets, client, operations)
    worker_memory = WorkerMemory(registry, store)
    replayer = Replayer(client, ledgers, store, restart=partial(restart, fleet))
    agents = Agents(registry, dispatcher, client, operations, worker_memory, replayer)
    full = settings.tensor_updates is TensorUpdates.FULL
    weights = WeightControl(agents, ledgers, store, full_tensors=full)
    recent = Recent(
        registry.bus,
        [route.path for route in ROUTES if route.how is How.GENERATE],
        [route.path for route in ROUTES if route.how is How.SUBMIT],
        lambda: dispatcher.queue.waiting,
    )
    parts = Parts(
        store=store,
        registry=registry,
        dispatcher=dispatcher,
        watchman=Watchman(
            *(registry, client, identity),
            addresses=client.addresses,
            trust=client.trust,
            instance=client.instance.id,
        ),
        names=Names(
            *(store, registry, agents, client.addresses),
            enabled=settings.resolve_all,
        ),
        client=client,
        jobs=jobs,
        ledgers=ledgers,
        runs=runs,
        weights=weights,
        transactions=Transactions(weights),
        agents=agents,
        memory=MemoryControl(agents),
        launcher=fleet,
        feed=Feed(registry, recent, (PhaseChanged,)),
        metrics=measure(registry, dispatcher, ledgers, store, fleet, assets),
        previews=Previews(enabled=settings.dashboard_previews),
        limits=live.limits(lambda s: CallLimits(refit=s.refit_timeout, idle=s.idle_timeout)),
        reload=reload,
        drain=Drain(),
    )
    upstream = Upstream(
        max_connections=settings.max_connections, addresses=client.addresses, trust=client.trust
    )

    allowed = client.addresses.allowed
    allowed.exempt = partial(_is_own, parts)

    def apply(now: RouterSettings) -> None:
        if allowed.rules != now.allowed_worker_hosts:
            allowed.rules = now.allowed_worker_hosts
            _retire_strangers(parts)
        registry.failure_threshold = now.health_check_failure_threshold
        parts.watchman.interval = parts.names.interval = now.health_check_interval
        for caller in (worker_memory, replayer, weights):
            caller.call_timeout = now.refit_timeout
        agents.drain_timeout = now.drain_timeout
        upstream.connect_timeout = now.connect_timeout
        shared.prompts = now.log_prompts

    live.follow(apply)
    restarting = trio.Event()
    kept = live.limits(lambda s: KeyLimits(s.idempotency_keys, s.idempotency_bytes))
    keys = Keys(registry, store, kept)
    keys.restore()
    app = _front(settings, live, parts, upstream, assets, keys, restarting)
    return Assembly(
        app=app,
        parts=parts,
        fleet=fleet,
        upstream=upstream,
        keys=keys,
        follower=Follower(registry, dispatcher, jobs),
        persistence=PoolPersistence(store, registry, dispatcher, assets, settings.trust_downtime),
        restarting=restarting,
    )


def _is_own(parts: Parts, url: str) -> bool:
    """Whether the router has launched the worker, or found it behind an allowed name."""
    worker = parts.registry.find(url)
    return (worker is not None and worker.origin is Origin.LAUNCHED) or parts.names.grants(url)


def _retire_strangers(parts: Parts) -> None:
    """Drain and remove the workers that may no longer be where they are."""
    addresses = parts.client.addresses
    for worker in list(parts.registry):
        host, peer = Address.of(worker.url).host, addresses.peer(worker.url)
        if addresses.allowed.verdict(host, peer) is False and not _is_own(parts, worker.url):
            parts.registry.retire(worker, "--allowed-worker-hosts no longer allows it")


def _dispatcher(live: Live, registry: Registry) -> Dispatcher:
    speeds = Speeds(trio.current_time)
    longest_first = live.settings.queue_order is QueueOrder.LONGEST_FIRST
    strict_model = live.settings.strict_model

    def limits(now: RouterSettings) -> QueueLimits:
        return QueueLimits(
            size=now.queue_size,
            bytes=now.queue_bytes,
            patience=now.timeout if now.queue_timeout is None else now.queue_timeout,
            longest_first=longest_first,
            jobs_per_worker=now.max_jobs_per_worker,
            strict_model=strict_model,
        )

    algorithm = live.settings.routing_algorithm
    policy = policies.make(algorithm, speeds)
    dispatcher = Dispatcher(registry, policy, limits=live.limits(limits), speeds=speeds)

    def apply(now: RouterSettings) -> None:
        nonlocal algorithm
        dispatcher.queue.most_jobs = now.max_jobs_per_worker
        dispatcher.queue.ageing.seconds = now.priority_ageing
        if now.routing_algorithm is not algorithm:  # a policy may remember whose turn it is
            algorithm = now.routing_algorithm
            dispatcher.queue.policy = policies.make(algorithm, speeds)

    live.follow(apply)
    return dispatcher


def _front(
    settings: RouterSettings,
    live: Live,
    parts: Parts,
    upstream: Upstream,
    assets: AssetMap,
    keys: Keys,
    restarting: trio.Event,
) -> App:
    """The app for the server: first the key, then the relay, then our own endpoints."""
    attempts = Attempts(
        parts.registry,
        parts.dispatcher,
        settings.retries,
        parts.ledgers.latest_issued,
        parts.ledgers.labelled,
    )
    limits = live.limits(
        lambda now: Limits(
            response=now.timeout,
            idle=now.idle_timeout,
            peek=now.peek_limit,
            facts=now.facts_limit,
            request_bytes=now.max_request_bytes,
            spooled=now.queue_bytes,
            prompts=now.log_prompts,
        )
    )
    forwarder = Forwarder(attempts, upstream, limits)

    def apply(now: RouterSettings) -> None:
        attempts.retries = now.retries
        forwarder.room.size = now.queue_bytes

    live.follow(apply)
    instance = parts.client.instance
    websockets = WebSocketRelay(
        attempts, upstream, settings.websocket_max_message, restarting, instance, parts.drain
    )
    own = cast(App, create_app(parts))
    app: App = Relay(
        *(own, forwarder, websockets, assets, parts.store, parts.jobs.owner),
        Idempotency(forwarder, keys),
        instance,
        parts.metrics.intake,
        parts.previews if parts.previews.enabled else None,
        parts.drain,
    )
    assert settings.admin_api_key_file is None, "not read yet: see with_credentials"
    key = settings.admin_api_key
    if key is not None:
        app = AdminKey(app, key.encode(), parts.metrics.intake)
    elif not is_loopback(settings.host):
        logger.warning(
            "NO ADMIN KEY: anyone who can reach %s may change workers and weights; "
            "set --admin-api-key-file",
            settings.host,
        )
    return Cors(app, Origins(settings.cors_origin)) if settings.cors_origin else app
