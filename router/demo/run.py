"""Starts the demo pool, says how to use it, and ends it again."""

from __future__ import annotations

import secrets
import socket
import tempfile
from pathlib import Path

import trio
from attrs import define, field

from .. import program, service
from ..errors import StartError, unwrapped
from ..launch.base import Handle, Order, Run, RunState, WorkerPlan, WorkerPorts
from ..launch.local import PATIENCE, LocalBackend
from ..launch.output import last_words
from ..launch.ports import free_port_pair
from ..observe import logs
from ..observe.stderr import Output
from ..pool.registry import Registry
from ..pool.worker import Health, Origin
from ..server import open_listeners
from ..settings import DemoSettings, LogLevel, RouterSettings
from ..store.store import Store
from .check import check
from .screen import Screen

MODEL = "demo/image-and-video"
_READY_WITHIN = 60.0  # seconds for all workers together
_HOST = "127.0.0.1"


@define(eq=False)
class _Demo:
    settings: DemoSettings
    screen: Screen
    logs: Path
    backend: LocalBackend = field(factory=LocalBackend)
    casualty: str | None = None  # how the first worker died, with its last words
    failed: trio.Event = field(factory=trio.Event)


def run(settings: DemoSettings) -> int:
    """Run the demo until Ctrl-C, or with `check` through one round; the exit status.

    Raises StartError if the port is taken or a worker does not start.
    """
    output = logs.configure(LogLevel.DEBUG if settings.verbose else LogLevel.WARNING)
    service.raise_open_files_limit()
    listeners = open_listeners(settings.host, settings.port)
    with tempfile.TemporaryDirectory(prefix="sglang-d-router-demo-") as folder:
        demo = _Demo(settings, Screen(verbose=settings.verbose), Path(folder))
        with unwrapped():
            return trio.run(_main, demo, listeners, output, strict_exception_groups=True)


async def _main(demo: _Demo, listeners: list[socket.socket], output: Output) -> int:
    status = 0
    async with output.aside(), trio.open_nursery() as nursery:

        async def obey_signals(task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            with trio.open_signal_receiver(*service.stop_signals()) as signals:
                task_status.started()
                await anext(signals)
                demo.screen.say("\nending the demo ...")
                status = 130 if demo.settings.check else 0
                nursery.cancel_scope.cancel()

        await nursery.start(obey_signals)
        urls = await _start_workers(demo, nursery)
        settings = RouterSettings(
            host=demo.settings.host,
            port=demo.settings.port,
            health_check_interval=2.0,
            shutdown_timeout=5.0,
        )
        running: service.Running = await nursery.start(
            service.serve, settings, listeners, trio.Event(), Store.open(demo.logs / "state")
        )
        registry = running.parts.registry
        for url in urls:
            registry.add(url, Origin.LAUNCHED)
        await _wait_until_ready(demo, registry)
        address = f"http://{_reachable(demo.settings.host)}:{running.port}"
        _tell(demo, address, registry)
        if demo.settings.check:
            status = 0 if await check(address, demo.screen) else 1
        else:
            await demo.failed.wait()
            raise StartError(demo.casualty)
        nursery.cancel_scope.cancel()
    demo.screen.say("all processes have ended")
    return status


async def _start_workers(demo: _Demo, nursery: trio.Nursery) -> list[str]:
    urls: list[str] = []
    taken: set[int] = set()
    for index in range(demo.settings.workers):
        base = demo.settings.worker_base_port
        port = base + 2 * index if base else free_port_pair(_HOST, avoid=taken)
        taken |= {port, port + 1}
        url = f"http://{_HOST}:{port}"
        command = (
            *program.self_command(),
            "simulate-worker",
            *("--model-path", MODEL, "--supported-task-types", "T2I,TI2I,T2V"),
            *("--host", _HOST, "--port", str(port), "--strict-ports", "true"),
            *("--time-scale", f"{demo.settings.time_scale:g}"),
        )
        ports = WorkerPorts(port, 0, 0)
        plan = WorkerPlan("demo", index, f"worker {index + 1}", command, {}, url, ports)
        order = Order(plan, secrets.token_hex(16), demo.logs / f"worker-{index + 1}.log")
        await nursery.start(_keep_worker, demo, order)
        urls.append(url)
    return urls


async def _keep_worker(
    demo: _Demo, order: Order, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a worker until it ends by itself, which the demo does not survive."""
    handle = Handle(order.token, log=order.log)
    try:
        handle = await demo.backend.launch(order)
        task_status.started()
        run: Run | None = None
        while run is None or run.state is RunState.RUNNING:
            run = await demo.backend.watch(handle, run)
    finally:
        with trio.CancelScope(shield=True):
            await demo.backend.end(handle, patience=PATIENCE)
    if demo.casualty is None:
        words = last_words(order.log)
        demo.casualty = f"simulated {order.plan.name} {run.reason}; the end of its log:\n{words}"
    demo.failed.set()


async def _wait_until_ready(demo: _Demo, registry: Registry) -> None:
    """Wait for all workers. Raises StartError if one dies or takes too long."""
    with demo.screen.progress() as show, trio.move_on_after(_READY_WITHIN):
        begun = trio.current_time()
        while not demo.failed.is_set():
            workers = list(registry)
            ready = sum(worker.health is Health.HEALTHY for worker in workers)
            seconds = trio.current_time() - begun
            show(f"waiting for the workers: {ready} of {len(workers)} ready ({seconds:.0f} s)")
            if ready == len(workers):
                return
            with trio.move_on_after(0.1):
                await demo.failed.wait()
    if demo.failed.is_set():
        raise StartError(demo.casualty)
    raise StartError(f"the workers were not ready within {_READY_WITHIN:g} s")


def _tell(demo: _Demo, address: str, registry: Registry) -> None:
    demo.screen.say(f"router   {address}")
    for number, worker in enumerate(registry, 1):
        models = ", ".join(worker.capabilities.models) if worker.capabilities else "?"
        demo.screen.say(f"worker {number} {worker.url}  ({models})")
    if not demo.settings.check:
        demo.screen.say(
            "\ntry:\n"
            f"  curl -s {address}/v1/images/generations -H 'Content-Type: application/json' \\\n"
            '    -d \'{"prompt": "a red kite over the sea", "output_format": "png", '
            '"response_format": "b64_json"}\' \\\n'
            '    | python3 -c \'import base64, json, sys; open("kite.png", "wb").write('
            'base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\'\n'
            f"  curl -s {address}/workers\n"
            "\nCtrl-C ends it all"
        )


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
