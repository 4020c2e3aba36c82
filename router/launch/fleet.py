"""All launched workers: decides which are wanted, and runs a slot for each.

The fleet registers workers in the pool and keeps the records with which the next router takes them
over. A backend only runs launches.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import trio
from attrs import define, field

from .. import threads
from ..errors import BadRequest, Conflict, NotFound, RouterError, StartError, describe
from ..front.record import serving
from ..pool import events
from ..pool.lifecycle import AdminEvent
from ..pool.worker import Admin, Worker
from . import adoption, output
from .base import Backend, EngineUnavailable
from .launcher import Launcher, Shared
from .logs import Logs
from .phases import Phase, SlotView
from .records import LaunchRecord, SizeRecord
from .slot import Slot

logger = logging.getLogger("router.launch")

_ROTATION = 30.0  # seconds between two checks of log sizes
_PAUSE = 5.0  # seconds between two tries to reach an engine


@define(eq=False)
class Fleet:
    """Keeps the wanted workers running. Nothing happens before `run`.

    `drain` takes a worker out of the pool once its work is done; raises a RouterError if the
    draining was called off.
    """

    launchers: Sequence[Launcher]
    shared: Shared
    drain: Callable[[Worker], Awaitable[None]]
    backends: Mapping[str, Backend] = field(factory=dict)  # of records, beside the launchers' own
    logs: Logs = field(init=False)
    _slots: dict[str, Slot] = field(init=False, factory=dict)  # by `launcher/index`
    _leaving: set[Slot] = field(init=False, factory=set)  # no longer wanted, but still present
    _begun: set[Slot] = field(init=False, factory=set)  # slots whose task runs
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _ended: trio.Event = field(init=False, factory=trio.Event)
    _inherited: set[str] = field(init=False, factory=set)  # backends already searched
    _unbidden: dict[str, trio.Event] = field(init=False, factory=dict)  # see `_clear`

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start and keep the workers until `close`. Reports started once all workers on this
        machine are registered. Raises StartError if one cannot be planned."""
        for launcher in self.launchers:
            indices = self._wanted(launcher)
            launcher.planner.check(indices)
            for index in indices:
                self._slots[f"{launcher.name}/{index}"] = Slot(launcher, index, self.shared)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self.shared.registry.subscribe(
                    self._observe, events.FacetChanged, events.WorkerRemoved
                )
                await self._begin(nursery)
                nursery.start_soon(self._rotate)
                task_status.started()
                await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None

    async def close(self) -> None:
        """End all workers, or leave them running for a later router. Returns when done."""
        self.shared.stopping = True
        for slot in self._all():
            slot.retire(leave=self.shared.keep)
        for slot in list(self._begun):
            await slot.over.wait()
        if not self.shared.keep:
            for launcher in self.launchers:
                self.shared.store.delete(SizeRecord, launcher.name)
        self._ended.set()

    def stop(self) -> None:
        """The router ends: start no more workers."""
        self.shared.stopping = True

    # Requests.

    def views(self) -> list[SlotView]:
        """All launched workers as they stand now, in order."""
        return [slot.view() for slot in self._all()]

    async def changed(self) -> None:
        """Wait until a view has changed."""
        await self.shared.changed.wait()

    def describe(self, worker: Worker) -> dict[str, Any] | None:
        """The launch of a worker as `GET /workers` shows it; None if there was none."""
        slot = self._slot_of(worker)
        if slot is None:
            return None
        view = slot.view()
        return {
            "launcher": view.launcher,
            "index": view.index,
            "phase": view.phase,
            "detail": view.detail,
            "pid": view.pid,
            "restarts": view.restarts,
            "log": str(view.log) if view.log else None,
            "gpus": list(view.gpus),
        }

    def proves(self, worker: Worker) -> bool | None:
        """Whether the worker's launched process still runs; None for workers launched elsewhere."""
        slot = self._slot_of(worker)
        return None if slot is None else slot.runs

    def restart(self, worker: Worker) -> None:
        """Start a worker again, whether it runs, waits or was given up. Raises Conflict."""
        slot = self._slot_of(worker)
        if slot is None or slot.retiring:
            raise Conflict(
                f"This router did not launch worker {worker.url} and cannot restart that worker",
                code="not_launched",
            )
        logger.info("restarting %s by request", slot.name)
        slot.restart()

    async def scale(self, workers: int, launcher: str | None = None) -> dict[str, Any]:
        """Change a launcher to this number of workers; returns which ones start and end.

        Raises BadRequest, NotFound, Conflict, StateUnavailable.
        """
        chosen = self._choose(launcher)
        store = self.shared.store
        store.check()
        self._call_back(chosen, workers)
        present = {slot.index: slot for slot in self._slots.values() if slot.launcher is chosen}
        free = (index for index in range(workers) if index not in present)
        kept = sorted(present)[:workers]
        added = [index for index in free][: workers - len(kept)]
        try:
            chosen.planner.check(added)
        except StartError as error:
            raise Conflict(str(error), code="cannot_scale") from error
        starting = [self._add(chosen, index) for index in added]
        ending = [present[index] for index in sorted(present)[workers:]]
        for slot in ending:
            self._dismiss(slot)
        self._note_size(chosen)
        await store.commit()
        return {
            "launcher": chosen.name,
            "num_workers": workers,
            "starting": [slot.name for slot in starting],
            "ending": [slot.name for slot in ending],
        }

    async def settled(self, worker: Worker) -> None:
        """Wait until the launch of a removed worker has ended, and no restart of the router brings
        it back. Returns at once if the worker was not launched. Raises StateUnavailable."""
        for slot in self._all():
            if slot.worker is worker and slot.retiring:
                await slot.over.wait()
        await self.shared.store.commit()

    # Start.

    def _wanted(self, launcher: Launcher) -> list[int]:
        size = self.shared.store.restored(SizeRecord).get(launcher.name)
        if size is not None and size.configured == launcher.settings.num_workers:
            return sorted(size.indices)
        self.shared.store.delete(SizeRecord, launcher.name)
        return list(range(launcher.settings.num_workers))

    async def _begin(self, nursery: trio.Nursery) -> None:
        records = list(self.shared.store.restored(LaunchRecord).values())
        for record in records:  # older versions stored commands with their secrets
            self.shared.store.put(record)
        backends = dict(self.backends)
        backends |= {launcher.backend.name: launcher.backend for launcher in self.launchers}
        for record in records:
            if record.backend not in backends:
                logger.warning(
                    "%s runs on the backend %s, which this router does not have",
                    record.name,
                    record.backend,
                )
        for backend in backends.values():
            if backend.local:
                await self._inherit(nursery, backend, records)
            else:  # an engine may take its time to answer
                nursery.start_soon(self._inherit, nursery, backend, records)

    async def _inherit(
        self, nursery: trio.Nursery, backend: Backend, records: Iterable[LaunchRecord]
    ) -> None:
        """Take over this backend's wanted launches, end the others, then start new workers."""
        while True:
            try:
                found = await adoption.inherit(backend, records, partial(self._on, backend))
                break
            except EngineUnavailable as error:
                logger.warning("%s: %s", backend.name, error)
                for slot in self._on(backend).values():
                    slot.enter(Phase.QUEUED, str(error))
                await trio.sleep(_PAUSE)
        self._inherited.add(backend.name)
        for slot in found.adopted:
            self._begin_slot(nursery, slot)
        others = [slot for slot in self._on(backend).values() if slot not in found.adopted]
        await adoption.clear(self.shared.store, backend, found.remains, ())
        if not found.unwanted:
            for slot in others:
                slot.prepare()
                self._begin_slot(nursery, slot)
            return
        # The unwanted launches may hold GPUs and ports that other slots need.
        cleared = trio.Event()
        self._unbidden[backend.name] = cleared
        nursery.start_soon(self._clear, backend, found, cleared)
        for slot in others:
            self._begin_slot(nursery, slot)

    async def _clear(
        self, backend: Backend, found: adoption.Inheritance, cleared: trio.Event
    ) -> None:
        patience = self.shared.supervision.patience
        await adoption.clear(self.shared.store, backend, found.unwanted, patience)
        cleared.set()

    # Changes of slots.

    def _add(self, launcher: Launcher, index: int) -> Slot:
        assert self._nursery is not None
        slot = self._slots[f"{launcher.name}/{index}"] = Slot(launcher, index, self.shared)
        if launcher.backend.name in self._inherited:  # otherwise it may still take over a launch
            self._begin_slot(self._nursery, slot)
        return slot

    def _begin_slot(self, nursery: trio.Nursery, slot: Slot) -> None:
        self._begun.add(slot)
        nursery.start_soon(self._keep, slot)

    async def _keep(self, slot: Slot) -> None:
        """The life of one slot; it begins when earlier holders of its resources are gone."""
        serving.set(None)
        cleared = self._unbidden.get(slot.launcher.backend.name)
        if slot.handle is None and cleared is not None:
            await cleared.wait()
        for other in list(self._leaving):
            if (other.launcher, other.index) == (slot.launcher, slot.index):
                await other.over.wait()
        await slot.keep()
        self._begun.discard(slot)
        self._leaving.discard(slot)
        key = f"{slot.launcher.name}/{slot.index}"
        if self._slots.get(key) is slot and not self.shared.stopping:
            del self._slots[key]
        if key not in self._slots:
            slot.launcher.planner.forget(slot.index)
        if slot.worker is not None and not slot.left:
            self.shared.registry.remove(slot.worker)

    def _dismiss(self, slot: Slot) -> None:
        """Give the slot up once its worker has done its work."""
        assert self._nursery is not None
        del self._slots[f"{slot.launcher.name}/{slot.index}"]
        if slot in self._begun:
            self._leaving.add(slot)
            self._nursery.start_soon(self._drain, slot)
        else:
            slot.launcher.planner.forget(slot.index)

    async def _drain(self, slot: Slot) -> None:
        if slot.worker is not None and not slot.worker.removed:
            try:
                await self.drain(slot.worker)
            except RouterError:  # the worker was put back into service: it stays
                self._take_back(slot)
                return
        slot.retire()

    def _call_back(self, launcher: Launcher, workers: int) -> None:
        """Put draining workers back into service before starting new ones."""
        missing = workers - sum(slot.launcher is launcher for slot in self._slots.values())
        for slot in sorted(self._leaving, key=lambda slot: slot.index):
            if missing <= 0 or slot.retiring or slot.launcher is not launcher:
                continue
            self._take_back(slot)
            missing -= 1
            if slot.worker is not None and slot.worker.admin is Admin.DRAINING:
                self.shared.registry.administer(slot.worker, AdminEvent.UNDRAIN, "by request")

    def _take_back(self, slot: Slot) -> None:
        self._leaving.discard(slot)
        self._slots[f"{slot.launcher.name}/{slot.index}"] = slot
        self._note_size(slot.launcher)

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.FacetChanged(worker):
                slot = self._slot_of(worker)
                if slot is not None:
                    slot.noticed()
            case events.WorkerRemoved(worker):
                slot = self._slot_of(worker)
                if slot is not None and not slot.retiring and not self.shared.stopping:
                    self._removed(slot)

    def _removed(self, slot: Slot) -> None:
        """The slot's worker was removed from the pool."""
        key = f"{slot.launcher.name}/{slot.index}"
        if self._slots.get(key) is slot:
            del self._slots[key]
            self._leaving.add(slot)
            self._note_size(slot.launcher)
        slot.retire()

    def _note_size(self, launcher: Launcher) -> None:
        indices = [slot.index for slot in self._slots.values() if slot.launcher is launcher]
        self.shared.store.put(
            SizeRecord(launcher.name, launcher.settings.num_workers, tuple(sorted(indices)))
        )

    # Helpers.

    def _on(self, backend: Backend) -> dict[str, Slot]:
        return {key: slot for key, slot in self._slots.items() if slot.launcher.backend is backend}

    def _all(self) -> list[Slot]:
        return [*self._slots.values(), *self._leaving]

    @logs.default
    def _make_logs(self) -> Logs:
        return Logs(self._slot_of)

    def _slot_of(self, worker: Worker) -> Slot | None:
        return next((slot for slot in self._all() if slot.worker is worker), None)

    def _choose(self, name: str | None) -> Launcher:
        names = [launcher.name for launcher in self.launchers]
        if not names:
            raise Conflict("This router has no launcher", code="no_launcher")
        if name is None and len(names) > 1:
            raise BadRequest(
                f"This router has several launchers ({', '.join(names)}); name one in the field"
                " launcher",
                code="ambiguous_launcher",
                details={"launchers": names},
            )
        for launcher in self.launchers:
            if name in (None, launcher.name):
                return launcher
        raise NotFound(
            f"No launcher is named {name!r}", code="unknown_launcher", details={"launchers": names}
        )

    async def _rotate(self) -> None:
        while True:
            await trio.sleep(_ROTATION)
            for slot in self._all():
                if slot.log is not None:
                    try:
                        await threads.run(partial(output.rotate, slot.log))
                    except OSError as error:
                        logger.warning("%s: %s", slot.log, describe(error))

    async def watch_for_collapse(self) -> None:
        """Wait until every launched worker has exited for good, none was ever ready, and no other
        worker exists."""
        while True:
            slots, registry = self._all(), self.shared.registry
            ours = {slot.worker for slot in slots}
            if (
                slots
                and not self.shared.ever_ready
                and all(slot.view().over and not slot.retiring for slot in slots)
                and all(worker in ours for worker in registry)
            ):
                return
            await self.shared.changed.wait()
