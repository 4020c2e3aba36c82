"""Tasks of a part of the router: their lifetime, and how many run side by side."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from attrs import define, field


@define(eq=False)
class Tasks:
    """Owns its tasks, in its own nursery. Accepts no more tasks once the router stops."""

    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the tasks; never returns."""
        async with trio.open_nursery() as self._nursery:
            try:
                self._begin()
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def _begin(self) -> None:
        """Start the initial tasks."""

    def _start(self, work: Callable[..., Awaitable[object]], *arguments: Any) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(work, *arguments)


@define(eq=False)
class SoftLimiter:
    """Lets `most` tasks run side by side: one processor serves many workers, and a thousand calls
    at once would all be late.

    A task that takes longer than `patience` seconds no longer counts: workers that hang delay other
    tasks only briefly.
    """

    most: int = 64
    patience: float = 1.0
    _tokens: trio.Semaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = trio.Semaphore(self.most)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it while the block runs."""
        await self._tokens.acquire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count)
            yield
            nursery.cancel_scope.cancel()

    async def _count(self) -> None:
        try:
            await trio.sleep(self.patience)
        finally:
            self._tokens.release()
