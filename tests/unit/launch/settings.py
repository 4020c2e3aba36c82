"""Settings of launchers, for tests."""

from __future__ import annotations

from typing import Any

from router.settings import LauncherSettings, structure


def launcher(**values: Any) -> LauncherSettings:
    """As YAML with these values gives it."""
    return structure({"model": "Qwen/Qwen-Image", **values}, LauncherSettings)
