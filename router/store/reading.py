"""Reads journals and snapshots, and tells a torn end from damage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attrs import define, field

from . import acknowledged, files
from .changes import Changes, Op, Tables
from .lines import (
    FORMAT,
    BadLine,
    Header,
    Unreadable,
    checksum,
    lines_after,
    migrated,
    read_header,
)


class Damaged(Exception):
    """Acknowledged state can no longer be read. The message is a sentence."""


@define
class Torn:
    """The cut-off end of a journal whose process ended while writing; never acknowledged."""

    path: Path
    good: int  # bytes before it
    size: int  # bytes of it


@define(eq=False)
class Loaded:
    """The content of a state directory."""

    tables: Tables = field(factory=dict)
    base: int = 0  # the number of the snapshot; 0: none, from the first journal on
    last: int = 0  # the number of the last journal
    seq: int | None = None  # of the last batch; None while unknown
    after: str | None = None  # the checksum of the last journal's last line; None while unknown
    batches: int = 0  # since the snapshot
    torn: Torn | None = None
    corrupt: list[tuple[Path, str]] = field(factory=list)  # damaged snapshots, with the damage


def load(folder: Path) -> Loaded:
    """Read a state directory; changes nothing there. Raises Damaged, Unreadable or OSError."""
    noted = acknowledged.read(folder)  # before the journals: a router may be writing both
    loaded = Loaded(seq=0)
    for number in reversed(files.numbered(folder, "snapshot")):
        path = files.snapshot(folder, number)
        try:
            loaded.tables, loaded.seq = read_snapshot(path, number)
            loaded.base = number
            break
        except BadLine as error:
            loaded.corrupt.append((path, f"line {error.number}: {error}"))
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
    if noted is not None and noted.lost(folder, loaded.seq):
        raise Damaged(
            f"{files.journal(folder, noted.journal)} lacks its end: batch {noted.seq} was "
            f"acknowledged, but the last batch on the disk is {loaded.seq}"
        )
    changes.onto(loaded.tables)
    return loaded


def _missing(folder: Path, number: int, loaded: Loaded) -> str:
    if loaded.corrupt:
        path, why = loaded.corrupt[0]
        return f"{path} cannot be read: {why}; no earlier snapshot exists"
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
    """The lines of a snapshot after its first, in the current format. Raises BadLine at the first
    damaged line, or if the end is missing."""
    count, over = 0, False
    with path.open("rb") as file:
        first = file.readline()
        head = read_header(first, "snapshot", number)
        index = 1
        for index, _, content in lines_after(file, first, head):
            if content is None:
                raise BadLine("the line is cut short", index)
            if over:
                raise BadLine("follows the end of the snapshot", index)
            match content:
                case {"table": str(table), "rows": dict(rows)}:
                    count += len(rows)
                    if head.format == FORMAT:
                        yield content
                    else:
                        yield from _migrated_rows(table, rows, head.format)
                case {"end": int(end), "seq": int()}:
                    if end != count:
                        raise BadLine(f"expected {end} rows, found {count}", index)
                    over = True
                    yield content
                case _:
                    raise BadLine("contains no rows", index)
    if not over:
        raise BadLine("the end of the snapshot is missing after this line", index)


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
    """Enter a journal's batches into `changes`. A torn end is allowed in the last journal, and
    noted. `rest` is called after each line. Raises Damaged for any other fault, Unreadable,
    OSError."""
    try:
        with path.open("rb") as file:
            first = file.readline()
            head = read_header(first, "journal", number)
            _join(head, number, loaded)
            loaded.after = checksum(first)
            good = end = len(first)
            batch: list[Op] = []
            for index, line, content in lines_after(file, first, head):
                end += len(line)
                if content is None:
                    break
                seq, ops = _batch(content, loaded.seq, index)
                batch += ops
                rest()
                if content.get("more"):
                    continue
                _enter(batch, head.format, changes, index)
                batch = []
                loaded.seq, loaded.after = seq, checksum(line)
                loaded.batches += 1
                good = end
    except BadLine as error:
        raise Damaged(f"{path}, line {error.number}: {error}") from error
    if good < end:
        if number != loaded.last:
            raise Damaged(f"{path} lacks its end, although a later journal exists")
        loaded.torn = Torn(path, good, end - good)


def _join(head: Header, number: int, loaded: Loaded) -> None:
    """Check that a journal continues where the files before it end. Raises BadLine."""
    if head.seq is None:
        return  # format 1 does not tell
    if loaded.seq is not None and head.seq != loaded.seq:
        raise BadLine(
            f"continues after batch {head.seq}, but the files before end with batch {loaded.seq}"
        )
    if loaded.after is not None and head.after != loaded.after:
        raise BadLine(f"does not continue where journal {number - 1} ends")
    loaded.seq = head.seq


def _batch(content: dict[str, Any], last: int | None, index: int) -> tuple[int, list[Op]]:
    """The number and ops of a line, which must be of the batch after `last`. Raises BadLine."""
    match content:
        case {"seq": int(seq), "ops": list(ops)}:
            if last is not None and seq != last + 1:
                raise BadLine(f"expected batch {last + 1}, found batch {seq}", index)
            return seq, ops
    raise BadLine("contains no batch", index)


def _enter(batch: list[Op], form: int, changes: Changes, index: int) -> None:
    try:
        for op in batch:
            known = op if form == FORMAT else migrated(op, form)
            if known is not None:
                changes.apply(known)
    except ValueError as error:
        raise BadLine(str(error), index) from error


__all__ = ["Damaged", "Loaded", "Torn", "Unreadable", "load", "read_journal", "snapshot_lines"]
