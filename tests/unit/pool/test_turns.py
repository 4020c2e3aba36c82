"""Workers that wait for their turn in a rolling change."""

from __future__ import annotations

import json

import pytest

from router.control.fenced_change import Rolling
from router.pool.lifecycle import Probe, able, hopeful, routable
from router.pool.versions import Bounds
from router.pool.weights import Change, Ledgers
from router.pool.weights.recipe import DISK, SET_LORA
from router.pool.worker import Weights, Worker
from tests.unit.pool.test_ledgers import CARD, Desk


def roll(desk: Desk, first: Worker, waiting: Worker, path: str = DISK) -> Change:
    """A rolling change that the first worker has applied."""
    body = json.dumps({"model_path": "new", "lora_nickname": "x"})
    change = desk.ledgers.make("id", "m", path, body, None)
    desk.ledgers.open(change, [first, waiting])
    desk.ledgers.wait_turn(waiting)
    desk.ledgers.fence(first, "its turn")
    desk.ledgers.applied(change, first, first.incarnation)
    desk.ledgers.release(first)
    return change


def test_it_serves_with_the_version_before() -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    change = roll(desk, a, b)
    assert (a.weight_version, b.weight_version, b.newest_version) == (2, 1, 2)
    assert routable(b)
    assert not b.has_newest
    # What it does not have yet it will get.
    for bounds in (Bounds(2), Bounds(lag=0), Bounds(exact=2)):
        assert able(a, bounds)
        assert not able(b, bounds)
        assert hopeful(b, bounds)
    assert able(b, Bounds(exact=1))
    assert able(b, Bounds(lag=1))
    assert not hopeful(a, Bounds(exact=1))
    assert (a.weight_lag, b.weight_lag) == (0, 1)
    desk.ledgers.unchanged(change, b, "it refused")
    assert (b.weights, b.weight_version) == (Weights.BEHIND, 1)
    desk.ledgers.close(change)


def test_a_doubt_takes_it_out_for_a_while_and_a_new_process_for_good() -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    roll(desk, a, b)
    desk.registry.suspect(b, "its idle connection was closed")
    assert not routable(b)
    desk.registry.absolve(b)
    assert routable(b)
    assert b.weight_version == 1
    desk.registry.suspect(b, "its idle connection was closed")
    desk.registry.reincarnate(b, "another process")
    desk.registry.learned(b, CARD)
    desk.registry.probed(b, Probe.OK)
    assert b.weights is Weights.BEHIND
    assert desk.ledgers.needs_replay(b)
    desk.replay(b)
    assert routable(b)
    assert b.weight_version == 2


def test_a_new_run_ends_it() -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    roll(desk, a, b)
    desk.ledgers.begin_anew("m")
    assert b.weights is Weights.BEHIND
    desk.replay(b)
    assert routable(b)
    assert b.weight_version == 0


def test_one_that_leaves_while_it_waits_was_not_touched() -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    roll(desk, a, b, SET_LORA)
    desk.registry.remove(b)
    b = desk.join("b")
    assert not desk.ledgers.had_lora([b])


def test_after_a_restart_of_the_router_it_is_behind() -> None:
    desk = Desk()
    a, b = desk.join("a"), desk.join("b")
    desk.change(a, b)
    roll(desk, a, b)
    desk.begin()
    b = desk.join("b")
    desk.registry.absolve(b)
    assert b.weights is Weights.BEHIND
    assert desk.ledgers.needs_replay(b)


def test_its_samples_are_told_apart_even_if_nothing_is_gated() -> None:
    desk = Desk()
    desk.ledgers = Ledgers(desk.registry, desk, gating=False)
    a, b = desk.join("a"), desk.join("b")
    change = roll(desk, a, b)
    assert routable(b)
    assert (a.weight_version, b.weight_version) == (1, 0)
    desk.ledgers.release(b)
    desk.ledgers.close(change)


@pytest.mark.parametrize(
    ("share", "workers", "at_once"),
    [("2", 8, 2), ("9", 8, 9), ("25%", 8, 2), ("25%", 9, 3), ("1%", 3, 1), ("100%", 7, 7)],
)
def test_a_share_is_rounded_up(share: str, workers: int, at_once: int) -> None:
    assert Rolling(int(share.rstrip("%")), share.endswith("%")).of(workers) == at_once
