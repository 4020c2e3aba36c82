"""Work that goes on though the client that asked for it has left."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeAlias, TypeVar

import trio
from attrs import define, field

from ..errors import RouterError

T = TypeVar("T")
Begin: TypeAlias = Callable[[], Awaitable[None]]


@define(eq=False)
class _Result(Generic[T]):
    over: trio.Event = field(factory=trio.Event)
    value: T | None = None
    error: RouterError | None = None
    begun: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def begin(self) -> None:
        # Its caller may have left in the moment in which its turn came.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.begun = True


@define(eq=False)
class Errands:
    """Runs what must not be broken off half-way in a nursery of its own."""

    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the errands; never returns."""
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # at a stop it takes no more

    async def do(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work and return its result; it goes on if the caller is cancelled.

        Raises the RouterError that the work raised; any other error of it is fatal.
        """

        async def begun(begin: Begin) -> T:
            await begin()
            return await work()

        return await self.take_on(begun)

    async def take_on(self, work: Callable[[Begin], Awaitable[T]]) -> T:
        """The same for work that may have to wait before it begins: it awaits the function that
        it is given once nothing may break it off any more. Until then it ends with the caller.
        """
        assert self._nursery is not None
        result: _Result[T] = _Result()
        self._nursery.start_soon(self._do, work, result)
        try:
            await result.over.wait()
        except BaseException:
            if not result.begun:
                result.scope.cancel()
            raise
        if result.error is not None:
            raise result.error
        return result.value  # type: ignore[return-value]

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Begin work whose result nobody awaits here, unless the router stops. It must not
        raise."""
        if self._nursery is not None:
            self._nursery.start_soon(work)

    async def _do(self, work: Callable[[Begin], Awaitable[T]], result: _Result[T]) -> None:
        with result.scope:
            try:
                result.value = await work(result.begin)
            except RouterError as error:
                result.error = error
            result.over.set()
