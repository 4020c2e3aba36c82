"""The access log: one line for each exchange, at its end."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import trio
from attrs import define, field

from ..bus import Bus
from ..front.record import ExchangeEnded, ExchangeRecord
from ..text import masked, words

logger = logging.getLogger("router.access")

MOST = 50
"""Lines per second for exchanges that went well, and as many for others; the rest is counted."""

PROBES = frozenset(
    {
        *("/health", "/live", "/ready", "/metrics", "/engine_metrics"),
        # By the names of other programs.
        *("/healthz", "/livez", "/readyz", "/liveness", "/readiness", "/health_generate", "/ping"),
    }
)
"""Paths that are asked all the time, and never logged."""


@define(eq=False)
class AccessLines:
    """Logs exchanges as the bus tells of their ends, while it is switched on."""

    bus: Bus
    _off: Callable[[], None] | None = field(init=False, default=None)
    _second: float = field(init=False, default=-math.inf)  # the one that is counted
    _good: int = field(init=False, default=0)
    _bad: int = field(init=False, default=0)
    _full: trio.Event = field(init=False, factory=trio.Event)  # lines are being left out

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell what was left out after each second in which that happened; never returns."""
        task_status.started()
        try:
            while True:
                await self._full.wait()
                await trio.sleep_until(self._second + 1)
                self._turn(self._second + 1)
        finally:
            self._turn(math.inf)

    def switch(self, *, on: bool) -> None:
        """Log exchanges from now on, or no longer."""
        if on and self._off is None:
            self._off = self.bus.subscribe(self.note, ExchangeEnded)
        elif not on and self._off is not None:
            self._off()
            self._off = None

    def note(self, event: ExchangeEnded) -> None:
        """Log an exchange, unless it was a probe or its second is full."""
        record = event.record
        ended = record.ended or 0.0
        if record.path in PROBES:
            return
        if ended >= self._second + 1:
            self._turn(ended)
        if record.code is None and record.status is not None and record.status < 400:
            self._good += 1
            full = self._good > MOST
        else:
            self._bad += 1
            full = self._bad > MOST
        if full:
            self._full.set()
        else:
            _tell(record)

    def _turn(self, now: float) -> None:
        """Begin another second."""
        good, bad = max(0, self._good - MOST), max(0, self._bad - MOST)
        self._second, self._good, self._bad = now, 0, 0
        if self._full.is_set():
            self._full = trio.Event()
            logger.info(
                "%d requests and %d errors of one second are left out of this log",
                *(good, bad),
                extra={"event": "access_left_out", "request_id": None},
            )


def _tell(record: ExchangeRecord) -> None:
    phases = record.phases
    took = 0.0 if record.ended is None else record.ended - record.arrived
    parts = ", ".join(f"{name} {seconds:.3f}" for name, seconds in phases.items())
    said = [
        f"{words(record.what)} {record.status or 'without an answer'} in {took:.3f} s",
        f" ({parts})" * bool(parts),
        f", {record.received} B in, {record.sent} B out",
        f", {record.worker}" * bool(record.worker),
        f", client {record.client}" * bool(record.client),
        f", prompt {record.prompt!r}" * bool(record.prompt),
    ]
    fields: dict[str, Any] = {
        "event": "exchange",
        "request_id": record.request_id,
        "method": record.method,
        "path": words(masked(record.path)),
        "route": record.route or None,
        "status": record.status,
        "code": record.code,
        "received": record.received,
        "sent": record.sent,
        "seconds": round(took, 6),
        **{f"{name}_seconds": round(seconds, 6) for name, seconds in phases.items()},
        "worker": record.worker,
        "tries": record.tries or None,
        "model": words(record.model) if record.model else None,
        "client": record.client or None,
        "prompt": record.prompt,
    }
    logger.info("%s", "".join(said), extra=fields)
