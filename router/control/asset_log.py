"""Keeps the asset map in the store: a table of assets for each owner."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from attrs import define, field, frozen

from ..pool.assets import AssetKind, AssetLog, AssetMap, Owner
from ..pool.worker import Worker
from ..store.store import Store
from ..text import is_id

_PREFIX = "assets/"


@frozen
class OwnerRecord:
    """A worker's process as the owner of assets of one kind.

    They are in a table of their own, `assets/NUMBER`: asset id to its place in the order of
    creation, negative once it has ended. So an owner that is gone takes them along at once, and
    rows are small: there may be a million.
    """

    table: ClassVar[str] = "owners"

    number: int  # never used again
    url: str
    incarnation: int
    kind: AssetKind

    @property
    def key(self) -> str:
        return str(self.number)


@define(eq=False)
class StoredAssets(AssetLog):
    """The log of an asset map, and what it restores."""

    store: Store
    assets: AssetMap
    # What waits for its worker to be added.
    _waiting: dict[str, list[OwnerRecord]] = field(init=False, factory=dict)

    def restore(self, find: Callable[[str], Worker | None], awaited: Callable[[str], bool]) -> None:
        """Take up what the store has of the workers that there are, and keep what is `awaited`
        of those that may be added later. Everything else is gone."""
        if not self.store.keeps:
            return
        owners = self.store.restored(OwnerRecord)
        self.assets.last_owner = max((owner.number for owner in owners.values()), default=0)
        # The newest first: older versions left owners of an earlier registration behind.
        for owner in sorted(owners.values(), key=lambda owner: -owner.number):
            worker = find(owner.url)
            if worker is not None:
                self._adopt(owner, worker)
            elif awaited(owner.url):
                self._waiting.setdefault(owner.url, []).append(owner)
            else:
                self.owner_gone(owner.number)
        for table in self.store.tables():
            if table.startswith(_PREFIX) and table.removeprefix(_PREFIX) not in owners:
                self.store.clear(table)
        self.assets.sort()
        self.assets.log = self

    def added(self, worker: Worker) -> None:
        """Take up what waited for the worker."""
        waiting = self._waiting.pop(worker.url, [])
        for owner in waiting:
            self._adopt(owner, worker)
        if waiting:
            self.assets.sort()

    def drop_waiting(self) -> None:
        """Nobody is awaited any more."""
        for owners in self._waiting.values():
            for owner in owners:
                self.owner_gone(owner.number)
        self._waiting.clear()

    def entered(self, number: int, asset_id: str, order: int, *, finished: bool, new: bool) -> None:
        self.store.put_row(f"{_PREFIX}{number}", asset_id, -order if finished else order, new=new)

    def dropped(self, number: int, asset_id: str) -> None:
        self.store.delete_row(f"{_PREFIX}{number}", asset_id)

    def owner_entered(self, number: int, owner: Owner) -> None:
        self.store.put(OwnerRecord(number, owner.worker.url, owner.incarnation, owner.kind))

    def owner_gone(self, number: int) -> None:
        self.store.clear(f"{_PREFIX}{number}")
        self.store.delete(OwnerRecord, str(number))

    def _adopt(self, owner: OwnerRecord, worker: Worker) -> None:
        adopted = Owner(worker, owner.incarnation, owner.kind)
        if adopted.gone or self.assets.knows(adopted):
            self.owner_gone(owner.number)
            return
        table = f"{_PREFIX}{owner.number}"
        rows = self.store.rows(table)
        if unfit := [asset_id for asset_id in rows if not is_id(asset_id)]:  # of older versions
            rows = dict(rows)
            for asset_id in unfit:
                del rows[asset_id]
                self.store.delete_row(table, asset_id)
        self.assets.adopt(owner.number, adopted, rows)
