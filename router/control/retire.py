"""Taking workers out of the pool, at once or after their work is done."""

from __future__ import annotations

import trio
from attrs import define, field

from ..dispatch import Dispatcher
from ..errors import Conflict
from ..pool import events
from ..pool.lifecycle import AdminEvent
from ..pool.registry import Registry
from ..pool.worker import Admin, Worker


class RemovalCalledOff(Conflict):
    """The worker was put back into service while it was drained for removal."""

    default_code = "removal_called_off"


@define(eq=False)
class _Removal:
    over: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    called_off: bool = False


@define(eq=False)
class Retirer:
    """Removes workers. A drain goes on though the client that asked for it has left.

    It is called off when somebody enables the worker meanwhile: the last word counts.
    """

    registry: Registry
    dispatcher: Dispatcher
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _under_way: dict[Worker, _Removal] = field(init=False, factory=dict)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the drains that are under way; never returns."""
        async with trio.open_nursery() as self._nursery:
            self.registry.subscribe(self._observe, events.FacetChanged, events.WorkerRemoved)
            task_status.started()
            await trio.sleep_forever()

    def remove(self, worker: Worker) -> None:
        """Forget the worker at once; exchanges with it end by themselves."""
        self.registry.remove(worker)

    def keep(self, worker: Worker) -> None:
        """Call the worker's removal off, if one is under way."""
        if worker in self._under_way and worker.admin is Admin.DRAINING:
            self.registry.administer(worker, AdminEvent.UNDRAIN, "it was registered again")

    async def drain_and_remove(self, worker: Worker) -> None:
        """Give the worker nothing new, wait for what is in flight, then forget it.

        Raises RemovalCalledOff.
        """
        assert self._nursery is not None
        if worker.admin is Admin.ENABLED:
            self.registry.administer(worker, AdminEvent.DRAIN, "it is being removed")
        removal = self._under_way.get(worker)
        if removal is None:
            removal = self._under_way[worker] = _Removal()
            self._nursery.start_soon(self._drain, worker, removal)
        await removal.over.wait()
        if removal.called_off:
            raise RemovalCalledOff(f"Worker {worker.url} was enabled again; it stays in the pool")

    async def _drain(self, worker: Worker, removal: _Removal) -> None:
        with removal.scope:
            await self.dispatcher.drain(worker)
            if not removal.called_off:  # in the moment between the last lease and this
                self.registry.remove(worker)
        removal.over.set()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.FacetChanged(worker, facet="admin", new=Admin.ENABLED):
                called_off = True
            case events.WorkerRemoved(worker):  # perhaps at once, by another request
                called_off = False
            case _:
                return
        removal = self._under_way.pop(worker, None)
        if removal is not None:
            removal.called_off = called_off
            removal.scope.cancel()
