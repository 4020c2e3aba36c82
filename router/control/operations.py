"""Operations on workers: run in order of arrival, and to their end even if the client leaves."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeAlias, TypeVar

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from ..errors import RouterError
from ..pool.worker import Worker
from .tasks import Tasks

logger = logging.getLogger("router.control")

T = TypeVar("T")


@define(eq=False)
class Operation(Generic[T]):
    """Work that runs or waits for its turn, and the wait for its result.

    An operation takes its `workers` and, with `model`, the ledger of that model. Once it has begun,
    it goes on even if no task waits for it; before, it ends with the last waiting task.
    """

    workers: set[Worker]
    model: str | None = None
    identity: object = None  # equal for equal work, which one operation does for all callers
    begun: bool = False
    scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _waiting: int = field(init=False, default=0)
    _over: trio.Event = field(init=False, factory=trio.Event)
    _value: T | None = field(init=False, default=None)
    _error: RouterError | None = field(init=False, default=None)

    async def begin(self) -> None:
        """From now on nothing may break the operation off."""
        # The client may have left at the moment its turn came.
        await trio.lowlevel.checkpoint_if_cancelled()
        self.begun = True

    @asynccontextmanager
    async def unbroken(self) -> AsyncIterator[None]:
        """During the block nothing may break the operation off."""
        begun = self.begun
        await self.begin()
        try:
            yield
        finally:
            self.begun = begun
            if not begun and not self._waiting:
                self.scope.cancel()

    def tell(self, value: T | None, error: RouterError | None = None) -> None:
        """Set the result. The operation may still go on."""
        self._value, self._error = value, error
        self._over.set()
        if error is not None and not self._waiting:
            logger.warning("a background operation failed: %s", error)

    async def result(self) -> T:
        """Wait for the result. Raises the RouterError that the work raised."""
        self._waiting += 1
        try:
            await self._over.wait()
        finally:
            self._waiting -= 1
            if not self._waiting and not self.begun:
                self.scope.cancel()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def collides(self, other: Operation[Any]) -> bool:
        """Whether the two operations cannot run at the same time."""
        same_model = self.model is not None and self.model == other.model
        return same_model or not self.workers.isdisjoint(other.workers)


Work: TypeAlias = Callable[[Operation[Any]], Awaitable[T]]


@define(eq=False)
class Operations(Tasks):
    """Lets one operation at a time work on a worker; first come, first served.

    An operation on several workers begins once no earlier operation holds any of them. Operations
    run in their own nursery, because they must not be broken off half-way.
    """

    _line: list[Operation[Any]] = field(init=False, factory=list)  # in order of arrival
    _moved: ParkingLot = field(init=False, factory=ParkingLot)  # until an operation gives way

    def start(
        self,
        work: Work[T],
        workers: Iterable[Worker] = (),
        model: str | None = None,
        identity: object = None,
        *,
        begun: bool = True,
    ) -> Operation[T]:
        """Do the work when its turn comes, unless the router stops. Any error of the work except a
        RouterError is fatal.

        With an `identity`, join equal work that waits or runs, if no colliding operation came after
        it. `begun`: the operation does not end with its waiting tasks; otherwise the work itself
        calls `Operation.begin` at the point of no return.
        """
        same = None if identity is None else self._find(model, identity)
        if same is not None:
            return same
        operation: Operation[T] = Operation(set(workers), model, identity, begun)
        if self._nursery is not None:
            self._line.append(operation)
            self._start(self._do, operation, work)
        return operation

    @asynccontextmanager
    async def take(
        self, workers: Iterable[Worker], model: str | None = None
    ) -> AsyncIterator[Operation[None]]:
        """Wait for these workers and, with `model`, for its ledger. Hold them while the block runs,
        or until they are released one by one."""
        operation: Operation[None] = Operation(set(workers), model, begun=True)
        self._line.append(operation)
        async with self._turn_of(operation):
            yield operation

    def release(self, operation: Operation[Any], *workers: Worker) -> None:
        """Give these workers up before the operation ends."""
        operation.workers.difference_update(workers)
        self._moved.unpark_all()

    def extend(self, operation: Operation[Any], worker: Worker) -> bool:
        """Take one more worker into a running operation, if no operation holds it or waits for
        it."""
        if worker not in operation.workers:
            if self.busy(worker):
                return False
            operation.workers.add(worker)
        return True

    def busy(self, worker: Worker) -> bool:
        """Whether an operation holds the worker, or waits for it."""
        return any(worker in operation.workers for operation in self._line)

    def _find(self, model: str | None, identity: object) -> Operation[Any] | None:
        for at, operation in enumerate(self._line):
            if (operation.model, operation.identity) == (model, identity):
                later = self._line[at + 1 :]
                if not operation.scope.cancel_called and not any(map(operation.collides, later)):
                    return operation
        return None

    async def _do(self, operation: Operation[T], work: Work[T]) -> None:
        with operation.scope:
            try:
                async with self._turn_of(operation):
                    value = await work(operation)
            except RouterError as error:
                operation.tell(None, error)
            else:
                operation.tell(value)

    @asynccontextmanager
    async def _turn_of(self, operation: Operation[Any]) -> AsyncIterator[None]:
        try:
            while self._is_blocked(operation):
                await self._moved.park()
            yield
        finally:
            self._line.remove(operation)
            self.release(operation, *operation.workers)

    def _is_blocked(self, operation: Operation[Any]) -> bool:
        earlier = self._line[: self._line.index(operation)]
        return any(map(operation.collides, earlier))
