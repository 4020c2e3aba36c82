from __future__ import annotations

import pytest

from router.service import clock as module
from router.service.clock import RunningClock


class Kernel:
    """What `perf_counter` tells."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(module, "perf_counter", made)
    return made


def slept(clock: RunningClock, kernel: Kernel, deadline: float, seconds: float) -> float:
    """As trio sleeps: until `deadline`, in truth for so many seconds."""
    clock.deadline_to_sleep_time(deadline)
    kernel.now += seconds
    return clock.current_time()


def test_it_goes_with_the_time(kernel: Kernel) -> None:
    clock = RunningClock()
    start = clock.current_time()
    assert clock.deadline_to_sleep_time(start + 5) == 5
    assert slept(clock, kernel, start + 5, 3) == start + 3
    assert slept(clock, kernel, start + 5, 2.25) == start + 5.25  # a busy machine is no stop
    kernel.now += 100  # at work, not asleep
    assert clock.current_time() == start + 105.25


def test_a_stop_does_not_count(kernel: Kernel) -> None:
    """No deadline has passed after it: what came meanwhile is looked at first."""
    clock = RunningClock()
    start = clock.current_time()
    assert slept(clock, kernel, start + 5, 1000) == start + 4.75
    assert clock.deadline_to_sleep_time(start + 8) == 3.25  # others keep their distance
    assert slept(clock, kernel, start + 5, 0.25) == start + 5
    assert slept(clock, kernel, start + 5.125, 1000) == start + 5  # it never goes back
