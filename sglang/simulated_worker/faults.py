"""Faults on demand: `POST /simulate`, listed by `GET /simulate`, or `SimulatedWorker.faults.add`.

A fault stays until it was used `count` times (default: no end), until `seconds` have passed
(default: no end), or until `clear`. Those that concern requests take `path`, a prefix of the
request's path (default: every path but `/simulate`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import trio
from attrs import define, field, frozen

from .record import now

Kind = Literal[
    "refuse",
    "hang",
    "drop",
    "garbage",
    "status",
    "delay",
    "slow_health",
    "slow",
    "drip",
    "die_at_byte",
    "fail_next_update",
    "fail_next_generation",
    "warming",
    "kill_scheduler",
    "restart",
    "crash",
    "clear",
]

CATALOGUE: dict[str, str] = {
    "refuse": "The port refuses new connections; open connections stay. The control port"
    " (port + 1) still takes /simulate. `seconds`",
    "hang": "The worker reads a request and never answers. `path`, `count`, `seconds`",
    "drop": "The worker reads a request and closes the connection without an answer. `path`,"
    " `count`, `seconds`, `reset` (true: RST instead of FIN)",
    "garbage": "The worker answers with bytes that are not HTTP. `path`, `count`, `seconds`",
    "status": "The worker answers with `status` (503), `body` (a string or JSON) and"
    " `content_type` (application/json). `path`, `count`, `seconds`",
    "delay": "The answer comes `by` seconds after the request was read. `path`, `count`, `seconds`",
    "slow_health": "`delay` for /health, /health_generate and /liveness. `by`, `count`, `seconds`",
    "slow": "Generations take `factor` (10) times as long. `count`, `seconds`",
    "drip": "Answer bodies are sent at `bytes_per_second` (1000). `path`, `count`, `seconds`",
    "die_at_byte": "The connection ends after `byte` (0) bytes of the answer's body (0: after the"
    " head). `path`, `count` (1), `reset` (false)",
    "fail_next_update": "The worker refuses a weight update, LoRA, sleep or wake call with `status`"
    " (400) and `message`. `effect` is 'none', 'partial' (some weights are new), 'rollback' (the"
    " weights are those of the last directory) or 'applied' (the call took effect). `path`,"
    " `count` (1)",
    "fail_next_generation": "An image gets the plain-text 500; a job fails. `message`, `count` (1)",
    "warming": "Health answers an empty 503, and all other requests wait. `seconds`",
    "kill_scheduler": "The backend is dead: health answers 503 unhealthy, POSTs get 503, and reads"
    " still work. `clear` revives the backend",
    "restart": "A new process takes the same port: connections are reset, jobs and LoRA are"
    " forgotten, the weights are those of the start, and the worker is awake. The port refuses"
    " connections for `down` (0.5) seconds, and then the worker warms up",
    "crash": "The process ends at once; in a test's process, all connections are reset, and the"
    " port refuses connections. `after` seconds (0)",
    "clear": "Ends every fault",
}
_ONCE = {"die_at_byte", "fail_next_update", "fail_next_generation"}
_HEALTH = ("/health", "/health_generate", "/liveness")
_NUMBERS = (
    "count",
    "seconds",
    "by",
    "factor",
    "bytes_per_second",
    "byte",
    "status",
    "down",
    "after",
)


class FaultError(ValueError):
    """A fault that does not exist, or a parameter of the wrong kind; the text says which."""


@frozen
class Fault:
    """A fault as asked for. `settings` are its parameters."""

    kind: str
    path: str = ""
    until: float | None = None
    settings: dict[str, Any] = field(factory=dict)

    @property
    def remaining(self) -> float:
        """Seconds until its time is over."""
        return math.inf if self.until is None else self.until - now()

    def number(self, name: str, default: float) -> float:
        return float(self.settings.get(name, default))

    def text(self, name: str, default: str) -> str:
        return str(self.settings.get(name, default))


@define(eq=False)
class _Active:
    fault: Fault
    left: float


@define(eq=False)
class Faults:
    """The faults of one worker that still wait for their moment."""

    changed: Callable[[Fault], None] = field(default=lambda _: None)
    """Called after a fault was added."""
    _active: list[_Active] = field(factory=list)
    _cleared: trio.Event = field(factory=trio.Event)

    def add(self, kind: Kind | str, /, **settings: Any) -> Fault:
        """Raises `FaultError` if there is no such fault or a number is none."""
        if kind not in CATALOGUE:
            raise FaultError(f"unknown fault {kind!r}; expected one of {', '.join(CATALOGUE)}")
        for name in _NUMBERS:
            value = settings.get(name)
            if value is not None and (
                isinstance(value, bool) or not isinstance(value, int | float)
            ):
                raise FaultError(f"{name}: expected a number, got {value!r}")
        if not 200 <= settings.get("status", 200) < 600:
            raise FaultError(f"status: expected 200 to 599, got {settings['status']}")
        seconds = settings.get("seconds")
        fault = Fault(
            kind,
            str(settings.get("path", "")),
            None if seconds is None else now() + seconds,
            settings,
        )
        if kind == "clear":
            self.clear()
        else:
            count = settings.get("count")
            if count is None:
                count = 1 if kind in _ONCE else math.inf
            self._active.append(_Active(fault, count))
        self.changed(fault)
        return fault

    def clear(self) -> None:
        """Ends every fault."""
        self._active.clear()
        self._cleared.set()
        self._cleared = trio.Event()

    def peek(self, kind: Kind, path: str = "") -> Fault | None:
        """The oldest fault of that kind that concerns `path`, not used up by asking."""
        moment = now()
        self._active = [
            a
            for a in self._active
            if a.left > 0 and (a.fault.until is None or moment < a.fault.until)
        ]
        for active in self._active:
            if active.fault.kind == kind and self._concerns(active.fault, path):
                return active.fault
        return None

    def take(self, kind: Kind, path: str = "") -> Fault | None:
        """As `peek`, and one use of the fault is gone."""
        fault = self.peek(kind, path)
        for active in self._active:
            if active.fault is fault:
                active.left -= 1
        return fault

    async def over(self, fault: Fault) -> None:
        """Waits until the time of a fault is over or all faults are cleared."""
        with trio.move_on_after(max(0.0, fault.remaining)):
            await self._cleared.wait()

    def as_json(self) -> list[dict[str, Any]]:
        self.peek("clear")
        return [
            {
                "fault": a.fault.kind,
                "left": None if a.left == math.inf else a.left,
                **a.fault.settings,
            }
            for a in self._active
        ]

    def _concerns(self, fault: Fault, path: str) -> bool:
        if fault.kind == "slow_health":
            return path in _HEALTH
        return path.startswith(fault.path)
