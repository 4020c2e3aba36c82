"""The numbers that clients choose for the versions of their changes."""

from __future__ import annotations

import json

import pytest

from router.pool import events
from router.pool.weights import Change, Ledger, NotGreater, number_of
from router.pool.weights.recipe import DISK, TENSOR
from router.pool.worker import Weights
from router.store.records import structured, unstructured
from tests.unit.pool.test_ledgers import CARD, Desk


def asks(desk: Desk, asked: object, path: str = "p", *, digest: str | None = None) -> Change:
    """A change from disk whose client asks for this number."""
    body = json.dumps({"model_path": path})
    change = desk.ledgers.make(f"{asked} {path}", "m", DISK, body, None, digest or path)
    assert desk.ledgers.choose(change, asked) is None
    return change


@pytest.mark.parametrize(
    ("given", "number"),
    [
        (40, 40),
        ("40", 40),
        ("007", 7),
        (0, 0),
        (-1, -1),
        (2**52, 2**52),
        (2**52 + 1, None),
        ("9" * 19, None),
        ("9" * 5000, None),
        (True, None),
        (4.0, None),
        ("-1", None),
        ("\u0664", None),
        ("step 4", None),
        ("", None),
        (None, None),
        ([4], None),
    ],
)
def test_what_is_a_number(given: object, number: int | None) -> None:
    assert number_of(given) == number


def test_the_number_of_the_client_is_the_version() -> None:
    desk = Desk()
    a = desk.join("a")
    assert desk.apply(asks(desk, 40), a) == 40
    assert a.weight_version == 40
    assert desk.apply(asks(desk, "50", "q"), a) == 50
    assert desk.change(a) == 51
    assert desk.apply(asks(desk, "any text", "r"), a) == 52


def test_a_number_that_is_not_greater_is_refused_and_digits_are_a_label() -> None:
    desk = Desk()
    a = desk.join("a")
    desk.apply(asks(desk, 40), a)
    for low in (40, 39, 0, -5):
        with pytest.raises(NotGreater, match=r"not greater than 40, the last number of m"):
            asks(desk, low, "q")
    assert desk.apply(asks(desk, "1", "q"), a) == 41


def test_a_void_change_uses_no_number() -> None:
    desk = Desk()
    a = desk.join("a")
    change = asks(desk, 40)
    desk.ledgers.open(change, [a])
    desk.ledgers.fence(a, "a change")
    desk.ledgers.unchanged(change, a, "no such path")
    desk.ledgers.close(change)
    assert desk.apply(asks(desk, 40, "q"), a) == 40


def test_a_repetition_keeps_the_number_until_there_is_another() -> None:
    desk = Desk()
    told: list[object] = []
    desk.registry.bus.subscribe(told.append, events.VersionIssued)
    a, b, c = desk.join("a"), desk.join("b"), desk.join("c")
    desk.apply(asks(desk, 40), a, b, c)
    again = asks(desk, 40)
    desk.ledgers.open(again, [a, b])
    for worker in (a, b):
        desk.ledgers.fence(worker, "a change")
    desk.ledgers.applied(again, a, a.incarnation)
    desk.ledgers.release(a)
    # What `a` loaded may be other weights than those that `b` has from before.
    desk.ledgers.unchanged(again, b, "refused")
    desk.ledgers.close(again)
    assert (again.version, a.weights, a.weight_version) == (40, Weights.CURRENT, 40)
    for other in (b, c):  # and `c` was not called
        assert other.weights is Weights.BEHIND
        assert desk.ledgers.plan(other).steps
    assert len(told) == 1
    assert desk.ledgers.ledger("m").issued == 40

    desk.begin()
    a, b = desk.join("a"), desk.join("b")
    assert desk.apply(asks(desk, "40"), a) == 40  # also after a restart, also as text
    assert b.weights is Weights.BEHIND  # it was not among the workers
    desk.apply(asks(desk, 41, "q"), a)
    with pytest.raises(NotGreater):
        asks(desk, 40)


def test_a_number_that_was_used_up_since_is_not_given_again() -> None:
    change = Change("id", "m", 1, DISK, "{}", None, chosen=40, digest="d")
    assert Ledger("m", version=40, issued=40, made="d").takes(change)
    assert not Ledger("m", version=40, issued=41, made="d").takes(change)


def test_what_waits_has_its_number_promised() -> None:
    desk = Desk()
    a = desk.join("a")
    first, second = asks(desk, 40), asks(desk, None, "q")
    for change in (first, second):
        desk.ledgers.defer(change, [a])
    repeated = desk.ledgers.make("again", "m", DISK, first.body, None, first.digest)
    assert desk.ledgers.choose(repeated, 40) is first
    with pytest.raises(NotGreater, match="not greater than 41"):
        asks(desk, 41, "r")

    desk.begin()
    desk.join("a")
    waits = desk.ledgers.ledger("m").pending
    assert [change.chosen for change in waits] == [40, None]


def test_a_change_that_replaces_others_gets_a_number_above_theirs() -> None:
    desk = Desk()
    a = desk.join("a")
    desk.change(a)
    for number, path in ((40, "p"), (None, "q"), (None, "r")):
        desk.ledgers.defer(asks(desk, number, path), [a])
    last = desk.ledgers.ledger("m").due
    assert last is not None
    desk.ledgers.open(last, [a])
    desk.begin()
    a, ledger = desk.join("a"), desk.ledgers.ledger("m")
    assert [change.seen_version for change in ledger.pending] == [None, None, 41]
    assert desk.apply(ledger.pending[2], a) == 41
    assert not ledger.pending


@pytest.mark.parametrize("path", [DISK, TENSOR])
def test_a_number_survives_a_crash_in_its_change(path: str) -> None:
    desk = Desk()
    a = desk.join("a")
    desk.change(a)
    body = json.dumps({"model_path": "q"}) if path == DISK else None
    change = desk.ledgers.make("id", "m", path, body, None, "digest")
    desk.ledgers.choose(change, 40)
    desk.ledgers.open(change, [a])
    desk.begin()
    a = desk.join("a")
    desk.registry.reincarnate(a, "another process")
    desk.registry.learned(a, CARD)
    ledger = desk.ledgers.ledger("m")
    if path == DISK:  # it runs again, as the same
        assert desk.apply(ledger.pending[0], a) == 40
    else:  # clients may have seen it
        assert ledger.issued == 40
        with pytest.raises(NotGreater):
            asks(desk, 40)


def test_a_statement_may_overtake_a_number() -> None:
    desk = Desk()
    a = desk.join("a")
    change = asks(desk, 40)
    desk.ledgers.attest("m", 50, None, None)
    assert desk.apply(change, a) == 51


def test_how_far_a_version_lags_counts_what_was_issued_since() -> None:
    desk = Desk()
    a = desk.join("a")
    ledger = desk.ledgers.ledger("m")

    def lags(*versions: int) -> list[int | None]:
        return list(map(ledger.lag, versions))

    for number in (10, 20, 30):
        desk.apply(asks(desk, number, f"{number}"), a)
    desk.apply(asks(desk, 30, "30"), a)  # a repetition
    assert lags(30, 20, 10, 0) == [0, 1, 2, 3]
    assert lags(29, 31, -1) == [None] * 3
    for _ in range(98):
        desk.change(a)
    assert lags(128, 30, 20, 10, 0) == [0, 98, 99, 100, None]
    desk.ledgers.begin_anew("m")
    assert lags(0, 128, 30) == [0, None, None]
    desk.replay(a)
    desk.apply(asks(desk, 200), a)
    assert lags(200, 0, 128) == [0, 1, None]
    desk.ledgers.attest("m", 300, None, None)
    assert lags(300, 200, 0) == [0, None, None]

    desk.begin()
    ledger = desk.ledgers.ledger("m")
    desk.apply(asks(desk, 310), desk.join("a"))
    assert lags(310, 300, 200) == [0, 1, None]


def test_rows_of_before_are_read() -> None:
    old = unstructured(Change("id", "m", 1, DISK, "{}", None))
    for name in ("chosen", "digest", "only_lora"):
        del old[name]
    assert structured(old, Change).chosen is None
    ledger = unstructured(Ledger("m", 3, 3, "step 3"))
    del ledger["made"], ledger["labels"]
    read = structured(ledger, Ledger)
    assert (read.made, read.labels, read.labelled("step 3")) == (None, {}, 3)


def test_the_last_labels_are_known_and_survive() -> None:
    desk = Desk()
    a = desk.join("a")
    for label in ["first", "again", "x" * 201, *(f"step {n}" for n in range(98)), "again"]:
        change = desk.ledgers.make("id", "m", DISK, "{}", label)
        desk.apply(change, a)
    desk.begin()
    known = [desk.ledgers.labelled("m", name) for name in ("first", "again", "step 97", "other")]
    assert known == [1, 102, 101, None]
    desk.apply(desk.ledgers.make("id", "m", DISK, "{}", "last"), desk.join("a"))
    assert desk.ledgers.labelled("m", "first") is None
    assert len(desk.ledgers.ledger("m").labels) == 100
    desk.ledgers.attest("m", 103, "checked", None)
    assert desk.ledgers.labelled(None, "checked") == desk.ledgers.labelled("m", "last") == 103
