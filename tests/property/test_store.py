"""Journals and snapshots against plain dicts: whatever is done, and wherever the files are cut."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.store import files, journal, snapshot
from router.store.changes import Changes, Op, Tables
from router.store.journal import Journal
from router.store.opening import StateRefused
from router.store.reading import Damaged, load
from router.store.repair import repair
from router.store.snapshot import Pace, compact
from router.store.store import Store

TABLES = st.sampled_from(["workers", "jobs", "assets/1"])
KEYS = st.sampled_from(["a", "b", "c", "é\u2028\ud800", ""])
VALUES = st.one_of(st.integers(), st.text(max_size=5), st.dictionaries(st.text(), st.none()))
OPS: st.SearchStrategy[Op] = st.one_of(
    st.tuples(st.just("put"), TABLES, KEYS, VALUES),
    st.tuples(st.just("del"), TABLES, KEYS),
    st.tuples(st.just("clear"), TABLES),
)
BATCHES = st.lists(st.lists(OPS, min_size=1, max_size=6), min_size=1, max_size=6)


@contextmanager
def folder() -> Iterator[Path]:
    # That things reach the disk is not what these are about, and takes long.
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "sync", lambda fd: None)
        patch.setattr(files, "sync_folder", lambda folder: None)
        yield Path(name)


def carry_out(tables: Tables, op: Op) -> None:
    """What an op means."""
    if op[0] == "clear":
        tables.pop(op[1], None)
        return
    rows = tables.setdefault(op[1], {})
    rows.pop(op[2], None)
    if op[0] == "put":
        rows[op[2]] = op[3]
    if not rows:
        del tables[op[1]]


def changes_of(batch: list[Op]) -> Changes:
    changes = Changes()
    for op in batch:
        changes.apply(op)
    return changes


def in_order(tables: Tables) -> dict[str, list[tuple[str, object]]]:
    """Tables with the order of their rows, which counts."""
    return {name: list(rows.items()) for name, rows in tables.items()}


def fresh_tables(batches: list[list[Op]]) -> list[Tables]:
    """The tables before the first batch and after each."""
    tables: Tables = {}
    seen = [copy.deepcopy(tables)]
    for batch in batches:
        for op in batch:
            carry_out(tables, op)
        seen.append(copy.deepcopy(tables))
    return seen


@given(BATCHES, st.integers(1, 3))
@settings(max_examples=8)
def test_a_journal_that_is_cut_anywhere_is_some_batch(
    batches: list[list[Op]], per_line: int
) -> None:
    expected = fresh_tables(batches)
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_OPS", per_line)  # batches of several lines
        written = Journal.create(path, 1)
        ends = [written.size]
        for seq, batch in enumerate(batches, 1):
            written.append(changes_of(batch), seq)
            ends.append(written.size)
        written.close()
        file = files.journal(path, 1)
        data = file.read_bytes()
        assert len(data) == ends[-1]
        acknowledged = path / "acknowledged"
        note = acknowledged.read_bytes()
        for cut in range(len(data) + 1):
            file.write_bytes(data[:cut])
            acknowledged.unlink(missing_ok=True)  # the crash came before the last batches counted
            whole = sum(end <= cut for end in ends) - 1
            if whole < 0:  # it is written and renamed whole
                with pytest.raises(Damaged):
                    load(path)
                continue
            loaded = load(path)
            assert in_order(loaded.tables) == in_order(expected[whole])
            good = ends[whole]
            if cut == good:
                assert loaded.torn is None
            else:
                assert loaded.torn is not None
                assert (loaded.torn.good, loaded.torn.size) == (good, cut - good)
            acknowledged.write_bytes(note)
            if whole < len(batches):
                with pytest.raises(Damaged):
                    load(path)


ACTIONS = st.lists(
    st.one_of(st.lists(OPS, min_size=1, max_size=8), st.sampled_from(["compact", "restart"])),
    max_size=12,
)


@given(ACTIONS, st.sampled_from(["nothing", "lose", "spoil"]))
@settings(max_examples=150)
def test_snapshots_and_journals_are_the_journal_alone(
    actions: list[list[Op] | str], harm: str
) -> None:
    expected: Tables = {}
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "_ROWS", 2)
        written, base, seq = Journal.create(path, 1), 0, 0
        for action in actions:
            if action == "compact":
                written.close()
                written = Journal.create(path, written.number + 1, seq, written.after)
                compact(path, base, written.number, Pace(hurried=True))
                base = written.number
            elif action == "restart":
                written.close()
                loaded = load(path)
                written = Journal.create(path, loaded.last + 1, seq, loaded.after or "")
            else:
                assert isinstance(action, list)
                for op in action:
                    carry_out(expected, op)
                changes = changes_of(action)
                if changes:
                    seq += 1
                    written.append(changes, seq)
            loaded = load(path)
            assert in_order(loaded.tables) == in_order(expected)
            assert (loaded.base, loaded.last) == (base, written.number)
            if base:
                assert loaded.seq == seq
        written.close()
        assert len(files.numbered(path, "snapshot")) <= 2
        if base and harm != "nothing":
            newest = files.snapshot(path, base)
            if harm == "lose":
                newest.unlink()
            else:
                newest.write_bytes(newest.read_bytes()[:-3])
            loaded = load(path)
            assert in_order(loaded.tables) == in_order(expected)
            assert bool(loaded.corrupt) == (harm == "spoil")


@given(st.lists(st.lists(OPS, max_size=8), max_size=5))
def test_changes_add_up(groups: list[list[Op]]) -> None:
    expected: Tables = {}
    total = Changes()
    for group in groups:
        for op in group:
            carry_out(expected, op)
        total.follow(changes_of(group))
    tables: Tables = {}
    total.onto(tables)
    assert in_order(tables) == in_order(expected)
    again = Changes()
    for op in total.ops():
        again.apply(op)
    tables = {}
    again.onto(tables)
    assert in_order(tables) == in_order(expected)
    assert len(total) == len(list(total.ops()))


@given(st.lists(st.tuples(st.booleans(), KEYS), max_size=12))
def test_what_is_new_and_dropped_again_leaves_nothing(steps: list[tuple[bool, str]]) -> None:
    changes, there = Changes(), set[str]()
    for put, key in steps:
        if put:
            changes.put("t", key, 1, new=key not in there)
            there.add(key)
        else:
            changes.delete("t", key)
            there.discard(key)
    assert {op[2] for op in changes.ops() if op[0] == "put"} == there


def stored(path: Path, actions: list[list[Op] | str]) -> Tables:
    """Carry out batches, compactions and restarts in a directory; the tables that result."""
    expected: Tables = {}
    written, base, seq = Journal.create(path, 1), 0, 0
    for action in actions:
        if isinstance(action, str):
            written.close()
            written = Journal.create(path, written.number + 1, seq, written.after)
            if action == "compact":
                compact(path, base, written.number, Pace(hurried=True))
                base = written.number
            continue
        for op in action:
            carry_out(expected, op)
        if changes := changes_of(action):
            seq += 1
            written.append(changes, seq)
    written.close()
    return expected


def damage(draw: Callable[..., Any], path: Path) -> None:
    """Do one harm to one file."""
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    at = draw(st.integers(0, max(0, len(data) - 1)), label="byte")
    one = draw(st.integers(0, max(0, len(lines) - 1)), label="line")
    other = draw(st.integers(0, max(0, len(lines) - 1)), label="other line")
    match draw(st.sampled_from(HARMS), label="harm"):
        case "flip" if data:
            flipped = bytearray(data)
            flipped[at] ^= 1 << draw(st.integers(0, 7), label="bit")
            data = bytes(flipped)
        case "lose line" if lines:
            data = b"".join(lines[:one] + lines[one + 1 :])
        case "double line" if lines:
            data = b"".join([*lines[: one + 1], *lines[one:]])
        case "swap lines" if lines:
            lines[one], lines[other] = lines[other], lines[one]
            data = b"".join(lines)
        case "truncate":
            data = data[:at]
        case "zeros":
            end = draw(st.integers(at, len(data)), label="end")
            data = data[:at] + bytes(end - at) + data[end:]
        case "append":
            data += draw(st.binary(min_size=1, max_size=40) | st.sampled_from(lines or [b"\n"]))
        case "lose file":
            path.unlink()
            return
    path.write_bytes(data)


HARMS = [
    *("flip", "lose line", "double line", "swap lines"),
    *("truncate", "zeros", "append", "lose file"),
]


@given(ACTIONS, st.integers(1, 3), st.data())
@settings(max_examples=300)
def test_any_single_damage_is_refused_or_loses_nothing(
    actions: list[list[Op] | str], per_line: int, data: st.DataObject
) -> None:
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr(journal, "_OPS", per_line)
        patch.setattr(snapshot, "_ROWS", 2)
        Store.open(path).close()  # makes the lock too
        files.journal(path, 1).unlink()
        expected = stored(path, actions)
        names = sorted(file.name for file in path.iterdir())
        name = data.draw(st.sampled_from(names), label="file")
        damage(data.draw, path / name)
        try:
            store = Store.open(path)
        except StateRefused:
            told = list(repair(path))
            Store.open(path).close()
            assert list(repair(path)) == ["nothing is damaged"]
            assert any("lost" in line for line in told)
            return
        found = {table: store.rows(table) for table in store.tables()}
        store.close()
        assert in_order(found) == in_order(expected)


def test_compaction_leaves_nothing_beside_the_previous_snapshot(tmp_path: Path) -> None:
    written = Journal.create(tmp_path, 1)
    for number in range(2, 6):
        written.append(changes_of([["put", "t", str(number), number]]), number - 1)
        written.close()
        written = Journal.create(tmp_path, number, number - 1, written.after)
        compact(tmp_path, number - 1 if number > 2 else 0, number, Pace(hurried=True))
    written.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "acknowledged",
        "journal-4.jsonl",
        "journal-5.jsonl",
        "snapshot-4.jsonl",
        "snapshot-5.jsonl",
    ]
    shutil.rmtree(tmp_path)
