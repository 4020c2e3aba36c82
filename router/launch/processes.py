"""Processes of this machine: their identities, groups and owners.

A pid alone identifies nothing, because pids are reused. A pid with its start time does. Linux reads
everything from /proc; other systems use `ps`, which is slower. Every function here may block: use a
thread to look at many processes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from attrs import frozen

_LINUX = sys.platform == "linux"
_DEAD = "ZX"


@frozen
class Process:
    """A process as the system lists it."""

    pid: int
    group: int
    started: str  # in the system's own words; equal for equal processes

    @property
    def identity(self) -> str:
        """Identifies this process for ever, on this machine and over reboots."""
        return f"{self.pid}@{self.started}"


def look_up(pid: int) -> Process | None:
    """The process of a pid; None if there is none, or if only its exit status remains."""
    return _from_proc(pid) if _LINUX else next(_from_ps(["-p", str(pid)]), None)


def identity_of(pid: int) -> str:
    """The identity of a process that is known to exist, though perhaps as a zombie."""
    found = _from_proc(pid, dead=True) if _LINUX else look_up(pid)
    return found.identity if found else f"{pid}@unknown"


def is_alive(pid: int, identity: str) -> bool:
    """Whether the process still runs."""
    found = look_up(pid)
    return found is not None and found.identity == identity


def all_processes() -> Iterator[Process]:
    """All living processes that are visible to us."""
    if not _LINUX:
        yield from _from_ps(["-A"])
        return
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found = _from_proc(int(entry))
            if found is not None:
                yield found


def members(group: int) -> list[Process]:
    """The living processes of a process group."""
    return [process for process in all_processes() if process.group == group]


def marked(variable: str, values: Collection[str]) -> Mapping[str, list[Process]]:
    """Our own user's living processes with one of these values in an environment variable, by
    value. A process that has overwritten its environment to show another title is not found."""
    found: dict[str, list[Process]] = {value: [] for value in values}
    wanted = {f"{variable}={value}": value for value in values}
    for process, words in _environments():
        for mark in wanted.keys() & words:
            found[wanted[mark]].append(process)
    return found


def writers(file: Path) -> list[Process]:
    """The living processes whose standard output is this file; none if the system cannot tell."""
    if not _LINUX:
        return []
    try:
        wanted = os.stat(file)
    except OSError:
        return []
    found = []
    for process in all_processes():
        try:
            output = os.stat(f"/proc/{process.pid}/fd/1")
        except OSError:  # another user's, or gone
            continue
        if (output.st_dev, output.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(process)
    return found


def mark_of(process: Process, variable: str) -> str | None:
    """The value of an environment variable of a process; None if absent or unreadable. Linux
    only."""
    try:
        data = _environ(process.pid)
    except OSError:  # another user's, or gone
        return None
    start = f"{variable}="
    words = data.decode(errors="replace").split("\0")
    return next((word.removeprefix(start) for word in words if word.startswith(start)), None)


def signal_group(group: int, number: signal.Signals) -> bool:
    """Signal a process group; False if it has no members left."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS raises the latter for zombies
        return False
    return True


def _from_proc(pid: int, *, dead: bool = False) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name, in brackets, may hold any character. proc(5): state is field 3, starttime field 22.
    fields = stat[stat.rfind(b")") + 2 :].split()
    if not dead and fields[0].decode() in _DEAD:
        return None
    return Process(pid, int(fields[2]), f"{fields[19].decode()}/{_boot()}")


@cache
def _boot() -> str:
    """An id of the present boot, since start times count from the boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return ""


def _from_ps(which: list[str]) -> Iterator[Process]:
    for line in _ps([*which, "-o", "pid=,pgid=,stat=,lstart="]):
        pid, group, state, *started = line.split()
        if state[0] not in _DEAD:
            yield Process(int(pid), int(group), " ".join(started))


def _environments() -> Iterator[tuple[Process, set[str]]]:
    if _LINUX:
        for process in all_processes():
            try:
                data = _environ(process.pid)
            except OSError:  # another user's, or gone
                continue
            yield process, set(data.decode(errors="replace").split("\0"))
        return
    processes = {process.pid: process for process in all_processes()}
    for line in _ps(["-A", "-E", "-ww", "-o", "pid=,command="]):
        pid, _, rest = line.strip().partition(" ")
        if int(pid) in processes:
            yield processes[int(pid)], set(rest.split())


def _environ(pid: int) -> bytes:
    """The environment of a process. Linux only; raises OSError.

    It is empty for a moment after the program was started, though spawning has returned by then.
    Waits for this moment to pass: an empty environment would hide the process's token.
    """
    data = b""
    for _ in range(1000):
        loading = _is_being_loaded(pid)  # asked first: it may end between two questions
        data = Path(f"/proc/{pid}/environ").read_bytes()
        if data or not loading:
            break
        time.sleep(0.001)
    return data


def _is_being_loaded(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    # proc(5): vsize is field 23, 0 for kernel threads; env_end is field 51.
    fields = stat[stat.rfind(b")") + 2 :].split()
    return fields[20] != b"0" and fields[48] == b"0"


def _ps(arguments: list[str]) -> list[str]:
    environ = {**os.environ, "LC_ALL": "C"}  # `lstart` is translated
    done = subprocess.run(
        ["ps", *arguments], capture_output=True, text=True, check=False, env=environ
    )
    return [line for line in done.stdout.splitlines() if line.strip()]
