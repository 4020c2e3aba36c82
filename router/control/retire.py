"""Taking workers out of the pool, at once or after their work is done."""

from __future__ import annotations

import trio
from attrs import define, field

from ..dispatch import Dispatcher
from ..pool.lifecycle import AdminEvent
from ..pool.registry import Registry
from ..pool.worker import Admin, Worker


@define(eq=False)
class Retirer:
    """Removes workers. A drain goes on though the client that asked for it has left."""

    registry: Registry
    dispatcher: Dispatcher
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _under_way: dict[Worker, trio.Event] = field(init=False, factory=dict)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the drains that are under way; never returns."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    def remove(self, worker: Worker) -> None:
        """Forget the worker at once; exchanges with it end by themselves."""
        self.registry.remove(worker)

    async def drain_and_remove(self, worker: Worker) -> None:
        """Give the worker nothing new, wait for what is in flight, then forget it."""
        assert self._nursery is not None
        if worker.admin is Admin.ENABLED:
            self.registry.administer(worker, AdminEvent.DRAIN, "it is being removed")
        done = self._under_way.get(worker)
        if done is None:
            done = self._under_way[worker] = trio.Event()
            self._nursery.start_soon(self._drain, worker, done)
        await done.wait()

    async def _drain(self, worker: Worker, done: trio.Event) -> None:
        await self.dispatcher.drain(worker)
        self.registry.remove(worker)
        del self._under_way[worker]
        done.set()
