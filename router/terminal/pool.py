"""The pool as `GET /events` tells it: a document, kept up to date over lost connections."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import trio
from attrs import define, field

from ..errors import StartError
from ..text import from_json
from .client import Client

_SILENCE = 30.0  # seconds; the router breaks a silence after 10
_PAUSES = (0.5, 1.0, 2.0, 5.0)  # seconds between two tries to connect
_SPAN = 6  # steps of the series that make up "the last minute"

Fields = dict[str, Any]


@define(eq=False)
class Pool:
    """What is known of the pool. `trouble` says why it may be old."""

    document: Fields = field(factory=dict)
    workers: dict[str, Fields] = field(factory=dict)
    trouble: str | None = None
    last_id: str | None = None
    _steps: dict[int, list[Any]] = field(factory=dict)
    _now: tuple[float, float] = (0.0, 0.0)  # the router's time, and ours at that moment

    def apply(self, kind: str, told: Fields) -> None:
        """Take in an event."""
        changed = told.pop("workers", {})
        if kind == "snapshot":
            self.document, self._steps = {}, {}
            self.workers = {one.get("worker_id", ""): one for one in changed}
        else:
            for name, fields in changed.items():
                if fields is None:
                    self.workers.pop(name, None)
                else:
                    self.workers[name] = {**self.workers.get(name, {}), **fields}
        for row in told.get("series", {}).get("steps", []):
            self._steps[row[0]] = row
        for number in sorted(self._steps)[:-90]:
            del self._steps[number]
        self.document |= told
        self._now = (told.get("now", 0.0), trio.current_time())

    @property
    def now(self) -> float:
        """The time of day at the router."""
        told, at = self._now
        return told + trio.current_time() - at

    def last_minute(self) -> tuple[int, int, float | None, float | None]:
        """What was done, what failed, and the newest p50 and p99 in seconds."""
        last = self.document.get("series", {}).get("last", 0)
        rows = [row for number, row in sorted(self._steps.items()) if number > last - _SPAN]
        timed = [row for row in rows if row[4] is not None]
        p50, p99 = (timed[-1][4], timed[-1][5]) if timed else (None, None)
        return sum(row[1] for row in rows), sum(row[2] for row in rows), p50, p99


async def follow(client: Client, pool: Pool, changed: Callable[[], None]) -> None:
    """Keep `pool` up to date for ever. Raises StartError if not even the first try succeeds."""
    tries = 0
    while True:
        try:
            with client.sentences("GET /events"):
                async for kind, told in _events(client, pool):
                    pool.apply(kind, told)
                    pool.trouble, tries = None, 0
                    changed()
            pool.trouble = "The router ended the connection"
        except StartError as error:
            if not pool.document:
                raise
            pool.trouble = str(error)
        changed()
        await trio.sleep(_PAUSES[min(tries, len(_PAUSES) - 1)])
        tries += 1


async def _events(client: Client, pool: Pool) -> AsyncIterator[tuple[str, Fields]]:
    headers = {"Accept": "text/event-stream"}
    if pool.last_id is not None:
        headers["Last-Event-ID"] = pool.last_id
    timeout = httpx.Timeout(_SILENCE)
    async with client.http.stream("GET", "/events", headers=headers, timeout=timeout) as answer:
        if answer.status_code != 200:
            client.check(answer, from_json(await answer.aread()))
        fields: dict[str, str] = {}
        async for line in answer.aiter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
                continue
            told = from_json(fields.get("data", ""))
            if isinstance(told, dict):
                pool.last_id = fields.get("id", pool.last_id)
                yield fields.get("event", ""), told
            fields = {}
