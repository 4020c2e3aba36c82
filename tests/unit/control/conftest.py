from __future__ import annotations

from functools import partial

import pytest

from tests.unit.control.watching import Play, run_scene


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """`play(body, interval=, jitter=)`: `body` gets a Scene with a watchman."""
    return partial(run_scene, monkeypatch)
