"""The backend for this machine: workers are processes in groups of their own.

Workers outlive a killed router, and are recognised by pid and start time. If the router died before
it could record the pid, the worker is found by the token in its environment, or as the writer of
its log file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio
from attrs import define, field

from ..errors import StartError
from . import output, processes
from .base import TOKEN_VARIABLE, Handle, Order, Run, RunState

PATIENCE = (5.0, 3.0)
"""Seconds for a worker after SIGINT, then after SIGTERM. Without `--http-graceful-shutdown-timeout`
a worker waits for ever after SIGINT (worker contract)."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL = 0.1  # seconds, if the system cannot report an exit
_FORCE = 5.0  # seconds that SIGKILL may take: a process blocked in the kernel dies later
_KILL = signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL


@define(eq=False)
class LocalBackend:
    """Runs workers as processes of this machine."""

    name: str = "local"
    local: bool = True
    _children: dict[str, tuple[Handle, trio.Process]] = field(init=False, factory=dict)

    async def launch(self, order: Order) -> Handle:
        """Spawn the worker. Raises StartError."""
        if order.token in self._children:
            return self._children[order.token][0]
        child = await _spawn(order)
        identity = processes.identity_of(child.pid)
        handle = Handle(order.token, str(child.pid), identity, order.log)
        self._children[order.token] = handle, child
        return handle

    async def watch(self, handle: Handle, known: Run | None) -> Run:
        """RUNNING until the process has exited, then ENDED."""
        if known is None and await trio.to_thread.run_sync(_lives, handle):
            return Run(RunState.RUNNING, process=handle.process, pid=int(handle.ident))
        await self._exit(handle)
        if handle.token not in self._children:
            return Run(RunState.ENDED, reason="ended")
        _, child = self._children[handle.token]
        # The group first: until the status is read, no other group can get its number.
        processes.signal_group(child.pid, _KILL)
        status = await child.wait()
        return Run(RunState.ENDED, status=status, reason=how_it_ended(status))

    async def end(self, handle: Handle, *, patience: Sequence[float] = PATIENCE) -> None:
        """End the process, its group, and every other process that carries its token."""
        try:
            for number, seconds in zip(_SIGNALS, patience, strict=False):
                if not await trio.to_thread.run_sync(_lives, handle):
                    break
                processes.signal_group(int(handle.ident), number)
                with trio.move_on_after(seconds):
                    await self._exit(handle)
        finally:
            # Even after a clean exit: the worker's children must not outlive it.
            with trio.CancelScope(shield=True):
                await self._force(handle)

    async def find(self, handles: Sequence[Handle]) -> Mapping[str, Handle]:
        """The launches whose first process lives."""
        return await trio.to_thread.run_sync(_find, handles)

    async def tail(self, handle: Handle, lines: int) -> list[str]:
        """The end of the launch's log."""
        if handle.log is None:
            return []
        try:
            return await trio.to_thread.run_sync(output.last_lines, handle.log, lines)
        except OSError:
            return []

    async def _exit(self, handle: Handle) -> None:
        """Wait until the process has exited, without reading its status."""
        if not handle.ident:
            return
        pid = int(handle.ident)
        waiting = _pidfd(pid)
        if waiting is None:
            while await trio.to_thread.run_sync(_lives, handle):  # noqa: ASYNC110 - no event
                await trio.sleep(_POLL)
            return
        try:
            # Only now: before it was opened, another process may have got the pid.
            if await trio.to_thread.run_sync(_lives, handle):
                await trio.lowlevel.wait_readable(waiting)
        finally:
            os.close(waiting)

    async def _force(self, handle: Handle) -> None:
        with trio.move_on_after(_FORCE):
            while await trio.to_thread.run_sync(_kill_all, handle):  # noqa: ASYNC110 - no event
                await trio.sleep(0.02)
        if handle.token in self._children:
            _, child = self._children.pop(handle.token)
            with trio.move_on_after(_FORCE):
                await child.wait()


def how_it_ended(status: int) -> str:
    """`exited with status 3` or `was ended by SIGKILL`."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:  # a real-time signal
        return f"was ended by signal {-status}"


async def _spawn(order: Order) -> trio.Process:
    plan = order.plan
    try:
        if order.log is not None:
            order.log.parent.mkdir(parents=True, exist_ok=True)
        with Path(order.log or os.devnull).open("ab+", 0) as log:  # noqa: ASYNC230 - a local file
            if order.log is not None:
                output.separate(log, plan.name)
            return await trio.lowlevel.open_process(
                list(plan.command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **plan.env, TOKEN_VARIABLE: order.token},
                # A group of its own, so that Ctrl-C reaches it only through us, and its children
                # end with it.
                start_new_session=sys.platform != "win32",
            )
    except OSError as error:
        what = error.filename or plan.command[0]
        raise StartError(f"{plan.name} could not be started: {what}: {error.strerror}") from error


def _pidfd(pid: int) -> int | None:
    """A descriptor that becomes readable when the process exits; None if the system has none."""
    if sys.platform != "linux":
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # gone, or the system does not permit it
        return None


def _lives(handle: Handle) -> bool:
    return bool(handle.ident) and processes.is_alive(int(handle.ident), handle.process)


def _find(handles: Sequence[Handle]) -> dict[str, Handle]:
    found = {handle.token: handle for handle in handles if _lives(handle)}
    unnoted = [handle for handle in handles if not handle.ident]
    marked = processes.marked(TOKEN_VARIABLE, [handle.token for handle in unnoted])
    for handle in unnoted:
        candidates = [*marked[handle.token]]
        candidates += _writers(handle)
        for process in candidates:
            if process.pid == process.group:  # the process that we spawned
                known = partial(Handle, handle.token, log=handle.log)
                found[handle.token] = known(ident=str(process.pid), process=process.identity)
    return found


def _kill_all(handle: Handle) -> bool:
    """SIGKILL the remains of a launch; returns whether there were any."""
    left = {process.pid: process for process in _rest(handle)}
    for process in left.values():
        with suppress(ProcessLookupError, PermissionError):  # gone meanwhile
            os.kill(process.pid, _KILL)
    return bool(left)


def _writers(handle: Handle) -> list[processes.Process]:
    """The processes that write to the launch's log, except those with another launch's token:
    another launcher may name the same file."""
    if handle.log is None:
        return []
    return [
        process
        for process in processes.writers(handle.log)
        if processes.mark_of(process, TOKEN_VARIABLE) in (None, handle.token)
    ]


def _rest(handle: Handle) -> list[processes.Process]:
    rest = list(processes.marked(TOKEN_VARIABLE, [handle.token])[handle.token])
    rest += _writers(handle)
    if not handle.ident:
        return rest
    leader, group = processes.look_up(int(handle.ident)), processes.members(int(handle.ident))
    # A number is not reused while its group has members. If another process leads the group by now,
    # the group belongs to that process.
    if leader is None or leader.identity == handle.process:
        rest += group
    return rest
