"""`/queue`: what waits, for which models and clients, and for how long; and to cancel it."""

from __future__ import annotations

from typing import Any

import trio
from quart import Blueprint, request

from ..dispatch import Dispatcher
from ..errors import BadRequest
from ..pool.match import client_class
from .body import only
from .parts import parts

blueprint = Blueprint("queue", __name__)


@blueprint.get("/queue")
async def queue() -> dict[str, Any]:
    """Waiting requests by model, task and client; the oldest wait and the drain rate."""
    return queue_payload(parts().dispatcher)


def queue_payload(dispatcher: Dispatcher) -> dict[str, Any]:
    """The JSON of the queue."""
    waiting = dispatcher.queue.all()
    since: dict[tuple[str | None, str | None, str | None, str, str], list[float]] = {}
    for one in waiting:
        facts = one.facts
        key = (facts.pool, facts.model, facts.task, facts.client, facts.priority)
        since.setdefault(key, []).append(one.since)
    now = trio.current_time()
    return {
        "waiting": len(waiting),
        "limit": dispatcher.limits.size,
        "oldest_wait_seconds": _longest([one.since for one in waiting], now),
        "drain_rate_per_second": round(dispatcher.drain_rate(), 3),
        "groups": [
            {
                "pool": pool,
                "model": model,
                "task": task,
                "client": client,
                "priority": priority,
                "waiting": len(some),
                "oldest_wait_seconds": _longest(some, now),
            }
            for (pool, model, task, client, priority), some in since.items()
        ],
    }


@blueprint.delete("/queue")
async def cancel() -> dict[str, Any]:
    """Cancel what waits, by group or client or both."""
    only(request.args, ("group", "client"))
    groups, clients = request.args.getlist("group"), request.args.getlist("client")
    if not groups and not clients:
        raise BadRequest(
            "Say what to cancel: ?group=G (X-Group-Id), ?client=C (X-Client-Id), or both",
            code="missing_field",
        )
    if "" in (*groups, *clients):
        raise BadRequest("?group= and ?client= must not be empty", code="invalid_field")
    names = {client_class(client.encode()) for client in clients}
    among = set(groups)
    count = parts().dispatcher.cancel(
        lambda facts: (not among or facts.group in among) and (not names or facts.client in names)
    )
    return {"cancelled": count}


def _longest(since: list[float], now: float) -> float:
    return round(now - min(since), 3) if since else 0.0
