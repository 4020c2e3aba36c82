"""Settings of launchers, for tests."""

from __future__ import annotations

from typing import Any

from router.settings import LauncherSettings


def launcher(**values: Any) -> LauncherSettings:
    """As YAML with these values gives it."""
    return LauncherSettings.of({"model": "Qwen/Qwen-Image", **values})
