"""Reading journals and snapshots back, and telling a torn end from damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from . import files
from .changes import Changes, Op, Tables
from .lines import FORMAT, BadLine, Unreadable, lines_of, migrated, opened, read_header


class Damaged(Exception):
    """State that was acknowledged cannot be read any more. The message is a sentence."""


@define
class Torn:
    """The end of a journal that was being written when the process ended: nobody was told of it."""

    path: Path
    good: int  # bytes before it
    size: int  # bytes of it


@define(eq=False)
class Loaded:
    """What a state directory holds."""

    tables: Tables = field(factory=dict)
    base: int = 0  # the number of the snapshot; 0: none, from the first journal on
    last: int = 0  # the number of the last journal
    seq: int = 0  # of the last batch
    batches: int = 0  # since the snapshot
    torn: Torn | None = None
    corrupt: list[tuple[Path, str]] = field(factory=list)  # snapshots, and what is wrong with them


def load(folder: Path) -> Loaded:
    """Read a state directory; changes nothing there. Raises Damaged, Unreadable or OSError."""
    loaded = Loaded()
    for number in reversed(files.numbered(folder, "snapshot")):
        path = files.snapshot(folder, number)
        try:
            loaded.tables, loaded.seq = read_snapshot(path, number)
            loaded.base = number
            break
        except BadLine as error:
            loaded.corrupt.append((path, str(error)))
    journals = [n for n in files.numbered(folder, "journal") if n >= loaded.base]
    first = loaded.base or 1
    expected = range(first, max([*journals, first - (not loaded.base)]) + 1)
    missing = sorted(set(expected) - set(journals))
    if missing:
        raise Damaged(_missing(folder, missing[0], loaded))
    loaded.last = expected[-1] if expected else 0
    changes = Changes()
    for number in expected:
        read_journal(files.journal(folder, number), number, changes, loaded)
    changes.onto(loaded.tables)
    return loaded


def _missing(folder: Path, number: int, loaded: Loaded) -> str:
    if loaded.corrupt:
        path, why = loaded.corrupt[0]
        return f"{path} cannot be read: {why}; and there is no earlier snapshot to begin with"
    return f"{files.journal(folder, number)} is missing"


def read_snapshot(path: Path, number: int) -> tuple[Tables, int]:
    """The tables of a snapshot, and the last batch in it. Raises BadLine, Unreadable, OSError."""
    tables: Tables = {}
    seq = 0
    for content in snapshot_lines(path, number):
        rows = content.get("rows")
        if rows is None:
            seq = content["seq"]
        else:
            tables.setdefault(content["table"], {}).update(rows)
    return tables, seq


def snapshot_lines(path: Path, number: int) -> Iterator[dict[str, Any]]:
    """The lines of a snapshot after its first, in today's format. Raises BadLine at the first one
    that is wrong, or if the end is missing."""
    count, over = 0, False
    with path.open("rb") as file:
        form = read_header(file.readline(), "snapshot", number)
        for index, (_, line) in enumerate(lines_of(file), 2):
            try:
                content = opened(line)
            except BadLine as error:
                raise BadLine(f"line {index}: {error}") from error
            if over:
                raise BadLine(f"line {index} is behind its end")
            rows = content.get("rows")
            if rows is None:
                over = content.get("end") == count
                if not over:
                    raise BadLine(f"it should have {content.get('end')} rows, and has {count}")
                yield content
                continue
            count += len(rows)
            if form == FORMAT:
                yield content
            else:
                yield from _migrated_rows(content["table"], rows, form)
    if not over:
        raise BadLine("its end is missing")


def _migrated_rows(table: str, rows: dict[str, Any], form: int) -> Iterator[dict[str, Any]]:
    for key, value in rows.items():
        op = migrated(["put", table, key, value], form)
        if op is not None:
            yield {"table": op[1], "rows": {op[2]: op[3]}}


def read_journal(
    path: Path,
    number: int,
    changes: Changes,
    loaded: Loaded,
    rest: Callable[[], None] = lambda: None,
) -> None:
    """Enter a journal's batches. A torn end is noted if it is the last journal. `rest` is called
    after each line. Raises Damaged for what is wrong elsewhere, Unreadable, OSError.
    """
    with path.open("rb") as file:
        try:
            form = read_header(file.readline(), "journal", number)
        except BadLine as error:
            _tear(path, 0, "its first line: " + str(error), number, loaded)
            return
        batch: list[Op] = []
        good = file.tell()
        for index, (place, line) in enumerate(lines_of(file), 2):
            try:
                content = opened(line)
            except BadLine as error:
                wrong = f"line {index}: {error}"
                for _, later in lines_of(file):
                    if _seq_of(later) > loaded.seq + 1:  # written after this one was on the disk
                        raise Damaged(f"{path} is damaged: {wrong}") from error
                _tear(path, good, wrong, number, loaded)
                return
            rest()
            batch += content["ops"]
            if content.get("more"):
                continue
            for op in batch:
                known = op if form == FORMAT else migrated(op, form)
                if known is not None:
                    changes.apply(known)
            batch = []
            loaded.seq = content["seq"]
            loaded.batches += 1
            good = place + len(line)
        if batch:
            _tear(path, good, "its last batch is not complete", number, loaded)


def _tear(path: Path, good: int, wrong: str, number: int, loaded: Loaded) -> None:
    if number != loaded.last:
        raise Damaged(f"{path} is damaged: {wrong}")
    loaded.torn = Torn(path, good, path.stat().st_size - good)


def _seq_of(line: bytes) -> int:
    try:
        seq = opened(line).get("seq")
    except BadLine:
        return 0
    return seq if isinstance(seq, int) else 0


__all__ = ["Damaged", "Loaded", "Torn", "Unreadable", "load", "read_journal", "snapshot_lines"]
