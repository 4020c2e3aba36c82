"""What the agent of a worker does next, by what is known."""

from __future__ import annotations

from itertools import product

import pytest
from attrs import evolve

from router.control.plan import Action, Known, goes_on, next_action
from router.pool.worker import Memory

WELL = Known(
    incarnation=1,
    reachable=True,
    certain=True,
    idle=True,
    memory=Memory.AWAKE,
    doubted=False,
    claimed=False,
    engaged=False,
    lacking=False,
    awaiting=False,
)
LACKING = evolve(WELL, lacking=True)
SLEEPY = evolve(WELL, memory=Memory.FALLING_ASLEEP)


@pytest.mark.parametrize(
    ("known", "action"),
    [
        (WELL, Action.REST),
        (LACKING, Action.REPLAY),
        (evolve(LACKING, idle=False), Action.DRAIN),
        (evolve(LACKING, awaiting=True), Action.REST),
        (evolve(LACKING, certain=False), Action.REST),
        (evolve(LACKING, engaged=True), Action.REST),
        (SLEEPY, Action.SLEEP),
        (evolve(SLEEPY, idle=False), Action.DRAIN),
        (evolve(SLEEPY, claimed=True), Action.REST),
        (evolve(SLEEPY, engaged=True), Action.SLEEP),  # it stands in line
        (evolve(SLEEPY, lacking=True), Action.SLEEP),
        (evolve(WELL, memory=Memory.ASLEEP), Action.REST),
        (evolve(WELL, memory=Memory.ASLEEP, doubted=True), Action.SLEEP),
        (evolve(WELL, memory=Memory.WAKING), Action.WAKE),
        (evolve(WELL, memory=Memory.WAKING, idle=False), Action.WAKE),
    ],
)
def test_what_comes_next(known: Known, action: Action) -> None:
    assert next_action(known) is action
    assert next_action(evolve(known, reachable=False)) is Action.REST


def everything() -> list[Known]:
    names = ["reachable", "certain", "idle", "doubted", "claimed", "engaged", "lacking", "awaiting"]
    return [
        Known(incarnation=1, memory=memory, **dict(zip(names, values, strict=True)))
        for memory in Memory
        for values in product([False, True], repeat=len(names))
    ]


def test_no_worker_that_sleeps_or_is_busy_gets_weights() -> None:
    for known in everything():
        if next_action(known) is Action.REPLAY:
            assert known.idle
            assert known.memory is Memory.AWAKE
            assert known.may_replay


def test_what_has_just_begun_goes_on() -> None:
    for known in everything():
        action = next_action(known)
        if action is not Action.REST:
            assert goes_on(action, known, known)
            another = evolve(known, incarnation=2)
            assert not goes_on(action, known, another)


def test_a_replay_ends_when_something_else_has_the_worker() -> None:
    for change in ({"engaged": True}, {"certain": False}, {"reachable": False}):
        assert not goes_on(Action.REPLAY, LACKING, evolve(LACKING, **change))  # type: ignore[arg-type]
    assert goes_on(Action.REPLAY, LACKING, evolve(LACKING, lacking=False))  # its own doing


def test_a_drain_ends_when_nothing_calls_for_it_any_more() -> None:
    busy = evolve(SLEEPY, idle=False)
    assert goes_on(Action.DRAIN, busy, SLEEPY)
    assert not goes_on(Action.DRAIN, busy, evolve(busy, memory=Memory.WAKING))
    assert not goes_on(Action.DRAIN, busy, evolve(busy, claimed=True))
