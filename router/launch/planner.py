"""Planners for workers on this machine: they share out its GPUs and ports."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection, Mapping, Sequence

import trio
from attrs import define, field

from ..errors import StartError
from ..settings import LauncherSettings
from . import probing
from .base import WorkerPlan, WorkerPorts
from .command import STRICT, help_command, make_plan, may_need_strict
from .ports import HeldPorts, PortBook, first_choice, host_fault, moved_to, taken_ports
from .resources import Found, GpuShares, by_cause, from_environment, variables

logger = logging.getLogger("router.launch")


async def make_planners(
    launchers: Sequence[LauncherSettings],
    environ: Mapping[str, str] = os.environ,
    *,
    alive: bool = False,
) -> list[LocalPlanner]:
    """One planner for each launcher. No two workers share a port, or a GPU that the router chose.
    Looks for GPUs if a launcher wants some.

    Raises StartError with all faults that can be known before a start: too few GPUs, a missing
    program or address. If workers may be `alive`, a missing program is only logged, because living
    workers do not need it.
    """
    chosen = any(each.num_gpus_per_worker and not each.worker_gpu_ids for each in launchers)
    found = await probing.find_gpus(environ) if chosen else None
    machine = Found()
    if any(each.worker_gpu_ids for each in launchers):
        # A name may mean any GPU of the machine, even one that the environment hides from us.
        narrowed = found is None or from_environment(environ) is not None
        machine = await probing.find_gpus({}) if narrowed else found or machine
    gpus = GpuShares(launchers, found, machine)
    if gpus.cpu:
        assert gpus.found is not None
        logger.warning(
            "CPU mode: no GPU according to %s; workers run without GPUs", gpus.found.source
        )
    lacking = by_cause((each.name, _program_fault(each, environ)) for each in launchers)
    faults = [*gpus.faults(), *by_cause((each.name, host_fault(each)) for each in launchers)]
    if alive:
        for fault in lacking:
            logger.error("%s", fault)
    else:
        faults += lacking
    if faults:
        raise StartError(". ".join(faults))
    for name, workers in gpus.shared().items():
        logger.warning(
            "worker_gpu_ids gives GPU %s to several workers: %s", name, ", ".join(workers)
        )
    ports, asked = PortBook(), _Asked(environ)
    return [LocalPlanner(launcher, gpus, ports, asked, environ) for launcher in launchers]


def _program_fault(settings: LauncherSettings, environ: Mapping[str, str]) -> str | None:
    """Why the launcher's command cannot be run; None if its program exists."""
    program = settings.command[0]
    path = settings.worker_env.get("PATH", environ.get("PATH"))
    if "{" in program or shutil.which(program, path=path) is not None:
        return None
    fault = "cannot be found or executed" if os.sep in program else "is not on PATH"
    hint = "; install SGLang, or set command" if program == "sglang" else ""
    return f"the program {program} {fault}{hint}"


@define(eq=False)
class _Asked:
    """What commands support; each command is asked once."""

    _environ: Mapping[str, str]
    _strict: dict[tuple[str, ...], bool] = field(init=False, factory=dict)
    _lock: trio.Lock = field(init=False, factory=trio.Lock)

    def knows_strict_ports(self, settings: LauncherSettings) -> bool:
        """False until the command was asked."""
        return self._strict.get(settings.command, False)

    async def ask(self, settings: LauncherSettings) -> None:
        command = settings.command
        if command in self._strict or not may_need_strict(settings):
            return
        async with self._lock:
            if command not in self._strict:
                env = {**self._environ, **settings.worker_env}
                self._strict[command] = await probing.knows_flag(
                    help_command(settings), STRICT, env
                )


@define(eq=False)
class LocalPlanner:
    """Plans the workers of one launcher on this machine. A `Planner`."""

    settings: LauncherSettings
    _gpus: GpuShares
    _ports: PortBook
    _asked: _Asked
    _environ: Mapping[str, str]

    @property
    def launcher(self) -> str:
        """The launcher's name."""
        return self.settings.name

    def check(self, indices: Collection[int]) -> None:
        """Give these workers their GPUs. Raises StartError if any is lacking; then none gets
        one."""
        self._gpus.take(self.settings, indices)

    def forget(self, index: int) -> None:
        """The worker is no longer wanted: others may have its GPUs."""
        self._gpus.give_back(self.settings, index)

    async def learn(self) -> None:
        """Ask the command which flags it knows; returns at once if that is known. Await it before
        making a plan to launch; a living worker can be adopted without.

        Raises StartError if there is no such program.
        """
        fault = _program_fault(self.settings, self._environ)
        if fault is not None:
            raise StartError(f"Launcher {self.launcher}: {fault}")
        await self._asked.ask(self.settings)

    def reserve(
        self, index: int, *, keep: WorkerPorts | None = None, avoid: Collection[int] = ()
    ) -> HeldPorts:
        """Find and bind ports for a worker: `keep` if free, else the ports of the settings, else
        the next ones; never one of `avoid`. Raises StartError."""
        return self._ports.reserve(self.settings, index, keep=keep, avoid=avoid)

    def adopt(self, index: int, ports: WorkerPorts) -> HeldPorts:
        """Note ports that a living worker holds, without binding them."""
        return self._ports.adopt(ports, self.settings.replicas)

    def taken(self, words: str, ports: WorkerPorts) -> frozenset[int]:
        """The ports of a dead worker that another process had, by the worker's last words."""
        return taken_ports(words, ports, self.settings.replicas)

    def moved(self, words: str, ports: WorkerPorts) -> int | None:
        """The port on which a worker says that it serves instead of its HTTP port, or None."""
        return moved_to(words, ports.http)

    def plan(self, index: int, ports: WorkerPorts) -> WorkerPlan:
        """The plan of the worker of this index on these ports. Always the same once `learn` has
        run. Raises StartError."""
        gpus = self._gpus.of(self.settings, index)
        hide = self.settings.num_gpus_per_worker == 0
        return make_plan(
            self.settings,
            index,
            gpus=gpus,
            ports=ports,
            first_choice=first_choice(self.settings, index),
            # Without GPUs there is nothing to hide, and workers on other hardware find their own.
            visible=variables(gpus, self._gpus.found, self._environ) if gpus or hide else {},
            strict_ports=self._asked.knows_strict_ports(self.settings),
        )
