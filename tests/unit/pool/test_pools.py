"""Named pools: the names of ledgers, and a worker that moves between them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import BadRequest, RouterError
from router.pool.match import Candidates, Facts, Need, select
from router.pool.pools import NAME, Kind, Role, absent, ledger_name, pool_and_model
from router.pool.registry import Registry
from router.pool.weights import Ledgers
from router.pool.weights.recipe import DISK, FRESH
from router.pool.worker import Capabilities, Origin, Weights, Worker, WorkerRecord
from router.store.store import Store

MODELS = st.text(max_size=8) | st.sampled_from(("m (pool a)", "m (pool default)", " (pool a)"))


@given(st.from_regex(NAME, fullmatch=True) | st.sampled_from(("default", "a")), MODELS)
def test_the_name_of_a_ledger_tells_pool_and_model(pool: str, model: str) -> None:
    assert pool_and_model(ledger_name(pool, model)) == (pool, model)


def test_the_ledger_of_the_default_pool_has_the_name_of_the_model() -> None:
    assert ledger_name("default", "Qwen/Qwen-Image") == "Qwen/Qwen-Image"


def member(registry: Registry, name: str, pool: str, model: str = "m") -> Worker:
    worker = registry.add(f"http://{name}:1", Origin.REGISTERED, role=Role(pool))
    registry.learned(worker, Capabilities(models=(model,), model_path=model))
    return worker


def test_a_worker_that_moves_has_unknown_weights_there() -> None:
    registry = Registry()
    ledgers = Ledgers(registry, Store())
    a, b = member(registry, "a", "policy"), member(registry, "b", "teacher")
    ledger = ledgers.model_of(a)
    assert ledger is not None
    change = ledgers.make("1", ledger, DISK, '{"model_path": "p"}', None)
    ledgers.open(change, [a])
    ledgers.applied(change, a, a.incarnation)
    ledgers.close(change)
    ledgers.release(a)
    assert (a.weight_version, a.weights, b.weight_version) == (1, Weights.CURRENT, 0)
    registry.assign(b, Role("policy"))  # the weights of its start are known everywhere
    assert ledgers.weight_state(b) == FRESH
    assert b.weights is Weights.BEHIND
    registry.assign(a, Role("teacher"))
    assert ledgers.weight_state(a).base is None
    assert a.weights is Weights.BEHIND
    assert ledgers.needs_replay(a)  # of the weights of its start, which the teacher has


def test_a_pool_is_known_by_its_settings_or_its_weights() -> None:
    registry = Registry(pools=["teacher"])
    ledgers = Ledgers(registry, Store())
    policy, other = member(registry, "a", "policy"), member(registry, "b", "other")
    assert absent("policy", registry) is None
    assert absent(None, registry) is None
    ledger = ledgers.model_of(policy)
    assert ledger is not None
    change = ledgers.make("1", ledger, DISK, '{"model_path": "p"}', None)
    ledgers.defer(change, [policy])  # as good as weights: it comes before any other
    registry.remove(policy)
    registry.remove(other)
    told = {name: absent(name, registry) for name in ("default", "teacher", "policy", "other")}
    assert {name: error and error.code for name, error in told.items()} == {
        **dict.fromkeys(("default", "teacher", "policy"), "no_workers"),
        "other": "unknown_pool",
    }
    for name in ("teacher", "other"):
        with pytest.raises(RouterError) as refused:
            select(registry, model=None, workers=None, pool=name)
        assert str(refused.value) == str(told[name])


def test_plain_workers_get_only_what_names_their_pool() -> None:
    registry = Registry()
    policy = member(registry, "a", "default")
    plain = registry.add("http://b:1", Origin.REGISTERED, role=Role("reward", Kind.HTTP))
    registry.learned(plain, Capabilities())
    candidates = Candidates(registry)
    for need in Need:
        assert candidates.fitting(Facts(need=need).wants) == (policy,)
        if need is not Need.JOB:
            assert candidates.fitting(Facts(need=need, pool="reward").wants) == (plain,)
    assert select(registry, model=None, workers=None, mixed=True) == [policy]
    for names in ({"pool": "reward"}, {"workers": "b:1"}):
        with pytest.raises(BadRequest) as refused:
            select(registry, **{"model": None, "workers": None, **names}, mixed=True)
        assert refused.value.code == "plain_worker"
    assert registry.plain_pools == {"reward"}
    registry.remove(plain)
    assert not registry.plain_pools


def test_what_a_request_said_of_the_role_outlives_the_flags() -> None:
    url = "http://a:1"
    registry = Registry(roles={url: Role("teacher")})
    worker = registry.add(url, Origin.STATIC)
    assert worker.pool == "teacher"
    assert WorkerRecord.of(worker).role is None  # the flags decide
    registry.assign(worker, Role("policy"))
    later = Registry(roles={url: Role("teacher")})
    later.recall([WorkerRecord.of(worker)], doubt=None)
    assert later.add(url, Origin.STATIC).pool == "policy"
