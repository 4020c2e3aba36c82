"""Worker processes on this machine: spawned under our nursery, ended with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio
from attrs import define, field, frozen

from ..errors import StartError

# How long a worker has after each signal before the next, harder one (seconds). A worker without
# `--http-graceful-shutdown-timeout` waits for ever after the first (worker contract).
_PATIENCE = (5.0, 3.0)
_SIGNALS: tuple[signal.Signals, ...] = (signal.SIGINT, signal.SIGTERM)
_LAST_WORDS = 12  # lines of its log that are shown when a process dies


@frozen
class ProcessSpec:
    """One process to run. `log` is appended to; it gets standard output and error."""

    name: str
    command: Sequence[str]
    log: Path
    env: Mapping[str, str] = field(factory=dict)  # in addition to our own


@define(eq=False)
class LocalProcess:
    """A process that runs, or has run."""

    spec: ProcessSpec
    process: trio.Process
    exited: trio.Event = field(factory=trio.Event)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def last_words(self) -> str:
        """The end of its log, for people."""
        try:
            with self.spec.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
                lines = log.read().decode(errors="replace").splitlines()
        except OSError as error:
            return f"(its log cannot be read: {error.strerror})"
        return "\n".join(lines[-_LAST_WORDS:])

    def how_it_ended(self) -> str:
        """`exited with status 3` or `was ended by SIGKILL`."""
        code = self.returncode
        if code is not None and code < 0:
            return f"was ended by {signal.Signals(-code).name}"
        return f"exited with status {code}"


@define(eq=False)
class Supervisor:
    """Runs processes; when it is cancelled it ends all of them, and waits until they are gone.

    `on_exit` is told of every process that ended by itself.
    """

    on_exit: Callable[[LocalProcess], None]
    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the processes; never returns."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def start(self, spec: ProcessSpec) -> LocalProcess:
        """Start one process. Raises StartError if it cannot be started at all."""
        assert self._nursery is not None
        local: LocalProcess = await self._nursery.start(self._keep, spec)
        return local

    async def _keep(self, spec: ProcessSpec, *, task_status: trio.TaskStatus[LocalProcess]) -> None:
        local = LocalProcess(spec, await _spawn(spec))
        try:
            task_status.started(local)
            await local.process.wait()
        except BaseException:
            with trio.CancelScope(shield=True):
                await end(local.process)
            raise
        finally:
            local.exited.set()
        self.on_exit(local)


async def _spawn(spec: ProcessSpec) -> trio.Process:
    try:
        spec.log.parent.mkdir(parents=True, exist_ok=True)
        # Never a pipe through us: it would die with the router, and the worker with it.
        with spec.log.open("ab") as log:
            return await trio.lowlevel.open_process(
                list(spec.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **spec.env},
                # A group of its own, so that Ctrl-C reaches it through us, and that its
                # children end with it.
                start_new_session=sys.platform != "win32",
            )
    except OSError as error:
        what = error.filename or spec.command[0]
        raise StartError(f"{spec.name} could not be started: {what}: {error.strerror}") from error


async def end(process: trio.Process) -> None:
    """End a process and its group: SIGINT, then SIGTERM, then SIGKILL; returns when it is gone."""
    for number, patience in zip(_SIGNALS, _PATIENCE, strict=True):
        _signal(process, number)
        with trio.move_on_after(patience):
            await process.wait()
            break
    # Also after a clean exit: the rest of its group must not outlive it.
    _signal(process, None)
    await process.wait()


def _signal(process: trio.Process, number: signal.Signals | None) -> None:
    """Signal the process's group; None kills."""
    try:
        if sys.platform != "win32":
            os.killpg(process.pid, number or signal.SIGKILL)
        elif number is None:
            process.kill()
        else:
            process.terminate()
    except (ProcessLookupError, PermissionError):
        pass  # it is gone
