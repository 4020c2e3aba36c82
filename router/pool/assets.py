"""Which worker owns which video, mesh or image: bounded, and in the order of creation.

The order is the router's own: workers tell creation times only to the second. An id that passes
through the router is entered as it is made; one that is first seen in a worker's list is entered
then, after all that were known before, so that paging never skips or repeats a job.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from attrs import define, field, frozen

from .worker import Worker

# Entries dropped at once when the map is full: finding the oldest scans over dropped ones.
_BATCH = 0.01
_ORDER_BITS = 40


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


@define(eq=False)
class AssetMap:
    """Asset id to owner, at most `limit` of them; the oldest finished go first.

    About 200 bytes an entry: an id maps to one number, in which the owner's index and the order
    of creation are packed.
    """

    limit: int = 1_000_000
    _finished: dict[str, int] = field(init=False, factory=dict, repr=False)
    _running: dict[str, int] = field(init=False, factory=dict, repr=False)
    _owners: list[Owner] = field(init=False, factory=list)
    _index: dict[tuple[Worker, int, AssetKind], int] = field(init=False, factory=dict)
    _count: int = field(init=False, default=0)

    def __len__(self) -> int:
        return len(self._finished) + len(self._running)

    def learn(
        self, asset_id: str, worker: Worker, kind: AssetKind, *, finished: bool = False
    ) -> None:
        """Enter an asset, or note that a known one has another owner. An image is finished."""
        packed = self._packed(asset_id)
        self.forget(asset_id)
        if packed is None:
            self._count += 1
            order = self._count
        else:
            order = packed & (1 << _ORDER_BITS) - 1
        key = (worker, worker.incarnation, kind)
        index = self._index.get(key)
        if index is None:
            index = self._index[key] = len(self._owners)
            self._owners.append(Owner(*key))
        done = finished or kind is AssetKind.IMAGE
        (self._finished if done else self._running)[asset_id] = index << _ORDER_BITS | order
        if len(self) > self.limit:
            self._make_room()

    def owner(self, asset_id: str, kind: AssetKind) -> Owner | None:
        """The owner of an asset; None if it is not known, or its owner is gone."""
        packed = self._packed(asset_id)
        if packed is None:
            return None
        owner = self._owners[packed >> _ORDER_BITS]
        if owner.gone or owner.kind is not kind:
            return None
        return owner

    def order(self, asset_id: str) -> int:
        """Its place in the order of creation; 0 if it is not known."""
        packed = self._packed(asset_id)
        return 0 if packed is None else packed & (1 << _ORDER_BITS) - 1

    def finish(self, asset_id: str) -> None:
        """Note that the job has ended: it may be dropped when room is needed."""
        packed = self._running.pop(asset_id, None)
        if packed is not None:
            self._finished[asset_id] = packed

    def forget(self, asset_id: str) -> None:
        """Drop an asset that was deleted."""
        self._running.pop(asset_id, None)
        self._finished.pop(asset_id, None)

    def purge(self) -> None:
        """Drop every asset whose owner is gone."""
        gone = {index for index, owner in enumerate(self._owners) if owner.gone}
        if not gone:
            return
        kept = [i for i in range(len(self._owners)) if i not in gone]
        moved = {old: new for new, old in enumerate(kept)}
        self._owners = [self._owners[i] for i in kept]
        self._index = {(o.worker, o.incarnation, o.kind): i for i, o in enumerate(self._owners)}
        self._finished = _renumbered(self._finished, moved)
        self._running = _renumbered(self._running, moved)

    def _packed(self, asset_id: str) -> int | None:
        packed = self._running.get(asset_id)
        return self._finished.get(asset_id) if packed is None else packed

    def _make_room(self) -> None:
        self.purge()
        surplus = len(self) - self.limit
        if surplus <= 0:
            return
        surplus += int(self.limit * _BATCH)
        for pool in (self._finished, self._running):
            for asset_id in _first(pool, surplus):
                del pool[asset_id]
                surplus -= 1


def _first(ids: Iterable[str], count: int) -> list[str]:
    return [asset_id for _, asset_id in zip(range(count), ids, strict=False)]


def _renumbered(packed: dict[str, int], moved: dict[int, int]) -> dict[str, int]:
    mask = (1 << _ORDER_BITS) - 1
    return {
        asset_id: moved[value >> _ORDER_BITS] << _ORDER_BITS | value & mask
        for asset_id, value in packed.items()
        if value >> _ORDER_BITS in moved
    }
