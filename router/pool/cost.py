"""How much work a request is, and how fast each worker does it.

Work is counted in megapixel steps: pixels x steps x frames x outputs / 1e6. What a request does
not say is taken from the last one for the same model that did, else from the defaults of the
kind of endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from statistics import median

from attrs import define, field, frozen

from .worker import Worker

Value = str | int | float | bool | None

# The fields that cost is read from, under all the names that endpoints give them.
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
# A new measurement counts so much, and is believed only within a factor of the estimate: one
# request that waited behind something else must not turn the picture.
_WEIGHT, _BELIEF = 0.25, 4.0
_MOST_SPEEDS = 100_000


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
    """Reads the work of requests; remembers what each model was asked for last."""

    _last: dict[tuple[str | None, str], Shape] = field(init=False, factory=dict)

    def work(self, model: str | None, kind: str, fields: Mapping[str, Value]) -> float:
        """Units of work of a request to an endpoint of that kind."""
        key = (model, kind)
        before = self._last.pop(key, None) or _DEFAULTS.get(kind, Shape())
        shape = Shape(
            pixels=_pixels(fields) or before.pixels,
            steps=_number(fields.get("num_inference_steps")) or before.steps,
            frames=_frames(fields) or before.frames,
            # One output is what not to name it means, whatever was asked for before.
            outputs=_number(fields.get("n")) or _number(fields.get("num_outputs_per_prompt")) or 1,
        )
        if len(self._last) >= _MOST_MODELS:
            del self._last[next(iter(self._last))]
        self._last[key] = shape
        return shape.work


@define(eq=False)
class Speeds:
    """Learns seconds per unit of work, per worker and kind of endpoint.

    Robust to outliers, and forgets: the estimate follows the last dozen of generations.
    """

    _seconds: dict[tuple[str, str], float] = field(init=False, factory=dict)

    def learn(self, url: str, kind: str, work: float, seconds: float) -> None:
        """A generation of this much work took so many seconds on the worker."""
        if work <= 0 or seconds <= 0:
            return
        measured = seconds / work
        known = self._seconds.get((url, kind))
        if known is None:
            if len(self._seconds) >= _MOST_SPEEDS:
                self._seconds.clear()
            self._seconds[url, kind] = measured
            return
        believed = min(max(measured, known / _BELIEF), known * _BELIEF)
        self._seconds[url, kind] = known + _WEIGHT * (believed - known)

    def per_unit(self, url: str, kind: str) -> float | None:
        """Seconds per unit of work on that worker; None if nothing was learnt yet."""
        return self._seconds.get((url, kind))

    def expected(self, url: str, kind: str, work: float) -> float:
        """Seconds that so much work is expected to take on the worker.

        One that has not done such work yet is taken for an average one of the pool.
        """
        known = self._seconds.get((url, kind))
        if known is None:
            others = [s for (_, k), s in self._seconds.items() if k == kind]
            known = median(others) if others else 1.0
        return known * work

    def outstanding(self, worker: Worker) -> float:
        """Seconds of work that the worker has been given and not finished."""
        holds = worker.holds
        return sum(self.expected(worker.url, hold.endpoint, hold.work) for hold in holds)

    def forget(self, url: str) -> None:
        """Forget a worker that was removed."""
        for key in [key for key in self._seconds if key[0] == url]:
            del self._seconds[key]

    def of(self, url: str) -> dict[str, float]:
        """What was learnt of a worker: seconds per unit, by kind."""
        return {kind: s for (u, kind), s in self._seconds.items() if u == url}


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
    """A positive number, also as text (forms know nothing else)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if 0 < number < 1e9 else None
