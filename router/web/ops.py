"""Health and metrics: for load balancers, monitoring and people."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import trio
from quart import Blueprint, Response, request

from .. import boundary, threads
from ..boundary import contained
from ..control.client import ControlClient, Unreachable
from ..control.operations import Operation
from ..errors import Conflict, RouterError
from ..net.hops import INSTANCE_HEADER
from ..observe import engines
from ..pool.lifecycle import census
from ..pool.registry import Registry
from ..pool.worker import Worker
from .body import named_pool, query_number
from .parts import Parts, parts

blueprint = Blueprint("ops", __name__)
logger = logging.getLogger("router.web")

_PATIENCE = 5.0  # seconds for the metrics of a worker; Prometheus waits 10 s


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
    draining = of.drain.active
    serving = of.dispatcher.serves(pool) and not draining
    store = of.store
    body: dict[str, Any] = {
        "status": "draining" if draining else "healthy" if serving else "unhealthy",
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


class StillBusy(RouterError):
    """The router drains, and has not become idle in time."""

    default_status = 504
    default_code = "still_busy"


@blueprint.get("/drain")
async def show_drain() -> dict[str, Any]:
    """Whether the router drains, and what it still does."""
    drain = parts().drain
    return {"draining": drain.active, "in_flight": drain.busy}


@blueprint.post("/drain")
async def drain() -> dict[str, Any]:
    """Take no new work, and answer once all work that has begun has ended. The drain goes on after
    the answer, and if the client leaves."""
    drain = parts().drain
    within = query_number("within", absent=60, least=0, most=86_400)
    if not drain.active:
        drain.active = True
        logger.info("draining: no new generations, %d are under way", drain.busy)
    idle = await drain.wait(within)
    if not drain.active:
        raise Conflict("The drain was called off")
    if not idle:
        raise StillBusy(
            f"{drain.busy} generations or sessions are still under way; the drain goes on",
            details={"in_flight": drain.busy},
        )
    return {"status": "success", "draining": True, "in_flight": 0}


@blueprint.delete("/drain")
async def end_drain() -> dict[str, Any]:
    """Take new work again."""
    drain = parts().drain
    if drain.active:
        drain.active = False
        drain.look()
        logger.info("no longer draining")
    return {"status": "success", "draining": False, "in_flight": drain.busy}


@blueprint.post("/config/reload")
async def reload() -> dict[str, Any]:
    """Read the settings again, and apply what can change at run time."""
    changes = await parts().reload()
    return {
        "status": "success",
        "applied": changes.applied,
        "needs_restart": changes.needs_restart,
        "unchanged": changes.unchanged,
    }


@blueprint.get("/metrics")
async def metrics() -> Response:
    """The router's own metrics for Prometheus."""
    body, content_type = parts().metrics.exposition(request.headers.get("Accept", ""))
    return Response(body, content_type=content_type)


@blueprint.get("/engine_metrics")
async def engine_metrics() -> Response:
    """The metrics of all workers. Requests that come during a scrape share its result."""
    scrape = partial(_scrape, parts().client, parts().registry)
    operations = parts().weights.operations
    body = await operations.start(scrape, identity=_scrape, begun=False).result()
    return Response(body, content_type=engines.CONTENT_TYPE)


async def _scrape(client: ControlClient, registry: Registry, _: Operation[bytes]) -> bytes:
    workers = list(registry)
    answers: dict[str, bytes | str] = {worker.url: "failed" for worker in workers}

    async def ask(worker: Worker) -> None:
        with contained("worker", f"GET /metrics of worker {worker.url}"):
            try:
                answer = await client.get(worker.url, "/metrics", within=_PATIENCE)
            except Unreachable as error:
                answers[worker.url] = "timeout" if error.timed_out else "unreachable"
            else:
                good = answer.status == 200
                answers[worker.url] = answer.body if good else f"status_{answer.status}"

    async with trio.open_nursery() as nursery:
        for worker in workers:
            nursery.start_soon(ask, worker)
    merge = partial(engines.expose, answers)
    with contained("client", "merging the metrics of the workers"):
        try:
            return await threads.run(merge)  # many long answers take more than a moment
        except OSError:  # no thread can be started now
            return merge()
    raise RouterError("The metrics of the workers could not be merged; the log says why")
