"""`simulate-worker`: the flags of `sglang serve` and those of the simulation."""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import NoReturn

import trio

from .config import TASKS, WorkerConfig
from .faults import CATALOGUE
from .ports import PortTaken
from .weights import WeightsError
from .worker import SimulatedWorker

_CRASHED = 70

_EPILOG = """\
Models: the model path determines the weights and the tasks. A path with a word such as wan or
video makes videos, hunyuan3d or mesh makes meshes, edit makes edits; other paths make images. A
path that begins with /nonexistent or bad/ is not found. An existing directory must contain
*.safetensors files. An update to a path with a part named corrupt breaks in the middle. Every other
path loads, and need not exist.

Faults: POST /simulate {"fault": "...", ...} to the port, or to port + 1 while the port refuses
connections. GET /simulate lists the faults, GET /simulate/log lists what the worker did.

"""


def main(argv: list[str]) -> int:
    """Runs one worker until a signal; the exit status.

    0 after SIGTERM or SIGINT, 1 if it cannot start, 2 for a wrong flag (raised as SystemExit).
    """
    options, unknown = _parser().parse_known_args(argv)
    config = _config(options)
    if unknown:
        _say(config, f"ignored flags that the simulation does not have: {' '.join(unknown)}")
    reasons: list[str] = []
    try:
        trio.run(_run, config)
    except* (PortTaken, WeightsError) as group:
        reasons = _sentences(group)
    for reason in reasons:
        sys.stderr.write(f"simulate-worker: {reason}\n")
    return 1 if reasons else 0


def _sentences(group: BaseExceptionGroup[BaseException]) -> list[str]:
    found: list[str] = []
    for error in group.exceptions:
        found += _sentences(error) if isinstance(error, BaseExceptionGroup) else [str(error)]
    return found


async def _run(config: WorkerConfig) -> None:
    say = partial(_say, config)
    say(f"loading {config.model_path}")
    worker = SimulatedWorker(config, say=say, crash=_crash)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_obey, signals, worker, nursery.cancel_scope)
            await trio.sleep(config.load_seconds * config.time_scale)
            await nursery.start(worker.run)
            if worker.port != config.port and config.port != 0:
                say(f"port {config.port} is taken, using {worker.port}")
            say(f"serving {config.name} ({', '.join(config.tasks)}) on {worker.url}")
            await worker.ended.wait()
            nursery.cancel_scope.cancel()
    say("stopped")


async def _obey(
    signals: AsyncIterator[int], worker: SimulatedWorker, scope: trio.CancelScope
) -> None:
    """The first signal stops in good order, the second at once."""
    async for _ in signals:
        if worker.closing or not worker.port:
            worker.kill()
            scope.cancel()
            return
        worker.say("shutting down")
        worker.stop()


def _crash() -> NoReturn:
    os._exit(_CRASHED)


def _say(config: WorkerConfig, line: str) -> None:
    if not config.quiet:
        sys.stderr.write(f"[{config.name}] {line}\n")
        sys.stderr.flush()


def _config(options: argparse.Namespace) -> WorkerConfig:
    tasks = [options.task_type] if options.task_type else []
    tasks += [task for task in options.supported_task_types if task not in tasks]
    reserved = range(options.scheduler_port, options.scheduler_port + options.dp_size)
    return WorkerConfig(
        model_path=options.model_path,
        served_model_name=options.served_model_name,
        num_gpus=options.num_gpus,
        tp_size=options.tp_size,
        dp_size=options.dp_size,
        host=options.host,
        port=options.port,
        strict_ports=options.strict_ports,
        batching_max_size=options.batching_max_size,
        enable_metrics=options.enable_metrics,
        graceful_timeout=options.http_graceful_shutdown_timeout,
        lora_path=options.lora_path,
        task_types=tuple(tasks),
        speed=options.speed,
        time_scale=options.time_scale,
        warmup_seconds=options.warmup_seconds,
        load_seconds=options.load_seconds,
        rollout_bytes=options.rollout_bytes,
        reserved_ports=(
            *(reserved if options.scheduler_port else ()),
            *((options.master_port,) if options.master_port else ()),
        ),
        quiet=options.quiet,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="simulate-worker",
        description="A worker that behaves like `sglang serve` with a diffusion model, but needs no"
        " GPU and no weights. Unknown flags, such as other flags of `sglang serve`, are ignored.",
        epilog=_EPILOG + "\n".join(f"  {name}: {text}" for name, text in CATALOGUE.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    real = parser.add_argument_group("flags of sglang serve")
    real.add_argument("--model-path", required=True, help="any path; see Models below")
    real.add_argument("--served-model-name", default="", help="default: the model path")
    real.add_argument("--num-gpus", type=_count, default=1)
    real.add_argument("--tp-size", type=_count, default=1)
    real.add_argument("--dp-size", type=_count, default=1, help="generations that run in parallel")
    real.add_argument("--host", default="127.0.0.1")
    real.add_argument(
        "--port",
        type=_port,
        default=30000,
        help="the worker also takes port + 1; 0 picks free ports",
    )
    real.add_argument("--master-port", type=_port, default=0)
    real.add_argument("--scheduler-port", type=_port, default=0)
    real.add_argument(
        "--strict-ports",
        type=_truth,
        nargs="?",
        const=True,
        default=False,
        metavar="true|false",
        help="fail if the port is taken, instead of trying the port 42 higher",
    )
    real.add_argument("--batching-max-size", type=_count, default=1)
    real.add_argument("--enable-metrics", type=_truth, nargs="?", const=True, default=False)
    real.add_argument("--http-graceful-shutdown-timeout", type=_seconds, default=None)
    real.add_argument(
        "--lora-path", default=None, help="LoRA adapter that is active from the start"
    )
    own = parser.add_argument_group("flags of the simulation")
    own.add_argument(
        "--speed", type=_positive, default=1.0, help="factor by which generations are faster"
    )
    own.add_argument("--time-scale", type=_seconds, default=1.0, help="factor on every duration")
    own.add_argument("--warmup-seconds", type=_seconds, default=0.3)
    own.add_argument(
        "--load-seconds",
        type=_seconds,
        default=0.5,
        help="seconds until the port opens, and for each update from disk",
    )
    own.add_argument("--task-type", type=_task, default=None, help=", ".join(TASKS))
    own.add_argument("--supported-task-types", type=_tasks, default=[], metavar="T2I,TI2I")
    own.add_argument(
        "--rollout-bytes", type=_count, default=None, help="size of each rollout sample"
    )
    own.add_argument("--quiet", action="store_true", help="write no log lines to stderr")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port, got {text}")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
    return value


def _truth(text: str) -> bool:
    if text.lower() in ("true", "1", "yes"):
        return True
    if text.lower() in ("false", "0", "no"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text}")


def _task(text: str) -> str:
    if text.upper() not in TASKS:
        raise argparse.ArgumentTypeError(
            f"unknown task {text!r}; expected one of {', '.join(TASKS)}"
        )
    return text.upper()


def _tasks(text: str) -> list[str]:
    return [_task(part.strip()) for part in text.split(",") if part.strip()]
