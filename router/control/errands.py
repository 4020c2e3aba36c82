"""Work that goes on though the client that asked for it has left."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeAlias, TypeVar

import trio
from attrs import define, field

from ..errors import RouterError

logger = logging.getLogger("router.control")

T = TypeVar("T")
Begin: TypeAlias = Callable[[], Awaitable[None]]


@define(eq=False)
class Errand(Generic[T]):
    """Work that is under way, and those that wait for its result.

    Once it has begun it goes on though nobody waits any more; before, it ends with the last of
    them.
    """

    begun: bool = False
    _clients: int = field(init=False, default=0)
    _over: trio.Event = field(init=False, factory=trio.Event)
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _value: T | None = field(init=False, default=None)
    _error: RouterError | None = field(init=False, default=None)

    async def begin(self) -> None:
        """From now on nothing may break it off."""
        # Its client may have left in the moment in which its turn came.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.begun = True

    def tell(self, value: T) -> None:
        """This comes of it, though it goes on."""
        self._value = value
        self._over.set()

    def call_off(self, error: RouterError | None = None) -> None:
        """End it all the same; whoever waits gets the error, or nothing."""
        self._error = error
        self._scope.cancel()

    @property
    def called_off(self) -> bool:
        return self._scope.cancel_called

    async def result(self) -> T:
        """Wait for what comes of it. Raises the RouterError that it raised."""
        self._clients += 1
        try:
            await self._over.wait()
        finally:
            self._clients -= 1
            if not self._clients and not self.begun:
                self._scope.cancel()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    async def run(self, work: Callable[[Errand[T]], Awaitable[T]]) -> None:
        """Do the work. Any other error of it than a RouterError is fatal."""
        with self._scope:
            try:
                self.tell(await work(self))
            except RouterError as error:
                self._error = error
                if not self._clients:
                    logger.warning("what nobody waits for has failed: %s", error)
        self._over.set()


@define(eq=False)
class Errands:
    """Runs, in a nursery of its own, what must not be broken off half-way, or goes on for ever."""

    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the errands; never returns."""
        async with trio.open_nursery() as self._nursery:
            try:
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None  # at a stop it takes no more

    def start(self, work: Callable[[Errand[T]], Awaitable[T]], *, begun: bool = True) -> Errand[T]:
        """Begin work, unless the router stops. `begun`: it does not end with its clients; else it
        says itself when that is so (`Errand.begin`)."""
        errand: Errand[T] = Errand(begun)
        if self._nursery is not None:
            self._nursery.start_soon(errand.run, work)
        return errand

    async def do(self, work: Callable[[Begin], Awaitable[T]], *, begun: bool = True) -> T:
        """Do the work and return its result; it goes on if the caller is cancelled. Work that is
        not `begun` may have to wait: it awaits the function that it is given once nothing may
        break it off any more."""
        return await self.start(lambda errand: work(errand.begin), begun=begun).result()
