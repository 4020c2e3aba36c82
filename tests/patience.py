"""Bounds that mean on a loaded machine what they mean on an idle one.

A bound by the clock fails where other work has the processor. These count moments in which the
event loop was there for a task that sleeps: of a loaded machine it gets as little as the code
under test.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio
import trio.lowlevel

_MOMENT = 0.01  # seconds


@contextmanager
def fail_after(seconds: float) -> Iterator[None]:
    """`trio.fail_after`, by so many seconds of an idle machine. Raises trio.TooSlowError."""
    counting = trio.CancelScope()
    with trio.CancelScope() as scope:

        async def count() -> None:
            with counting:
                for _ in range(round(seconds / _MOMENT)):
                    await trio.sleep(_MOMENT)
                scope.cancel()

        trio.lowlevel.spawn_system_task(count)
        try:
            yield
        finally:
            counting.cancel()
    if scope.cancelled_caught:
        raise trio.TooSlowError
