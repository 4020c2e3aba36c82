"""Workers that the router launched: show logs, restart, scale."""

from __future__ import annotations

from typing import Any

from quart import Blueprint

from ..errors import BadRequest
from . import body
from .parts import parts

blueprint = Blueprint("launcher", __name__)

_TAIL, _TAIL_MOST = 100, 10_000  # lines
_MOST_WORKERS = 1000


@blueprint.get("/workers/<path:worker_id>/logs")
async def show_log(worker_id: str) -> dict[str, Any]:
    """The last lines of a launched worker's output; `?tail=` says how many."""
    tail = body.query_number("tail", absent=_TAIL, least=1, most=_TAIL_MOST)
    worker = parts().registry.get(worker_id)
    lines = await parts().launcher.tail(worker, tail)
    return {"worker_id": worker.worker_id, "lines": lines}


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
