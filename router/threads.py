"""Threads, for calls that block."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import trio

T = TypeVar("T")


async def run(
    call: Callable[[], T],
    *,
    limiter: trio.CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """The call in a thread, as trio runs it. Raises OSError where the system has no thread left:
    other processes may have taken all that this container or user may have."""
    try:
        return await trio.to_thread.run_sync(
            call, limiter=limiter, abandon_on_cancel=abandon_on_cancel
        )
    except RuntimeError as error:
        if "start new thread" not in str(error):
            raise
        raise OSError("no thread can be started") from error
