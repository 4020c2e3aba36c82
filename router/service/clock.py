"""The clock of the event loop: it does not count time in which the process was stopped."""

from __future__ import annotations

import math
from time import perf_counter

import trio

_NOTICED = 0.25  # seconds by which a sleep must be overslept to count as a stop


class RunningClock(trio.abc.Clock):
    """Seconds that the process could run, rather than those that went by.

    A process that was stopped (Ctrl-Z, a paused machine) wakes up in the kernel's wait for the next
    deadline, which is then told as expired before any socket was looked at. Here it is still to
    come: what arrived meanwhile is read first.
    """

    def __init__(self) -> None:
        self._stopped = 0.0
        self._since, self._due = 0.0, math.inf  # when the present sleep began, and should end

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        now = perf_counter() - self._stopped
        if now > self._due + _NOTICED:
            # A little before the deadline: it expires at the end of another, short sleep.
            woke = max(self._since, self._due - _NOTICED)
            self._stopped += now - woke
            now = woke
        self._due = math.inf
        return now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """trio asks before it waits for I/O until `deadline`, and reads the clock right after."""
        self._due = math.inf
        now = self.current_time()
        self._since, self._due = now, max(now, deadline)
        return deadline - now
