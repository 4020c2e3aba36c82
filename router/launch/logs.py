"""The output of launched workers, for clients that read or follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio
from attrs import define, field

from ..errors import NotFound, PoolUnavailable, describe
from ..pool.worker import Worker
from . import output
from .slot import Slot

MOST_FOLLOWERS = 32


@define(eq=False)
class Followed:
    """A log that is followed: the last lines `found`, and what comes later."""

    slot: Slot
    worker: Worker
    found: list[str]
    follower: output.Follower
    over: bool = field(init=False, default=False)  # the worker is removed: nothing comes later

    async def new(self) -> list[str]:
        """The lines since the last call; often none."""
        self.over = self.worker.removed  # then this is the last look
        log = self.slot.log
        if log is not None and log != self.follower.path:
            self.follower = output.Follower(log, at=0)
        return await trio.to_thread.run_sync(self.follower.new)


@define(eq=False)
class Logs:
    """Reads the logs of the workers for which `slot_of` knows a slot."""

    slot_of: Callable[[Worker], Slot | None]
    _followers: int = field(init=False, default=0)

    async def tail(self, worker: Worker, lines: int) -> list[str]:
        """The last lines of a worker's output. Raises NotFound."""
        slot = self._slot(worker)
        try:
            if slot.log is not None:
                return await trio.to_thread.run_sync(output.last_lines, slot.log, lines)
            handle = slot.handle
            return await slot.launcher.backend.tail(handle, lines) if handle else []
        except FileNotFoundError:
            return []
        except OSError as error:
            raise NotFound(f"The log cannot be read: {describe(error)}", code="no_log") from error

    @contextmanager
    def following(self) -> Iterator[None]:
        """Count one who follows a log. Raises PoolUnavailable if there are too many."""
        if self._followers >= MOST_FOLLOWERS:
            raise PoolUnavailable(
                f"{MOST_FOLLOWERS} clients follow logs already, and the router serves no more",
                code="too_many_viewers",
                headers=[("Retry-After", "10")],
            )
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    async def follow(self, worker: Worker, lines: int) -> Followed:
        """The last lines of a worker's output, and then the new ones. Raises NotFound."""
        slot = self._slot(worker)
        if (log := slot.log) is None:
            raise NotFound(
                f"The engine keeps the log of worker {worker.url}: it cannot be followed",
                code="no_log",
            )
        try:
            found, at = await trio.to_thread.run_sync(output.last_whole_lines, log, lines)
        except FileNotFoundError:
            found, at = [], 0
        except OSError as error:
            raise NotFound(f"The log cannot be read: {describe(error)}", code="no_log") from error
        return Followed(slot, worker, found, output.Follower(log, at=at))

    def _slot(self, worker: Worker) -> Slot:
        slot = self.slot_of(worker)
        if slot is None:
            raise NotFound(
                f"This router did not launch worker {worker.url} and has no log of that worker",
                code="not_launched",
            )
        return slot
