"""How this program was started, so that it can start itself again as a child."""

from __future__ import annotations

import os
import sys

PROG = "sglang-d-router"

# Taken at import, before anything changes the working directory: __file__ may be relative.
_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def _archive() -> str | None:
    """The zip file that holds this package, if one does."""
    folder = _PACKAGE
    while folder != os.path.dirname(folder):
        if os.path.isfile(folder):
            return folder
        folder = os.path.dirname(folder)
    return None


ARCHIVE = _archive()
"""Absolute path of the `.pyz` that runs, or None in a checkout or an installed copy."""

ROOT = ARCHIVE or os.path.dirname(_PACKAGE)
"""The archive, or the folder that holds the package `router`."""


def self_command() -> list[str]:
    """The beginning of a command line that runs this same program, from any working directory."""
    return [sys.executable, ARCHIVE or os.path.join(_PACKAGE, "__main__.py")]
