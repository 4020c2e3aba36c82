"""Many workers, and one processor: not all of them are talked to in the same moment."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from attrs import define, field


@define(eq=False)
class SoftLimiter:
    """Lets `most` through side by side, so that a thousand calls do not all come too late.

    Whoever takes longer than `patience` seconds is not counted any more: workers that hang hold
    up nobody for long.
    """

    most: int = 64
    patience: float = 1.0
    _tokens: trio.Semaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tokens = trio.Semaphore(self.most)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for one's turn, and have it for the length of the block."""
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
