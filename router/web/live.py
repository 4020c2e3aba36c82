"""`/events`: the pool as it changes, for pages that show it live."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import trio
from quart import Blueprint, Response, request

from .. import __version__
from .feed import TICK, Feed
from .ops import health_payload
from .parts import Parts, parts
from .payload import describe
from .queue import queue_payload
from .uploads import ending
from .weights import ledger_facts, shown_ledgers

blueprint = Blueprint("live", __name__)

_HEARTBEAT = 10.0  # seconds
_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
_STREAM["X-Accel-Buffering"] = "no"  # nginx would hold the events back


@blueprint.get("/events")
async def events() -> Response:
    """The state of the pool as server-sent events: a snapshot, then each change."""
    if request.method == "HEAD":
        return Response("", headers=_STREAM)
    of = parts()
    ending().enter_context(of.feed.viewing())
    place = of.feed.place(request.headers.get("Last-Event-ID"))
    return Response(_follow(of, of.feed, place), headers=_STREAM)


async def _follow(of: Parts, feed: Feed, place: int | None) -> AsyncIterator[bytes]:
    show, rest = partial(describe, of), partial(_rest, of)
    quiet = trio.current_time()
    while not feed.over.is_set():
        new = None if place is None else feed.after(place)
        if new is None:
            new = [feed.snapshot(show, rest())]
        place = feed.last
        if not new and trio.current_time() >= quiet + _HEARTBEAT:
            new = [b": nothing has changed\n\n"]
        for event in new:
            quiet = trio.current_time()
            yield event
        with trio.move_on_after(TICK):
            await feed.over.wait()
        feed.look(show, rest)


def _rest(of: Parts) -> dict[str, Any]:
    """All of the document but the workers."""
    return {
        "router": {"version": __version__},
        "health": health_payload(of)[0],
        "queue": queue_payload(of.dispatcher),
        "weights": [ledger_facts(ledger) for ledger in shown_ledgers(of)],
        "refits": of.feed.recent.refits(),
        "previews": of.previews.newest if of.previews.enabled else None,
    }
