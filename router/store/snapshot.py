"""Snapshots, made from the previous snapshot and the journals since, from file to file.

No live state is read, so the router need not pause. Memory holds only the journals since, however
many rows there are.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from . import files
from .changes import DELETED, Changes
from .lines import checksum, header, sealed
from .reading import Loaded, read_journal, snapshot_lines

_ROWS = 256  # per line: JSON blocks the interpreter for a line at a time
_FLUSH = 256 * 1024  # bytes written at once
_SYNC = 4 * 1024 * 1024  # bytes per sync: other writers wait for the disk too
_WORK, _REST = 0.001, 0.002  # seconds: limits the share of the interpreter that this work takes


@define(eq=False)
class Pace:
    """Gives other threads their turn. `hurried`: no other thread needs one. `poll` may raise to
    break off the work."""

    hurried: bool = False
    poll: Callable[[], None] = lambda: None
    _since: float = field(init=False, factory=time.perf_counter)

    def rest(self) -> None:
        """Called between two small pieces of work."""
        self.poll()
        if not self.hurried and time.perf_counter() - self._since > _WORK:
            time.sleep(_REST)
            self._since = time.perf_counter()


@define(eq=False)
class _Writer:
    """Writes rows, several per line, and the end."""

    fd: int
    pace: Pace
    after: str  # the checksum of the last line
    count: int = 0
    _table: str = ""
    _rows: dict[str, Any] = field(factory=dict)
    _data: bytearray = field(factory=bytearray)
    _unsynced: int = 0

    def row(self, table: str, key: str, value: Any) -> None:
        if self._rows and (table != self._table or len(self._rows) >= _ROWS):
            self._line()
        self._table = table
        self._rows[key] = value
        self.count += 1

    def end(self, seq: int) -> None:
        if self._rows:
            self._line()
        self._add({"end": self.count, "seq": seq})
        self._flush()

    def _line(self) -> None:
        self._add({"table": self._table, "rows": self._rows})
        self._rows = {}
        if len(self._data) >= _FLUSH:
            self._flush()
        self.pace.rest()

    def _add(self, content: dict[str, Any]) -> None:
        line = sealed({"after": self.after, **content})
        self._data += line
        self.after = checksum(line)

    def _flush(self) -> None:
        files.write(self.fd, bytes(self._data))
        self._unsynced += len(self._data)
        self._data.clear()
        if self._unsynced >= _SYNC:
            files.sync(self.fd)
            self._unsynced = 0


def compact(folder: Path, base: int, number: int, pace: Pace) -> int:
    """Make snapshot `number` from snapshot `base` (0: none) and the journals since, all of them
    closed. Returns its size in bytes. Then drop files older than `base`.

    The journals since `base` stay, so that nothing is lost if the new snapshot is. Raises OSError
    and the errors of reading.
    """
    changes, read = Changes(), Loaded(last=number)
    for journal in range(base or 1, number):
        read_journal(files.journal(folder, journal), journal, changes, read, pace.rest)
    rows = _merged(folder, base, changes, read)
    path = write_snapshot(folder, number, rows, lambda: read.seq or 0, pace)
    _drop_older(folder, base)
    return path.stat().st_size


def write_snapshot(
    folder: Path,
    number: int,
    rows: Iterable[tuple[str, str, Any]],
    seq: Callable[[], int],
    pace: Pace,
) -> Path:
    """Make a snapshot of these rows. `seq` is called after the rows, and gives the last batch in
    them. Raises OSError and the errors of `rows`."""
    path = files.snapshot(folder, number)
    with files.replacing(path) as fd:
        first = header("snapshot", number, files.now())
        files.write(fd, first)
        writer = _Writer(fd, pace, checksum(first))
        for table, key, value in rows:
            writer.row(table, key, value)
        writer.end(seq())
    return path


def _merged(
    folder: Path, base: int, changes: Changes, read: Loaded
) -> Iterator[tuple[str, str, Any]]:
    """The rows of the new snapshot: table by table, each in the order of the last puts."""
    left = changes.tables
    current: str | None = None
    if base:
        for content in snapshot_lines(files.snapshot(folder, base), base):
            if "rows" not in content:
                read.seq = max(read.seq or 0, content["seq"])
                continue
            table = content["table"]
            if current is not None and table != current:
                yield from _put(current, left.pop(current, {}))
            current = table
            if table in changes.cleared:
                continue
            newer = left.get(table, {})
            for key, value in content["rows"].items():
                if key not in newer:
                    yield table, key, value
        if current is not None:
            yield from _put(current, left.pop(current, {}))
    for table, rows in left.items():
        yield from _put(table, rows)


def _put(table: str, rows: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    return ((table, key, value) for key, value in rows.items() if value is not DELETED)


def _drop_older(folder: Path, base: int) -> None:
    for holds, name in (("snapshot", files.snapshot), ("journal", files.journal)):
        for number in files.numbered(folder, holds):
            if number < base:
                with contextlib.suppress(OSError):  # the next snapshot tries again
                    files.unlink(name(folder, number))
