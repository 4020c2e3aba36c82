"""How much work a request is, and how fast each worker does it.

The unit of work is the megapixel step: pixels x steps x frames x outputs / 1e6. If a request leaves
a field out, the value comes from the last request for the same model that had the field, else from
the defaults of the kind of endpoint.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from attrs import define, field, frozen

from .worker import Hold, Worker

Value = str | int | float | bool | None

# The fields that decide the cost, under all the names that endpoints give them.
FIELDS = frozenset(
    {
        "size",
        "width",
        "height",
        "num_inference_steps",
        "num_frames",
        "seconds",
        "fps",
        "n",
        "num_outputs_per_prompt",
    }
)

_SIZE = re.compile(r"(\d{1,5})\s*[xX*]\s*(\d{1,5})\Z")
_MOST_MODELS = 1024


@frozen
class Shape:
    """What a generation makes."""

    pixels: float = 1024 * 1024
    steps: float = 30
    frames: float = 1
    outputs: float = 1

    @property
    def work(self) -> float:
        """Units of work: megapixel steps."""
        return self.pixels * self.steps * self.frames * self.outputs / 1e6


_DEFAULTS = {"video": Shape(pixels=832 * 480, steps=50, frames=81), "mesh": Shape(steps=50)}
_FPS = 16.0


@define(eq=False)
class Costs:
    """Reads the work of requests, and remembers the last values for each model."""

    _last: dict[tuple[str | None, str], Shape] = field(init=False, factory=dict)

    def work(self, model: str | None, kind: str, fields: Mapping[str, Value]) -> float:
        """Units of work of a request to an endpoint of that kind."""
        key = (model, kind)
        before = self._last.pop(key, None) or _DEFAULTS.get(kind, Shape())
        shape = Shape(
            pixels=_pixels(fields) or before.pixels,
            steps=_number(fields.get("num_inference_steps")) or before.steps,
            frames=_frames(fields) or before.frames,
            # A request that names no number of outputs wants one, whatever earlier requests wanted.
            outputs=_number(fields.get("n")) or _number(fields.get("num_outputs_per_prompt")) or 1,
        )
        if len(self._last) >= _MOST_MODELS:
            del self._last[next(iter(self._last))]
        self._last[key] = shape
        return shape.work


ALL = "*"  # stands for all workers together

# Number of measurements kept, of one worker and of all workers. The median of a few measurements
# ignores outliers (the first generation of a process compiles), and follows a change within half of
# these measurements.
_OWN, _ALL = 9, 31
# Seconds per unit before the first measurement: about an image model on one GPU.
_UNKNOWN = 0.3
# A worker that takes longer than expected always has at least this share of the work left.
_LEFT = 0.1


@define(eq=False)
class _Track:
    """The median of the last measurements."""

    recent: deque[float]
    value: float = 0.0

    def add(self, measured: float) -> None:
        self.recent.append(measured)
        self.value = sorted(self.recent)[(len(self.recent) - 1) // 2]


@define(eq=False)
class Speeds:
    """Learns seconds per unit of work, per worker and kind of endpoint.

    `clock` returns seconds; the times in holds come from the same clock.
    """

    clock: Callable[[], float] = lambda: 0.0
    # By the URL of a worker or `ALL`, then by kind.
    _tracks: dict[str, dict[str, _Track]] = field(init=False, factory=dict)
    _changed: set[str] = field(init=False, factory=set)

    def learn(self, url: str, kind: str, work: float, seconds: float) -> None:
        """Learn that a generation of this much work took this many seconds on the worker."""
        if work <= 0 or seconds <= 0:
            return
        for name in (url, ALL):
            self._track(name, kind).add(seconds / work)
            self._changed.add(name)

    def per_unit(self, name: str, kind: str) -> float | None:
        """Seconds per unit of work on a worker, or on `ALL`; None if nothing was learnt yet."""
        track = self._tracks.get(name, {}).get(kind)
        return None if track is None else track.value

    def typical(self, kind: str, work: float) -> float:
        """Seconds that this much work takes on a typical worker for this kind of endpoint."""
        known = self.per_unit(ALL, kind)
        return (_UNKNOWN if known is None else known) * work

    def expected(self, url: str, kind: str, work: float) -> float:
        """Seconds that this much work is expected to take on the worker.

        A worker that has not done work of this kind yet counts as typical for the pool.
        """
        known = self.per_unit(url, kind)
        return self.typical(kind, work) if known is None else known * work

    def left(self, hold: Hold) -> float:
        """Seconds of work left for the occupant of a slot; always above zero."""
        expected = self.expected(hold.worker.url, hold.endpoint, hold.work)
        if hold.begun is None:
            return expected
        return max(expected - (self.clock() - hold.begun), expected * _LEFT)

    def outstanding(self, worker: Worker) -> float:
        """Seconds of work that the worker has been given and has not finished."""
        return sum(map(self.left, worker.holds))

    def forget(self, url: str) -> None:
        """Forget a worker that was removed."""
        self._tracks.pop(url, None)

    def changed(self) -> dict[str, dict[str, list[float]]]:
        """The last measurements by kind, of each worker that was measured since the last call;
        under `ALL`, the measurements of all workers together."""
        names, self._changed = self._changed, set()
        return {
            name: {kind: list(track.recent) for kind, track in self._tracks[name].items()}
            for name in names
            if name in self._tracks
        }

    def restore(self, name: str, measured: Mapping[str, Sequence[float]]) -> None:
        """Take over what `changed` returned for a worker or for `ALL`."""
        for kind, values in measured.items():
            for value in values:
                self._track(name, kind).add(value)

    def of(self, url: str) -> dict[str, float]:
        """What was learnt about a worker: seconds per unit, by kind."""
        return {kind: track.value for kind, track in self._tracks.get(url, {}).items()}

    def _track(self, name: str, kind: str) -> _Track:
        recent = deque[float](maxlen=_ALL if name == ALL else _OWN)
        return self._tracks.setdefault(name, {}).setdefault(kind, _Track(recent))


def _pixels(fields: Mapping[str, Value]) -> float | None:
    size = fields.get("size")
    if isinstance(size, str) and (match := _SIZE.match(size.strip())):
        return float(int(match[1]) * int(match[2])) or None
    width, height = _number(fields.get("width")), _number(fields.get("height"))
    return width * height if width and height else None


def _frames(fields: Mapping[str, Value]) -> float | None:
    frames = _number(fields.get("num_frames"))
    if frames is not None:
        return frames
    seconds = _number(fields.get("seconds"))
    return seconds * (_number(fields.get("fps")) or _FPS) if seconds else None


def _number(value: Value) -> float | None:
    """A positive number, also as text (forms carry only text)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 < number < 1e9 else None


# Seconds over which a rate is measured.
_WINDOW = 60


@define(eq=False)
class Rate:
    """How often an event happens, over the last minute."""

    _seconds: deque[list[float]] = field(init=False, factory=deque)  # second, events in it

    def count(self, now: float) -> None:
        """Count one event."""
        second = float(int(now))
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += 1
        else:
            self._seconds.append([second, 1])
            self._forget(now)

    def per_second(self, now: float) -> float:
        """Events per second; 0 if there was none within the last minute."""
        self._forget(now)
        if not self._seconds:
            return 0.0
        return sum(count for _, count in self._seconds) / max(1.0, now - self._seconds[0][0])

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] < now - _WINDOW:
            self._seconds.popleft()
