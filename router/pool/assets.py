"""Which worker owns which video, mesh or image: bounded, and in the order of creation.

The order is the router's own, because workers tell creation times only to the second. An id that
passes through the router is entered at its creation. An id first seen in a worker's list is entered
then, after all known ids, so that paging never skips or repeats a job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice

from attrs import define, field, frozen

from .worker import Worker

# The share of entries dropped at once when the map is full: finding the oldest entry scans over
# dropped ones.
_BATCH = 0.01
_ORDER_BITS = 40
_ORDER = (1 << _ORDER_BITS) - 1
_MOST_PLACES = 10_000
_MOST_DELETED = 10_000
_SLICE = 10_000  # entries per step of a sweep: some milliseconds
_MOST_LATEST = 8  # kept per owner: some may be deleted before they are needed


class AssetKind(StrEnum):
    """The kind of thing that an id names; also the word in the paths of workers."""

    VIDEO = "videos"
    MESH = "meshes"
    IMAGE = "images"


@frozen
class Owner:
    """A worker's process, as the owner of assets of one kind. All its assets share the object."""

    worker: Worker
    incarnation: int
    kind: AssetKind

    @property
    def gone(self) -> bool:
        """Whether the process that made the assets has been replaced, or its worker removed."""
        return self.worker.removed or self.worker.incarnation != self.incarnation


class AssetLog:
    """Where an asset map is kept. This class keeps nothing; a subclass may. `number` is the number
    of an owner and is never used again."""

    def entered(self, number: int, asset_id: str, order: int, *, finished: bool, new: bool) -> None:
        """An asset was entered, or has ended. `new`: the asset was unknown before."""

    def dropped(self, number: int, asset_id: str) -> None:
        """An asset is no longer known, or has another owner now."""

    def owner_entered(self, number: int, owner: Owner) -> None:
        """An owner was entered, before the first of its assets."""

    def owner_gone(self, number: int) -> None:
        """An owner and all its assets are gone."""


@frozen
class Made:
    """An asset that one process of a worker has made."""

    asset_id: str
    owner: Owner


@define(eq=False)
class AssetMap:
    """Maps at most `limit` asset ids to owners; the oldest finished assets are dropped first.

    An entry takes about 160 bytes: an id maps to one number, which packs the owner's number and the
    order of creation.
    """

    limit: int = 1_000_000
    log: AssetLog = field(factory=AssetLog, repr=False)
    last_owner: int = 0  # the number of the last owner
    # Finished assets in the order of their end; running ones in the order of creation.
    _finished: dict[str, int] = field(init=False, factory=dict, repr=False)
    _running: dict[str, int] = field(init=False, factory=dict, repr=False)
    # The places of dropped assets: such an asset may be a client's cursor for paging.
    _places: dict[str, int] = field(init=False, factory=dict, repr=False)
    # The count of deletions, and the number of each of the latest ones.
    deletions: int = field(init=False, default=0)
    _deleted: dict[str, int] = field(init=False, factory=dict, repr=False)
    # By number. Entries of an owner that is missing here count as gone.
    _owners: dict[int, Owner] = field(init=False, factory=dict)
    _numbers: dict[Owner, int] = field(init=False, factory=dict)
    # The newest assets of each owner, by the owner's number, in order of creation.
    _latest: dict[int, dict[str, None]] = field(init=False, factory=dict)
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
        """Enter an asset, or note that a known one has another owner. An image is always finished.

        A known asset keeps its place in the order of creation, even if it was dropped recently.
        """
        if worker.removed:
            return  # a late answer: no request would find the asset, and the log would keep it
        done = finished or kind is AssetKind.IMAGE or asset_id in self._finished
        before = self._packed(asset_id)
        order = self.order(asset_id)
        if not order:
            self._count += 1
            order = self._count
        number = self._number(Owner(worker, worker.incarnation, kind))
        packed = number << _ORDER_BITS | order
        if before is not None and before != packed:
            self._dropped(asset_id, before)
        if before != packed or (done and asset_id in self._running):
            self.log.entered(number, asset_id, order, finished=done, new=before is None)
        self._places.pop(asset_id, None)
        if done:
            self._running.pop(asset_id, None)
        (self._finished if done else self._running)[asset_id] = packed
        latest = self._latest.setdefault(number, {})
        latest[asset_id] = None
        if len(latest) > _MOST_LATEST:
            del latest[next(iter(latest))]
        if len(self) > self.limit:
            self._make_room()

    def owner(self, asset_id: str, kind: AssetKind) -> Owner | None:
        """The owner of an asset; None if the asset is unknown or its owner is gone."""
        packed = self._packed(asset_id)
        if packed is None:
            return None
        owner = self._owners.get(packed >> _ORDER_BITS)
        return owner if owner is not None and not owner.gone and owner.kind is kind else None

    def latest(self, worker: Worker) -> tuple[Made, ...]:
        """A few assets that the worker's present process has made: jobs before images, and within a
        kind the newest first."""
        found: list[Made] = []
        for kind in AssetKind:
            owner = Owner(worker, worker.incarnation, kind)
            latest = self._latest.get(self._numbers.get(owner, 0), {})
            found += filter(self.has, [Made(asset_id, owner) for asset_id in reversed(latest)])
        return tuple(found)

    def has(self, made: Made) -> bool:
        """Whether the asset still belongs to this owner: not deleted, and not found elsewhere."""
        return self.owner(made.asset_id, made.owner.kind) == made.owner

    def knows(self, owner: Owner) -> bool:
        """Whether the map has, or had, assets of the owner."""
        return owner in self._numbers

    def order(self, asset_id: str) -> int:
        """The asset's place in the order of creation; 0 if unknown. The place of a dropped asset
        stays known for a while."""
        packed = self._packed(asset_id)
        if packed is None:
            return self._places.get(asset_id, 0)
        return packed & _ORDER

    def finish(self, asset_id: str) -> None:
        """Note that the job has ended: the entry may now be dropped to make room."""
        packed = self._running.pop(asset_id, None)
        if packed is not None:
            self._finished[asset_id] = packed
            number, order = packed >> _ORDER_BITS, packed & _ORDER
            if number in self._owners:
                self.log.entered(number, asset_id, order, finished=True, new=False)

    def forget(self, asset_id: str) -> None:
        """Drop a deleted asset."""
        self.deletions += 1
        self._deleted[asset_id] = self.deletions
        if len(self._deleted) > 2 * _MOST_DELETED:
            for oldest in _first(self._deleted, _MOST_DELETED):
                del self._deleted[oldest]
        for pool in (self._finished, self._running):
            packed = pool.pop(asset_id, None)
            if packed is not None:
                self._latest.get(packed >> _ORDER_BITS, {}).pop(asset_id, None)
                self._dropped(asset_id, packed)

    def deleted(self, asset_id: str, *, since: int) -> bool:
        """Whether the asset was deleted after `deletions` was `since`: a list requested at that
        time may still show it."""
        return self._deleted.get(asset_id, 0) > since

    def adopt(self, number: int, owner: Owner, orders: dict[str, int]) -> None:
        """Enter the logged assets of an owner, a present process; the log is told nothing.
        `orders`: places in the order of creation, negative if the asset has ended; the oldest
        first."""
        self._owners[number], self._numbers[owner] = owner, number
        base = number << _ORDER_BITS
        self._finished.update((i, base | -order) for i, order in orders.items() if order < 0)
        self._running.update((i, base | order) for i, order in orders.items() if order > 0)
        self._count = max(self._count, *map(abs, orders.values()), 0)
        newest = list(islice(reversed(orders), _MOST_LATEST))
        self._latest.setdefault(number, {}).update(dict.fromkeys(reversed(newest)))

    def sort(self) -> None:
        """Bring adopted assets of several owners into one order; drop those beyond the limit."""
        by_order = sorted(self._finished.items(), key=lambda item: item[1] & _ORDER)
        self._finished = dict(by_order)
        if len(self) > self.limit:
            self._make_room()

    def purge(self) -> None:
        """Drop every asset whose owner is gone."""
        for _ in self.sweep():
            pass

    def sweep(self) -> Iterator[None]:
        """`purge` in steps. Between two steps the map may change in any way."""
        gone = {number: owner for number, owner in self._owners.items() if owner.gone}
        for number, owner in gone.items():
            del self._owners[number], self._numbers[owner]
            self._latest.pop(number, None)
            self.log.owner_gone(number)
        for pool in (self._finished, self._running) if gone else ():
            ids = list(pool)
            for begin in range(0, len(ids), _SLICE):
                for asset_id in ids[begin : begin + _SLICE]:
                    packed = pool.get(asset_id, 0)
                    if (owned := gone.get(packed >> _ORDER_BITS)) is not None:
                        del pool[asset_id]
                        self._keep_place(asset_id, packed, owned.kind)
                yield

    def _number(self, owner: Owner) -> int:
        number = self._numbers.get(owner)
        if number is None:
            self.last_owner = number = self.last_owner + 1
            self._owners[number], self._numbers[owner] = owner, number
            self.log.owner_entered(number, owner)
        return number

    def _dropped(self, asset_id: str, packed: int) -> None:
        number = packed >> _ORDER_BITS
        if (owner := self._owners.get(number)) is not None:
            self._keep_place(asset_id, packed, owner.kind)
            self.log.dropped(number, asset_id)

    def _packed(self, asset_id: str) -> int | None:
        packed = self._running.get(asset_id)
        return self._finished.get(asset_id) if packed is None else packed

    def _keep_place(self, asset_id: str, packed: int, kind: AssetKind) -> None:
        if kind is AssetKind.IMAGE:
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
                self._dropped(asset_id, pool.pop(asset_id))
                surplus -= 1


def _first(ids: Iterable[str], count: int) -> list[str]:
    return list(islice(ids, count))
