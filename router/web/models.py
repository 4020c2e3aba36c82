"""`/v1/models`: the models of the pool as one list."""

from __future__ import annotations

from typing import Any

import trio
from quart import Blueprint

from ..boundary import contained
from ..control.client import Unreachable
from ..errors import WorkerFailed
from ..pool.catalog import merge_models
from ..pool.match import Targets, no_workers
from ..pool.pools import absent, members
from ..pool.worker import Worker
from ..text import words
from .body import named_pool
from .parts import parts

blueprint = Blueprint("models", __name__)

_PATIENCE = 5.0  # seconds for a worker's answer


@blueprint.get("/v1/models")
async def list_models() -> dict[str, Any]:
    """Every model that a healthy worker serves, once each."""
    cards, failures = await _cards()
    if failures and not cards:
        raise _unavailable(failures)
    return {"object": "list", "data": cards}


@blueprint.get("/v1/models/<path:model>")
async def get_model(model: str) -> tuple[dict[str, Any], int]:
    """One model's card; 404 in OpenAI's shape, as the workers answer it."""
    cards, failures = await _cards()
    for card in cards:
        if card.get("id") == model:
            return card, 200
    if failures:  # a worker that did not answer may serve it
        raise _unavailable(failures)
    error = {
        "message": f"The model '{model}' does not exist",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }
    return {"error": error}, 404


async def _cards() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The merged cards, and why workers did not answer. Raises PoolUnavailable without workers,
    UnknownPool."""
    registry, pool = parts().registry, named_pool()
    if error := absent(pool, registry):
        raise error
    targets = Targets.of(w for w in members(registry, pool) if not w.is_plain)
    if not targets.eligible:
        raise no_workers()
    lists: dict[str, list[Any]] = {}
    failures: dict[str, str] = {}
    client = parts().client

    async def ask(worker: Worker) -> None:
        with contained("worker", f"GET /v1/models of worker {worker.url}") as attempt:
            await read(worker)
        if attempt.error is not None:
            failures[worker.url] = words(attempt.error)

    async def read(worker: Worker) -> None:
        try:
            answer = await client.get(worker.url, "/v1/models", within=_PATIENCE)
        except Unreachable as error:
            failures[worker.url] = str(error)
            return
        data = answer.fields.get("data")
        if answer.status != 200 or not isinstance(data, list):
            failures[worker.url] = f"GET /v1/models answered {answer.status}"
        else:
            lists[worker.url] = data

    async with trio.open_nursery() as nursery:
        for worker in targets.eligible:
            nursery.start_soon(ask, worker)
    return merge_models(lists[w.url] for w in targets.eligible if w.url in lists), failures


def _unavailable(failures: dict[str, str]) -> WorkerFailed:
    return WorkerFailed(
        "Failed to fetch models from workers",
        code="models_unavailable",
        details={"details": failures},
    )
