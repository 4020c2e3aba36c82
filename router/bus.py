"""One ordered stream of events. Each observer hears each event of its types once.

The parts that decide publish here; log, metrics and pages only listen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias

from . import wall


class Event:
    """A fact. Not an ABC: its instance checks are slow, and several observers match each event."""


Observer: TypeAlias = Callable[[Any], None]


class Bus:
    """Tells each observer all events of its types, in the order in which they happened.

    `number` is the number of the event being told, from 1 on without a gap.
    """

    def __init__(self) -> None:
        self.number = 0
        self._subscribed: list[tuple[Observer, tuple[type[Event], ...]]] = []
        self._by_type: dict[type[Event], list[Observer]] = {}  # filled on first use
        self._settlers: list[Callable[[], None]] = []
        self._untold: deque[Event] = deque()
        self._telling = False

    def subscribe(self, observer: Observer, *types: type[Event]) -> Callable[[], None]:
        """Tell `observer` every later event of these types; without types, every later event.
        Returns the function that ends the subscription.

        An observer must neither raise nor block. The order of subscription has no meaning.
        """
        subscription = (observer, types or (Event,))
        self._subscribed.append(subscription)
        self._by_type.clear()

        def unsubscribe() -> None:
            self._subscribed = [other for other in self._subscribed if other is not subscription]
            self._by_type.clear()

        return unsubscribe

    @property
    def at(self) -> float:
        """When the event being told was published, in seconds since 1970. This is the time now: an
        event waits for nothing but other observers."""
        return wall.seconds()

    def when_settled(self, decide: Callable[[], None]) -> None:
        """Call `decide` each time all observers have heard all events: by then the consequences of
        each event are known."""
        self._settlers.append(decide)

    def publish(self, *events: Event) -> None:
        """Tell these events. An observer's own events wait until all have heard the present one."""
        self._untold += events
        if self._telling:
            return
        self._telling = True
        try:
            while self._untold:
                while self._untold:
                    event = self._untold.popleft()
                    self.number += 1
                    observers = self._by_type.get(type(event))
                    for observer in self._fit(type(event)) if observers is None else observers:
                        observer(event)
                for decide in self._settlers:
                    decide()
        finally:
            self._telling = False
            self._untold.clear()

    def _fit(self, kind: type[Event]) -> list[Observer]:
        fit = [observer for observer, types in self._subscribed if issubclass(kind, types)]
        self._by_type[kind] = fit
        return fit
