"""How a store ends where its disk hangs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from router.errors import StateUnavailable
from router.store import files
from router.store import store as store_module
from router.store.opening import StateRefused
from router.store.store import Store
from tests.unit.store.test_store import Kite, run


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Set, it goes on; until then whatever is synced hangs."""
    goes_on = threading.Event()
    goes_on.set()
    sync = files.sync

    def hang(fd: int) -> None:
        goes_on.wait()
        sync(fd)

    monkeypatch.setattr(files, "sync", hang)
    monkeypatch.setattr(store_module, "_LAST", 0.2)
    yield goes_on
    goes_on.set()


@pytest.mark.parametrize("finishing", [True, False], ids=["finish", "at once"])
def test_a_disk_that_hangs_holds_no_stop_up(
    tmp_path: Path, disk: threading.Event, caplog: pytest.LogCaptureFixture, finishing: bool
) -> None:
    async def main() -> None:
        store = Store.open(tmp_path)
        with caplog.at_level(logging.ERROR):
            async with store.running():
                store.put(Kite("durable"))
                await store.commit()
                disk.clear()
                store.put(Kite("lost"))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(refused, store)
                    while not store._waits:  # its write is under way
                        await trio.sleep(0.001)
                    if finishing:
                        await store.finish()
                    else:
                        store._end_soon()
        assert "1 changes are lost (the disk does not respond)" in caplog.text
        # The write that hangs may still come: nobody else gets the directory before.
        store.close()
        with pytest.raises(StateRefused):
            Store.open(tmp_path)
        disk.set()
        while store._threads.borrowed_tokens:
            await trio.sleep(0.001)
        store.close()
        again = Store.open(tmp_path)
        assert "durable" in again.restored(Kite)
        again.close()

    async def refused(store: Store) -> None:
        with pytest.raises(StateUnavailable):
            await store.commit()

    run(main)


def test_what_is_under_way_at_the_end_is_waited_for(
    tmp_path: Path, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_LAST", 60.0)

    async def main() -> None:
        store = Store.open(tmp_path)
        async with store.running():
            disk.clear()
            store.put(Kite("late"))
            store._wanted.set()
            while not store._waits:
                await trio.sleep(0.001)
            threading.Timer(0.1, disk.set).start()
        again = Store.open(tmp_path)
        assert "late" in again.restored(Kite)
        again.close()

    run(main)
