"""Workers that an earlier router left running: this router takes over those that it still wants."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import trio
from attrs import frozen

from ..boundary import contained
from ..errors import StartError
from ..store.store import Store
from .base import Backend, Handle
from .local import PATIENCE
from .records import LaunchRecord
from .slot import Slot

logger = logging.getLogger("router.launch")


@frozen
class Inheritance:
    """The recorded launches, after the backend was asked about them."""

    adopted: Sequence[Slot]
    unwanted: Sequence[tuple[LaunchRecord, Handle]]  # alive
    remains: Sequence[tuple[LaunchRecord, Handle]]  # of dead launches


async def inherit(
    backend: Backend, records: Iterable[LaunchRecord], slots: Callable[[], Mapping[str, Slot]]
) -> Inheritance:
    """Let slots take over the living launches that equal their own plans.

    `slots` is called once the backend has answered. Plans are compared with recorded launches, not
    with running processes, because launch commands exec other programs. Raises EngineUnavailable.
    """
    mine = {record.token: record for record in records if record.backend == backend.name}
    living = await backend.find([record.handle for record in mine.values()]) if mine else {}
    adopted, unwanted, remains = [], [], []
    wanted = slots()
    for token, record in mine.items():
        handle, slot = living.get(token), wanted.get(record.key)
        if handle is None:
            logger.info("%s ended while no router was running", record.name)
            remains.append((record, record.handle))
        elif slot is not None and _would_be_the_same(slot, record):
            slot.adopt(record, handle)
            adopted.append(slot)
            logger.info("took over %s from an earlier router: %s", record.name, handle.ident)
            continue
        else:
            why = (
                "no launcher includes this worker any more"
                if slot is None
                else "the settings of this worker have changed"
            )
            logger.warning("ending %s: %s", record.name, why)
            unwanted.append((record, handle))
        if slot is not None:
            slot.outlive()
    return Inheritance(adopted, unwanted, remains)


async def clear(
    store: Store,
    backend: Backend,
    unwanted: Iterable[tuple[LaunchRecord, Handle]],
    patience: tuple[float, ...] = PATIENCE,
) -> None:
    """End these launches and all their remains, side by side, and forget them."""

    async def end(record: LaunchRecord, handle: Handle) -> None:
        with contained("worker", f"ending {record.name}"):
            await backend.end(handle, patience=patience)
            store.delete(LaunchRecord, record.key)  # otherwise a later start tries again

    async with trio.open_nursery() as nursery:
        for record, handle in unwanted:
            nursery.start_soon(end, record, handle)


async def reap(store: Store, backends: Mapping[str, Backend]) -> tuple[set[str], set[str]]:
    """End all recorded launches. Returns the names of those that lived, and of those whose backend
    is not among `backends`."""
    records = list(store.restored(LaunchRecord).values())
    ended: set[str] = set()
    for name, backend in backends.items():
        mine = [record for record in records if record.backend == name]
        living = await backend.find([record.handle for record in mine])
        handles = [(record, living.get(record.token, record.handle)) for record in mine]
        await clear(store, backend, handles)
        ended |= {record.name for record in mine if record.token in living}
    unknown = {record.name for record in records if record.backend not in backends}
    await store.commit()
    return ended, unknown


def _would_be_the_same(slot: Slot, record: LaunchRecord) -> bool:
    if slot.launcher.backend.name != record.backend:
        return False
    try:
        plan = slot.launcher.planner.plan(slot.index, record.ports)
    except StartError:
        return False
    return plan.fingerprint == record.fingerprint
