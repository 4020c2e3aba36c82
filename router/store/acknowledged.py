"""A note of the last batch that was acknowledged, beside the journals.

The chain of lines cannot tell a journal that has lost its last lines from one that never had them.
The note can. It is written after each sync of the journal and not synced itself: it outlives the
process, and after a failure of the machine it may be older than the journal, but never newer.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from attrs import define, frozen

from . import files
from .lines import BadLine, opened, sealed

NAME = "acknowledged"
_MOST = 4096  # bytes


@frozen
class Acknowledged:
    """What the note says: batch `seq` is in this journal, or before it."""

    seq: int
    journal: int
    file: int  # the journal's inode: a copy of a running router's files may be older than the note

    def lost(self, folder: Path, seq: int | None) -> bool:
        """Whether files that end with batch `seq` lack some that this speaks of."""
        try:
            same = files.journal(folder, self.journal).stat().st_ino == self.file
        except FileNotFoundError:
            same = True
        return same and (seq or 0) < self.seq


@define(eq=False)
class Note:
    """The note while a journal is written."""

    _fd: int
    _journal: int
    _file: int

    @classmethod
    def of(cls, journal: Path, number: int, fd: int) -> Note:
        """The note of a journal, by its descriptor. Raises OSError."""
        note = os.open(journal.with_name(NAME), files.OURS | os.O_CREAT, 0o600)
        return cls(note, number, os.fstat(fd).st_ino)

    def write(self, seq: int) -> None:
        """Say that the journal has this batch, and that it is on the disk."""
        # Less than it could say does no harm, so a failure is none.
        with contextlib.suppress(OSError):
            line = sealed({"seq": seq, "journal": self._journal, "inode": self._file})
            os.lseek(self._fd, 0, os.SEEK_SET)
            files.write(self._fd, line)
            files.truncate(self._fd, len(line))

    def close(self) -> None:
        os.close(self._fd)


def read(folder: Path) -> Acknowledged | None:
    """What the note says; None if there is none, or none that can be believed. Raises OSError."""
    try:
        with (folder / NAME).open("rb") as file:
            content = opened(file.read(_MOST))
    except (FileNotFoundError, BadLine):
        return None
    match content:
        case {"seq": int(seq), "journal": int(journal), "inode": int(inode)}:
            return Acknowledged(seq, journal, inode)
    return None
