"""The store: what is acknowledged is there again, whatever happens to the files."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
import trio.testing
from attrs import frozen

from router.errors import StateUnavailable
from router.store import acknowledged, files, opening, reading
from router.store import journal as journal_module
from router.store import lines as lines_module
from router.store import store as store_module
from router.store.opening import StateRefused
from router.store.store import StateWritten, Store


@frozen
class Kite:
    table: ClassVar[str] = "kites"
    key: str
    colour: str = "red"
    length: int | None = None


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await main()

    trio.run(bounded, strict_exception_groups=True)


def written(folder: Path, *records: Kite, finish: bool = False) -> None:
    """Put records one batch after the other, as one run of the router does."""

    async def main() -> None:
        store = Store.open(folder)
        async with store.running():
            for record in records:
                store.put(record)
                await store.commit()
            if finish:
                await store.finish()

    run(main)


def found(folder: Path) -> dict[str, Kite]:
    """What a router finds there; the directory stays as it is."""
    copy = folder.with_name(folder.name + "-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    store = Store.open(copy)
    records = store.restored(Kite)
    store.close()
    return records


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    one, two = Kite("1"), Kite("2", "blue", 3)
    written(tmp_path, one, two)
    store = Store.open(tmp_path)
    assert store.keeps
    assert store.restored(Kite) == {"1": one, "2": two}
    assert store.absence is not None
    store.close()
    written(tmp_path, Kite("1", "green"))
    assert found(tmp_path) == {"1": Kite("1", "green"), "2": two}


def test_without_a_directory_nothing_is_kept() -> None:
    async def main() -> None:
        store = Store()
        async with store.running():
            store.put(Kite("1"))
            store.delete(Kite, "1")
            await store.commit()
            await store.finish()
        assert not store.keeps
        assert store.restored(Kite) == {}

    run(main)


def test_only_a_router_that_served_was_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails at its start again and again, or `reap`, has watched no worker."""

    def age() -> float:
        seconds = files.age(tmp_path / files.LOCK)
        assert seconds is not None
        return seconds

    def absence(*, serving: bool = True, seconds: float = 0.0, until: float = 0.0) -> float:
        async def main() -> None:
            store = Store.open(tmp_path)
            async with store.running(serving=serving):
                await trio.sleep(seconds)
                while until and age() > until:
                    await trio.sleep(0.01)

        run(main)
        return age()

    monkeypatch.setattr(store_module, "_ALIVE", 0.05)
    absence()
    os.utime(tmp_path / files.LOCK, (0, 0))
    assert absence() > 1000
    assert absence(serving=False, seconds=0.2) > 1000
    Store.open(tmp_path).close()
    assert absence() > 1000
    assert absence(until=1000) < 1000


def test_what_nobody_waits_for_is_written_soon(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put(Kite("1"))
            store.put(Kite("2"))
            store.delete(Kite, "2")
            while not found(tmp_path):
                await trio.sleep(0.01)
            assert found(tmp_path) == {"1": Kite("1")}

    run(main)


def test_commits_side_by_side_share_a_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = 0

    def sync(fd: int) -> None:
        nonlocal synced
        synced += 1

    async def main() -> None:
        store = Store.open(tmp_path)
        monkeypatch.setattr(files, "sync", sync)

        async def one(number: int) -> None:
            store.put(Kite(str(number)))
            await store.commit()

        async with store.running():
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(one, number)
            assert 0 < synced <= 3
            assert len(found(tmp_path)) == 20

    run(main)


def test_commit_waits_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        begun, gate = trio.Event(), trio.Event()

        def sync(fd: int) -> None:
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(gate.wait)

        over = []

        async def one() -> None:
            store.put(Kite("1"))
            await store.commit()
            over.append(True)

        async with store.running(), trio.open_nursery() as nursery:
            monkeypatch.setattr(files, "sync", sync)
            nursery.start_soon(one)
            await begun.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert not over
            gate.set()
        assert over

    run(main)


def test_a_second_store_is_refused(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(StateRefused, match=rf"process {os.getpid()}\) uses the state directory"):
        Store.open(tmp_path)
    assert files.holder(tmp_path) == str(os.getpid())
    store.close()
    assert files.holder(tmp_path) is None
    Store.open(tmp_path).close()


def test_fresh_sets_aside_what_is_there(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"))
    store = Store.open(tmp_path, fresh=True)
    assert store.restored(Kite) == {}
    assert store.absence is None
    store.close()
    assert found(tmp_path) == {}
    assert found(tmp_path / opening.ASIDE) == {"1": Kite("1")}
    Store.open(tmp_path, fresh=True).close()
    assert found(tmp_path / opening.ASIDE) == {}


def test_a_torn_end_is_cut_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, Kite("1"))
    journal = files.journal(tmp_path, 1)
    with journal.open("ab") as file:
        file.write(b'{"after":"')
    store = Store.open(tmp_path)
    assert store.restored(Kite) == {"1": Kite("1")}
    store.close()
    [record] = caplog.records
    assert "cut 10 bytes" in record.getMessage()
    assert found(tmp_path) == {"1": Kite("1")}
    assert len(caplog.records) == 1


def test_what_was_read_is_synced_before_another_journal_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A router that is killed between a write and its sync leaves a whole batch that a failure of
    the machine may still take: in the middle of the chain, were there journals behind it."""
    written(tmp_path, Kite("a"))
    synced: list[int] = []
    sync = files.sync

    def noted(fd: int) -> None:
        synced.append(os.fstat(fd).st_ino)
        sync(fd)

    monkeypatch.setattr(files, "sync", noted)
    last = files.journal(tmp_path, 1).stat().st_ino
    Store.open(tmp_path).close()
    assert synced[0] == last


def edited(path: Path, edit: Callable[[list[bytes]], None]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    edit(lines)
    path.write_bytes(b"".join(lines))


def flip(lines: list[bytes], index: int) -> None:
    lines[index] = lines[index].replace(b'"red"', b'"rad"')


EDITS: dict[str, tuple[Callable[[list[bytes]], None], str]] = {
    "a flipped bit": (lambda lines: flip(lines, 2), "line 3: wrong checksum"),
    "a flipped bit in the last line": (lambda lines: flip(lines, 3), "line 4: wrong checksum"),
    "a bad header": (lambda lines: lines.__setitem__(0, b"{}\n"), "line 1: wrong checksum"),
    "no header": (lambda lines: lines.pop(0) and None, "line 1: not the first line of journal 1"),
    "nothing": (lambda lines: lines.clear(), "line 1: the line is cut short"),
    "a lost line": (
        lambda lines: lines.pop(1) and None,
        "line 2: does not continue the previous line",
    ),
    "a doubled header": (lambda lines: lines.insert(0, lines[0]), "line 2: does not continue"),
    "a doubled line": (lambda lines: lines.insert(2, lines[1]), "line 3: does not continue"),
    "swapped lines": (lambda lines: lines.insert(1, lines.pop(2)), "line 2: does not continue"),
    "a lost end": (lambda lines: lines.pop() and None, "lacks its end: batch 3 .* disk is 2"),
    "a cut end": (
        lambda lines: lines.append(lines.pop()[:-1]),
        "lacks its end: batch 3 .* disk is 2",
    ),
    "an empty line": (lambda lines: lines.append(b"\n"), "line 5: wrong checksum"),
}


@pytest.mark.parametrize("harm", EDITS)
def test_a_damaged_journal_is_refused_by_file_and_line(tmp_path: Path, harm: str) -> None:
    written(tmp_path, Kite("1"), Kite("2"), Kite("3"))
    edit, told = EDITS[harm]
    journal = files.journal(tmp_path, 1)
    edited(journal, edit)
    data = journal.read_bytes()
    with pytest.raises(StateRefused, match=rf"journal-1.jsonl,? {told}") as refused:
        Store.open(tmp_path)
    assert refused.value.status == 2
    for way in (f"'state check {tmp_path}'", f"'state repair {tmp_path}'", "--fresh"):
        assert way in str(refused.value)
    assert journal.read_bytes() == data


def test_a_lost_end_is_noticed_when_the_next_journal_does_not_go_on(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"), Kite("2"))
    written(tmp_path, Kite("3"))
    edited(files.journal(tmp_path, 1), lambda lines: lines.pop() and None)
    with pytest.raises(StateRefused, match=r"journal-2.jsonl, line 1: continues after batch 2, "):
        Store.open(tmp_path)


@pytest.mark.parametrize("restarts", [0, 1])
def test_a_lost_last_journal_is_noticed(tmp_path: Path, restarts: int) -> None:
    for number in range(restarts + 1):
        written(tmp_path, Kite(str(number)))
    files.journal(tmp_path, restarts + 1).unlink()
    with pytest.raises(StateRefused, match=rf"journal-{restarts + 1}.jsonl lacks its end"):
        Store.open(tmp_path)


def test_the_note_alone_refuses_nothing(tmp_path: Path) -> None:
    """It may be lost or unreadable, and a copy of what a router writes may be older than it."""
    written(tmp_path, Kite("1"), Kite("2"))
    note = tmp_path / acknowledged.NAME
    for harm in (b"", b"\0" * 50, note.read_bytes().replace(b"2", b"3")):
        note.write_bytes(harm)
        assert set(found(tmp_path)) == {"1", "2"}
    note.unlink()
    assert set(found(tmp_path)) == {"1", "2"}
    written(tmp_path, Kite("3"))
    copy = tmp_path.with_name("copy")
    shutil.copytree(tmp_path, copy)
    edited(files.journal(copy, 2), lambda lines: lines.pop() and None)
    Store.open(copy).close()


def test_an_incomplete_batch_of_several_lines_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "_OPS", 1)

    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put(Kite("1"))
            await store.commit()
            store.put(Kite("2"))
            store.put(Kite("3"))

    run(main)
    (tmp_path / acknowledged.NAME).unlink()  # as if that batch had never been acknowledged
    edited(files.journal(tmp_path, 1), lambda lines: lines.pop() and None)
    assert set(found(tmp_path)) == {"1"}


def test_the_lock_is_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    (folder / files.LOCK).symlink_to(victim)
    with pytest.raises(StateRefused, match="lock is a symbolic link") as refused:
        Store.open(folder)
    assert refused.value.status == 2
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(StateRefused, match=rf"Other users can write to .*chmod go-w {folder}"):
        Store.open(folder)
    inner = folder / "new" / "state"
    Store.open(inner).close()
    for made in (inner, inner.parent):
        assert made.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o755)
    Store.open(folder).close()


def test_a_directory_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = os.geteuid()
    if user == 0:  # whose directories everybody must trust
        os.chown(tmp_path, user := 4711, -1)
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.raises(StateRefused, match="belongs to another user"):
        Store.open(tmp_path)


def test_a_torn_journal_before_another_is_refused(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"))
    written(tmp_path, Kite("2"))
    journal = files.journal(tmp_path, 1)
    journal.write_bytes(journal.read_bytes()[:-5])
    with pytest.raises(StateRefused, match="damaged"):
        Store.open(tmp_path)


def test_a_missing_journal_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        written(tmp_path, Kite(str(number)))
    files.journal(tmp_path, 2).unlink()
    with pytest.raises(StateRefused, match=r"journal-2.jsonl is missing"):
        Store.open(tmp_path)


def test_the_lock_is_given_back_where_opening_fails(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"))
    files.journal(tmp_path, 1).write_bytes(b'{"format":99}\n')
    for _ in range(2):
        with pytest.raises(StateRefused, match="format 99"):
            Store.open(tmp_path)


@pytest.mark.parametrize("name", ["journal-1.jsonl", "snapshot-2.jsonl"])
def test_a_newer_format_is_refused(tmp_path: Path, name: str) -> None:
    written(tmp_path, Kite("1"), finish=True)
    (tmp_path / name).write_bytes(b'{"format":3,"else":"unknown"}\n')
    if name.startswith("journal"):
        files.snapshot(tmp_path, 2).unlink()
    with pytest.raises(
        StateRefused,
        match=r"format 3 is newer than 2, the newest format that this version reads; start",
    ):
        Store.open(tmp_path)


def in_format_1(folder: Path) -> None:
    """Write all files as the version before did."""
    for path in folder.glob("*.jsonl"):

        def old(lines: list[bytes]) -> None:
            for index, line in enumerate(lines):
                content = lines_module.opened(line)
                content.pop("after", None)
                if index == 0:
                    content = {**content, "format": 1}
                    content.pop("seq", None)
                lines[index] = lines_module.sealed(content)

        edited(path, old)
    (folder / acknowledged.NAME).unlink()


@pytest.mark.parametrize("finish", [False, True])
def test_format_1_is_read(tmp_path: Path, finish: bool) -> None:
    written(tmp_path, Kite("1"), Kite("2"), finish=finish)
    written(tmp_path, Kite("3"), Kite("4"))
    in_format_1(tmp_path)
    all_of_them = {name: Kite(name) for name in "1234"}
    assert found(tmp_path) == all_of_them
    written(tmp_path, Kite("5"))
    assert found(tmp_path) == {**all_of_them, "5": Kite("5")}
    last_old = max(files.numbered(tmp_path, "journal")) - 1
    journal = files.journal(tmp_path, last_old)
    whole = journal.read_bytes()
    edited(journal, lambda lines: lines.pop() and None)
    with pytest.raises(StateRefused, match=r"line 1: continues after batch 4, .* end with batch 3"):
        Store.open(tmp_path)
    journal.write_bytes(whole)
    edited(journal, lambda lines: lines.pop(1) and None)
    with pytest.raises(StateRefused, match=r"line 2: expected batch 3, found batch 4"):
        Store.open(tmp_path)
    journal.write_bytes(whole)
    written(tmp_path, Kite("6"), finish=True)  # from old and new ones
    assert found(tmp_path) == {**all_of_them, "5": Kite("5"), "6": Kite("6")}


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After it is called, the program is of a later format: kites were called birds."""

    def later() -> None:
        def renamed(table: str, key: str, value: Any) -> tuple[str, str, Any] | None:
            if table == "stones":
                return None
            if value is not None:
                value = {"key": value["key"], "colour": value["tint"]}
            return ("kites" if table == "birds" else table), key, value

        monkeypatch.setattr(lines_module, "FORMAT", 3)
        monkeypatch.setattr(reading, "FORMAT", 3)
        monkeypatch.setitem(lines_module.MIGRATIONS, 2, renamed)

    return later


@pytest.mark.parametrize("finish", [False, True])
def test_the_format_before_is_read(tmp_path: Path, older: Callable[[], None], finish: bool) -> None:
    async def before() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put_row("birds", "0", {"key": "0", "tint": "grey"})
            store.clear("birds")
            store.put_row("birds", "1", {"key": "1", "tint": "blue"})
            store.put_row("birds", "2", {"key": "2", "tint": "blue"})
            store.put_row("stones", "3", {"key": "3", "tint": "grey"})
            await store.commit()
            store.delete_row("birds", "2")
            if finish:
                await store.finish()

    run(before)
    older()
    store = Store.open(tmp_path)
    assert store.restored(Kite) == {"1": Kite("1", "blue")}
    assert store.tables() == ["kites"]
    store.close()
    written(tmp_path, Kite("4"), finish=True)  # from old and new ones
    assert found(tmp_path) == {"1": Kite("1", "blue"), "4": Kite("4")}
    newest = max(files.numbered(tmp_path, "snapshot"))
    assert json.loads(files.snapshot(tmp_path, newest).read_text().splitlines()[0])["format"] == 3


def test_a_format_that_is_too_old_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, Kite("1"))
    monkeypatch.setattr(lines_module, "FORMAT", 3)
    with pytest.raises(StateRefused, match="this version no longer reads format"):
        Store.open(tmp_path)


def test_unknown_tables_and_fields_are_kept(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put_row("riddles", "1", {"what": [1, 2]})
            store.put_row("kites", "1", {"key": "1", "later": True})
            await store.commit()

    run(main)
    written(tmp_path, finish=True)
    written(tmp_path, Kite("2"), finish=True)
    store = Store.open(tmp_path)
    assert store.rows("riddles") == {"1": {"what": [1, 2]}}
    assert store.restored(Kite) == {"1": Kite("1"), "2": Kite("2")}
    store.release()
    assert store.tables() == []
    store.close()


def test_a_row_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put_row("kites", "7", {"length": "long"})

    run(main)
    store = Store.open(tmp_path)
    with pytest.raises(StateRefused, match=r"an invalid row '7' in the table kites"):
        store.restored(Kite)
    store.close()


class Snapshots:
    """A directory with two snapshots and journals since the first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for number in range(3):
            written(folder, Kite(str(number)), Kite("last", str(number)), finish=number < 2)
        self.kept = [files.snapshot(folder, n) for n in files.numbered(folder, "snapshot")]

    def all(self) -> dict[str, Kite]:
        return {**{str(n): Kite(str(n)) for n in range(3)}, "last": Kite("last", "2")}


@pytest.fixture
def snapshots(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path / "state")


def test_snapshots_take_the_place_of_older_files(snapshots: Snapshots) -> None:
    assert found(snapshots.folder) == snapshots.all()
    assert [path.name for path in snapshots.kept] == ["snapshot-2.jsonl", "snapshot-4.jsonl"]
    written(snapshots.folder, Kite("x"), finish=True)
    # The one before, and the journals since it.
    assert files.numbered(snapshots.folder, "snapshot") == [4, 7]
    assert files.numbered(snapshots.folder, "journal") == [4, 5, 6, 7]
    assert found(snapshots.folder) == {**snapshots.all(), "x": Kite("x")}


@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "longer", "gone"])
def test_a_corrupt_snapshot_costs_nothing(
    snapshots: Snapshots, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    last = snapshots.kept[-1]
    data = last.read_bytes()
    lines = data.splitlines(keepends=True)
    if harm == "gone":
        last.unlink()
    else:
        last.write_bytes(
            {
                "cut": b"".join(lines[:-1]),
                "flipped": data.replace(b"red", b"rad"),
                "empty": b"",
                "longer": data + lines[1],
            }[harm]
        )
    store = Store.open(snapshots.folder)
    assert store.restored(Kite) == snapshots.all()
    store.close()
    if harm == "gone":
        assert not caplog.records
        return
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert "renamed to snapshot-4.jsonl.corrupt" in record.getMessage()
    assert last.with_name(last.name + ".corrupt").exists()
    assert not last.exists()
    assert found(snapshots.folder) == snapshots.all()
    written(snapshots.folder, Kite("x"), finish=True)
    assert found(snapshots.folder) == {**snapshots.all(), "x": Kite("x")}


def test_two_corrupt_snapshots_are_refused(snapshots: Snapshots) -> None:
    for path in snapshots.kept:
        path.write_bytes(b"")
    with pytest.raises(StateRefused, match=r"snapshot-4.jsonl cannot be read: .* no earlier"):
        Store.open(snapshots.folder)
    assert all(path.exists() for path in snapshots.kept)


def test_a_first_snapshot_that_is_corrupt_costs_nothing(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"), finish=True)
    written(tmp_path, Kite("2"))
    files.snapshot(tmp_path, 2).write_bytes(b"x")
    assert found(tmp_path) == {"1": Kite("1"), "2": Kite("2")}


def test_a_clean_stop_without_changes_makes_no_snapshot(tmp_path: Path) -> None:
    written(tmp_path, Kite("1"), finish=True)
    written(tmp_path, finish=True)
    assert files.numbered(tmp_path, "snapshot") == [2]


def test_many_starts_are_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_MOST_JOURNALS", 4)

    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put(Kite("x"))
            await store.commit()
            while not files.numbered(tmp_path, "snapshot"):
                await trio.sleep(0.01)

    for number in range(5):
        written(tmp_path, Kite(str(number)))
    run(main)
    assert set(found(tmp_path)) == {"0", "1", "2", "3", "4", "x"}


class Disk:
    """Lets writing fail, at will."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = False
        self.room = 0  # bytes that are still taken when it is full
        write = files.write

        def limited(fd: int, data: bytes) -> None:
            if self.full:
                write(fd, data[: self.room])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(fd, data)

        monkeypatch.setattr(files, "write", limited)
        monkeypatch.setattr(store_module, "_RETRY_FIRST", 0.01)
        monkeypatch.setattr(store_module, "_RETRY_MOST", 0.01)
        monkeypatch.setattr(store_module, "_LAZY", 0.01)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 1, 60])
def test_a_full_disk_refuses_until_it_heals(tmp_path: Path, disk: Disk, room: int) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put(Kite("1"))
            await store.commit()
            disk.full, disk.room = True, room
            store.put(Kite("2"))
            with pytest.raises(StateUnavailable, match="no space left") as raised:
                await store.commit()
            assert raised.value.status == 503
            assert raised.value.code == "state_unavailable"
            with pytest.raises(StateUnavailable):
                store.check()
            store.put(Kite("2", "blue"))
            store.put(Kite("3"))
            with pytest.raises(StateUnavailable):
                await store.commit()
            disk.full = False
            while store.failing:
                await trio.sleep(0.01)
            store.check()
            await store.commit()
            expected = {"1": Kite("1"), "2": Kite("2", "blue"), "3": Kite("3")}
            assert found(tmp_path) == expected

    run(main)


def test_a_full_disk_at_best_effort(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        store = Store.open(tmp_path, best_effort=True)
        async with store.running():
            disk.full = True
            store.put(Kite("1"))
            await store.commit()
            store.check()
            assert store.failing == "no space left on device"
            disk.full = False
            while store.failing:
                await trio.sleep(0.01)

    run(main)
    assert found(tmp_path) == {"1": Kite("1")}


def test_what_waits_for_a_full_disk_is_bounded(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            disk.full = True
            for number in range(1000):
                store.put(Kite("same", str(number)))
                store.put_row("assets", str(number), 1, new=True)
                store.delete_row("assets", str(number))
                if number % 100 == 0:
                    with pytest.raises(StateUnavailable):
                        await store.commit()
            assert len(store._pending) < 20
            disk.full = False

    run(main)
    assert found(tmp_path) == {"same": Kite("same", "999")}


def test_no_snapshot_on_a_full_disk(tmp_path: Path, disk: Disk) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            store.put(Kite("1"))
            await store.commit()
            disk.full = True
            await store.finish()
            assert store.failing is None
            disk.full = False
            store.put(Kite("2"))
            await store.commit()

    run(main)
    assert files.numbered(tmp_path, "snapshot") == []
    assert not list(tmp_path.glob("*.tmp"))
    assert found(tmp_path) == {"1": Kite("1"), "2": Kite("2")}


def test_a_journal_that_was_deleted_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            files.journal(tmp_path, 1).unlink()
            store.put(Kite("1"))
            with pytest.raises(StateUnavailable, match="was deleted"):
                await store.commit()

    run(main)


def test_what_is_pending_is_written_at_a_cancelled_end(tmp_path: Path) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        with trio.CancelScope() as scope:
            async with store.running():
                store.put(Kite("1"))
                scope.cancel()
                await trio.sleep_forever()

    run(main)
    assert found(tmp_path) == {"1": Kite("1")}


def test_what_is_lost_at_the_end_is_told(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            disk.full = True
            store.put(Kite("1"))
            store.put(Kite("2"))
            await store.finish()

    run(main)
    assert "could not be written: 2 changes are lost (no space left on device)" in caplog.text
    disk.full = False
    assert found(tmp_path) == {}


@pytest.fixture(autouse=True)
def _no_leftovers(tmp_path: Path) -> Iterator[None]:
    yield
    assert not list(tmp_path.rglob("*.tmp"))


def test_what_a_failed_batch_has_left_is_cut(
    tmp_path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            disk.full, disk.room = True, 3000
            store.put(Kite("1", "x" * 5000))
            with pytest.raises(StateUnavailable):
                await store.commit()
            store.put(Kite("1"))  # so the next try is shorter than what is there
            disk.full = False
            while store.failing:
                await trio.sleep(0.01)

    run(main)
    caplog.clear()
    assert found(tmp_path) == {"1": Kite("1")}
    assert not caplog.records


def test_each_batch_that_reaches_the_disk_is_told(tmp_path: Path) -> None:
    told: list[StateWritten] = []

    async def main() -> None:
        store = Store.open(tmp_path)
        store.bus.subscribe(told.append, StateWritten)
        async with store.running():
            for key in "ab":
                store.put(Kite(key))
                await store.commit()

    run(main)
    numbers = [event.batch for event in told]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= 2
    assert all(event.seconds > 0 and event.synced > 0 for event in told)
