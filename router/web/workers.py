"""`/workers`: register, show, change and remove workers."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import trio
from quart import Blueprint, request

from ..errors import BadRequest
from ..net.addresses import Origin as AddressOf
from ..net.addresses import SamePeer
from ..pool.ids import BadWorkerURL, normalise_url
from ..pool.ids import worker_id as id_of
from ..pool.lifecycle import AdminEvent
from ..pool.match import only_sglang
from ..pool.pools import Role
from ..pool.registry import UnknownWorker
from ..pool.worker import Health, Origin, Worker
from . import body
from .parts import parts
from .payload import describe
from .roles import wanted_role
from .weights import VersionNeverIssued

blueprint = Blueprint("workers", __name__)

FIRST_CONTACT = 3.0  # seconds that POST /workers waits for the first probe
_ROLE_FIELDS = ("pool", "kind", "health_path")
_POST_FIELDS = (
    *("url", "worker_url", "worker_type", "max_concurrency", "weight_version"),
    *_ROLE_FIELDS,
)
_PUT_FIELDS = (
    *("is_dead", "refresh_video_support", "max_concurrency", "draining", "sleeping"),
    *_ROLE_FIELDS,
)


@blueprint.post("/workers")
async def add_worker() -> dict[str, Any]:
    """Register a worker and report the first contact; a known worker is left as it is.

    Engines send fields that the router does not know: they are accepted, and listed as ignored.
    """
    content = await body.json_object()
    _regular(content)
    asked = request.args.get("max_concurrency")
    if asked is not None:
        content.setdefault("max_concurrency", int(asked[:9]) if asked.isdecimal() else asked)
    for name in set(_ROLE_FIELDS) & set(request.args):
        content.setdefault(name, request.args[name])
    limit, version = body.concurrency(content), body.version(content)
    latest = parts().ledgers.latest_issued(None)
    if version is not None and version > latest:
        raise VersionNeverIssued(
            f"Weight version {version} was never issued; the latest is {latest}",
            details={"weight_version": latest},
        )
    url = normalise_url(_url_of(content))
    await parts().client.addresses.admit(AddressOf.of(url))
    known = parts().registry.find(url)
    role = wanted_role(parts(), url, known, content)
    if parts().names.takes(url) and known is None:
        said = await _follow(url, content, limit, version, role)
    else:
        said = await _register(url, content, limit, version, role)
    ignored = sorted({*content, *request.args} - set(_POST_FIELDS))
    return {**said, "ignored": ignored} if ignored else said


async def _follow(
    url: str, content: dict[str, Any], limit: int | None, version: int | None, role: Role | None
) -> dict[str, Any]:
    """Register each address of a name. `worker` is the first one, or None."""
    parts().store.check()
    members = await parts().names.follow(url, limit, role)
    for worker in members:
        if version is not None:
            parts().ledgers.claim(worker, version)
        if "max_concurrency" in content:
            parts().registry.set_concurrency(worker, limit)
    await parts().store.commit()
    with trio.move_on_after(FIRST_CONTACT):
        for worker in members:
            with suppress(BadWorkerURL, SamePeer):
                await parts().watchman.first_contact(worker, within=FIRST_CONTACT)
    found = [_payload(worker) for worker in members if not worker.removed]
    return {
        "status": "success",
        "workers": found,
        "worker": found[0] if found else None,
        "message": f"{url} is followed; it leads to {len(found)} now",
    }


async def _register(
    url: str, content: dict[str, Any], limit: int | None, version: int | None, role: Role | None
) -> dict[str, Any]:
    registry, watchman = parts().registry, parts().watchman
    parts().store.check()
    known = registry.find(url) is not None
    worker = registry.add(url, Origin.REGISTERED, concurrency=limit, role=role)
    if version is not None:
        parts().ledgers.claim(worker, version)
    if limit is None and "max_concurrency" in content:
        registry.set_concurrency(worker, None)
    if known:
        registry.stay(worker, "it was registered again")
        if worker.suspicion is None:
            watchman.nudge(worker)
        else:  # the new process itself may be registering: do not answer for the old one
            await watchman.look_again(worker, within=FIRST_CONTACT)
    await parts().store.commit()  # now, because a worker that does not answer would delay it
    try:
        await watchman.first_contact(worker, within=FIRST_CONTACT)
    except BadWorkerURL:
        if not known:
            registry.remove(worker)
            await parts().store.commit()
        raise
    except SamePeer as same:
        role = wanted_role(parts(), same.url, registry.find(same.url), content)
        said = await _register(same.url, content, limit, version, role)
        if (other := registry.find(same.url)) is not None:
            registry.alias(url, other)
            await parts().store.commit()
        return {**said, "alias_of": same.url}
    return {"status": "success", "worker": _payload(worker), "message": _finding(worker)}


@blueprint.get("/workers")
async def list_workers() -> dict[str, Any]:
    """All workers, in order of registration."""
    workers = [_payload(worker) for worker in parts().registry]
    return {"workers": workers, "total": len(workers)}


@blueprint.get("/workers/<path:worker_id>")
async def get_worker(worker_id: str) -> dict[str, Any]:
    """One worker."""
    return {"worker": _payload(parts().registry.get(worker_id))}


@blueprint.put("/workers/<path:worker_id>")
async def update_worker(worker_id: str) -> dict[str, Any]:
    """Quarantine or forgive a worker, drain it, set its slots, read its capabilities again."""
    content = await body.json_object()
    worker = parts().registry.get(worker_id)  # after all waiting, during which it may be removed
    body.only(content, _PUT_FIELDS)
    if not content:
        raise BadRequest(
            f"At least one field is required: {', '.join(_PUT_FIELDS)}", code="missing_field"
        )
    is_dead = body.flag(content, "is_dead")
    draining = body.flag(content, "draining")
    refresh = body.flag(content, "refresh_video_support")
    limit = body.concurrency(content)
    sleeping = body.flag(content, "sleeping")
    role = wanted_role(parts(), worker.url, worker, content)
    if is_dead and draining is not None:
        raise BadRequest(
            "is_dead and draining cannot be set at once: a dead worker has nothing to drain",
            code="invalid_field",
        )

    registry, watchman = parts().registry, parts().watchman
    parts().store.check()
    if sleeping is not None:
        await parts().memory.believe(only_sglang([worker]), sleeping=sleeping)
        role = wanted_role(parts(), worker.url, worker, content)  # it may be busy since
    if is_dead is True:
        registry.administer(worker, AdminEvent.QUARANTINE, "by request")
    elif is_dead is False:
        registry.forgive(worker)
    if draining is not None:
        registry.administer(
            worker, AdminEvent.DRAIN if draining else AdminEvent.UNDRAIN, "by request"
        )
    if "max_concurrency" in content:
        registry.set_concurrency(worker, limit)
    if role is not None:
        registry.assign(worker, role)
    await parts().store.commit()
    if refresh or is_dead is False:
        await watchman.look_again(worker, within=FIRST_CONTACT)
    return {"status": "success", "worker": _payload(worker)}


@blueprint.post("/workers/sleeping")
async def workers_sleep() -> dict[str, Any]:
    """Take the client's word that workers sleep, or are awake; no worker is called."""
    content = await body.json_object()
    body.only(content, ("workers", "sleeping"))
    named, sleeping = content.get("workers"), body.flag(content, "sleeping")
    if sleeping is None or named is None:
        raise BadRequest("The fields 'workers' and 'sleeping' are required", code="missing_field")
    if not isinstance(named, list) or not all(isinstance(one, str) for one in named):
        raise BadRequest("workers must be a list of worker ids", code="invalid_field")
    workers = only_sglang(list(dict.fromkeys(map(parts().registry.get, named))))
    await parts().memory.believe(workers, sleeping=sleeping)
    return {"status": "success", "workers": [_payload(w) for w in workers if not w.removed]}


@blueprint.delete("/workers/<path:worker_id>")
async def delete_worker(worker_id: str) -> dict[str, Any]:
    """Forget a worker; with `?drain=true` once its work in flight has ended.

    A launched worker is also ended; it is drained first unless the request says otherwise.
    """
    name = parts().names.find(worker_id)
    if name is not None:
        parts().store.check()
        await parts().names.remove(name, drain=body.query_flag("drain", absent=False))
        return {"status": "success", "worker_id": id_of(name)}
    worker = parts().registry.get(worker_id)
    parts().store.check()
    launched = worker.origin is Origin.LAUNCHED
    if body.query_flag("drain", absent=launched):
        await parts().agents.retire(worker)
    else:
        parts().registry.remove(worker)
    await parts().launcher.settled(worker)
    return {"status": "success", "worker_id": worker.worker_id}


@blueprint.post("/add_worker")
async def add_worker_as_before() -> dict[str, Any]:
    """`POST /workers`, as older trainers call it."""
    return await add_worker()


@blueprint.post("/remove_worker")
async def remove_worker_as_before() -> dict[str, Any]:
    """`DELETE /workers/{worker_id}`, as older trainers call it, sometimes twice: so 200 even for
    unknown workers."""
    named = _url_of(await body.json_object())
    url = parts().names.find(named)
    if url is not None:
        parts().store.check()
        await parts().names.remove(url, drain=False)
        return {"status": "success", "worker_id": id_of(url), "url": url}
    try:
        worker = parts().registry.get(named)
    except UnknownWorker as unknown:
        return {"status": "success", "message": unknown.message}
    parts().store.check()
    parts().registry.remove(worker)
    await parts().store.commit()
    return {"status": "success", "worker_id": worker.worker_id, "url": worker.url}


@blueprint.get("/list_workers")
async def list_workers_as_before() -> dict[str, Any]:
    """The URLs of all workers, in the form that older trainers expect."""
    return {"urls": [worker.url for worker in parts().registry]}


def _url_of(content: dict[str, Any]) -> str:
    """The worker's URL from query or body. Raises BadRequest if it is missing or ambiguous."""
    names = ("url", "worker_url")
    found: list[object] = [value for name in names for value in request.args.getlist(name)]
    found += [content[name] for name in names if content.get(name) is not None]
    if not found:
        raise BadRequest(
            "worker_url is required (use query ?url=... or JSON body)", code="missing_field"
        )
    if not all(isinstance(value, str) for value in found):
        raise BadRequest("url must be a string", code="invalid_field")
    if len(set(found)) > 1:
        raise BadRequest("Two different worker URLs were given", code="invalid_field")
    return str(found[0])


def _regular(content: dict[str, Any]) -> None:
    """Raises BadRequest for a worker that does only a part of a generation."""
    for kind in (content.get("worker_type"), *request.args.getlist("worker_type")):
        if kind not in (None, "regular"):
            raise BadRequest(
                "worker_type must be regular: the router knows no workers for prefill or decode",
                code="invalid_field",
            )


def _payload(worker: Worker) -> dict[str, Any]:
    return describe(parts(), worker)


def _finding(worker: Worker) -> str:
    """The current state of the worker, in one sentence."""
    if worker.removed:
        return "The worker was removed meanwhile"
    if worker.health is Health.HEALTHY:
        return "The worker is healthy"
    if worker.health is Health.UNKNOWN and worker.health_reason is None:
        return f"The worker has not answered within {FIRST_CONTACT:g} s; it is probed further"
    return f"The worker does not serve yet: {worker.health_reason}; it is probed further"
