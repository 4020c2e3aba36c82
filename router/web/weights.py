"""`/weights`: show, attest and sync the weights of workers; transactions of several calls."""

from __future__ import annotations

from functools import partial
from typing import Any

import trio
from quart import Blueprint, g, request

from ..control.client import Call
from ..control.refit import LoraActive
from ..control.unwrap import unwrap
from ..errors import BadRequest, Conflict, NotFound
from ..pool.lifecycle import routable
from ..pool.match import Targets, select
from ..pool.pools import absent, pool_and_model
from ..pool.weights import Change, Ledger, NotGreater
from ..pool.weights.numbers import check_length
from ..pool.worker import Worker
from ..text import from_json
from . import body
from .parts import Parts, parts

blueprint = Blueprint("weights", __name__)

Answer = tuple[dict[str, Any], int]

_SYNC = 600.0  # seconds that POST /weights/sync waits by default
_HELD = 1800.0  # seconds that a transaction may stay open by default
_LONGEST = 86_400.0


class VersionNeverIssued(Conflict):
    """The weight version was never issued, so no worker can have it."""

    default_code = "weight_version_unknown"


class FullUpdateNeeded(Conflict):
    """Nothing that the router can repeat brings workers to the current weights."""

    default_code = "full_update_needed"


@blueprint.get("/weights")
async def show() -> dict[str, Any]:
    """The ledger of every model, and the weights of each worker."""
    pool = body.named_pool()
    models = [_ledger_payload(ledger) for ledger in shown_ledgers(parts())]
    models = [shown for shown in models if pool in (None, shown["pool"])]
    # A pool without workers may have weights still.
    if not models and (error := absent(pool, parts().registry)):
        raise error
    if body.query_flag("verify"):
        for shown in models:
            await _verify(shown)
    return {"models": models, "total": len(models)}


@blueprint.post("/weights")
async def attest() -> dict[str, Any]:
    """Attest which version workers have; without `workers`, which version the ledger has. With
    `run`, first name the trainer's run: another one begins anew."""
    content = await body.json_object()
    body.only(content, ("model", "pool", "weight_version", "label", "workers", "run"))
    version, run = body.version(content), _label(content, "run")
    if version is None:
        if run is None:
            what = "The field 'weight_version' or 'run' is required"
            raise BadRequest(what, code="missing_field")
        began = _begin_run(content, run)
        parts().agents.look(parts().registry)
        await parts().store.commit()
        shown = [_ledger_payload(parts().ledgers.ledger(model)) for model in _ledgers()]
        return {"status": "success", "run": run, "begun_anew": began, "models": shown}
    chosen = _chosen(content)
    model = parts().weights.one_model(chosen)
    ledger = parts().ledgers.ledger(model)
    named = content.get("workers")
    if named is not None and version > ledger.issued:
        raise VersionNeverIssued(
            f"Weight version {version} was never issued to {model}; the latest is {ledger.issued}."
            " To begin a new one, give no workers, or use /weights/begin and /weights/commit",
            details={"weight_version": ledger.issued},
        )
    parts().store.check()
    label = _label(content, "label")
    # No await before the attestation: a worker would load weights that it is said not to need.
    said = {} if run is None else {"begun_anew": _begin_run(content, run)}
    parts().ledgers.attest(model, version, label, None if named is None else chosen)
    parts().agents.look(chosen if run is None else parts().registry)
    await parts().store.commit()
    return {"status": "success", **said, **_ledger_payload(ledger)}


def _begin_run(content: dict[str, Any], run: str) -> list[str]:
    """Name the run of one model or of all. Returns the models that began anew."""
    if not run or content.get("workers") is not None:
        raise BadRequest(
            "run must be a name, of one model or of all models, not of workers",
            code="invalid_field",
        )
    model, pool, _ = _names(content)
    ledger = None
    if (model, pool) != (None, None):
        meant = {name: pool_and_model(name) for name in _ledgers()}
        found = [n for n, (p, m) in meant.items() if pool in (None, p) and model in (None, m)]
        ledger = found[0] if len(found) == 1 else parts().weights.one_model(_chosen(content))
    parts().store.check()
    return parts().runs.state(run, ledger)


@blueprint.post("/weights/sync")
async def sync() -> Answer:
    """Bring all callable workers to the current weights; answers when done, when only a full update
    can help the rest, or when time is up."""
    content = await body.json_object()
    body.only(content, ("model", "pool", "workers", "timeout"))
    within = _seconds(content, _SYNC)
    chosen = _chosen(content, mixed=True)
    parts().store.check()
    unwraps, began = body.query_flag("unwrap"), trio.current_time()
    restarted = await unwrap(parts().weights, chosen, within, only_stuck=not unwraps)
    left = max(0.0, within - (trio.current_time() - began))
    behind = await parts().agents.sync(chosen, left)
    await parts().store.commit()
    ids = [worker.worker_id for worker in restarted]
    if unwraps and (others := parts().ledgers.had_lora(chosen)):
        raise LoraActive(
            "These workers are wrapped still: the router launched none of them, or they were not"
            " awake and idle in time. Take out a LoRA that acts (/v1/unmerge_lora_weights), then"
            " restart them",
            details={"workers": [worker.worker_id for worker in others], "restarted": ids},
        )
    targets = Targets.of(worker for worker in chosen if not worker.is_sleeping)
    called = set(targets.eligible)
    behind += [worker for worker in restarted if worker not in called]
    said = {
        "success": not behind,
        "restarted": ids,
        "workers": [_standing(worker) for worker in chosen if worker in called],
        "deferred": [_standing(worker) for worker in chosen if worker not in called],
    }
    if not behind:
        return said, 200
    why = [f"{w.worker_id} ({w.weights_reason or 'it is not back'})" for w in behind]
    what = f"These workers do not have the current weights: {', '.join(why)}"
    if all(worker.stuck for worker in behind):
        raise FullUpdateNeeded(what, details=said)
    return {"error": f"After {within:g} s: {what}", **said}, 504


@blueprint.post("/weights/begin")
async def begin() -> Answer:
    """Fence and drain workers, and hold them for a change of several calls."""
    content = await body.json_object()
    body.only(content, ("model", "pool", "workers", "timeout", "label", "weight_version", "lora"))
    if "rolling" in request.args:
        raise BadRequest(
            "?rolling= cannot be given here: a transaction holds all of its workers until its end",
            code="invalid_field",
        )
    within, (label, number) = _seconds(content, _HELD), _named(content)
    registry, (model, pool, workers) = parts().registry, _names(content)
    choose = partial(select, registry, model=model, workers=workers, pool=pool)
    lora = body.flag(content, "lora") or False
    if body.query_flag("unwrap"):
        await unwrap(parts().weights, choose(), parts().limits.refit)
    status, said = await parts().transactions.begin(choose, label, within, number, lora=lora)
    return said, status


@blueprint.post("/weights/commit")
async def commit() -> Answer:
    """Issue one version for all changes since the beginning, and release the workers."""
    content = await body.json_object()
    body.only(content, ("txn", "label", "weight_version", "workers"))
    txn, (label, number) = _txn(content), _named(content)
    having = _list(content, "workers")
    try:
        status, said = await parts().transactions.commit(txn, label, number, having)
    except NotGreater as error:
        error.message += (
            f". Transaction {txn} stays open: commit it again with a greater number or none, or"
            " abort it"
        )
        raise
    return said, status


@blueprint.post("/weights/abort")
async def abort() -> Answer:
    """Give the transaction up; touched workers are brought back to the ledger's weights."""
    content = await body.json_object()
    body.only(content, ("txn", "touched"))
    txn, touched = _txn(content), _list(content, "touched")
    status, said = await parts().transactions.abort(txn, touched)
    return said, status


def _ledgers() -> list[str]:
    return [ledger.model for ledger in shown_ledgers(parts())]


def shown_ledgers(of: Parts) -> list[Ledger]:
    """The ledgers of all models that are served or were ever changed."""
    served = [of.ledgers.model_of(worker) for worker in of.registry]
    named = [ledger.model for ledger in of.ledgers]
    names = [name for name in dict.fromkeys([*named, *served]) if name is not None]
    return [of.ledgers.ledger(name) for name in names]


def _ledger_payload(ledger: Ledger) -> dict[str, Any]:
    ledgers = parts().ledgers
    members = [w for w in parts().registry if not w.is_plain]
    workers = [w for w in members if ledgers.model_of(w) in (ledger.model, None)]
    return {**ledger_facts(ledger), "workers": [_standing(worker) for worker in workers]}


def ledger_facts(ledger: Ledger) -> dict[str, Any]:
    """The JSON of a ledger, without its workers."""
    recipe, (pool, model) = ledger.recipe, pool_and_model(ledger.model)
    return {
        "model": model,
        "pool": pool,
        "weight_version": ledger.version,
        "label": ledger.label,
        "run": ledger.run,
        "latest_issued": ledger.issued,
        "replay": [
            {"weight_version": step.version, "path": step.path, "body": from_json(step.body)}
            for step in (*recipe.base, *recipe.acting_loras)
        ],
        "replayable": recipe.repeatable,
        "pending": [_pending(change) for change in ledger.pending],
        "last_error": ledger.last_error,
    }


def _pending(change: Change) -> dict[str, Any]:
    return {"path": change.path, "body": change.content, "label": change.label}


def _standing(worker: Worker) -> dict[str, Any]:
    version = worker.weight_version
    return {
        "worker_url": worker.url,
        "routable": routable(worker),
        "weights": worker.weights,
        "weight_version": version if version >= 0 else None,
        "weights_reason": worker.weights_reason,
        "worker_id": worker.worker_id,
    }


async def _verify(shown: dict[str, Any]) -> None:
    """Add checksums to a ledger, and whether the checksums of its current workers agree."""
    ids = [row["worker_id"] for row in shown["workers"]]
    workers = [w for w in parts().registry if w.worker_id in ids]
    targets = Targets.of(worker for worker in workers if not worker.is_sleeping)
    shown["consistent"] = None
    if not targets.eligible:
        return
    headers = [("content-type", "application/json"), ("x-request-id", g.record.request_id)]
    all_modules = b'{"module_names": null}'
    call = Call("/get_weights_checksum", parts().limits.refit, all_modules, headers)
    _, said = await parts().weights.ask(list(targets.eligible), call)
    sums = {row["worker_url"]: row for row in said["results"]}
    current = {w.url for w in targets.eligible if w.has_newest}
    for row in shown["workers"]:
        told = sums.get(row["worker_url"])
        row["checksums"] = told["body"] if told and told["status_code"] == 200 else None
    agreed = [row["checksums"] for row in shown["workers"] if row["worker_url"] in current]
    shown["consistent"] = None not in agreed and all(one == agreed[0] for one in agreed)


def _chosen(content: dict[str, Any], *, mixed: bool = False) -> list[Worker]:
    """The workers that the body names."""
    model, pool, workers = _names(content)
    if model is not None and workers is not None:
        chosen = select(parts().registry, model=None, workers=workers, pool=pool)
        others = [w for w in chosen if _model(parts().ledgers.model_of(w)) not in (model, None)]
        if others:
            raise NotFound(
                f"{others[0].url} does not serve the model {model!r}", code="unknown_model"
            )
        return chosen
    return select(parts().registry, model=model, workers=workers, pool=pool, mixed=mixed)


def _model(ledger: str | None) -> str | None:
    return None if ledger is None else pool_and_model(ledger)[1]


def _names(content: dict[str, Any]) -> tuple[str | None, str | None, str | None]:
    """The model, the pool and the workers that a body or the query names."""
    workers, pool, queried = _list(content, "workers"), _text(content, "pool"), body.named_pool()
    if None not in (pool, queried) and pool != queried:
        raise BadRequest("The request names two pools: name one, once", code="ambiguous_target")
    named = None if workers is None else ",".join(workers)
    return _text(content, "model"), pool or queried, named


def _list(content: dict[str, Any], name: str) -> list[str] | None:
    value = content.get(name)
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise BadRequest(f"{name} must be a list of worker ids", code="invalid_field")
    return value


def _text(content: dict[str, Any], name: str) -> str | None:
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{name} must be a string", code="invalid_field")
    return value


def _label(content: dict[str, Any], name: str) -> str | None:
    """A text that a trainer has chosen, or a transaction's name."""
    value = _text(content, name)
    check_length(name, value)
    return value


def _named(content: dict[str, Any]) -> tuple[str | None, int | str | None]:
    """The label of a transaction, and the number that its client wants for the version."""
    number = content.get("weight_version")
    if type(number) not in (int, str, type(None)):
        raise BadRequest("weight_version must be a whole number or a text", code="invalid_field")
    check_length("weight_version", number)
    return _label(content, "label"), number


def _txn(content: dict[str, Any]) -> str:
    txn = _label(content, "txn")
    if not txn:
        raise BadRequest("The field 'txn' is required", code="missing_field")
    return txn


def _seconds(content: dict[str, Any], default: float) -> float:
    value = content.get("timeout", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LONGEST:
        raise BadRequest(
            f"timeout must be seconds, above 0 and at most {_LONGEST:g}", code="invalid_field"
        )
    return float(value)
