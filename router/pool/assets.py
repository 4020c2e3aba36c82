"""Which worker owns which video, mesh or image: bounded, and in the order of creation.

The order is the router's own: workers tell creation times only to the second. An id that passes
through the router is entered as it is made; one that is first seen in a worker's list is entered
then, after all that were known before, so that paging never skips or repeats a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Protocol

from attrs import define, field, frozen

from .worker import Worker

# Entries dropped at once when the map is full: finding the oldest scans over dropped ones.
_BATCH = 0.01
_ORDER_BITS = 40
_ORDER = (1 << _ORDER_BITS) - 1
_MOST_PLACES = 10_000
_MOST_DELETED = 10_000
_SLICE = 10_000  # entries that are looked at in one go: some milliseconds
_MOST_LATEST = 8  # of each owner: some may be deleted before they are needed


class AssetKind(StrEnum):
    """What an id names; also the word in the paths of workers."""

    VIDEO = "videos"
    MESH = "meshes"
    IMAGE = "images"


@frozen
class Owner:
    """A worker's process, as the owner of assets of one kind. Shared by all of them."""

    worker: Worker
    incarnation: int
    kind: AssetKind

    @property
    def gone(self) -> bool:
        """Whether the process that made the asset is known to be gone, or its worker removed."""
        return self.worker.removed or self.worker.incarnation != self.incarnation


class AssetLog(Protocol):
    """Where an asset map is kept. `slot`: the index of an owner, which may be used again once that
    is gone."""

    def entered(self, slot: int, asset_id: str, order: int, *, finished: bool, new: bool) -> None:
        """An asset was entered, or has ended. `new`: it was not known before."""
        ...

    def dropped(self, slot: int, asset_id: str) -> None:
        """An asset is not known any more, or not as this owner's."""
        ...

    def owner_entered(self, slot: int, owner: Owner) -> None:
        """An owner was entered, before the first of its assets."""
        ...

    def owner_gone(self, slot: int) -> None:
        """An owner is gone, and everything that it owned."""
        ...


class _NoLog:
    def entered(self, slot: int, asset_id: str, order: int, *, finished: bool, new: bool) -> None:
        pass

    def dropped(self, slot: int, asset_id: str) -> None:
        pass

    def owner_entered(self, slot: int, owner: Owner) -> None:
        pass

    def owner_gone(self, slot: int) -> None:
        pass


@frozen
class Made:
    """Something that one process of a worker has made."""

    asset_id: str
    kind: AssetKind
    owner: Owner


@define(eq=False)
class AssetMap:
    """Asset id to owner, at most `limit` of them; the oldest finished go first.

    About 160 bytes an entry: an id maps to one number, in which the owner's index and the order
    of creation are packed.
    """

    limit: int = 1_000_000
    log: AssetLog = field(factory=_NoLog, repr=False)
    # In the order in which they ended, and in that of creation.
    _finished: dict[str, int] = field(init=False, factory=dict, repr=False)
    _running: dict[str, int] = field(init=False, factory=dict, repr=False)
    # The places of those that are gone: one may be the cursor of somebody who pages.
    _places: dict[str, int] = field(init=False, factory=dict, repr=False)
    # How many assets were deleted so far; and the number of each of the latest deletions.
    deletions: int = field(init=False, default=0)
    _deleted: dict[str, int] = field(init=False, factory=dict, repr=False)
    # A slot whose owner is gone is None, and used again.
    _owners: list[Owner | None] = field(init=False, factory=list)
    _index: dict[tuple[Worker, int, AssetKind], int] = field(init=False, factory=dict)
    # The newest of each owner, by its index and in their order.
    _latest: dict[int, dict[str, None]] = field(init=False, factory=dict)
    # Slots whose owner is gone, and whose entries are being dropped: the log has dropped them.
    _leaving: set[int] = field(init=False, factory=set)
    _count: int = field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._finished) + len(self._running)

    @property
    def full(self) -> bool:
        """Whether another entry would drop an old one."""
        return len(self) >= self.limit

    def learn(
        self, asset_id: str, worker: Worker, kind: AssetKind, *, finished: bool = False
    ) -> None:
        """Enter an asset, or note that a known one has another owner. An image is finished.

        A known one keeps its place in the order of creation, also if it was forgotten lately.
        """
        done = finished or kind is AssetKind.IMAGE or asset_id in self._finished
        before = self._packed(asset_id)
        order = self.order(asset_id)
        if not order:
            self._count += 1
            order = self._count
        slot = self._slot(worker, kind)
        packed = slot << _ORDER_BITS | order
        if before is not None and before != packed:
            self._log_dropped(before, asset_id)
        if before != packed or (done and asset_id in self._running):
            self.log.entered(slot, asset_id, order, finished=done, new=before is None)
        self._places.pop(asset_id, None)
        if done:
            self._running.pop(asset_id, None)
        (self._finished if done else self._running)[asset_id] = packed
        latest = self._latest.setdefault(slot, {})
        latest[asset_id] = None
        if len(latest) > _MOST_LATEST:
            del latest[next(iter(latest))]
        if len(self) > self.limit:
            self._make_room()

    def owner(self, asset_id: str, kind: AssetKind) -> Owner | None:
        """The owner of an asset; None if it is not known, or its owner is gone."""
        packed = self._packed(asset_id)
        if packed is None:
            return None
        owner = self._owners[packed >> _ORDER_BITS]
        if owner is None or owner.gone or owner.kind is not kind:
            return None
        return owner

    def latest(self, worker: Worker) -> tuple[Made, ...]:
        """A few of the assets that the worker's present process has made: jobs before images, of
        each kind the newest first."""
        found: list[Made] = []
        for kind in AssetKind:
            slot = self._index.get((worker, worker.incarnation, kind))
            owner = None if slot is None else self._owners[slot]
            if slot is not None and owner is not None:
                made = [Made(asset_id, kind, owner) for asset_id in self._latest.get(slot, ())]
                found += filter(self.has, reversed(made))
        return tuple(found)

    def has(self, made: Made) -> bool:
        """Whether it is still known as this owner's: not deleted, nor found elsewhere."""
        return self.owner(made.asset_id, made.kind) is made.owner

    def order(self, asset_id: str) -> int:
        """Its place in the order of creation; 0 if it is not known. That of an asset which is gone
        is known for a while."""
        packed = self._packed(asset_id)
        if packed is None:
            return self._places.get(asset_id, 0)
        return packed & _ORDER

    def finish(self, asset_id: str) -> None:
        """Note that the job has ended: it may be dropped when room is needed."""
        packed = self._running.pop(asset_id, None)
        if packed is not None:
            self._finished[asset_id] = packed
            slot, order = packed >> _ORDER_BITS, packed & _ORDER
            if slot not in self._leaving:
                self.log.entered(slot, asset_id, order, finished=True, new=False)

    def forget(self, asset_id: str) -> None:
        """Drop an asset that was deleted."""
        self.deletions += 1
        self._deleted[asset_id] = self.deletions
        if len(self._deleted) > 2 * _MOST_DELETED:
            for oldest in _first(self._deleted, _MOST_DELETED):
                del self._deleted[oldest]
        for pool in (self._finished, self._running):
            packed = pool.pop(asset_id, None)
            if packed is not None:
                self._latest.get(packed >> _ORDER_BITS, {}).pop(asset_id, None)
                self._keep_place(asset_id, packed)
                self._log_dropped(packed, asset_id)

    def deleted(self, asset_id: str, *, since: int) -> bool:
        """Whether it was deleted after `deletions` had been `since`: a list that was asked for
        then may still show it."""
        return self._deleted.get(asset_id, 0) > since

    def adopt(self, worker: Worker, kind: AssetKind, orders: dict[str, int]) -> int:
        """Enter what a log has of an owner, its present process; the slot. `orders`: the place in
        the order of creation, negative for those that have ended; the oldest first. The log is
        told nothing."""
        log, self.log = self.log, _NoLog()
        slot = self._slot(worker, kind)
        base = slot << _ORDER_BITS
        self._finished.update((i, base | -order) for i, order in orders.items() if order < 0)
        self._running.update((i, base | order) for i, order in orders.items() if order > 0)
        self._count = max(self._count, *map(abs, orders.values()), 0)
        newest = list(islice(reversed(orders), _MOST_LATEST))
        self._latest.setdefault(slot, {}).update(dict.fromkeys(reversed(newest)))
        self.log = log
        return slot

    def sort(self) -> None:
        """Bring what was adopted from several owners into one order; drop what is too much."""
        by_order = sorted(self._finished.items(), key=lambda item: item[1] & _ORDER)
        self._finished = dict(by_order)
        if len(self) > self.limit:
            self._make_room()

    def purge(self) -> None:
        """Drop every asset whose owner is gone."""
        for _ in self.sweep():
            pass

    def sweep(self) -> Iterator[None]:
        """`purge` with pauses, in which anything may happen to the map."""
        gone = {i for i, owner in enumerate(self._owners) if owner is not None and owner.gone}
        gone -= self._leaving
        if not gone:
            return
        self._leaving |= gone
        self._index = {key: i for key, i in self._index.items() if i not in gone}
        for index in gone:
            self.log.owner_gone(index)
            self._latest.pop(index, None)
        for pool in (self._finished, self._running):
            ids = list(pool)
            for begin in range(0, len(ids), _SLICE):
                for asset_id in ids[begin : begin + _SLICE]:
                    packed = pool.get(asset_id)
                    if packed is not None and packed >> _ORDER_BITS in gone:
                        self._keep_place(asset_id, packed)
                        del pool[asset_id]
                yield
        for index in gone:
            self._owners[index] = None
        self._leaving -= gone

    def _slot(self, worker: Worker, kind: AssetKind) -> int:
        """The index of an owner."""
        key = (worker, worker.incarnation, kind)
        index = self._index.get(key)
        if index is None:
            owner = Owner(*key)
            if None in self._owners:
                index = self._owners.index(None)
                self._owners[index] = owner
            else:
                index = len(self._owners)
                self._owners.append(owner)
            self._index[key] = index
            self.log.owner_entered(index, owner)
        return index

    def _log_dropped(self, packed: int, asset_id: str) -> None:
        slot = packed >> _ORDER_BITS
        if slot not in self._leaving:
            self.log.dropped(slot, asset_id)

    def _packed(self, asset_id: str) -> int | None:
        packed = self._running.get(asset_id)
        return self._finished.get(asset_id) if packed is None else packed

    def _keep_place(self, asset_id: str, packed: int) -> None:
        owner = self._owners[packed >> _ORDER_BITS]
        if owner is not None and owner.kind is AssetKind.IMAGE:
            return  # there is no list of images
        self._places[asset_id] = packed & _ORDER
        if len(self._places) > 2 * _MOST_PLACES:
            for oldest in _first(self._places, _MOST_PLACES):
                del self._places[oldest]

    def _make_room(self) -> None:
        self.purge()
        surplus = len(self) - self.limit
        if surplus <= 0:
            return
        surplus += int(self.limit * _BATCH)
        for pool in (self._finished, self._running):
            for asset_id in _first(pool, surplus):
                packed = pool.pop(asset_id)
                self._keep_place(asset_id, packed)
                self._log_dropped(packed, asset_id)
                surplus -= 1


def _first(ids: Iterable[str], count: int) -> list[str]:
    return [asset_id for _, asset_id in zip(range(count), ids, strict=False)]
