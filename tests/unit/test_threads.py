"""A system that has no thread left: what needs one waits or fails, and the router goes on."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from router import threads
from router.errors import StateUnavailable
from router.net.lookup import Lookups, Silent
from router.observe import stderr
from router.observe.stderr import Output
from router.store import store as store_module
from router.store.store import Store


@contextmanager
def exhausted(why: str = "can't start new thread") -> Iterator[None]:
    """The system has no thread left."""

    async def run_sync(*_: Any, **__: Any) -> Any:
        raise RuntimeError(why)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", run_sync)
        yield


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(60):
            await main()

    trio.run(bounded)


def test_it_is_told_as_an_error_of_the_system() -> None:
    async def main() -> None:
        assert await threads.run(lambda: 1) == 1
        with exhausted(), pytest.raises(OSError, match="no thread"):
            await threads.run(lambda: 1)
        with exhausted("a mistake"), pytest.raises(RuntimeError, match="a mistake"):
            await threads.run(lambda: 1)

    run(main)


def test_a_name_cannot_be_looked_up_then() -> None:
    async def main() -> None:
        lookups = Lookups(lambda _: ["127.0.0.1"])
        async with trio.open_nursery() as nursery:
            await nursery.start(lookups.run)
            with exhausted(), pytest.raises(Silent, match="no thread"):
                await lookups.find("name", within=5)
            assert await lookups.find("name", within=5) == ["127.0.0.1"]
            nursery.cancel_scope.cancel()

    run(main)


def test_state_cannot_be_written_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_RETRY_FIRST", 0.01)

    async def main() -> None:
        store = Store.open(tmp_path / "state")
        async with store.running():
            with exhausted():
                store.put_row("table", "key", 1)
                with pytest.raises(StateUnavailable, match="no thread"):
                    await store.commit()
            while store.failing is not None:
                await trio.sleep(0.01)
            await store.commit()

    run(main)
    store = Store.open(tmp_path / "state")
    assert store.rows("table") == {"key": 1}
    store.close()


def test_the_log_is_written_later_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stderr, "_AGAIN", 0.01)

    async def main() -> None:
        reader, writer = os.pipe()
        with os.fdopen(writer, "w") as stream, os.fdopen(reader, "rb", 0) as told:
            output = Output(str, stream)
            async with output.aside():
                with exhausted():
                    output.write("a line\n")
                    await trio.sleep(0.05)
            assert told.read(100) == b"a line\n"

    run(main)
