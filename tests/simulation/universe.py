"""What makes a history repeat itself: its time, its chance, its scheduler, and no threads.

The router is not told of any of it. Sockets, time and threads reach it through trio alone, and
trio lets each of them be replaced; chance comes from the system, and here from the seed.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import itertools
import logging
import math
import os
import random
import select
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import trio
from attrs import define, field
from trio._core import _run

_MEMORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_STILL = 300_000  # looks at the clock in one moment, and somebody runs in a circle
_GARBAGE = 300.0  # seconds of virtual time between two collections


class Wrong(AssertionError):
    """Something that must never be."""


@define(eq=False)
class Universe:
    """One seed, the time since the beginning, and the diary of what happened."""

    seed: str
    folder: Path  # in memory, for the length of the history
    live: bool = False  # print the diary as it is written
    diary: list[str] = field(factory=list)
    lasted: float = 0.0  # seconds in all, once it is over
    wrong: str | None = None  # what must never be, found where raising it would be contained
    _began: float = field(init=False, factory=trio.current_time)

    @property
    def now(self) -> float:
        """Seconds of virtual time."""
        return trio.current_time() - self._began

    def dice(self, who: str) -> random.Random:
        """The chance of one actor: the others draw from their own."""
        return random.Random(f"{self.seed} {who}")

    def check(self) -> None:
        """Raises Wrong."""
        if self.wrong is not None:
            raise Wrong(self.wrong)

    def note(self, who: str, what: str) -> None:
        line = f"{self.now:10.3f} {who}: {what}".replace(str(self.folder), "")
        self.diary.append(line)
        if self.live:
            print(line, flush=True)


@define(eq=False)
class Life:
    """One life of the router: from a start to a stop or a crash.

    A crash cannot stop Python half-way. So the world outside is taken away from it in that moment:
    its connections and its disk; then its tasks are cancelled, and nothing of what they still do
    has any effect.
    """

    number: int
    dead: bool = False
    crashed: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    # What takes the world away from it.
    on_crash: dict[object, Callable[[], None]] = field(factory=dict)
    # Seconds that the next call in a thread takes.
    thread_delay: Callable[[], float] = lambda: 0.0

    def crash(self) -> None:
        if not self.dead:
            self.dead = self.crashed = True
            for act in list(self.on_crash.values()):
                act()
            self.scope.cancel()


LIFE: ContextVar[Life | None] = ContextVar("life", default=None)


@define(eq=False)
class Countdown(trio.abc.Instrument):
    """Ends a life after so many steps of its tasks, at any await."""

    life: Life
    steps: int

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.context.get(LIFE) is self.life:
            self.steps -= 1
            if self.steps == 0:
                self.life.crash()


class VirtualClock(trio.abc.Clock):
    """Goes on, by a jump, when nothing can run: not even what a socket has for somebody.

    trio's own clock for tests takes two turns of the loop for each jump, and its sleep a scope
    for each; both are most of what an idle hour costs.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.stuck: str | None = None  # the task that runs while time stands still
        self.on_stuck: Callable[[], None] = lambda: None
        self._asked = 0  # times since the last jump
        self._sleepers: list[tuple[float, int, list[trio.lowlevel.Task | None]]] = []
        self._number = itertools.count()
        self._poll: select.poll | None = None

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        self._asked += 1
        if self._asked == _STILL:
            task = getattr(_run.GLOBAL_RUN_CONTEXT, "task", None)
            self.stuck = "a task" if task is None else task.name
            _run.GLOBAL_RUN_CONTEXT.runner.current_trio_token().run_sync_soon(self.on_stuck)
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(_run.GLOBAL_RUN_CONTEXT.runner.io_manager._epoll.fileno())
        if self._poll.poll(0):
            return 0.0
        self._asked = 0
        if self._sleepers:
            deadline = min(deadline, self._sleepers[0][0])
        if deadline == math.inf:
            return 1.0  # of the real time: nothing will ever happen, unless from outside
        self.now = max(self.now, deadline)
        while self._sleepers and self._sleepers[0][0] <= self.now:
            task = heapq.heappop(self._sleepers)[2][0]
            if task is not None:
                trio.lowlevel.reschedule(task)
        return 0.0

    async def sleep(self, seconds: float, *, shield: bool = False) -> None:
        """In place of trio.sleep."""
        if not seconds > 0:
            await trio.lowlevel.checkpoint()
            return
        entry: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._number), entry))

        def abort(_: object) -> trio.lowlevel.Abort:
            if shield:
                return trio.lowlevel.Abort.FAILED
            entry[0] = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


async def _in_loop(
    call: Callable[..., Any],
    *args: Any,
    clock: VirtualClock,
    thread_name: str | None = None,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> Any:
    """In place of a thread: time goes by, then all of it happens at once."""
    life = LIFE.get()
    async with limiter or contextlib.nullcontext():
        delay = 0.0 if life is None else life.thread_delay()
        await clock.sleep(delay, shield=not abandon_on_cancel)
        return call(*args)


class _Diarist(logging.Handler):
    """The router's log, in the diary."""

    def __init__(self, universe: Universe) -> None:
        super().__init__(logging.INFO)
        self.universe = universe

    def emit(self, record: logging.LogRecord) -> None:
        life = LIFE.get()
        if life is None or not life.dead:
            self.universe.note("router", f"{record.levelname.lower()} {self.format(record)}")
            if record.exc_info:
                self.universe.wrong = f"an unexpected error: {record.exc_info[1]!r}"


@contextlib.contextmanager
def _determined(seed: str, clock: VirtualClock) -> Iterator[None]:
    entropy = random.Random(f"{seed} entropy")
    plain = random.Random.seed

    def seeded(self: random.Random, a: Any = None, version: int = 2) -> None:
        plain(self, entropy.getrandbits(64) if a is None else a, version)

    with contextlib.ExitStack() as stack:
        for owner, name, value in (
            (random.Random, "seed", seeded),
            (os, "urandom", entropy.randbytes),
            (random, "_urandom", entropy.randbytes),
            (_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True),
            (trio, "sleep", clock.sleep),
            (time, "sleep", lambda _: None),  # so that others get on; there is nobody else
            (trio.to_thread, "run_sync", functools.partial(_in_loop, clock=clock)),
            # Most of what a call costs is to read, again and again, where it goes.
            (httpx._urls, "urlparse", functools.lru_cache(10_000)(httpx._urls.urlparse)),
            (trio.from_thread, "check_cancelled", lambda: None),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        before = _run._r.getstate()
        stack.callback(_run._r.setstate, before)
        _run._r.seed(f"{seed} scheduler")
        yield


async def _collect() -> None:
    """What is garbage goes at the same moments each time."""
    while True:
        await trio.sleep(_GARBAGE)
        gc.collect()


def run(seed: str, main: Callable[[Universe], Awaitable[None]], *, live: bool = False) -> Universe:
    """Live through `main` on virtual time. Raises what it raises, with the universe in
    `universe` of the error."""
    made: list[Universe] = []
    clock, scope = VirtualClock(), trio.CancelScope()
    clock.on_stuck = scope.cancel

    async def begin() -> None:
        universe = Universe(seed, Path(folder), live)
        made.append(universe)
        handler, logger = _Diarist(universe), logging.getLogger("router")
        level, propagates = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
        try:
            with scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_collect)
                    await main(universe)
                    nursery.cancel_scope.cancel()
            if clock.stuck is not None:
                raise Wrong(f"time stands still while {clock.stuck} runs")
        finally:
            universe.lasted = universe.now
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates

    collecting = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with tempfile.TemporaryDirectory(dir=_MEMORY) as folder, _determined(seed, clock):
            trio.run(begin, clock=clock, strict_exception_groups=True)
    except BaseException as error:
        error.universe = made[0] if made else None  # type: ignore[attr-defined]
        raise
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return made[0]


def pick(dice: random.Random, choices: dict[Any, float]) -> Any:
    """One of these, by weight."""
    return dice.choices(list(choices), list(choices.values()))[0]
