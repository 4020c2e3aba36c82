"""Ending what an earlier router has left running."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from router import boundary
from router.launch import adoption


def test_one_that_cannot_be_ended_keeps_its_record_and_holds_up_no_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = {"a", "b"}

    class Engine:
        async def end(self, handle: str, **_: Any) -> None:
            await trio.lowlevel.checkpoint()
            if handle == "a":
                raise OSError("too many open files")

    def delete(_: Any, key: str) -> None:
        kept.remove(key)

    store = SimpleNamespace(delete=delete)
    unwanted = [(SimpleNamespace(key=key, name=f"image-{key}"), key) for key in ("a", "b")]
    before = boundary.counts["worker"]
    trio.run(adoption.clear, cast(Any, store), cast(Any, Engine()), cast(Any, unwanted))
    assert kept == {"a"}
    assert boundary.counts["worker"] == before + 1
    assert "ending image-a failed unexpectedly" in caplog.text
