"""Workers that the router launched: show logs, restart, scale."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import trio
from quart import Blueprint, Response, request

from ..errors import BadRequest
from . import body
from .parts import FollowedLog, parts
from .uploads import ending

blueprint = Blueprint("launcher", __name__)

_TAIL, _TAIL_MOST = 100, 10_000  # lines
_MOST_WORKERS = 1000
_POLL = 0.25  # seconds between two looks at a followed log
_TEXT = {
    "Content-Type": "text/plain; charset=utf-8",
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Accel-Buffering": "no",  # nginx would hold back what is followed
    "Vary": "Accept",
}


@blueprint.get("/workers/<path:worker_id>/logs")
async def show_log(worker_id: str) -> dict[str, Any] | Response:
    """The last lines of a launched worker's output; `?tail=` says how many. With `?follow=true`
    also what comes later, until the worker is removed."""
    tail = body.query_number("tail", absent=_TAIL, least=1, most=_TAIL_MOST)
    worker = parts().registry.get(worker_id)
    if body.query_flag("follow") and request.method != "HEAD":
        ending().enter_context(parts().launcher.logs.following())
        log = await parts().launcher.logs.follow(worker, tail)
        return Response(_follow(log, parts().feed.over), headers=_TEXT)
    found = await parts().launcher.logs.tail(worker, tail)
    known = request.accept_mimetypes.best_match(["text/plain", "application/json"])
    if known == "application/json":
        return {"worker_id": worker.worker_id, "lines": found}
    return Response(_text(found), headers=_TEXT)


async def _follow(log: FollowedLog, stopping: trio.Event) -> AsyncIterator[bytes]:
    new = log.found
    while not stopping.is_set():
        if new:
            yield _text(new)
        elif log.over:
            return
        else:
            with trio.move_on_after(_POLL):
                await stopping.wait()
        new = await log.new()


def _text(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode(errors="replace")


@blueprint.route("/workers/<path:worker_id>/restart", methods=["PUT", "POST"])
async def restart_worker(worker_id: str) -> dict[str, Any]:
    """Start a launched worker again, whether it runs or was given up."""
    body.only(await body.json_object(), ())
    worker = parts().registry.get(worker_id)
    parts().launcher.restart(worker)
    return {"status": "success", "worker_id": worker.worker_id}


@blueprint.post("/launcher/scale")
async def scale() -> dict[str, Any]:
    """Change the number of launched workers; answers before they have started or ended."""
    content = await body.json_object()
    body.only(content, ("num_workers", "launcher"))
    workers, launcher = content.get("num_workers"), content.get("launcher")
    if type(workers) is not int or not 0 <= workers <= _MOST_WORKERS:
        raise BadRequest(
            f"num_workers must be a whole number from 0 to {_MOST_WORKERS}", code="invalid_field"
        )
    if launcher is not None and not isinstance(launcher, str):
        raise BadRequest("launcher must be the name of a launcher", code="invalid_field")
    return {"status": "success", **await parts().launcher.scale(workers, launcher)}
