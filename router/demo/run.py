"""Starts the demo pool, says how to use it, and ends it again."""

from __future__ import annotations

import logging
import socket
import tempfile
from pathlib import Path

import trio

from .. import program, service
from ..errors import StartError, unwrapped
from ..observe import logs
from ..observe.stderr import Output
from ..pool.registry import Registry
from ..pool.worker import Health
from ..server import open_listeners
from ..settings import DemoSettings, LauncherSettings, LogLevel, Restart, RouterSettings
from ..store.store import Store
from ..terminal.screen import Screen
from .check import check

MODEL = "demo/image-and-video"
_READY_WITHIN = 60.0  # seconds for all workers together


def run(settings: DemoSettings) -> int:
    """Run the demo until a signal says stop, or with `check` through one round; the exit status.

    Raises StartError if the port is taken or a worker does not start.
    """
    output = logs.configure(LogLevel.DEBUG if settings.verbose else LogLevel.WARNING)
    service.raise_open_files_limit()
    listeners = open_listeners(settings.host, settings.port)
    with tempfile.TemporaryDirectory(prefix="sglang-d-router-demo-") as folder, unwrapped():
        return trio.run(
            _main, settings, listeners, output, Path(folder), strict_exception_groups=True
        )


async def _main(
    settings: DemoSettings, listeners: list[socket.socket], output: Output, folder: Path
) -> int:
    status, stop, screen = 0, trio.Event(), Screen(verbose=settings.verbose)
    async with output.aside(), trio.open_nursery() as nursery:
        using = trio.CancelScope()

        async def obey_signals(task_status: trio.TaskStatus[None]) -> None:
            nonlocal status
            with trio.open_signal_receiver(*service.obeyed_signals()) as signals:
                task_status.started()
                await service.stop_signal(signals)
                screen.say("\nstopping the demo ...")
                status = 130 if settings.check else 0
                using.cancel()
                stop.set()
                status = 128 + await service.stop_signal(signals)
                nursery.cancel_scope.cancel()

        async def serve(task_status: trio.TaskStatus[service.Running]) -> None:
            state = Store.open(folder / "state")
            given = _router(settings)
            await service.serve(given, listeners, stop, state, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(obey_signals)
        screen.say(f"starting {settings.workers} simulated worker(s) ...")
        running = await nursery.start(serve)
        with using:
            await _use(settings, running, screen)
            if settings.check:
                address = _address(settings, running)
                status = 0 if await check(address, screen) else 1
            else:
                await trio.sleep_forever()
        stop.set()
    screen.say("all processes have ended")
    return status


async def _use(settings: DemoSettings, running: service.Running, screen: Screen) -> None:
    await _wait_until_ready(running.parts.registry)
    _tell(settings, running, screen)
    # From now on, how a worker that has died comes back.
    logging.getLogger("router.launch").setLevel(logging.INFO)


def _router(settings: DemoSettings) -> RouterSettings:
    """A router that launches simulated workers, each of which can do everything."""
    base = settings.worker_base_port
    workers = LauncherSettings(
        model=MODEL,
        name="worker",
        num_workers=settings.workers,
        num_gpus_per_worker=0,
        command=(*program.self_command(), "simulate-worker"),
        worker_extra_args=(
            *("--supported-task-types", "T2I,TI2I,T2V", "--strict-ports", "true"),
            *("--time-scale", f"{settings.time_scale:g}"),
        ),
        worker_base_port=base,
        master_port_base=0,
        scheduler_port_base=0,
        restart=Restart.ALWAYS,
    )
    return RouterSettings(
        host=settings.host,
        port=settings.port,
        health_check_interval=2.0,
        shutdown_timeout=5.0,
        log_prompts=True,  # there is nobody else's
        dashboard_previews=True,
        launchers=(workers,),
    )


async def _wait_until_ready(registry: Registry) -> None:
    """Wait for all workers. Raises StartError if that takes too long."""
    with trio.move_on_after(_READY_WITHIN):
        while any(worker.health is not Health.HEALTHY for worker in registry):  # noqa: ASYNC110
            await trio.sleep(0.1)
        return
    raise StartError(
        f"the workers were not ready within {_READY_WITHIN:g} s; --verbose shows their logs"
    )


def _address(settings: DemoSettings, running: service.Running) -> str:
    return f"http://{_reachable(settings.host)}:{running.port}"


def _tell(settings: DemoSettings, running: service.Running, screen: Screen) -> None:
    address = _address(settings, running)
    screen.say(f"router   {address}  (open it in a browser for the live page)")
    for view in running.fleet.views():
        screen.say(f"{view.name} {view.url}  ({MODEL})")
    if not settings.check:
        screen.say(
            "\ntry:\n"
            f"  curl -s {address}/v1/images/generations -H 'Content-Type: application/json' \\\n"
            '    -d \'{"prompt": "a red kite over the sea", "output_format": "png", '
            '"response_format": "b64_json"}\' \\\n'
            '    | python3 -c \'import base64, json, sys; open("kite.png", "wb").write('
            'base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))\'\n'
            f"  curl -s {address}/workers\n"
            "\nCtrl-C stops the demo"
        )


def _reachable(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host
