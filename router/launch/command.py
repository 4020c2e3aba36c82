"""Pure functions from settings, GPUs and ports to the command line of each worker."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence

from ..pool.ids import normalise_url
from ..settings import LauncherSettings
from ..settings.launcher import ADDED_FLAGS
from .base import WorkerPlan, WorkerPorts

STRICT = "--strict-ports"

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def worker_name(settings: LauncherSettings, index: int) -> str:
    """The worker's name in logs, file names and the display. Unique, as launchers' names are."""
    return f"{settings.name}-{index}"


def may_need_strict(settings: LauncherSettings) -> bool:
    """Whether the router may add --strict-ports: not if the command has it already."""
    return not any(word.partition("=")[0] == STRICT for word in settings.words)


def make_plan(
    settings: LauncherSettings,
    index: int,
    *,
    gpus: Sequence[str],
    ports: WorkerPorts,
    first_choice: WorkerPorts,
    visible: Mapping[str, str],
    strict_ports: bool,
) -> WorkerPlan:
    """The plan of one worker. `visible` is the environment that shows the worker its GPUs."""
    env = {**visible, **settings.worker_env}
    # With the ports of first choice, and without flags that only some versions know: neither the
    # actual ports nor such flags are part of the settings.
    asked = {
        "command": make_command(settings, index, gpus, first_choice, strict_ports=False),
        "env": env,
        "gpus": list(gpus),
        "host": settings.worker_host,
    }
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return WorkerPlan(
        launcher=settings.name,
        index=index,
        name=worker_name(settings, index),
        command=tuple(make_command(settings, index, gpus, ports, strict_ports=strict_ports)),
        env=env,
        url=worker_url(settings.worker_host, ports.http),
        ports=ports,
        gpus=tuple(gpus),
        batching=settings.batching,
        fingerprint=digest[:32],
    )


def make_command(
    settings: LauncherSettings,
    index: int,
    gpus: Sequence[str],
    ports: WorkerPorts,
    *,
    strict_ports: bool,
) -> list[str]:
    """The command line: the command, flags for values that it lacks, then further arguments.

    `{port}` and the like stand for their values; a value placed in this way gets no flag.
    """
    placed = {name for word in settings.words for name in re.findall(r"\{([a-z_]+)\}", word)}
    words = list(settings.command)
    for flag, name, _ in ADDED_FLAGS:
        if name not in placed:
            words += [flag, f"{{{name}}}"]
    if strict_ports:
        words += [STRICT, "true"]
    words += settings.worker_extra_args
    values = _values(settings, index, gpus, ports)
    return [_fill(word, values) for word in words]


def help_command(settings: LauncherSettings) -> list[str]:
    """The command that shows the flags of the worker's command without starting a worker."""
    values = _values(settings, 0, (), WorkerPorts(10090, 30005, 5555))
    return [*(_fill(word, values) for word in settings.command), "--help"]


def _values(
    settings: LauncherSettings, index: int, gpus: Sequence[str], ports: WorkerPorts
) -> dict[str, str]:
    return {
        "model": os.path.expanduser(settings.model),
        # A worker on the CPU gets 1, its default.
        "num_gpus": str(max(1, settings.num_gpus_per_worker)),
        "host": settings.worker_host,
        "port": str(ports.http),
        "master_port": str(ports.master),
        "scheduler_port": str(ports.scheduler),
        "gpu_ids": ",".join(gpus),
        "index": str(index),
        "name": worker_name(settings, index),
    }


def _fill(word: str, values: Mapping[str, str]) -> str:
    # In one pass, so that braces within a value stay unchanged.
    return re.sub(r"\{([a-z_]+)\}", lambda found: values.get(found[1], found[0]), word)


def worker_url(host: str, port: int) -> str:
    """The URL under which the router reaches a worker that listens there."""
    host = _EVERYWHERE.get(host, host)
    return normalise_url(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
