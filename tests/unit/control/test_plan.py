"""What the agent of a worker does next, by what is known."""

from __future__ import annotations

from itertools import product

import pytest
from attrs import evolve

from router.control.plan import Action, Known, Stage, goes_on, next_action
from router.pool.worker import Memory

WELL = Known(
    incarnation=1,
    healthy=True,
    reachable=True,
    certain=True,
    idle=True,
    memory=Memory.AWAKE,
    doubted=False,
    lacking=False,
    awaiting=False,
)
BUSY = evolve(WELL, idle=False)
LACKING = evolve(WELL, lacking=True)
SLEEPY, WAKING = (evolve(WELL, memory=m) for m in (Memory.FALLING_ASLEEP, Memory.WAKING))
CLAIM = object()


def claimed(known: Known, stage: Stage) -> Known:
    return evolve(known, claim=CLAIM, stage=stage)


@pytest.mark.parametrize(
    ("known", "action"),
    [
        (WELL, Action.REST),
        (LACKING, Action.REPLAY),
        (evolve(LACKING, idle=False), Action.DRAIN),
        (evolve(LACKING, awaiting=True), Action.CATCH_UP),
        (evolve(WELL, awaiting=True), Action.CATCH_UP),
        (evolve(LACKING, certain=False), Action.REST),
        (evolve(LACKING, certain=False, awaiting=True), Action.REST),
        (SLEEPY, Action.SLEEP),
        (evolve(SLEEPY, idle=False), Action.DRAIN),
        (evolve(SLEEPY, lacking=True), Action.SLEEP),
        (evolve(WELL, memory=Memory.ASLEEP), Action.REST),
        (evolve(WELL, memory=Memory.ASLEEP, doubted=True), Action.SLEEP),
        (WAKING, Action.WAKE),
        # Its call would wait behind the work, and perhaps for ever.
        (evolve(WAKING, idle=False), Action.DRAIN),
    ],
)
def test_what_comes_next(known: Known, action: Action) -> None:
    assert next_action(known) is action
    assert next_action(evolve(known, reachable=False)) is Action.REST


@pytest.mark.parametrize(
    ("known", "action"),
    [
        (claimed(BUSY, Stage.DRAINING), Action.DRAIN),
        (claimed(WELL, Stage.DRAINING), Action.DRAIN),
        (claimed(WELL, Stage.HELD), Action.REST),
        (claimed(WELL, Stage.DUE), Action.CALL),
        (claimed(SLEEPY, Stage.DRAINING), Action.DRAIN),
        (claimed(SLEEPY, Stage.DUE), Action.SLEEP),
        (claimed(evolve(WAKING, idle=False), Stage.DUE), Action.WAKE),
        (claimed(evolve(LACKING, awaiting=True), Stage.HELD), Action.REST),
    ],
)
def test_what_an_operation_wants(known: Known, action: Action) -> None:
    assert next_action(known) is action
    assert next_action(evolve(known, left=True)) is Action.LEAVE
    assert next_action(evolve(known, stage=Stage.OVER)) is Action.REST


LEAVING = evolve(WELL, leaving=True)


@pytest.mark.parametrize(
    ("known", "action"),
    [
        (LEAVING, Action.EMPTY),
        (evolve(LEAVING, drained=True), Action.REMOVE),
        (evolve(LEAVING, reachable=False), Action.EMPTY),
        (evolve(LEAVING, reachable=False, drained=True), Action.REMOVE),
        # It will not serve any more.
        (evolve(LEAVING, lacking=True), Action.EMPTY),
        (evolve(LEAVING, awaiting=True), Action.EMPTY),
        # But its GPU may be wanted, and an operation that has it goes on.
        (evolve(LEAVING, memory=Memory.FALLING_ASLEEP), Action.SLEEP),
        (claimed(LEAVING, Stage.DUE), Action.CALL),
        (claimed(LEAVING, Stage.HELD), Action.EMPTY),
        (claimed(evolve(LEAVING, drained=True), Stage.HELD), Action.REMOVE),
        (claimed(evolve(LEAVING, drained=True, left=True), Stage.DUE), Action.LEAVE),
    ],
)
def test_what_comes_next_of_a_worker_that_is_to_be_removed(known: Known, action: Action) -> None:
    assert next_action(known) is action


def test_a_removal_ends_when_it_is_called_off_and_a_replay_when_the_worker_is_to_leave() -> None:
    assert goes_on(Action.EMPTY, LEAVING, evolve(LEAVING, drained=True))
    assert not goes_on(Action.EMPTY, LEAVING, WELL)
    assert not goes_on(Action.EMPTY, LEAVING, evolve(LEAVING, memory=Memory.WAKING))
    assert not goes_on(Action.REPLAY, LACKING, evolve(LACKING, leaving=True))


def everything() -> list[Known]:
    names = ["reachable", "certain", "idle", "doubted", "lacking", "awaiting", "left"]
    names += ["leaving", "drained"]
    return [
        Known(
            incarnation=1,
            healthy=True,
            memory=memory,
            claim=CLAIM if stage else None,
            stage=stage,
            **dict(zip(names, values, strict=True)),
        )
        for memory in Memory
        for stage in (None, *Stage)
        for values in product([False, True], repeat=len(names))
    ]


def test_no_worker_that_sleeps_or_is_busy_gets_weights() -> None:
    for known in everything():
        if next_action(known) is Action.REPLAY:
            assert known.idle
            assert known.certain
            assert known.claim is None
        if next_action(known) in (Action.REPLAY, Action.CATCH_UP, Action.CALL):
            assert known.reachable
            assert known.memory is Memory.AWAKE


def test_what_has_just_begun_goes_on() -> None:
    for known in everything():
        action = next_action(known)
        if action is not Action.REST:
            assert goes_on(action, known, known)
            assert not goes_on(action, known, evolve(known, incarnation=2))
            assert not goes_on(action, known, evolve(known, claim=object()))


def test_a_replay_ends_when_something_else_has_the_worker() -> None:
    for change in ({"claim": CLAIM}, {"certain": False}, {"reachable": False}):
        assert not goes_on(Action.REPLAY, LACKING, evolve(LACKING, **change))  # type: ignore[arg-type]
    assert goes_on(Action.REPLAY, LACKING, evolve(LACKING, lacking=False))  # its own doing


def test_a_drain_ends_when_nothing_calls_for_it_any_more() -> None:
    busy = evolve(SLEEPY, idle=False)
    assert goes_on(Action.DRAIN, busy, SLEEPY)
    assert not goes_on(Action.DRAIN, busy, evolve(busy, memory=Memory.AWAKE))
    assert not goes_on(Action.DRAIN, busy, evolve(busy, reachable=False))


def test_a_call_ends_when_its_worker_has_left() -> None:
    due = claimed(WELL, Stage.DUE)
    assert not goes_on(Action.CALL, due, evolve(due, left=True))
    asleep = claimed(SLEEPY, Stage.DUE)
    assert goes_on(Action.SLEEP, asleep, evolve(asleep, left=True))  # quarantined, say
    assert not goes_on(Action.SLEEP, asleep, evolve(asleep, healthy=False))
