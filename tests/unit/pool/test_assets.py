"""The map from assets to owners: owners that go, room that runs out, the order of creation."""

from __future__ import annotations

import tracemalloc
import uuid

import pytest

from router.pool.assets import AssetKind, AssetMap, Owner
from router.pool.registry import Registry
from router.pool.worker import Origin, Worker

VIDEO, MESH, IMAGE = AssetKind.VIDEO, AssetKind.MESH, AssetKind.IMAGE


def pool(*names: str) -> tuple[Registry, list[Worker]]:
    registry = Registry()
    return registry, [registry.add(f"http://{name}:1", Origin.REGISTERED) for name in names]


def known(assets: AssetMap, *ids: str, kind: AssetKind = VIDEO) -> list[str]:
    return [asset_id for asset_id in ids if assets.owner(asset_id, kind) is not None]


def test_the_owner_is_found_by_id_and_kind() -> None:
    _, (a, b) = pool("a", "b")
    assets = AssetMap()
    assets.learn("1", a, VIDEO)
    assets.learn("2", b, MESH)
    owner = assets.owner("1", VIDEO)
    assert owner is not None
    assert (owner.worker, owner.kind) == (a, VIDEO)
    assert assets.owner("2", VIDEO) is None  # a mesh is no video
    assert assets.owner("3", VIDEO) is None
    assert len(assets) == 2


def test_the_owner_goes_with_its_worker() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap()
    for i in range(4):
        assets.learn(str(i), (a, b)[i % 2], VIDEO, finished=i < 2)
    registry.remove(a)
    assert known(assets, "0", "1", "2", "3") == ["1", "3"]
    assets.purge()
    assert len(assets) == 2
    again = registry.add(a.url, Origin.REGISTERED)
    assert known(assets, "0", "2") == []  # another registration
    assets.learn("0", again, VIDEO)
    assert known(assets, "0", "1", "2", "3") == ["0", "1", "3"]


def test_the_owner_goes_with_its_process() -> None:
    registry, (a,) = pool("a")
    assets = AssetMap()
    assets.learn("old", a, VIDEO)
    registry.reincarnate(a, "it restarted")
    assert known(assets, "old") == []
    assets.learn("new", a, VIDEO)
    assets.purge()
    assert known(assets, "old", "new") == ["new"]
    assert len(assets) == 1


def test_owners_that_are_gone_are_forgotten() -> None:
    registry, (steady,) = pool("steady")
    assets = AssetMap()
    assets.learn("s", steady, VIDEO)
    for i in range(100):
        guest = registry.add("http://guest:1", Origin.REGISTERED)
        assets.learn(f"g{i}", guest, VIDEO)
        assert known(assets, "s", f"g{i}") == ["s", f"g{i}"]
        registry.remove(guest)
        assets.purge()
    assert len(assets) == 1
    assert len(assets._owners) <= 2


def test_what_a_removed_worker_answers_late_is_not_entered() -> None:
    """It would be logged as the next registration's, whose incarnation is the same."""
    registry, (a,) = pool("a")
    assets = AssetMap()
    registry.remove(a)
    assets.learn("late", a, VIDEO)
    assert len(assets) == 0
    assert not assets.knows(Owner(a, a.incarnation, VIDEO))


def test_a_sweep_looks_at_some_entries_at_a_time() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap()
    for i in range(35_000):
        assets.learn(str(i), a if i % 2 else b, IMAGE)
    registry.remove(a)
    sizes = [len(assets) for _ in assets.sweep()]
    assert sizes[:4] == [30_000, 25_000, 20_000, 17_500]
    assert known(assets, "0", "1", kind=IMAGE) == ["0"]


def test_what_is_made_while_the_sweep_pauses_stays() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap()
    for i in range(3):
        assets.learn(str(i), a, VIDEO)
    registry.remove(a)
    sweep = assets.sweep()
    assets.learn("2", b, VIDEO)  # found elsewhere
    next(sweep)
    a = registry.add(a.url, Origin.REGISTERED)
    assets.learn("0", a, VIDEO)
    list(sweep)
    assert known(assets, "0", "1", "2") == ["0", "2"]


def test_the_oldest_finished_go_first() -> None:
    _, (a,) = pool("a")
    assets = AssetMap(limit=6)
    for i in range(6):
        assets.learn(str(i), a, VIDEO)
    for done in ("4", "1", "5"):  # in the order in which they ended
        assets.finish(done)
    everything = [str(i) for i in range(10)]
    assets.learn("6", a, VIDEO)
    assert known(assets, *everything) == ["0", "1", "2", "3", "5", "6"]
    assets.learn("7", a, VIDEO, finished=True)
    assert known(assets, *everything) == ["0", "2", "3", "5", "6", "7"]
    assets.learn("8", a, VIDEO)
    assets.learn("9", a, VIDEO)
    assert known(assets, *everything) == ["0", "2", "3", "6", "8", "9"]


def test_running_jobs_go_only_when_nothing_is_finished() -> None:
    _, (a,) = pool("a")
    assets = AssetMap(limit=3)
    for i in range(5):
        assets.learn(str(i), a, VIDEO)
        assert len(assets) <= 3
    assert known(assets, *"01234") == ["2", "3", "4"]
    assets.learn("picture", a, IMAGE)  # finished as it is made
    assets.learn("5", a, VIDEO)
    assert known(assets, *"2345") == ["3", "4", "5"]
    assert known(assets, "picture", kind=IMAGE) == []


def test_what_is_gone_makes_room_before_what_is_not() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap(limit=4)
    assets.learn("0", b, VIDEO, finished=True)
    for i in "123":
        assets.learn(i, a, VIDEO)
    registry.remove(a)
    assets.learn("4", b, VIDEO)
    assert known(assets, *"01234") == ["0", "4"]


def test_a_full_map_drops_a_hundredth_at_once() -> None:
    """Finding the oldest scans over dropped ones, so that one by one would be quadratic."""
    _, (a,) = pool("a")
    assets = AssetMap(limit=1000)
    for i in range(1001):
        assets.learn(str(i), a, IMAGE)
    assert len(assets) == 990
    assert known(assets, "10", "11", kind=IMAGE) == ["11"]


def test_the_order_is_that_of_learning() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap()
    for asset_id in ("x", "y", "z"):
        assets.learn(asset_id, a, VIDEO)
    first = [assets.order(i) for i in "xyz"]
    assert first == sorted(first)
    assert first[0] > 0
    assert assets.order("unheard of") == 0

    assets.finish("y")
    assets.learn("x", b, VIDEO)  # it moved
    assets.learn("y", b, VIDEO)
    assert [assets.order(i) for i in "xyz"] == first
    owner = assets.owner("x", VIDEO)
    assert owner is not None
    assert owner.worker is b

    registry.remove(b)
    again = registry.add(b.url, Origin.REGISTERED)
    assets.learn("x", again, VIDEO)
    assert [assets.order(i) for i in "xyz"] == first


def test_what_was_finished_stays_so_when_learned_again() -> None:
    _, (a, b) = pool("a", "b")
    assets = AssetMap(limit=2)
    assets.learn("old", a, VIDEO)
    assets.learn("done", a, VIDEO, finished=True)
    assets.learn("done", b, VIDEO)
    assets.learn("new", a, VIDEO)
    assert known(assets, "old", "done", "new") == ["old", "new"]


@pytest.mark.parametrize("how", ["deleted", "removed", "evicted"])
def test_the_place_of_what_is_gone_is_kept_for_a_while(how: str) -> None:
    """It may be the cursor of somebody who pages and deletes what he has seen."""
    registry, (a, b) = pool("a", "b")
    assets = AssetMap(limit=3)
    assets.learn("1", a, VIDEO)
    assets.learn("2", b, VIDEO)
    place = assets.order("1")
    if how == "deleted":
        assets.forget("1")
    elif how == "removed":
        registry.remove(a)
        assets.purge()
    else:
        for i in "345":
            assets.learn(i, b, VIDEO)
    assert known(assets, "1") == []
    assert assets.order("1") == place
    for i in range(40_000):
        assets.learn(f"later {i}", b, VIDEO)
    assert assets.order("1") == 0  # not for ever


def test_an_entry_takes_little_memory() -> None:
    _, workers = pool("a", "b", "c", "d")
    ids = [str(uuid.uuid4()) for _ in range(100_000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        assets = AssetMap()
        for i, asset_id in enumerate(ids):
            text = asset_id.encode().decode()  # its own copy, as in life
            assets.learn(text, workers[i % 4], VIDEO, finished=i % 2 == 0)
        taken = tracemalloc.get_traced_memory()[0] - before
        assert taken / len(ids) <= 256
    finally:
        tracemalloc.stop()


def names(assets: AssetMap, worker: Worker) -> list[str]:
    return [made.asset_id for made in assets.latest(worker)]


def test_the_latest_of_a_worker_are_its_own() -> None:
    registry, (a, b) = pool("a", "b")
    assets = AssetMap()
    assert names(assets, a) == []
    assets.learn("i", a, IMAGE)
    assets.learn("1", a, VIDEO)
    assets.learn("2", b, VIDEO)
    assets.learn("m", a, MESH)
    assets.learn("3", a, VIDEO, finished=True)
    assert names(assets, a) == ["3", "1", "m", "i"]
    assert names(assets, b) == ["2"]
    assets.learn("1", b, VIDEO)  # it was found there
    assert names(assets, a) == ["3", "m", "i"]
    assets.forget("3")
    assert names(assets, a) == ["m", "i"]
    made = assets.latest(a)
    registry.reincarnate(a, "it restarted")
    assert names(assets, a) == []
    assert not any(map(assets.has, made))


def test_few_are_kept_at_hand_and_those_are_the_newest() -> None:
    _, (a,) = pool("a")
    assets = AssetMap()
    for i in range(100):
        assets.learn(str(i), a, VIDEO)
    assert names(assets, a)[:3] == ["99", "98", "97"]
    assert len(names(assets, a)) < 10


def test_deleted_ones_do_not_stand_in_the_way_of_others() -> None:
    """Whoever deletes each of his jobs but the first leaves that one to testify."""
    _, (a,) = pool("a")
    assets = AssetMap()
    assets.learn("first", a, VIDEO)
    for i in range(100):
        assets.learn(str(i), a, VIDEO)
        assets.forget(str(i))
    assert names(assets, a) == ["first"]


def test_dropped_ones_do_not_testify() -> None:
    _, (a,) = pool("a")
    assets = AssetMap(limit=3)
    for i in range(6):
        assets.learn(str(i), a, IMAGE)
    assert names(assets, a) == [str(i) for i in range(5, -1, -1) if assets.owner(str(i), IMAGE)]


def test_the_latest_of_the_next_owner_in_a_slot_are_not_those_of_the_last() -> None:
    registry, (a,) = pool("a")
    assets = AssetMap()
    assets.learn("old", a, VIDEO)
    registry.reincarnate(a, "it restarted")
    assets.purge()
    assert not assets._latest
    b = registry.add("http://b:1", Origin.REGISTERED)
    assets.learn("new", b, VIDEO)
    assert names(assets, b) == ["new"]


def test_what_is_adopted_of_several_owners_gets_one_order() -> None:
    _, (a, b) = pool("a", "b")
    assets = AssetMap(limit=4)
    assets.adopt(1, Owner(a, 1, VIDEO), {"1": -1, "4": -4, "5": 5})
    assets.adopt(2, Owner(b, 1, VIDEO), {"2": -2, "3": -3})
    assets.sort()
    assert known(assets, *"12345") == ["2", "3", "4", "5"]  # the oldest was one too many
    assets.learn("6", b, VIDEO)
    assert assets.order("6") == 6
    assert known(assets, *"123456") == ["3", "4", "5", "6"]
