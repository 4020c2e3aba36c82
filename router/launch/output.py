"""The files that workers write their output to.

A worker appends to its file by itself and knows nothing of us: a pipe would die with the router,
and the worker with it. So a file that has grown is copied and truncated, and never renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import trio
from attrs import define

from ..errors import describe

MOST_BYTES = 64 * 1024 * 1024
"""A file that is larger is rotated; as large as that is the older half, kept beside it."""

_CHUNK = 64 * 1024
_LONGEST_LINE = 4096
_POLL = 0.25  # seconds between two looks at a file that is followed


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file. Raises OSError."""
    data = b""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        # A line more than asked for, as the first one found may be cut.
        while at > 0 and data.count(b"\n") <= count and len(data) < count * _LONGEST_LINE:
            size = min(_CHUNK, at)
            at = file.seek(at - size)
            data = file.read(size) + data
    return data.decode(errors="replace").splitlines()[-count:] if count > 0 else []


def last_words(path: Path | None, count: int = 12) -> str:
    """The end of a worker's output, for people."""
    if path is None:
        return "(its output is not kept here)"
    try:
        return "\n".join(last_lines(path, count)) or "(it has written nothing)"
    except OSError as error:
        return f"(its log cannot be read: {describe(error)})"


def rotate(path: Path, most: int = MOST_BYTES) -> bool:
    """Copy a file that has grown beyond `most` bytes to `NAME.1` and empty it.

    What is written between the two is lost: the price of a writer that knows nothing of it. Its
    next line goes to the beginning of the file, as it appends. Raises OSError.
    """
    try:
        if path.stat().st_size <= most:
            return False
    except FileNotFoundError:
        return False
    copy = path.with_name(path.name + ".1")
    partial = path.with_name(path.name + ".1.new")
    shutil.copyfile(path, partial)
    os.truncate(path, 0)
    partial.replace(copy)
    return True


@define
class Follower:
    """Hands on each new line of a file, from its end at the start on."""

    path: Path
    tell: Callable[[str], None]
    _at: int = 0
    _rest: bytes = b""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the file through rotations; never returns. Started once it knows the end."""
        self._at = await trio.to_thread.run_sync(_size, self.path)
        task_status.started()
        while True:
            for line in await trio.to_thread.run_sync(self._new):
                self.tell(line)
            await trio.sleep(_POLL)

    def _new(self) -> list[str]:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._at:  # it was emptied
                    self._at = 0
                file.seek(self._at)
                data = file.read(16 * _CHUNK)
        except OSError:
            return []
        self._at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace").rstrip() for line in lines]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
