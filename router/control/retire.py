"""Taking workers out of the pool, at once or after their work is done."""

from __future__ import annotations

from functools import partial

from attrs import define, field

from ..dispatch import Dispatcher
from ..errors import Conflict
from ..pool import events
from ..pool.lifecycle import AdminEvent
from ..pool.registry import Registry
from ..pool.worker import Admin, Worker
from .errands import Errand, Errands


class RemovalCalledOff(Conflict):
    """The worker was put back into service while it was drained for removal."""

    default_code = "removal_called_off"


@define(eq=False)
class Retirer:
    """Removes workers. A drain goes on though the client that asked for it has left.

    It is called off when somebody enables the worker meanwhile: the last word counts.
    """

    registry: Registry
    dispatcher: Dispatcher
    errands: Errands
    _under_way: dict[Worker, Errand[None]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.registry.subscribe(self._observe, events.FacetChanged, events.WorkerRemoved)

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
        if worker.admin is Admin.ENABLED:
            self.registry.administer(worker, AdminEvent.DRAIN, "it is being removed")
        removal = self._under_way.get(worker)
        if removal is None:
            removal = self.errands.start(partial(self._drain, worker))
            self._under_way[worker] = removal
        await removal.result()

    async def _drain(self, worker: Worker, removal: Errand[None]) -> None:
        await self.dispatcher.drain(worker)
        if not removal.called_off:  # in the moment between the last lease and this
            self.registry.remove(worker)

    def _observe(self, event: events.Event) -> None:
        error: RemovalCalledOff | None = None
        match event:
            case events.FacetChanged(worker, facet="admin", new=Admin.ENABLED):
                error = RemovalCalledOff(
                    f"Worker {worker.url} was enabled again; it stays in the pool"
                )
            case events.WorkerRemoved(worker):  # perhaps at once, by another request
                pass
            case _:
                return
        removal = self._under_way.pop(worker, None)
        if removal is not None:
            removal.call_off(error)
