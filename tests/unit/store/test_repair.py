"""Repairing a state directory: what is kept, what is said to be lost, and what stays as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from router.store import acknowledged, files
from router.store.changes import Changes
from router.store.journal import Journal
from router.store.opening import StateRefused, take
from router.store.repair import repair
from router.store.snapshot import Pace, compact

Rows = dict[str, int]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Batches 1 to 4 in journal 1 and 5 to 8 in journal 2, each puts the row of its number."""
    written = Journal.create(tmp_path, 1)
    for seq in range(1, 9):
        if seq == 5:
            written.close()
            written = Journal.create(tmp_path, 2, 4, written.after)
        changes = Changes()
        changes.put("kites", str(seq), seq)
        written.append(changes, seq)
    written.close()
    return tmp_path


def rows(folder: Path) -> list[int]:
    taken = take(folder)
    taken.journal.close()
    taken.lock.release()
    return [value for value in taken.loaded.tables.get("kites", {}).values()]


def edited(path: Path, edit: Callable[[list[bytes]], object]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    ("number", "edit", "lost", "said"),
    [
        (1, lambda lines: lines.pop(2), [2], "journal-1.jsonl, line 3: the line before is mis"),
        (1, lambda lines: lines.insert(2, lines[1]), [], "line 3: the line before is missing"),
        (1, lambda lines: lines.insert(2, lines.pop(3)), [], "no acknowledged change is lost"),
        (1, lambda lines: lines.pop(), [4], "batch 4 is lost"),
        (1, lambda lines: lines.pop(0), [], "journal-1.jsonl, line 1: not the first line of"),
        (1, lambda lines: lines.clear(), [1, 2, 3, 4], "batches 1 to 4 are lost"),
        (2, lambda lines: lines.clear(), [5, 6, 7, 8], "batches 5 to 8 are lost"),
        (2, lambda lines: lines.pop(), [8], "batch 8 is lost"),
        (2, lambda lines: lines.append(lines.pop()[:-1]), [8], "batch 8 is lost"),
        (2, lambda lines: lines.append(b"\0\n"), [], "line 6: wrong checksum"),
    ],
)
def test_all_that_can_be_read_is_kept(
    folder: Path, number: int, edit: Callable[[list[bytes]], object], lost: list[int], said: str
) -> None:
    edited(files.journal(folder, number), edit)
    before = {path.name: path.read_bytes() for path in folder.glob("*.jsonl")}
    with pytest.raises(StateRefused):
        take(folder)
    would = list(repair(folder, dry_run=True))
    assert {path.name: path.read_bytes() for path in folder.glob("*.jsonl")} == before
    told = list(repair(folder))
    assert told[:-1] == would
    assert said in "\n".join(told)
    assert any("update weights once more" in line for line in told) == bool(lost)
    assert rows(folder) == [number for number in range(1, 9) if number not in lost]
    aside = folder / "before-repair-1"
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    # Batches are numbered on: none is taken for one that there was.
    noted = acknowledged.read(folder)
    assert noted is not None
    assert noted.seq == 8


@pytest.mark.parametrize(("number", "lost"), [(1, [1, 2, 3, 4]), (2, [5, 6, 7, 8])])
def test_a_lost_journal_costs_its_batches(folder: Path, number: int, lost: list[int]) -> None:
    files.journal(folder, number).unlink()
    told = "\n".join(repair(folder))
    assert f"batches {lost[0]} to {lost[-1]} are lost" in told
    assert rows(folder) == [row for row in range(1, 9) if row not in lost]


def test_what_is_left_of_a_snapshot_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.store.snapshot._ROWS", 1)
    Journal.create(folder, 3, 8, "").close()
    compact(folder, 0, 3, Pace(hurried=True))
    for number in (1, 2):
        files.journal(folder, number).unlink()
    edited(files.snapshot(folder, 3), lambda lines: lines.pop(4))
    with pytest.raises(StateRefused, match="no earlier snapshot"):
        take(folder)
    told = "\n".join(repair(folder))
    assert "snapshot-3.jsonl, line 5: the line before is missing" in told
    assert "some rows of snapshot-3.jsonl may be lost" in told
    assert rows(folder) == [1, 2, 3, 5, 6, 7, 8]


def test_what_is_sound_is_left_alone(folder: Path) -> None:
    with files.journal(folder, 2).open("ab") as file:
        file.write(b"{")  # torn: the next start cuts it
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert list(repair(folder)) == ["nothing is damaged"]
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != files.LOCK}
    assert after == before


def test_a_router_must_not_run(folder: Path) -> None:
    taken = take(folder)
    for dry_run in (True, False):
        with pytest.raises(StateRefused, match="uses the state directory"):
            list(repair(folder, dry_run=dry_run))
    taken.journal.close()
    taken.lock.release()


def test_a_newer_format_is_left_alone(folder: Path) -> None:
    newer = b'{"format":3}\n{"else":"unknown"}\n'
    files.journal(folder, 2).write_bytes(newer)
    with pytest.raises(StateRefused, match="format 3 is newer"):
        list(repair(folder))
    assert files.journal(folder, 2).read_bytes() == newer


def test_a_second_repair_keeps_what_the_first_set_aside(folder: Path) -> None:
    for time in (1, 2):
        edited(max(folder.glob("journal-*.jsonl")), lambda lines: lines.clear())
        list(repair(folder))
        assert (folder / f"before-repair-{time}").is_dir()
