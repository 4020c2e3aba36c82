"""The clock of the event loop: time during which the process was stopped does not count."""

from __future__ import annotations

import math
from time import perf_counter

import trio

_NOTICED = 0.25  # seconds by which a sleep must be overslept to count as a stop


class RunningClock(trio.abc.Clock):
    """Counts the seconds in which the process could run, not those that passed.

    A process that was stopped (Ctrl-Z, a paused machine) wakes up in the kernel's wait for the next
    deadline. By an ordinary clock that deadline has expired before any socket was read. By this
    clock it is still ahead, so input that arrived meanwhile is read first.
    """

    def __init__(self) -> None:
        self._stopped = 0.0
        self._since, self._due = 0.0, math.inf  # when the present sleep began, and should end

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        now = perf_counter() - self._stopped
        if now > self._due + _NOTICED:
            # A little before the deadline, which then expires after another, short sleep.
            woke = max(self._since, self._due - _NOTICED)
            self._stopped += now - woke
            now = woke
        self._due = math.inf
        return now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Note the sleep: trio calls this before it waits for I/O, then reads the clock."""
        self._due = math.inf
        now = self.current_time()
        self._since, self._due = now, max(now, deadline)
        return deadline - now
