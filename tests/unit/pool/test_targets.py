"""Which workers a weight, LoRA or memory call is meant for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from router.errors import BadRequest, NotFound, PoolUnavailable
from router.pool.lifecycle import AdminEvent, MemoryEvent, Probe
from router.pool.match import Targets, models_of, select
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Origin, Weights, Worker


def add(registry: Registry, name: str, *models: str) -> Worker:
    worker = registry.add(f"http://{name}:1", Origin.REGISTERED)
    if models:
        registry.learned(worker, Capabilities(models=models))
        registry.probed(worker, Probe.OK)
    return worker


def chosen(registry: Registry, model: str | None = None, workers: str | None = None) -> list[str]:
    return [w.url[7] for w in select(registry, model=model, workers=workers)]


def test_all_where_one_model_is_served() -> None:
    registry = Registry()
    add(registry, "a", "m")
    add(registry, "b", "m", "m-alias")
    add(registry, "c")  # not known yet
    assert chosen(registry) == ["a", "b", "c"]


def test_several_models_want_a_name() -> None:
    registry = Registry()
    for name, models in (("a", ("x",)), ("b", ("y", "y2")), ("c", ("x",)), ("d", ())):
        add(registry, name, *models)
    with pytest.raises(BadRequest) as refused:
        chosen(registry)
    assert refused.value.code == "ambiguous_target"
    assert refused.value.details == {"models": ["x", "y"]}
    assert chosen(registry, model="x") == ["a", "c"]
    assert chosen(registry, model="y2") == ["b"]
    assert len(select(registry, model=None, workers=None, mixed=True)) == 4


def test_a_model_that_nobody_serves() -> None:
    registry = Registry()
    add(registry, "a", "x")
    for model in ("y", ""):
        with pytest.raises(NotFound) as refused:
            chosen(registry, model=model)
        assert refused.value.code == "unknown_model"
        assert refused.value.details == {"models": ["x"], "nearest": None}


@pytest.mark.parametrize(
    "names",
    ["http%3A%2F%2Fb%3A1,http://A:1", " http://b:1/ , ,http%3A%2F%2Fa%3A1,http://b:1"],
)
def test_workers_by_name_in_that_order_each_once(names: str) -> None:
    registry = Registry()
    for name in "abc":
        add(registry, name, name)  # different models: the names decide
    assert chosen(registry, workers=names) == ["b", "a"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"workers": ""}, "invalid_field"),
        ({"workers": " , "}, "invalid_field"),
        ({"workers": "http://z:1"}, "unknown_worker"),
        ({"workers": "http://a:1,http://z:1"}, "unknown_worker"),
        ({"workers": "http://a:1", "model": "m"}, "invalid_field"),
    ],
)
def test_names_that_name_nobody(query: dict[str, str], code: str) -> None:
    registry = Registry()
    add(registry, "a", "m")
    with pytest.raises(BadRequest) as refused:
        chosen(registry, **query)
    assert refused.value.code == code


@pytest.mark.parametrize("query", [{}, {"model": "m"}, {"workers": "http://a:1"}])
def test_an_empty_pool(query: dict[str, str]) -> None:
    with pytest.raises(PoolUnavailable) as refused:
        chosen(Registry(), **query)
    assert (refused.value.status, refused.value.message, refused.value.code) == (
        503,
        "No healthy workers available in the pool",
        "no_workers",
    )


def asleep(registry: Registry, worker: Worker) -> None:
    registry.apply_memory_event(worker, MemoryEvent.SLEEP)
    registry.apply_memory_event(worker, MemoryEvent.SLEPT)


def waking(registry: Registry, worker: Worker) -> None:
    asleep(registry, worker)
    registry.apply_memory_event(worker, MemoryEvent.WAKE)


def draining(registry: Registry, worker: Worker) -> None:
    registry.administer(worker, AdminEvent.DRAIN)


def quarantined(registry: Registry, worker: Worker) -> None:
    registry.administer(worker, AdminEvent.QUARANTINE)


def unhealthy(registry: Registry, worker: Worker) -> None:
    for _ in range(3):
        registry.probed(worker, Probe.FAILED)


def warming(registry: Registry, worker: Worker) -> None:
    registry.probed(worker, Probe.WARMING)


def behind(registry: Registry, worker: Worker) -> None:
    registry.set_weights(worker, Weights.BEHIND, worker.weight_version)


def removed(registry: Registry, worker: Worker) -> None:
    registry.remove(worker)


def nothing(registry: Registry, worker: Worker) -> None:
    pass


def dead_asleep(registry: Registry, worker: Worker) -> None:
    asleep(registry, worker)
    unhealthy(registry, worker)


@pytest.mark.parametrize(
    ("state", "change", "wake", "ask"),
    [
        (nothing, True, None, True),
        (draining, True, None, True),  # it must not come back with old weights
        (behind, True, None, True),
        (asleep, False, True, True),
        (waking, False, True, True),
        (quarantined, False, None, False),
        (unhealthy, False, None, False),
        (warming, False, None, False),
        (removed, False, None, False),
        (dead_asleep, False, False, False),
    ],
)
def test_who_is_eligible(
    state: Callable[[Registry, Worker], None], change: bool, wake: bool | None, ask: bool
) -> None:
    """None: neither eligible nor deferred; it is not meant."""
    registry = Registry()
    worker = add(registry, "a", "m")
    state(registry, worker)
    for targets, eligible in (
        (Targets.of([worker], awake=True), change),
        (Targets.of(w for w in [worker] if w.is_sleeping), wake),
        (Targets.of([worker]), ask),
    ):
        assert list(targets.eligible) == ([worker] if eligible else [])
        assert list(targets.deferred) == ([worker] if eligible is False else [])


def test_deferred_workers_say_why() -> None:
    registry = Registry()
    worker = add(registry, "a", "m")
    dead_asleep(registry, worker)
    assert Targets.of([worker], awake=True).deferred_rows() == [
        {
            "worker_url": "http://a:1",
            "worker_id": "http%3A%2F%2Fa%3A1",
            "reasons": ["unhealthy", "asleep"],
        }
    ]


def test_models_are_named_once() -> None:
    registry = Registry()
    workers = [add(registry, n, *m) for n, m in (("a", ("x",)), ("b", ()), ("c", ("y", "x")))]
    assert models_of([*workers, workers[0]]) == ["x", "y"]
