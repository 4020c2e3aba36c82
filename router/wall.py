"""The clock on the wall: it outlives the process, and may be set. All else uses trio's."""

from __future__ import annotations

from datetime import UTC, datetime


def seconds() -> float:
    """Seconds since 1970."""
    return datetime.now(UTC).timestamp()
