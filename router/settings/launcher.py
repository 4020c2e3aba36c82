"""What a launcher can be told: which workers to start, and how. docs/launching.md explains it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType

import attrs
from attrs import frozen

from ..errors import Problem
from .fields import setting
from .kinds import Choice, Duration, Many, Text, WholeNumber
from .launch_kinds import GpuGroup, Host, Name, Pairs, Words

PLACEHOLDERS = (
    "model",
    "num_gpus",
    "host",
    "port",
    "master_port",
    "scheduler_port",
    "gpu_ids",
    "index",
    "name",
)
"""What may stand in braces in a command; the first six have a flag, which is then not added."""

GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_NOT_THERE = "is set for each worker by the launcher; use worker_gpu_ids"

# Flags that the launcher adds, and the setting that each follows from.
_ADDED = {
    "--model-path": "model",
    "--num-gpus": "num_gpus_per_worker",
    "--host": "worker_host",
    "--port": "worker_base_port",
    "--master-port": "master_port_base",
    "--scheduler-port": "scheduler_port_base",
}


class LauncherBackend(StrEnum):
    """What runs the workers."""

    LOCAL = "local"


class Restart(StrEnum):
    """When a worker that ended by itself is started again."""

    ALWAYS = "always"
    ON_FAILURE = "on-failure"
    NEVER = "never"


def _name_of(launcher: LauncherSettings) -> str:
    last = launcher.model.rstrip("/\\").replace("\\", "/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip("._-")[:64] or "launcher"


@frozen(kw_only=True)
class LauncherSettings:
    """One launcher: some equal workers. Times in seconds."""

    backend: LauncherBackend = setting(  # noqa: RUF009 - makes an attrs field
        LauncherBackend.LOCAL,
        Choice(LauncherBackend),
        group="Workers",
        help="what runs the workers: local starts processes on this machine",
    )
    model: str = setting(
        attrs.NOTHING,
        Text(),
        default_text="required",
        group="Workers",
        help="model of all workers of this launcher: a Hugging Face id or a folder",
    )
    name: str = setting(
        attrs.Factory(_name_of, takes_self=True),
        Name(),
        default_text="the last part of model",
        group="Workers",
        help="what its workers are called, and their log files; unique among all launchers",
    )
    num_workers: int = setting(
        1,
        WholeNumber(1, 1000),
        group="Workers",
        help="how many workers to start",
    )
    max_concurrency: int | None = setting(
        None,
        WholeNumber(1, 10_000, none=True, word="auto"),
        default_text="auto",
        group="Workers",
        help="generations that a worker gets at a time; auto: as --worker-concurrency says, by"
        " default its data-parallel size times --batching-max-size",
    )
    command: tuple[str, ...] = setting(
        ("sglang", "serve"),
        Words(placeholders=PLACEHOLDERS),
        group="Command",
        help="program that starts one worker, with its first arguments",
    )
    worker_extra_args: tuple[str, ...] = setting(
        (),
        Words(empty=True, placeholders=PLACEHOLDERS),
        default_text="none",
        group="Command",
        help="further arguments of each worker",
    )
    worker_env: Mapping[str, str] = setting(
        MappingProxyType({}),
        Pairs(tuple((variable, _NOT_THERE) for variable in GPU_VARIABLES)),
        default_text="none",
        group="Command",
        help="environment variables of each worker, beside those of the router",
    )
    num_gpus_per_worker: int = setting(
        1,
        WholeNumber(0, 64),
        group="GPUs",
        help="GPUs that each worker uses; 0 hides all GPUs from it",
    )
    worker_gpu_ids: tuple[tuple[str, ...], ...] = setting(
        (),
        Many(GpuGroup()),
        default_text="chosen by the router",
        group="GPUs",
        help="GPUs of the first worker, of the second, and so on, like ['0,1', '2,3']",
    )
    worker_host: str = setting(
        "127.0.0.1",
        Host(),
        group="Ports",
        help="address that workers listen on; one of this machine",
    )
    worker_base_port: int = setting(
        10090,
        WholeNumber(0, 65534),
        group="Ports",
        help="port of the first worker; each takes two, the next ones follow; 0 picks free ones",
    )
    master_port_base: int = setting(
        30005,
        WholeNumber(0, 65535),
        group="Ports",
        help="--master-port of the first worker; 0 picks free ones",
    )
    scheduler_port_base: int = setting(
        5555,
        WholeNumber(0, 65535),
        group="Ports",
        help="--scheduler-port of the first worker; 0 picks free ones",
    )
    internal_port_stride: int = setting(
        1000,
        WholeNumber(1, 65535),
        group="Ports",
        help="how far apart the master ports of two workers are, and their scheduler ports",
    )
    wait_timeout: float = setting(
        600.0,
        Duration(0.001),
        group="Life",
        help="how long a worker may load before that is reported; it is left loading",
    )
    restart: Restart = setting(  # noqa: RUF009 - makes an attrs field
        Restart.ON_FAILURE,
        Choice(Restart),
        group="Life",
        help="when a worker that ended by itself is started again",
    )
    restart_backoff: float = setting(
        1.0,
        Duration(0.001, 3600),
        group="Life",
        help="first wait before a restart; each quick death in a row doubles it",
    )
    log_dir: str | None = setting(
        None,
        Text(optional=True),
        default_text="in the state directory",
        group="Life",
        help="folder of the workers' log files, one per worker",
    )

    @property
    def words(self) -> tuple[str, ...]:
        """The command with the further arguments, placeholders and all."""
        return (*self.command, *self.worker_extra_args)

    @property
    def replicas(self) -> int:
        """Data-parallel copies of each worker; each takes a scheduler port."""
        return _count(self.words, "--dp-size", "--data-parallel-size", "--dp")

    @property
    def batching(self) -> int:
        """Requests of one shape that a copy runs together."""
        return _count(self.words, "--batching-max-size")

    def cross_checks(self) -> Iterator[Problem]:
        """What no single field can tell; paths are field names."""
        for word in self.worker_extra_args:
            flag = word.partition("=")[0]
            if flag in _ADDED:
                yield Problem(
                    "worker_extra_args", f"{flag} is added by the launcher; use {_ADDED[flag]}"
                )
        if self.worker_base_port and self.worker_base_port + 2 * self.num_workers > 65536:
            yield Problem(
                "worker_base_port",
                f"{self.num_workers} workers take {2 * self.num_workers} ports from here,"
                f" so expected at most {65536 - 2 * self.num_workers},"
                f" got {self.worker_base_port}",
            )
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
    "", "names no launcher; expected one under the key launcher, or a list of them under launchers"
)


@frozen(kw_only=True)
class LauncherFile:
    """What a file for --launcher-config holds."""

    launcher: LauncherSettings | None = None
    launchers: tuple[LauncherSettings, ...] = ()

    def cross_checks(self) -> Iterator[Problem]:
        """What no single launcher can tell."""
        if self.launcher is None and not self.launchers:
            yield NO_LAUNCHER
        yield from same_names(self.launcher, self.launchers)


def same_names(
    launcher: LauncherSettings | None, launchers: Sequence[LauncherSettings]
) -> Iterator[Problem]:
    """A problem for each launcher whose name, and so its log files, would be that of another."""
    places: dict[str, str] = {}
    for place, each in _placed(launcher, launchers):
        # Log files are named after them, and some file systems take a and A for the same.
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
