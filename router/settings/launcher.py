"""The settings of a launcher: which workers to start, and how. docs/launching.md explains them."""

# No `from __future__ import annotations`: the kinds in annotations must be evaluated.

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import attrs
from attrs import frozen

from ..errors import Problem
from .fields import setting
from .kinds import Duration, Many, Port, Slots, Text, Time, WholeNumber
from .launch_kinds import GpuGroup, Pairs, Words
from .pool_kind import POOL_NAME
from .sections import Section, Settings

ADDED_FLAGS = (
    ("--model-path", "model", "model"),
    ("--num-gpus", "num_gpus", "num_gpus_per_worker"),
    ("--host", "host", "worker_host"),
    ("--port", "port", "worker_base_port"),
    ("--master-port", "master_port", "master_port_base"),
    ("--scheduler-port", "scheduler_port", "scheduler_port_base"),
)
"""The flags added to a command that lacks their placeholder, with their settings."""

PLACEHOLDERS = (*(placeholder for _, placeholder, _ in ADDED_FLAGS), "gpu_ids", "index", "name")
"""The names that may stand in braces in a command."""

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_NOT_THERE = "the launcher sets this variable for each worker; use worker_gpu_ids"

_HOST = Text("an IP address or a host name", r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")


class LauncherBackend(StrEnum):
    """What runs the workers."""

    LOCAL = "local"


class Restart(StrEnum):
    """When a worker that ended by itself is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


def _name_of(launcher: "LauncherSettings") -> str:
    last = launcher.model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:64] or "launcher"


@frozen(kw_only=True)
class LauncherSettings(Settings):
    """One launcher: a group of equal workers. Times in seconds."""

    backend: LauncherBackend = setting(
        "local", "where workers run; local: as processes on this machine", group="Workers"
    )
    model: str = setting(
        attrs.NOTHING,
        "model that all workers of this launcher serve: a Hugging Face id or a directory",
    )
    name: Annotated[str, POOL_NAME] = setting(
        attrs.Factory(_name_of, takes_self=True),
        "name of the launcher, and beginning of the names of its workers and their log files;"
        " unique among all launchers",
        default_text="the last part of model",
    )
    pool: Annotated[str, POOL_NAME] = setting("default", "pool of the workers")
    num_workers: Annotated[int, WholeNumber(1, 1000)] = setting(1, "number of workers to launch")
    max_concurrency: Slots = setting(
        "auto",
        "most generations to send to one worker at a time; auto: the value of"
        " --worker-concurrency, which by default is the data-parallel size times"
        " --batching-max-size",
    )
    command: Annotated[tuple[str, ...], Words(PLACEHOLDERS)] = setting(
        "sglang serve", "program that runs one worker, with its first arguments", group="Command"
    )
    worker_extra_args: Annotated[tuple[str, ...], Words(PLACEHOLDERS, empty=True)] = setting(
        (), "further arguments for each worker"
    )
    worker_env: Annotated[Mapping[str, str], Pairs(GPU_VARIABLES, _NOT_THERE)] = setting(
        {}, "environment variables for each worker, in addition to the router's"
    )
    num_gpus_per_worker: Annotated[int, WholeNumber(0, 64)] = setting(
        1, "number of GPUs for each worker; 0 hides all GPUs from the worker", group="GPUs"
    )
    worker_gpu_ids: Annotated[tuple[tuple[str, ...], ...], Many(GpuGroup())] = setting(
        (),
        "GPUs of each worker, in order, such as ['0,1', '2,3']",
        default_text="chosen by the router",
    )
    worker_host: Annotated[str, _HOST] = setting(
        "127.0.0.1", "address of this machine that the workers listen on", group="Ports"
    )
    worker_base_port: Annotated[int, WholeNumber(0, 65534)] = setting(
        10090,
        "port of the first worker; each worker takes two ports, and the next worker the two after"
        " them; 0 picks free ports",
    )
    master_port_base: Port = setting(30005, "--master-port of the first worker; 0 picks free ports")
    scheduler_port_base: Port = setting(
        5555, "--scheduler-port of the first worker; 0 picks free ports"
    )
    internal_port_stride: Annotated[int, WholeNumber(1, 65535)] = setting(
        1000,
        "distance between the master ports of two workers, and between their scheduler ports",
    )
    wait_timeout: Time = setting(
        "10m",
        "how long a worker may load before the router logs a warning; the worker keeps loading",
        group="Life",
    )
    restart: Restart = setting("on-failure", "when to restart a worker that has ended by itself")
    restart_backoff: Annotated[float, Duration("1ms", "1h")] = setting(
        "1s", "first pause before a restart; doubles with each quick death in a row"
    )
    log_dir: Annotated[str | None, Text(optional=True)] = setting(
        None,
        "directory for the log files of the workers, one file per worker",
        default_text="in the state directory",
    )

    @property
    def words(self) -> tuple[str, ...]:
        """The command and the further arguments, with placeholders."""
        return (*self.command, *self.worker_extra_args)

    @property
    def replicas(self) -> int:
        """Data-parallel copies of each worker; each takes a scheduler port."""
        return _count(self.words, "--dp-size", "--data-parallel-size", "--dp")

    @property
    def batching(self) -> int:
        """How many requests of one shape a copy runs together."""
        return _count(self.words, "--batching-max-size")

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several fields; paths are field names."""
        words = [word.partition("=")[0] for word in self.worker_extra_args]
        for word in words:
            for flag, _, name in ADDED_FLAGS:
                if word == flag:
                    message = f"the launcher adds {flag}; use {name}"
                    yield Problem("worker_extra_args", message)
        yield from too_many_ports(self.worker_base_port, self.num_workers)
        yield from self._gpu_problems()

    def _gpu_problems(self) -> Iterator[Problem]:
        groups = self.worker_gpu_ids
        if not groups:
            return
        if self.num_gpus_per_worker == 0:
            yield Problem("worker_gpu_ids", "names GPUs, but num_gpus_per_worker is 0")
            return
        if len(groups) < self.num_workers:
            yield Problem(
                "worker_gpu_ids",
                f"names GPUs for {_of(len(groups), 'worker')}, but num_workers is"
                f" {self.num_workers}",
            )
        for index, group in enumerate(groups):
            if len(group) != self.num_gpus_per_worker:
                yield Problem(
                    f"worker_gpu_ids[{index}]",
                    f"names {_of(len(group), 'GPU')}, but num_gpus_per_worker is"
                    f" {self.num_gpus_per_worker}",
                )


NO_LAUNCHER = Problem(
    "", "names no launcher; expected the key launcher, or the key launchers with a list"
)


@frozen(kw_only=True)
class LauncherFile(Settings):
    """The content of a --launcher-config file."""

    launcher: Annotated[LauncherSettings | None, Section(LauncherSettings, True)] = setting(None)
    launchers: Annotated[tuple[LauncherSettings, ...], Many(Section(LauncherSettings))] = setting(
        ()
    )

    def problems(self) -> Iterator[Problem]:
        """Problems that involve several launchers."""
        if self.launcher is None and not self.launchers:
            yield NO_LAUNCHER
        yield from same_names(self.launcher, self.launchers)


def too_many_ports(first: int, workers: int) -> Iterator[Problem]:
    """A problem if the workers need ports beyond the last one."""
    # A worker also takes the port after its own (worker contract, "Starting").
    last = 65536 - 2 * workers
    if first > last:
        message = (
            f"expected at most {last}, because {workers} workers take {2 * workers} ports,"
            f" got {first}"
        )
        yield Problem("worker_base_port", message)


def same_names(
    launcher: LauncherSettings | None, launchers: Sequence[LauncherSettings]
) -> Iterator[Problem]:
    """A problem for each launcher with another's name: their log files would be the same."""
    places: dict[str, str] = {}
    for place, each in _placed(launcher, launchers):
        # Log files have these names, and some file systems treat a and A alike.
        earlier = places.setdefault(each.name.lower(), place)
        if earlier != place:
            yield Problem(f"{place}.name", f"{each.name!r} is also the name of {earlier}")


def _placed(
    launcher: LauncherSettings | None, launchers: Iterable[LauncherSettings]
) -> Iterator[tuple[str, LauncherSettings]]:
    if launcher is not None:
        yield "launcher", launcher
    for index, each in enumerate(launchers):
        yield f"launchers[{index}]", each


def _count(words: Sequence[str], *flags: str) -> int:
    """The value of a flag that counts something; the last one wins, as in argparse."""
    found = 1
    for place, word in enumerate(words):
        flag, equals, text = word.partition("=")
        if flag in flags:
            value = text if equals else next(iter(words[place + 1 :]), "")
            found = int(value) if re.fullmatch(r"[1-9][0-9]{0,3}", value) else found
    return found


def _of(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"
