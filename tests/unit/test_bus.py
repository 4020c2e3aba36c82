"""Tests of router.bus: one ordered stream of facts."""

from __future__ import annotations

import pytest
from attrs import frozen

from router.bus import Bus, Event


@frozen
class Rang(Event):
    who: str


class Loudly(Rang):
    pass


@frozen
class Fell(Event):
    pass


def test_an_observer_hears_the_types_that_it_subscribed_to_and_those_under_them() -> None:
    bus, rings, all_of_it = Bus(), [], []
    bus.subscribe(rings.append, Rang)
    bus.subscribe(all_of_it.append)
    bus.publish(Rang("a"), Fell(), Loudly("b"))
    assert rings == [Rang("a"), Loudly("b")]
    assert all_of_it == [Rang("a"), Fell(), Loudly("b")]


def test_who_has_unsubscribed_hears_nothing_and_may_do_so_twice() -> None:
    bus, told = Bus(), []
    end = bus.subscribe(told.append, Rang)
    again = bus.subscribe(told.append, Rang)
    bus.publish(Rang("a"))
    end()
    end()
    bus.publish(Rang("b"))
    again()
    bus.publish(Rang("c"))
    assert told == [Rang("a"), Rang("a"), Rang("b")]


def test_an_event_that_comes_of_another_is_told_after_it_to_all() -> None:
    bus, first, second = Bus(), [], []

    def react(event: Event) -> None:
        first.append(event)
        if isinstance(event, Fell):
            bus.publish(Rang("it fell"))

    bus.subscribe(react)
    bus.subscribe(second.append)
    bus.publish(Fell(), Rang("later"))
    assert first == second == [Fell(), Rang("later"), Rang("it fell")]


def test_events_are_numbered_without_a_gap_and_stamped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.wall.seconds", lambda: 10.0)
    bus = Bus()
    told: list[tuple[int, float]] = []

    def note(event: Event) -> None:
        told.append((bus.number, bus.at))
        if isinstance(event, Fell):
            bus.publish(Loudly("c"))

    bus.subscribe(note)
    bus.publish(Rang("a"), Fell())
    bus.publish(Rang("b"))
    assert told == [(1, 10.0), (2, 10.0), (3, 10.0), (4, 10.0)]


def test_what_follows_from_events_is_decided_once_all_have_heard_them() -> None:
    bus, order = Bus(), []
    bus.when_settled(lambda: order.append("decided"))
    bus.subscribe(lambda event: order.append(event.who), Rang)
    bus.publish(Rang("a"), Rang("b"))
    assert order == ["a", "b", "decided"]


def test_after_an_observer_that_failed_nothing_old_is_told() -> None:
    bus, told = Bus(), []

    def fail(_: Event) -> None:
        raise ZeroDivisionError

    end = bus.subscribe(fail, Fell)
    bus.subscribe(told.append, Rang)
    with pytest.raises(ZeroDivisionError):
        bus.publish(Fell(), Rang("old"))
    end()
    bus.publish(Rang("new"))
    assert told == [Rang("new")]
