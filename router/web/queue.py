"""`GET /queue`: what waits, for which models and clients, and for how long."""

from __future__ import annotations

from typing import Any

import trio
from quart import Blueprint

from .parts import parts

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
async def queue() -> dict[str, Any]:
    """Waiting requests by model, task and client; the oldest wait and the drain rate."""
    dispatcher = parts().dispatcher
    waiting = dispatcher.queue.all()
    since: dict[tuple[str | None, str | None, str], list[float]] = {}
    for one in waiting:
        key = (one.facts.model, one.facts.task, one.facts.client)
        since.setdefault(key, []).append(one.since)
    now = trio.current_time()
    return {
        "waiting": len(waiting),
        "limit": dispatcher.limits.size,
        "oldest_wait_seconds": _longest([one.since for one in waiting], now),
        "drain_rate_per_second": round(dispatcher.drain_rate(), 3),
        "groups": [
            {
                "model": model,
                "task": task,
                "client": client,
                "waiting": len(some),
                "oldest_wait_seconds": _longest(some, now),
            }
            for (model, task, client), some in since.items()
        ],
    }


def _longest(since: list[float], now: float) -> float:
    return round(now - min(since), 3) if since else 0.0
