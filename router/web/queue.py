"""`GET /queue`: what waits, for whom, for how long."""

from __future__ import annotations

from typing import Any

from quart import Blueprint

from .parts import parts

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
async def queue() -> dict[str, Any]:
    """What waits, by model, task and client; the oldest wait and the drain rate."""
    dispatcher = parts().dispatcher
    rows: dict[tuple[str | None, str | None, str], int] = {}
    for group in dispatcher.queue.groups():
        for waiting in group.all():
            facts = waiting.facts
            key = (facts.model, facts.task, facts.client)
            rows[key] = rows.get(key, 0) + 1
    return {
        "waiting": dispatcher.queue.waiting,
        "limit": dispatcher.limits.size,
        "oldest_wait_seconds": round(dispatcher.oldest_wait(), 3),
        "drain_rate_per_second": round(dispatcher.drain_rate(), 3),
        "groups": [
            {"model": model, "task": task, "client": client, "waiting": count}
            for (model, task, client), count in rows.items()
        ],
    }
