"""A note of the last acknowledged batch, beside the journals.

The chain of lines cannot tell a journal that has lost its last lines from a journal that never had
them. The note can. It is written after each sync of the journal, but not synced itself: it survives
a crash of the process; after a crash of the machine it may be older than the journal, but never
newer.
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
    """The content of the note: batch `seq` is in this journal, or in an earlier one."""

    seq: int
    journal: int
    file: int  # the journal's inode: files copied from a running router may be older than the note

    def lost(self, folder: Path, seq: int | None) -> bool:
        """Whether files that end with batch `seq` lack batches that the note knows."""
        try:
            same = files.journal(folder, self.journal).stat().st_ino == self.file
        except FileNotFoundError:
            same = True
        return same and (seq or 0) < self.seq


@define(eq=False)
class Note:
    """The open note beside the journal being written."""

    _fd: int
    _journal: int
    _file: int

    @classmethod
    def of(cls, journal: Path, number: int, fd: int) -> Note:
        """The note for a journal with this descriptor. Raises OSError."""
        note = os.open(journal.with_name(NAME), files.OURS | os.O_CREAT, 0o600)
        return cls(note, number, os.fstat(fd).st_ino)

    def write(self, seq: int) -> None:
        """Record that the journal has this batch on the disk."""
        # An outdated note does no harm, so a failure is ignored.
        with contextlib.suppress(OSError):
            line = sealed({"seq": seq, "journal": self._journal, "inode": self._file})
            os.lseek(self._fd, 0, os.SEEK_SET)
            files.write(self._fd, line)
            files.truncate(self._fd, len(line))

    def close(self) -> None:
        os.close(self._fd)


def read(folder: Path) -> Acknowledged | None:
    """The content of the note; None if it is missing or damaged. Raises OSError."""
    try:
        with (folder / NAME).open("rb") as file:
            content = opened(file.read(_MOST))
    except (FileNotFoundError, BadLine):
        return None
    match content:
        case {"seq": int(seq), "journal": int(journal), "inode": int(inode)}:
            return Acknowledged(seq, journal, inode)
    return None
