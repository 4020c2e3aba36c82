"""Shows a state directory to people: `state show` and `state check`. Neither changes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import StartError, describe
from . import files
from .changes import Changes
from .lines import BadLine, Unreadable
from .reading import Damaged, Loaded, load, read_journal, read_snapshot

_TRIES = 5  # a running router may replace files while they are read
_ASSETS = "assets/"  # a table for each owner, with up to a million rows


def show(folder: Path, table: str | None = None) -> Iterator[str]:
    """The lines of `state show`; with `table`, all rows of that table. Raises StartError."""
    loaded = _load(folder)
    if table is not None:
        if table not in loaded.tables:
            known = ", ".join(sorted(loaded.tables)) or "none"
            raise StartError(f"There is no table {table!r} in {folder}; the tables are: {known}")
        yield from _rows(loaded.tables[table])
        return
    yield from _head(folder, loaded)
    owners = loaded.tables.get("owners", {})
    for name in sorted(loaded.tables, key=lambda name: (name.startswith(_ASSETS), name)):
        rows = loaded.tables[name]
        yield ""
        if not name.startswith(_ASSETS):
            yield f"{name}: {_count(len(rows), 'row')}"
            yield from (f"  {line}" for line in _rows(rows))
            continue
        owner = owners.get(name.removeprefix(_ASSETS), {})
        whose = "{kind} of {url}, incarnation {incarnation}".format_map(_Unknown(owner))
        running = sum(order > 0 for order in rows.values())
        yield f"{name}: {_count(len(rows), 'row')}, {running} unfinished: {whose}"
    if any(name.startswith(_ASSETS) for name in loaded.tables):
        yield ""
        yield f"'state show {folder} {_ASSETS}NUMBER' prints the rows of one of these tables."


class _Unknown(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def check(folder: Path) -> tuple[list[str], bool]:
    """The lines of `state check`, and whether everything is good."""
    running = files.holder(folder)
    lines = [_holder(running)]
    good = True
    journals = files.numbered(folder, "journal")
    for number in files.numbered(folder, "snapshot"):
        path = files.snapshot(folder, number)
        try:
            tables, _ = read_snapshot(path, number)
            lines.append(f"{path.name}: good, {_count(sum(map(len, tables.values())), 'row')}")
        except FileNotFoundError:
            continue  # replaced meanwhile
        except BadLine as error:
            good = False
            lines.append(f"{path.name}: BAD: line {error.number}: {error}")
        except (Unreadable, OSError) as error:
            good = False
            lines.append(f"{path.name}: BAD: {describe(error)}")
    for number in journals:
        path = files.journal(folder, number)
        found = Loaded(last=journals[-1])
        try:
            read_journal(path, number, Changes(), found)
        except FileNotFoundError:
            continue
        except (Damaged, Unreadable, OSError) as error:
            good = False
            lines.append(f"{path.name}: BAD: {describe(error)}")
            continue
        end = ""
        if found.torn is not None and running is None:
            cut = found.torn.size
            end = f"; {cut} bytes at the end were never acknowledged; the next start cuts them"
        lines.append(f"{path.name}: good, {_count(found.batches, 'batch', 'batches')}{end}")
    lines += [f"{path.name}: set aside" for path in sorted(folder.glob("*.corrupt"))]
    try:
        loaded = _load(folder)
        count = sum(map(len, loaded.tables.values()))
        tables_there = _count(len(loaded.tables), "table")
        lines.append(f"total: {_count(count, 'row')} in {tables_there}")
    except StartError as error:
        good = False
        lines.append(f"total: BAD: {error}")
    if not good:
        lines.append(f"'state repair {folder} --dry-run' shows what can be kept")
    return lines, good


def look_for(folder: Path) -> None:
    """Raises StartError if no router has ever kept state there."""
    if not folder.is_dir():
        raise StartError(f"{folder} is not a directory")
    if not any(folder.glob("*.jsonl*")) and not (folder / "acknowledged").exists():
        raise StartError(f"There is no state in {folder}")


def _load(folder: Path) -> Loaded:
    look_for(folder)
    for left in reversed(range(_TRIES)):
        try:
            loaded = load(folder)
        except (Damaged, FileNotFoundError) as error:
            if left and files.holder(folder) is not None:
                continue
            raise StartError(f"The state in {folder} is damaged: {describe(error)}") from error
        except (Unreadable, OSError) as error:
            raise StartError(f"The state in {folder} cannot be read: {describe(error)}") from error
        if not loaded.last:
            raise StartError(f"There is no state in {folder}")
        return loaded
    raise AssertionError


def _head(folder: Path, loaded: Loaded) -> Iterator[str]:
    yield f"The state in {folder}"
    yield _holder(files.holder(folder))
    first = loaded.base or 1
    journals = f"journals {first} to {loaded.last}" if loaded.last > first else f"journal {first}"
    snapshot = f"snapshot {loaded.base} and " if loaded.base else ""
    age = files.age(files.journal(folder, loaded.last))
    batches = _count(loaded.batches, "batch", "batches")
    yield f"{snapshot}{journals} with {batches}; last written {lasting(age or 0.0)} ago"
    for path, why in loaded.corrupt:
        yield f"{path.name} is CORRUPT: {why}; the previous snapshot is used"


def _holder(running: str | None) -> str:
    if running is None:
        return "No router is using this directory."
    return f"A router (process {running}) is using this directory and may change it at any moment."


def _rows(rows: dict[str, Any]) -> Iterator[str]:
    for key, value in rows.items():
        yield f"{key}  {json.dumps(value, ensure_ascii=False)}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def lasting(seconds: float) -> str:
    """A length of time for people: `3 min`."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
