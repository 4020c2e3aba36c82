"""`/health`, `/live`, `/ready`, `/metrics`: for load balancers, monitoring and people."""

from __future__ import annotations

from typing import Any

from quart import Blueprint, Response, request

from .. import boundary
from ..errors import RouterError
from ..net.hops import INSTANCE_HEADER
from ..pool.lifecycle import census
from .body import named_pool
from .parts import Parts, parts

blueprint = Blueprint("ops", __name__)


@blueprint.get("/live")
async def live() -> dict[str, Any]:
    """200 while the process runs."""
    return {"status": "ok"}


@blueprint.get("/health")
@blueprint.get("/ready")
async def health() -> tuple[dict[str, Any], int, dict[str, str]]:
    """200 while a request would be served, 503 while it would be refused at once.

    A header names this router, so that a router recognises itself behind a worker's URL.
    """
    body, serving = health_payload(parts(), named_pool())
    headers = {INSTANCE_HEADER.decode(): parts().client.instance.id}
    return body, 200 if serving else 503, headers


def health_payload(of: Parts, pool: str | None = None) -> tuple[dict[str, Any], bool]:
    """The JSON of the router's health, and whether it serves."""
    count = census(w for w in of.registry if pool in (None, w.pool))
    serving = of.dispatcher.serves(pool)
    store = of.store
    body: dict[str, Any] = {
        "status": "healthy" if serving else "unhealthy",
        "healthy_workers": count.routable,
        "total_workers": count.total,
        "dead_workers": count.dead,
        "sleeping_workers": count.sleeping,
        "workers_on_trial": count.on_trial,
        "contained_errors": boundary.counts.total(),
        "state": "none",
    }
    if store.keeps:
        body["state"] = "ok" if store.failing is None else "failing"
    if store.failing is not None:
        body["state_reason"] = store.failing
    return body, serving


@blueprint.get("/metrics")
async def metrics() -> Response:
    """The router's own metrics for Prometheus."""
    body, content_type = await parts().metrics.exposition(request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)


@blueprint.get("/engine_metrics")
async def engine_metrics() -> dict[str, Any]:
    """Not implemented. The metrics of a single worker would pass for the pool's."""
    raise RouterError(
        "The router does not merge the metrics of its workers yet; GET /metrics has its own",
        status=501,
        code="not_implemented",
    )
