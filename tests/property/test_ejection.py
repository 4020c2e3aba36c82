"""Ejection in virtual time: broken workers, requests that fail everywhere, any order of events."""

from __future__ import annotations

import math
import random

import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from router.pool import events
from router.pool.ejection import EjectionLimits
from router.pool.lifecycle import AdminEvent, Probe, able, hopeful, reasons, routable
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Hold, HoldKind, Origin, Worker

LIMITS = EjectionLimits()


@define(eq=False)
class Pool:
    """Workers that fit the same requests, and a clock."""

    count: int
    limits: EjectionLimits = LIMITS
    now: float = 0.0
    registry: Registry = field(init=False)
    workers: list[Worker] = field(init=False, factory=list)
    ejections: int = field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.registry = Registry(ejection=self.limits)
        for number in range(self.count):
            worker = self.registry.add(f"http://w{number}", Origin.STATIC, concurrency=100)
            self.registry.probed(worker, Probe.OK)
            self.registry.learned(worker, Capabilities(models=("m",)))
            self.workers.append(worker)
        self.registry.subscribe(self.observe)

    def observe(self, event: events.Event) -> None:
        match event:
            case events.SlotFreed(hold):
                self.registry.ejection.ended(hold, self.now)
            case events.Ejected(worker):
                self.ejections += 1
                others = [w for w in self.workers if w is not worker]
                assert any(able(w) and w.trial is None for w in others), "the last of its kind"

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.registry.ejection.look(self.now)

    def open(self) -> list[Worker]:
        """The workers that a request may go to."""
        return [w for w in self.workers if routable(w) or (w.trial is not None and w.trial.due)]

    def begin(self, worker: Worker) -> Hold:
        hold = Hold(worker, worker.incarnation, HoldKind.GENERATION)
        self.registry.lease(worker, hold)
        return hold

    def end(self, hold: Hold, *, fails: bool | None) -> None:
        """None: nothing says how it went."""
        if fails:
            self.registry.ejection.failed(hold, self.workers, self.now, "why")
        elif fails is not None:
            self.registry.ejection.succeeded(hold.worker, self.now)
        self.registry.drop(hold)

    def ask(self, worker: Worker, *, fails: bool | None) -> None:
        self.end(self.begin(worker), fails=fails)


@given(
    count=st.integers(2, 6),
    pace=st.sampled_from([0.001, 0.05, 0.5, 5.0, 60.0]),
    seed=st.integers(0, 1000),
    before=st.integers(0, 30),
)
def test_a_black_hole_costs_few_requests(count: int, pace: float, seed: int, before: int) -> None:
    """Whoever chooses: two requests, then one for each twenty that succeed, or twenty seconds."""
    rng, pool = random.Random(seed), Pool(count)
    broken = pool.workers[0]
    for _ in range(before):
        pool.ask(rng.choice(pool.workers), fails=False)
    failed, began = 0, pool.now
    for asked in range(1, 401):
        # It is always free, so it gets everything that it may get.
        worker = broken if broken in pool.open() else rng.choice(pool.workers[1:])
        failed += worker is broken
        pool.ask(worker, fails=worker is broken)
        pool.wait(pace)
        assert failed <= 2 + asked / 20 + (pool.now - began) / 20
    assert pool.ejections == 1
    assert not any(worker.trial for worker in pool.workers[1:])
    if pace < 0.1:
        assert failed <= 2 + 400 / 20


@pytest.mark.parametrize("count", range(1, 9))
def test_a_pool_that_fails_everything_ejects_nobody(count: int) -> None:
    pool = Pool(count)
    for turn in range(200):
        pool.ask(pool.workers[turn % count], fails=True)
        pool.wait(0.1)
    assert pool.ejections == 0


@settings(max_examples=60)
@given(
    count=st.integers(2, 8), share=st.sampled_from([0.1, 0.3, 0.5, 0.8]), seed=st.integers(0, 99)
)
def test_a_request_that_fails_everywhere_ejects_few(count: int, share: float, seed: int) -> None:
    """Its client sends it over and over, beside others that succeed on every worker."""
    rng, pool = random.Random(seed), Pool(count)
    lost = 0
    for _ in range(600):
        pool.ask(rng.choice(pool.open()), fails=rng.random() < share)
        pool.wait(0.2)
        lost += sum(worker.trial is not None for worker in pool.workers)
    assert lost <= 0.25 * 600 * count, "a quarter of the pool was ejected on average"


def test_half_of_all_is_far_above_a_pool_that_is_well() -> None:
    """Failures with successes in between are seen as well."""
    pool = Pool(3)
    for turn in range(20):
        pool.ask(pool.workers[0], fails=bool(turn % 2))
        pool.ask(pool.workers[1], fails=False)
        pool.ask(pool.workers[2], fails=False)
        if pool.workers[0].trial is not None:
            break
    assert pool.ejections == 1


EVENT = st.sampled_from(
    ["begin", "fail", "succeed", "nothing", "wait", "hold_off", "forgive", "replace", "quarantine"]
)


@settings(max_examples=150)
@given(
    count=st.integers(1, 4),
    failures=st.sampled_from([2, 3, None]),
    steps=st.lists(st.tuples(EVENT, st.integers(0, 99), st.sampled_from([0.1, 1.0, 70.0]))),
)
def test_any_order_of_events(
    count: int, failures: int | None, steps: list[tuple[str, int, float]]
) -> None:
    pool = Pool(count, EjectionLimits(failures))
    ejection = pool.registry.ejection
    under_way: list[Hold] = []
    for what, index, seconds in steps:
        worker = pool.workers[index % count]
        if what in ("fail", "succeed", "nothing"):
            hold = under_way.pop(index % len(under_way)) if under_way else pool.begin(worker)
            if hold.incarnation == hold.worker.incarnation:
                pool.end(hold, fails={"fail": True, "succeed": False}.get(what))
                assert what != "succeed" or hold.worker.trial is None
        elif what == "begin":
            under_way.append(pool.begin(worker))
        elif what == "wait":
            pool.wait(seconds)
        elif what == "hold_off":
            ejection.hold_off(worker, seconds, pool.now)
            assert worker.paused
            assert hopeful(worker) or worker.is_dead
        elif what == "forgive":
            pool.registry.forgive(worker)
            assert (worker.trial, worker.paused) == (None, False)
        elif what == "replace":
            pool.registry.reincarnate(worker, "why")
            assert (worker.trial, worker.paused) == (None, False)
            pool.registry.probed(worker, Probe.OK)
        else:
            pool.registry.administer(worker, AdminEvent.QUARANTINE)
        for known in pool.workers:
            assert routable(known) == (not reasons(known))
            if known.trial is not None:
                assert failures is not None
                assert known.trial.failures >= failures
                assert known.trial.pause <= LIMITS.longest
        if failures is None:
            assert pool.ejections == 0
        waiting = [w for w in pool.workers if w.trial and not w.trial.due and not w.trial.hold]
        paused = [w for w in pool.workers if w.paused]
        # Whatever is kept back comes up again by itself, within the longest pause.
        assert (ejection.next_look() < math.inf) == bool(waiting or paused)
        assert ejection.next_look() <= pool.now + LIMITS.longest or not (waiting or paused)
