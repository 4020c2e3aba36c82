"""One suite for every policy, and what is particular to each."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections import Counter

import pytest

from router.pool import policies
from router.pool.cost import Speeds
from router.pool.match import Facts
from router.pool.policies import POLICIES, Policy
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin, Worker
from router.settings import RoutingAlgorithm

ANY = Facts(kind="/images", work=1.0)


def make(name: str, rng: random.Random | None = None, speeds: Speeds | None = None) -> Policy:
    return policies.make(name, speeds or Speeds(), rng)


def pool(*names: str) -> list[Worker]:
    registry = Registry()
    return [registry.add(f"http://{name}", Origin.STATIC) for name in names]


def busy(worker: Worker, requests: int, slots: int = 1) -> Worker:
    registry = Registry()
    registry.set_concurrency(worker, slots)
    for _ in range(requests):
        hold = Hold(worker, worker.incarnation, HoldKind.GENERATION, "/images", 1.0)
        registry.lease(worker, hold)
    return worker


def holding(worker: Worker, kind: HoldKind, work: float = 1.0) -> Worker:
    """The worker, with a job or ghost that no exchange waits for."""
    registry = Registry()
    lease = registry.lease(worker, Hold(worker, worker.incarnation, kind, "/images", work))
    registry.keep(lease, kind)
    lease.release()
    return worker


def picks(policy: Policy, workers: list[Worker], times: int, group: object = None) -> list[str]:
    return [policy.choose(workers, group, ANY).url.removeprefix("http://") for _ in range(times)]


def test_every_algorithm_that_can_be_set_exists() -> None:
    assert set(POLICIES) == {algorithm.value for algorithm in RoutingAlgorithm}
    with pytest.raises(KeyError):
        make("best")


@pytest.fixture(params=sorted(POLICIES))
def policy(request: pytest.FixtureRequest) -> Policy:
    return make(request.param, random.Random(1))


def test_one_candidate_is_chosen(policy: Policy) -> None:
    only = pool("a")
    assert set(picks(policy, only, 5)) == {"a"}


def test_the_choice_is_among_the_candidates(policy: Policy) -> None:
    rng = random.Random(2)
    workers = pool(*map(str, range(10)))
    for _ in range(500):
        candidates = rng.sample(workers, rng.randint(1, 10))
        before = list(candidates)
        assert policy.choose(candidates, rng.choice("xyz"), ANY) in candidates
        assert candidates == before
        busy(rng.choice(workers), rng.randint(0, 2), slots=rng.randint(1, 4))


def test_none_starves_among_equals(policy: Policy) -> None:
    assert set(picks(policy, pool("a", "b", "c"), 60)) == {"a", "b", "c"}


def test_what_is_remembered_stays_bounded(policy: Policy) -> None:
    """Workers on ever new ports, models of ever new names."""

    def churn(base: int) -> None:
        for number in range(base, base + 4000):
            policy.choose(pool(f"w:{number}", f"v:{number}"), "same", ANY)
            policy.choose(pool("a", "b"), ("model", number), ANY)

    for base in (0, 4000):  # until all tables are full
        churn(base)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        churn(10_000)
        gc.collect()  # workers are cycles; when Python collects them varies with its version
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 500_000


def test_round_robin_takes_each_in_turn_whatever_its_load() -> None:
    workers = pool("a", "b", "c")
    busy(workers[0], 5)
    assert picks(make("round-robin"), workers, 7) == list("abcabca")


def test_round_robin_stays_fair_when_workers_join_and_leave() -> None:
    policy = make("round-robin")
    a, b, c, d = pool("a", "b", "c", "d")
    assert picks(policy, [a, b, c], 4) == list("abca")
    assert picks(policy, [a, c], 2) == list("ca")  # b left; nobody is skipped
    assert picks(policy, [a, b, c], 3) == list("bca")  # b is back: its turn was longest ago
    assert picks(policy, [a, b, c, d], 5) == list("dbcad")  # d joins


def test_round_robin_is_fair_while_each_is_away_for_a_while() -> None:
    policy, workers = make("round-robin"), pool(*map(str, range(8)))
    rng, counts = random.Random(3), Counter[str]()
    for _ in range(4000):
        away = rng.choice(workers)
        counts[policy.choose([w for w in workers if w is not away], None, ANY).url] += 1
    assert max(counts.values()) - min(counts.values()) <= 0.1 * 4000 / 8


def test_round_robin_keeps_a_rotation_per_group() -> None:
    policy, workers = make("round-robin"), pool("a", "b")
    assert picks(policy, workers, 1, "x") == ["a"]
    assert picks(policy, workers, 3, "y") == list("aba")
    assert picks(policy, workers, 2, "x") == list("ba")


def test_round_robin_remembers_many_workers_though_few_are_free() -> None:
    policy, workers = make("round-robin"), pool(*map(str, range(200)))
    picks(policy, workers, 200)
    assert picks(policy, workers[:2], 2) == ["0", "1"]
    assert picks(policy, workers, 198) == [str(number) for number in range(2, 200)]


def test_least_request_takes_the_emptiest() -> None:
    a, b, c = pool("a", "b", "c")
    busy(a, 2)
    busy(b, 1)
    busy(c, 3)
    assert picks(make("least-request"), [a, b, c], 3) == list("bbb")


def test_least_request_counts_per_slot() -> None:
    a, b = pool("a", "b")
    busy(a, 3, slots=4)
    busy(b, 1, slots=1)
    assert picks(make("least-request"), [a, b], 2) == list("aa")


def test_least_request_rotates_between_equals() -> None:
    a, b, c = pool("a", "b", "c")
    busy(b, 1)
    assert picks(make("least-request"), [a, b, c], 4) == list("acac")


def test_random_gives_each_the_same_chance_and_repeats_with_its_seed() -> None:
    workers = pool("a", "b", "c", "d")
    counts = Counter(picks(make("random", random.Random(4)), workers, 4000))
    assert min(counts.values()) > 850
    twice = [picks(make("random", random.Random(5)), workers, 20) for _ in range(2)]
    assert twice[0] == twice[1]


@pytest.mark.parametrize("name", ["least-request", "power-of-two", "least-work"])
@pytest.mark.parametrize("kind", [HoldKind.JOB, HoldKind.GHOST])
def test_jobs_and_ghosts_are_load(name: str, kind: HoldKind) -> None:
    a, b = pool("a", "b")
    holding(a, kind)
    assert picks(make(name, random.Random(6)), [a, b], 4) == list("bbbb")


def test_least_work_takes_whoever_would_have_done_it_first() -> None:
    speeds = Speeds()
    fast, slow = pool("fast", "slow")
    speeds.learn(fast.url, "/images", 1, 1.0)
    speeds.learn(slow.url, "/images", 1, 2.5)
    policy = make("least-work", speeds=speeds)
    assert picks(policy, [slow, fast], 3) == ["fast"] * 3
    busy(fast, 1)
    assert picks(policy, [slow, fast], 1) == ["fast"]  # after 2 s rather than 2.5
    busy(fast, 1)
    assert picks(policy, [slow, fast], 1) == ["slow"]


def test_least_work_shares_out_by_slots_and_rotates_between_equals() -> None:
    a, b = pool("a", "b")
    busy(a, 2, slots=4)
    busy(b, 1, slots=1)
    policy = make("least-work")
    assert picks(policy, [a, b], 1) == ["a"]
    assert picks(policy, pool("c", "d"), 4) == list("cdcd")
