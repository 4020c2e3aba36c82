"""The files with the output of workers.

A worker appends to its file itself, because a pipe would die with the router, and the worker with
the pipe. The worker cannot be told of a new file, so a file that has grown is copied and truncated,
and never renamed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

import trio
from attrs import define, field

from ..errors import describe
from . import processes

MOST_BYTES = 64 * 1024 * 1024
"""A larger file is rotated; the older half, kept beside it, is about as large."""

_CHUNK = 64 * 1024
_LONGEST_LINE = 4096
_MOST_TAIL = 1024 * 1024  # bytes read to find the last lines
_BEGINS = "---- sglang-d-router starts "  # the beginning of the line before each start
_POLL = 0.25  # seconds between two looks at a followed file


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, from its last MiB; a long line is cut. Raises OSError."""
    return _cut(_end(path, count)[0], count)


def last_whole_lines(path: Path, count: int) -> tuple[list[str], int]:
    """The last lines of a file without an unfinished one, and where a `Follower` goes on. Raises
    OSError."""
    data, end = _end(path, count)
    whole = data.rfind(b"\n") + 1
    return _cut(data[:whole], count), end - (len(data) - whole)


def _end(path: Path, count: int) -> tuple[bytes, int]:
    """The end of a file, from the beginning of a line, and its size."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        at = file.seek(max(0, end - min(_MOST_TAIL, (count + 1) * _LONGEST_LINE)))
        data = file.read(end - at)
    if at > 0 and b"\n" in data:
        data = data[data.index(b"\n") + 1 :]  # drop the line whose beginning is missing
    return data, end


def _cut(data: bytes, count: int) -> list[str]:
    lines = data.decode(errors="replace").splitlines()[-count:] if count > 0 else []
    return [
        line if len(line) <= _LONGEST_LINE else f"... {line[-_LONGEST_LINE:]}" for line in lines
    ]


def separate(file: BinaryIO, name: str) -> None:
    """Write the line that separates the output of a start from earlier output. Raises OSError."""
    now = datetime.now().astimezone().isoformat(" ", "seconds")
    if file.seek(0, os.SEEK_END) > 0:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
    file.write(f"{_BEGINS}{name} at {now}\n".encode())


def last_words(path: Path | None, count: int = 12) -> str:
    """The end of a worker's output since its last start, for people."""
    if path is None:
        return "(the router does not keep the output of this worker)"
    try:
        lines = last_lines(path, count)
        starts = [place for place, line in enumerate(lines, 1) if line.startswith(_BEGINS)]
        return "\n".join(lines[max(starts, default=0) :]) or "(no output)"
    except OSError as error:
        return f"(the log cannot be read: {describe(error)})"


def unshared(path: Path) -> Path:
    """This file, or a file of another name beside it if a process writes to this one: the worker of
    another router, or one that `--fresh` left alone. Otherwise both would write to one log."""
    candidate, number = path, 1
    while processes.writers(candidate):
        number += 1
        candidate = path.with_name(f"{path.stem}.{number}{path.suffix}")
    return candidate


def size(path: Path) -> int:
    """The size of a file in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def rotate(path: Path, most: int = MOST_BYTES) -> bool:
    """Copy a file that has grown beyond `most` bytes to `NAME.1` and empty it.

    Output written between copy and truncation is lost, because the worker knows of neither. The
    worker appends, so its next line goes to the beginning of the file. Raises OSError.
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
    """Passes on each new line of a file, from `at` on; None: from the file's present end."""

    path: Path
    tell: Callable[[str], None] = lambda _: None
    at: int | None = None
    _rest: bytes = field(init=False, default=b"")

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the file through rotations; never returns. Started once the position is known."""
        if self.at is None:
            self.at = await trio.to_thread.run_sync(size, self.path)
        task_status.started()
        while True:
            for line in await trio.to_thread.run_sync(self.new):
                self.tell(line)
            await trio.sleep(_POLL)

    def new(self) -> list[str]:
        """The lines since the last call."""
        if self.at is None:
            self.at = size(self.path)
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self.at:  # the file was emptied
                    self.at = 0
                file.seek(self.at)
                data = file.read(16 * _CHUNK)
        except OSError:
            return []
        self.at += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace").rstrip() for line in lines]
