"""The journal being written: batches of changes, each on the disk before it counts."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from . import files
from .acknowledged import Note
from .changes import Changes, Op
from .lines import checksum, header, sealed

_OPS = 256  # per line: JSON blocks the interpreter for a line at a time


@define(eq=False)
class Journal:
    """One file, written at its end. All calls may block, and raise OSError."""

    path: Path
    number: int
    size: int  # of the good part; bytes beyond were never acknowledged
    after: str  # the checksum of the last good line
    _fd: int = field(alias="fd", repr=False)
    _note: Note = field(alias="note", repr=False)
    _torn: bool = field(init=False, default=False)

    @classmethod
    def create(cls, folder: Path, number: int, seq: int = 0, after: str = "") -> Journal:
        """Create an empty journal, with file and name on the disk. `seq` is the last batch before
        it, `after` the checksum of the last line before it."""
        path = files.journal(folder, number)
        first = header("journal", number, files.now(), seq=seq, after=after)
        try:
            with files.replacing(path) as fd:
                files.write(fd, first)
            fd = os.open(path, files.OURS)
            try:
                note = Note.of(path, number, fd)
            except BaseException:
                os.close(fd)
                raise
        except BaseException:
            # The previous journal continues, and only the last journal may end torn.
            with contextlib.suppress(OSError):
                files.unlink(path)
            raise
        note.write(seq)
        return cls(path, number, len(first), checksum(first), fd=fd, note=note)

    def append(self, changes: Changes, seq: int) -> float:
        """Write one batch; after the return it is on the disk. Returns the seconds of the sync."""
        lines = list(_lines(changes, seq, self.after))
        data = b"".join(lines)
        if self._torn:
            files.truncate(self._fd, self.size)
        self._torn = True
        os.lseek(self._fd, self.size, os.SEEK_SET)
        files.write(self._fd, data)
        began = time.perf_counter()
        files.sync(self._fd)
        synced = time.perf_counter() - began
        if not os.fstat(self._fd).st_nlink:
            raise FileNotFoundError(f"{self.path} was deleted")
        self.size += len(data)
        self.after = checksum(lines[-1])
        self._torn = False
        self._note.write(seq)
        return synced

    def close(self) -> None:
        os.close(self._fd)
        self._note.close()


def _lines(changes: Changes, seq: int, after: str) -> Iterator[bytes]:
    parts = list(_batched(changes.ops(), _OPS))
    for left, part in zip(reversed(range(len(parts))), parts, strict=True):
        more = {"more": True} if left else {}
        line = sealed({"after": after, "seq": seq, **more, "ops": part})
        yield line
        after = checksum(line)


def _batched(ops: Iterable[Op], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for op in ops:
        batch.append(op)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
