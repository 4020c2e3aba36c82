"""What of the pool is in the store after what happens to a worker."""

from __future__ import annotations

from typing import Any

import trio

from router.control.persistence import OwnerRecord, PoolPersistence, StoredAssets
from router.dispatch import Dispatcher
from router.pool import policies
from router.pool.assets import AssetKind, AssetMap
from router.pool.cost import Speeds
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin
from router.store.records import Record, unstructured
from router.store.store import Store


class Rows(Store):
    """The rows as they are now, of which nothing is written."""

    keeps = True

    def put(self, record: Record) -> None:
        self._tables.setdefault(record.table, {})[record.key] = unstructured(record)

    def delete_row(self, table: str, key: str) -> None:
        self._tables.get(table, {}).pop(key, None)

    def put_row(self, table: str, key: str, value: Any, *, new: bool = False) -> None:
        self._tables.setdefault(table, {})[key] = value


class Scene:
    def __init__(self) -> None:
        self.store = Rows()
        self.registry = Registry()
        self.dispatcher = Dispatcher(self.registry, policies.make("least-request", Speeds()))
        PoolPersistence(self.store, self.registry, self.dispatcher, AssetMap(100)).restore({})
        self.worker = self.registry.add("http://w:1", Origin.REGISTERED)

    def submit(self, job_id: str) -> None:
        hold = Hold(self.worker, self.worker.incarnation, HoldKind.GENERATION, "video", job=True)
        lease = self.registry.lease(self.worker, hold)
        self.dispatcher.job_began(lease, job_id)
        lease.release()

    def jobs(self) -> dict[str, int]:
        """The incarnation of which each job is recorded."""
        return {job_id: row["incarnation"] for job_id, row in self.store.rows("jobs").items()}


def test_a_job_that_another_process_keeps_is_recorded_as_its_own() -> None:
    async def main() -> None:
        scene = Scene()
        scene.submit("old")
        scene.registry.suspect(scene.worker, "its idle connection was closed")
        scene.submit("new")
        assert scene.jobs() == {"old": 1, "new": 1}
        scene.registry.reincarnate(scene.worker, "it no longer knows what it made")
        assert scene.jobs() == {"new": 2}

    trio.run(main)


def test_of_two_recorded_owners_that_are_one_process_the_newer_is_taken() -> None:
    """Older versions logged what a removed worker answered late, and never forgot it."""
    store, registry, assets = Rows(), Registry(), AssetMap(100)
    worker = registry.add("http://w:1", Origin.REGISTERED)
    for number, asset_id in ((1, "late"), (2, "new")):
        store.put(OwnerRecord(number, worker.url, worker.incarnation, AssetKind.VIDEO))
        store.put_row(f"assets/{number}", asset_id, number)
    StoredAssets(store, assets).restore(registry.find, lambda url: False)
    assert assets.owner("late", AssetKind.VIDEO) is None
    assert assets.owner("new", AssetKind.VIDEO) is not None
    assert list(store.rows("owners")) == ["2"]
    registry.remove(worker)
    assets.purge()
    assert len(assets) == 0
