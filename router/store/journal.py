"""The journal that is being written: batches of changes, each on the disk before it counts."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from . import files
from .changes import Changes, Op
from .lines import header, sealed

_OPS = 256  # of one line: the interpreter is held for no longer than one takes


@define(eq=False)
class Journal:
    """One file, to the end of which is written. All calls may block; they raise OSError."""

    path: Path
    number: int
    size: int  # up to which it is good; what is behind was never acknowledged
    _fd: int = field(alias="fd", repr=False)
    _torn: bool = field(init=False, default=False)

    @classmethod
    def create(cls, folder: Path, number: int) -> Journal:
        """An empty journal, which is on the disk with its name."""
        path = files.journal(folder, number)
        first = header("journal", number, files.now())
        try:
            with files.replacing(path) as fd:
                files.write(fd, first)
            flags = os.O_RDWR | getattr(os, "O_BINARY", 0)
            return cls(path, number, len(first), fd=os.open(path, flags))
        except BaseException:
            # The one before goes on, and only the last one may end torn.
            with contextlib.suppress(OSError):
                path.unlink()
            raise

    def append(self, changes: Changes, seq: int) -> None:
        """Write one batch; once this returns it is on the disk."""
        data = b"".join(_lines(changes, seq))
        if self._torn:
            os.ftruncate(self._fd, self.size)
        self._torn = True
        os.lseek(self._fd, self.size, os.SEEK_SET)
        files.write(self._fd, data)
        files.sync(self._fd)
        if not os.fstat(self._fd).st_nlink:
            raise FileNotFoundError(f"{self.path} was deleted")
        self.size += len(data)
        self._torn = False

    def close(self) -> None:
        os.close(self._fd)


def _lines(changes: Changes, seq: int) -> Iterator[bytes]:
    parts = list(_batched(changes.ops(), _OPS))
    for part in parts[:-1]:
        yield sealed({"seq": seq, "more": True, "ops": part})
    for part in parts[-1:]:
        yield sealed({"seq": seq, "ops": part})


def _batched(ops: Iterable[Op], size: int) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for op in ops:
        batch.append(op)
        if len(batch) >= size:
            yield batch
            batch = []
    if batch:
        yield batch
