"""The state of the pool as one document, and the changes of it, for pages that show it live.

Viewers pull: each asks for what is new since the change that it has. So nothing is held for a
viewer, and nothing is computed while there is none.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import define, field

from .. import wall
from ..bus import Bus, Event
from ..errors import PoolUnavailable
from ..observe.recent import Recent
from ..pool import events
from ..pool.registry import Registry
from ..pool.worker import Origin, Worker
from ..text import to_json

MOST_VIEWERS = 32
TICK = 0.5  # seconds between two changes
_KEPT, _KEPT_BYTES = 64, 1024 * 1024  # changes that a viewer may lag behind

Document = dict[str, Any]


@define(eq=False)
class Feed:
    """`launches`: facts about launched workers. `over` is set when the router stops."""

    registry: Registry
    recent: Recent
    launches: tuple[type[Event], ...] = ()
    over: trio.Event = field(init=False, factory=trio.Event)
    _viewers: int = field(init=False, default=0)
    _run: str = field(init=False, default="")  # ids of other runs mean nothing
    _number: int = field(init=False, default=0)  # of the last change
    _changes: deque[bytes] = field(init=False, factory=deque)
    _size: int = field(init=False, default=0)
    _shown: Document = field(init=False, factory=dict)
    _touched: dict[Worker, None] = field(init=False, factory=dict)
    _due: float = field(init=False, default=0.0)
    _steps: Document = field(init=False, factory=dict)  # the series as last told
    _subscribed: list[Callable[[], None]] = field(init=False, factory=list)

    @contextmanager
    def viewing(self) -> Iterator[None]:
        """Count one viewer. Raises PoolUnavailable if there are too many."""
        if self._viewers >= MOST_VIEWERS:
            raise PoolUnavailable(
                f"{MOST_VIEWERS} viewers follow the events already, and the router serves no more",
                code="too_many_viewers",
                headers=[("Retry-After", "10")],
            )
        self._viewers += 1
        if self._viewers == 1:
            self._begin(self.registry.bus)
        try:
            yield
        finally:
            self._viewers -= 1
            if not self._viewers:
                self._end()

    def snapshot(self, describe: Callable[[Worker], Document], rest: Document) -> bytes:
        """The whole document as an event."""
        self._touched.update(dict.fromkeys(self.registry))
        self._advance(describe, rest)
        workers = list(self._shown["workers"].values())
        series = {"series": self.recent.series()}
        return self._event("snapshot", {**self._shown, "workers": workers, **series})

    def look(self, describe: Callable[[Worker], Document], rest: Callable[[], Document]) -> None:
        """Make the next change, if one is due."""
        now = trio.current_time()
        if now >= self._due:
            self._due = now + TICK
            self._advance(describe, rest())

    def place(self, name: str | None) -> int | None:
        """The number of the change of this id; None if later ones are not known any more."""
        run, _, number = (name or "").partition(".")
        if run != self._run or not number.isdecimal() or len(number) > 15:
            return None
        place = int(number)
        return place if self._number - len(self._changes) <= place <= self._number else None

    @property
    def last(self) -> int:
        """The number of the last change."""
        return self._number

    def after(self, place: int) -> list[bytes] | None:
        """The changes after this one; None if the first of them is forgotten."""
        missing = self._number - place
        if missing > len(self._changes):
            return None
        return list(self._changes)[len(self._changes) - missing :] if missing else []

    def _advance(self, describe: Callable[[Worker], Document], rest: Document) -> None:
        said: Document = {}
        workers: dict[str, Document] = self._shown.setdefault("workers", {})
        changed: Document = {}
        for worker in self._touched:
            before = workers.get(worker.worker_id)
            if worker.removed:
                if before is not None and worker.worker_id not in self._present:
                    del workers[worker.worker_id]
                    changed[worker.worker_id] = None
                continue
            after = workers[worker.worker_id] = describe(worker)
            new = after if before is None else _difference(before, after)
            if new:
                changed[worker.worker_id] = new
        self._touched.clear()
        if changed:
            said["workers"] = changed
        said |= _difference(self._shown, rest)
        self._shown |= rest
        series = self.recent.series(self._steps.get("last", 0))
        if series["steps"] != self._steps.get("steps"):
            said["series"] = series
            last = series["last"]
            self._steps = {"last": last, "steps": [r for r in series["steps"] if r[0] == last]}
        if said:
            self._number += 1
            self._changes.append(self._event("change", said))
            self._size += len(self._changes[-1])
            while len(self._changes) > _KEPT or (
                len(self._changes) > 1 and self._size > _KEPT_BYTES
            ):
                self._size -= len(self._changes.popleft())

    @property
    def _present(self) -> set[str]:
        """The ids of all workers: one may have come back under the id of one that left."""
        return {worker.worker_id for worker in self.registry}

    def _event(self, kind: str, content: Document) -> bytes:
        text = to_json({"now": round(wall.seconds(), 2), **content}, (",", ":"))
        return f"id: {self._run}.{self._number}\nevent: {kind}\ndata: {text}\n\n".encode()

    def _begin(self, bus: Bus) -> None:
        of_workers = (events.OfWorker, events.OfLease, events.OfHold, events.Probed)
        self._run, self._due = secrets.token_hex(4), 0.0
        self._subscribed = [bus.subscribe(self._touch, *of_workers)]
        if self.launches:
            self._subscribed.append(bus.subscribe(self._touch_launched, *self.launches))

    def _end(self) -> None:
        for unsubscribe in self._subscribed:
            unsubscribe()
        self._touched.clear()
        self._shown.clear()
        self._changes.clear()
        self._steps.clear()
        self._size = 0

    def _touch(self, event: events.Event | events.Probed) -> None:
        self._touched[event.worker] = None

    def _touch_launched(self, _: Event) -> None:
        for worker in self.registry:
            if worker.origin is Origin.LAUNCHED:
                self._touched[worker] = None


def _difference(before: Document, after: Document) -> Document:
    """The fields that are new or other than before."""
    return {name: value for name, value in after.items() if before.get(name, ...) != value}
