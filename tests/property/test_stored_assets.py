"""The asset map and its log: whatever happens to it, it can be restored from what was put."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast
from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from router.control.persistence import StoredAssets
from router.pool import assets as assets_module
from router.pool.assets import AssetKind, AssetMap
from router.pool.registry import Registry
from router.pool.worker import Origin, Worker
from router.store.changes import Changes, Tables
from router.store.records import structured, unstructured
from router.store.store import Store

IDS = st.sampled_from([f"id-{number}" for number in range(9)])
WORKERS = st.integers(0, 2)
KINDS = st.sampled_from(list(AssetKind))
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("learn"), IDS, WORKERS, KINDS, st.booleans()),
        st.tuples(st.just("finish"), IDS),
        st.tuples(st.just("forget"), IDS),
        st.tuples(st.just("reincarnate"), WORKERS),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("restart")),
    ),
    max_size=40,
)


class Rows:
    """A store that carries out what is put at once."""

    keeps = True

    def __init__(self) -> None:
        self.now: Tables = {}

    def _do(self, *op: Any) -> None:
        changes = Changes()
        changes.apply(list(op))
        changes.onto(self.now)

    def put(self, record: Any) -> None:
        self._do("put", record.table, record.key, unstructured(record))

    def put_row(self, table: str, key: str, value: Any, *, new: bool = False) -> None:
        assert not (new and key in self.now.get(table, {})), "it said that there was none"
        self._do("put", table, key, value)

    def delete(self, kind: Any, key: str) -> None:
        self._do("del", kind.table, key)

    def delete_row(self, table: str, key: str) -> None:
        self._do("del", table, key)

    def clear(self, table: str) -> None:
        self._do("clear", table)

    def tables(self) -> list[str]:
        return list(self.now)

    def rows(self, table: str) -> dict[str, Any]:
        return dict(self.now.get(table, {}))

    def restored(self, kind: Any) -> dict[str, Any]:
        return {key: structured(value, kind) for key, value in self.rows(kind.table).items()}


def seen(assets: AssetMap) -> dict[str, tuple[str, int, AssetKind, int, bool]]:
    """Everything that it knows, from outside."""
    found = {}
    for asset_id in [f"id-{number}" for number in range(9)]:
        for kind in AssetKind:
            owner = assets.owner(asset_id, kind)
            if owner is not None:
                place = owner.worker.url, owner.incarnation, kind
                ended = asset_id in assets._finished
                found[asset_id] = (*place, assets.order(asset_id), ended)
    return found


@given(STEPS, st.integers(3, 12))
def test_what_was_put_restores_it(steps: list[tuple[Any, ...]], limit: int) -> None:
    with patch.object(assets_module, "_SLICE", 1):
        registry, rows = Registry(), Rows()
        workers = [registry.add(f"http://w{number}:1", Origin.REGISTERED) for number in range(3)]

        def start() -> AssetMap:
            assets = AssetMap(limit)
            StoredAssets(cast(Store, rows), assets).restore(registry.find, lambda url: False)
            return assets

        assets, sweeps = start(), list[Iterator[None]]()
        for name, *rest in steps:
            match name:
                case "learn":
                    asset_id, number, kind, finished = rest
                    assets.learn(asset_id, workers[number], kind, finished=finished)
                case "finish" | "forget":
                    getattr(assets, name)(*rest)
                case "reincarnate":
                    worker: Worker = workers[rest[0]]
                    registry.reincarnate(worker, "it was killed")
                    sweeps.append(assets.sweep())
                case "sweep":
                    for sweep in sweeps:
                        next(sweep, None)
                case "restart":
                    before = seen(assets)
                    sweeps.clear()
                    assets = start()
                    assert seen(assets) == before
        for sweep in sweeps:
            for _ in sweep:
                pass
        assert seen(start()) == seen(assets)
        assert sum(len(found) for name, found in rows.now.items() if name != "owners") == len(
            assets
        )
