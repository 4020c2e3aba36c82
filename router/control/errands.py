"""Work that goes on though the client that asked for it has left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio
from attrs import define, field

from ..errors import RouterError

T = TypeVar("T")


@define(eq=False)
class _Result(Generic[T]):
    over: trio.Event = field(factory=trio.Event)
    value: T | None = None
    error: RouterError | None = None


@define(eq=False)
class Errands:
    """Runs what must not be broken off half-way in a nursery of its own."""

    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the errands; never returns."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    async def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work and return its result; it goes on if the caller is cancelled.

        Raises the RouterError that the work raised; any other error of it is fatal.
        """
        assert self._nursery is not None
        result: _Result[T] = _Result()
        self._nursery.start_soon(self._do, work, result)
        await result.over.wait()
        if result.error is not None:
            raise result.error
        return result.value  # type: ignore[return-value]

    async def _do(self, work: Callable[[], Awaitable[T]], result: _Result[T]) -> None:
        try:
            result.value = await work()
        except RouterError as error:
            result.error = error
        result.over.set()
