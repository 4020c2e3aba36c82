"""Bounds that mean on a loaded machine what they mean on an idle one."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager

import trio


def stretched(seconds: float) -> float:
    """So many seconds; more where more wants to run than there are processors: then a program has
    its share of them only, and others come in bursts."""
    if not hasattr(os, "getloadavg"):
        return seconds
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    return seconds * max(1.0, 2 * load)


def fail_after(seconds: float) -> AbstractContextManager[trio.CancelScope]:
    """`trio.fail_after`, by so many seconds of an idle machine. Raises trio.TooSlowError."""
    return trio.fail_after(stretched(seconds))
