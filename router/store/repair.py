"""Repairs a damaged state directory: keeps what can be read, and lists what is lost.

Each line has its own checksum, so a damaged line costs no other line. The original files are all
set aside, and a snapshot of the kept rows takes their place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

from attrs import define, field

from . import acknowledged, files
from .changes import Changes, Op, Tables
from .journal import Journal
from .lines import (
    FORMAT,
    BadLine,
    Header,
    Unreadable,
    checksum,
    lines_of,
    migrated,
    opened,
    read_header,
)
from .opening import StateRefused, lock_of
from .reading import read_snapshot
from .snapshot import Pace, write_snapshot

ASIDE = "before-repair-"  # and a number
_SAID = re.compile(rb'\["(put|del)","([^"\\]{1,60})","([^"\\]{1,200})"')
_MOST_SAID = 5

_Lines = list[tuple[bytes, dict[str, Any]]]


@define(eq=False)
class Salvage:
    """The readable part of a state directory."""

    tables: Tables = field(factory=dict)
    seq: int = 0  # of the last batch that existed
    last: int = 0  # the highest number of a file
    wrong: list[str] = field(factory=list)  # damaged or missing parts, by file and line
    lost: list[str] = field(factory=list)  # acknowledged data that is gone


def repair(folder: Path, *, dry_run: bool = False) -> Iterator[str]:
    """Repair a state directory; yields sentences about what was done. `dry_run`: changes nothing.

    Raises StateRefused if a router has it, or if it is of a newer version; OSError.
    """
    if dry_run:
        holder = files.holder(folder)
        if holder is not None:
            raise StateRefused(
                f"A router (process {holder}) uses the state directory {folder}; stop that router"
            )
        yield from _report(salvage(folder))
        return
    lock = lock_of(folder)
    try:
        found = salvage(folder)
        yield from _report(found)
        if found.wrong or found.lost:
            yield f"the original files are in {_replace(folder, found)}"
    finally:
        lock.release()


def _report(found: Salvage) -> Iterator[str]:
    if not found.wrong and not found.lost:
        yield "nothing is damaged"
        return
    yield from found.wrong
    yield from found.lost or ["no acknowledged change is lost"]
    rows = sum(map(len, found.tables.values()))
    yield f"kept: {rows:,} rows in {len(found.tables):,} tables"
    if found.lost:
        yield (
            "the kept state may be older than the last acknowledged change: check GET /workers, "
            "and update weights once more before you rely on their versions"
        )


def _replace(folder: Path, found: Salvage) -> Path:
    """Replace the files with the kept rows; returns the folder where the old files are."""
    old = list(folder.glob("*.jsonl"))
    rows = ((table, key, row) for table, rows in found.tables.items() for key, row in rows.items())
    number = found.last + 1
    write_snapshot(folder, number, rows, lambda: found.seq, Pace(hurried=True))
    Journal.create(folder, number, found.seq).close()
    aside = next(path for n in count(1) if not (path := folder / f"{ASIDE}{n}").exists())
    aside.mkdir(mode=0o700)
    for path in old:
        os.replace(path, aside / path.name)
    files.sync_folder(folder)
    return aside


@define(eq=False)
class _Batch:
    format: int
    parts: dict[bytes, list[Op]] = field(factory=dict)  # by line: a doubled line counts once
    whole: bool = False  # the last part was found


def salvage(folder: Path) -> Salvage:
    """Read everything readable; changes nothing. Raises StateRefused if a file is of a newer
    version, OSError."""
    found = Salvage()
    noted = acknowledged.read(folder)
    journals = files.numbered(folder, "journal")
    found.last = max([0, *journals, *files.numbered(folder, "snapshot")])
    first = _begin(folder, journals, found)
    batches: dict[int, _Batch] = {}
    end = found.seq  # the last batch known to have existed
    for number in range(first, found.last + 1):  # a snapshot comes with a journal
        path = files.journal(folder, number)
        if number not in journals:
            found.wrong.append(f"{path.name} is missing")
            continue
        head, lines = _read(path, "journal", number, found, torn=number == journals[-1])
        end = max(end, head.seq or 0)
        for line, content in lines:
            match content:
                case {"seq": int(seq), "ops": list(ops)}:
                    batch = batches.setdefault(seq, _Batch(head.format))
                    batch.parts[line] = ops
                    batch.whole = batch.whole or not content.get("more")
    end = max([end, *batches])
    last = batches.get(end)
    if last is not None and not last.whole and (noted is None or noted.seq < end):
        del batches[end]  # it was being written, and never acknowledged
        end -= 1
    if noted is not None and noted.lost(folder, end):
        end = noted.seq
    found.lost += _gaps(batches, found.seq + 1, end)
    changes = Changes()
    for seq in sorted(batches):
        if seq > found.seq:
            _enter(batches[seq], changes)
    changes.onto(found.tables)
    found.seq = end
    return found


def _begin(folder: Path, journals: list[int], found: Salvage) -> int:
    """Enter the newest intact snapshot; returns the number of the first journal to read. Without an
    intact snapshot, and if the first journal is gone, enters the rest of the oldest snapshot."""
    damaged: list[tuple[int, Header, _Lines]] = []
    for number in reversed(files.numbered(folder, "snapshot")):
        path = files.snapshot(folder, number)
        try:
            found.tables, found.seq = read_snapshot(path, number)
            return number
        except (BadLine, Unreadable) as error:
            before = len(found.wrong)
            damaged.append((number, *_read(path, "snapshot", number, found)))
            if len(found.wrong) == before:  # each line is good, but the lines do not add up
                found.wrong.append(f"{path.name}: {error}")
    if not damaged or 1 in journals:
        return 1
    number, head, lines = damaged[-1]
    changes = Changes()
    for _, content in lines:
        match content:
            case {"table": str(table), "rows": dict(rows)}:
                ops: list[Op] = [["put", table, key, row] for key, row in rows.items()]
                _enter(_Batch(head.format, {b"": ops}), changes)
            case {"end": int(), "seq": int(seq)}:
                found.seq = seq
    changes.onto(found.tables)
    found.lost.append(f"some rows of {files.snapshot(folder, number).name} may be lost")
    if number in journals:
        head, _ = _read(files.journal(folder, number), "journal", number, Salvage())
        found.seq = head.seq or found.seq
    return number


def _read(
    path: Path, holds: str, number: int, found: Salvage, *, torn: bool = False
) -> tuple[Header, _Lines]:
    """The good lines of a file; notes what is wrong with the others. `torn`: the last line may be
    cut off. Raises StateRefused if the file is of a newer version, OSError."""
    head, good = Header(FORMAT, None, None), _Lines()
    newer: Unreadable | None = None
    before: str | None = None
    with path.open("rb") as file:
        for index, line in enumerate(lines_of(file), 1):
            try:
                if index == 1:
                    try:
                        head = read_header(line, holds, number)
                    except Unreadable as error:
                        newer = error
                        opened(line)
                    except BadLine as error:
                        good.append((line, opened(line)))  # the file's own beginning is lost
                        found.wrong.append(f"{path.name}, line 1: {error}")
                    before = checksum(line)
                    continue
                if torn and not line.endswith(b"\n"):
                    break
                content = opened(line)
                newer = None  # only the beginning is damaged: this line is not of a newer format
                after, before = before, checksum(line)
                if after is not None and content.get("after", after) != after:
                    found.wrong.append(f"{path.name}, line {index}: the line before is missing")
                good.append((line, content))
            except BadLine as error:
                before = None
                found.wrong.append(f"{path.name}, line {index}: {error}{_said(line)}")
        else:
            if not file.tell():
                found.wrong.append(f"{path.name} is empty")
    if newer is not None:
        raise StateRefused(f"This version cannot read {path}: {newer}; nothing was changed")
    return head, good


def _said(line: bytes) -> str:
    """The legible changes in a damaged line, as a clause of a report."""
    said = [
        f"{op} {table} {key!r}"
        for op, table, key in (
            (word.decode(errors="replace") for word in match) for match in _SAID.findall(line)
        )
    ]
    if not said:
        return ""
    more = f" and {len(said) - _MOST_SAID} more" if len(said) > _MOST_SAID else ""
    return f"; the line may have contained: {', '.join(said[:_MOST_SAID])}{more}"


def _gaps(batches: Mapping[int, _Batch], first: int, end: int) -> Iterator[str]:
    """A sentence for each run of missing batches, and for each incomplete batch."""
    missing = [seq for seq in range(first, end + 1) if seq not in batches]
    while missing:
        run = next((n for n, seq in enumerate(missing) if seq != missing[0] + n), len(missing))
        many = f"batches {missing[0]} to {missing[run - 1]} are"
        yield f"{many if run > 1 else f'batch {missing[0]} is'} lost"
        del missing[:run]
    for seq in sorted(batches):
        if seq >= first and not batches[seq].whole:
            yield f"part of batch {seq} is lost"


def _enter(batch: _Batch, changes: Changes) -> None:
    for op in chain.from_iterable(batch.parts.values()):
        known = op if batch.format == FORMAT else migrated(op, batch.format)
        if known is not None:
            changes.apply(known)
