"""Commands that change workers: a line for each worker, and status 1 if one did not succeed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio
from attrs import frozen

from ..errors import Problem, SettingsError, StartError, unwrapped
from ..text import segment, words
from . import tables
from .client import Client, connected
from .flags import Choosing, Drain, Reading, Refit, Remove, Scale, Sync
from .screen import Screen

_LOOK = 0.5  # seconds between two looks at what is awaited
Row = tuple[str, bool, str]
"""A worker, whether it succeeded, and what became of it."""
Outcome = tuple[Any, list[Row]]
"""The router's JSON, and the rows to print instead."""


async def act(name: str, settings: Reading, names: list[str]) -> int:
    """Do it; the exit status."""
    screen = Screen()
    async with connected(settings) as client:
        with screen.progress() as show:
            tell = show if screen.moves and not settings.json else _none
            document, rows = await _DO[name](client, settings, names, tell)
    if settings.json:
        screen.json(document)
    else:
        width = max((len(who) for who, _, _ in rows), default=0)
        if not rows:
            screen.say("nothing to do")
        for who, _, what in rows:
            screen.say(f"{who:{width}}  {what}")
    return 0 if all(well for _, well, _ in rows) else 1


Show = Callable[[str], None]


def _none(_: str) -> None:
    pass


# One worker after the other.


async def _each(
    client: Client,
    names: list[str],
    act: Callable[[str], Awaitable[tuple[dict[str, Any], bool, str]]],
) -> Outcome:
    """Act on each worker; one that fails does not keep the others from their turn."""
    documents, rows = [], []
    for name in names:
        try:
            said, well, what = await act(name)
        except StartError as error:
            if error.status != StartError.status:  # no router, or no key
                raise
            said, well, what = {"worker": name, "error": str(error)}, False, str(error)
        documents.append(said)
        rows.append((name, well, what))
    return documents, rows


def _put(fields: dict[str, Any], done: str) -> _Do:
    async def do(client: Client, _: Reading, names: list[str], show: Show) -> Outcome:
        async def act(name: str) -> tuple[dict[str, Any], bool, str]:
            show(f"{name} ...")
            said = await client.ask("PUT", f"/workers/{segment(name)}", content=fields)
            return said, True, _now(done, said.get("worker", {}))

        return await _each(client, names, act)

    return do


def _now(done: str, worker: dict[str, Any]) -> str:
    reasons = worker.get("reasons")
    return f"{done}; not routable: {tables.say(reasons)}" if reasons else done


async def _drain(client: Client, settings: Reading, names: list[str], show: Show) -> Outcome:
    assert isinstance(settings, Drain)
    told, rows = await _put({"draining": True}, "draining")(client, settings, names, show)
    if settings.now:
        return told, rows

    async def wait(name: str) -> tuple[dict[str, Any], bool, str]:
        began = trio.current_time()
        while True:
            said = await client.ask("GET", f"/workers/{segment(name)}")
            worker = said.get("worker", {})
            left = max(worker.get("slots_in_use", 0), worker.get("active_requests", 0))
            taken = trio.current_time() - began
            if worker.get("admin") != "draining":
                return said, False, f"no longer drained: {worker.get('admin')}"
            if not left:
                return said, True, "drained"
            if taken >= settings.within:
                return said, False, f"still has {left} in flight after {tables.span(taken)}"
            show(f"{name} drains: {left} in flight ({tables.span(taken)})")
            await trio.sleep(_LOOK)

    good = [name for name, well, _ in rows if well]
    documents, waited = await _each(client, good, wait)
    return documents, [row for row in rows if not row[1]] + waited


async def _remove(client: Client, settings: Reading, names: list[str], show: Show) -> Outcome:
    assert isinstance(settings, Remove)
    drain = "true" if settings.drain else None

    async def act(name: str) -> tuple[dict[str, Any], bool, str]:
        show(f"{name} ...")
        path = f"/workers/{segment(name)}"
        return await client.ask("DELETE", path, within=None, drain=drain), True, "removed"

    return await _each(client, names, act)


async def _restart(client: Client, _: Reading, names: list[str], show: Show) -> Outcome:
    async def act(name: str) -> tuple[dict[str, Any], bool, str]:
        said = await client.ask("POST", f"/workers/{segment(name)}/restart")
        return said, True, "restarting"

    return await _each(client, names, act)


# All workers at once.


async def _watched(
    client: Client,
    show: Show,
    what: str,
    waits: Callable[[dict[str, Any]], bool],
    call: Callable[[], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Make a call that may take minutes, and show how many workers it still waits for."""
    began, said = trio.current_time(), dict[str, Any]()

    async def watch() -> None:
        while True:
            await trio.sleep(_LOOK)
            try:
                listed = (await client.ask("GET", "/workers")).get("workers", [])
            except StartError:
                continue  # the call itself will say so
            left = sum(map(waits, listed))
            taken = tables.span(trio.current_time() - began)
            show(f"{what}: {left} of {len(listed)} workers are not done ({taken})")

    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            said = await call()
            nursery.cancel_scope.cancel()
    return said


async def _names(client: Client) -> dict[str, str]:
    """What workers are called, by URL."""
    listed = (await client.ask("GET", "/workers")).get("workers", [])
    return {worker.get("url"): tables.name_of(worker) for worker in listed}


def _result_rows(said: dict[str, Any], names: dict[str, str], call: _Call) -> list[Row]:
    rows: list[Row] = []
    for row in said.get("results", []):
        well, body = bool(row.get("success")), row.get("body")
        told = body.get("error") or body.get("message") if isinstance(body, dict) else body
        what = call.done if well else f"failed ({row.get('status_code')}): {words(told)}"
        rows.append((_name(row, names), well, what))
    for row in said.get("deferred", []):
        reasons = row.get("reasons") or []
        what = f"{tables.say(reasons or call.done)}: {call.deferred}"
        rows.append((_name(row, names), call.needless(reasons), what))
    behind = said.get("behind", [])
    rows += [(names.get(url, url), False, "does not have these weights") for url in behind]
    return _also(rows, {"success": "error" not in said, **said})


def _name(row: dict[str, Any], names: dict[str, str]) -> str:
    url = row.get("worker_url")
    return names.get(url or "", tables.say(url))


def _also(rows: list[Row], said: dict[str, Any]) -> list[Row]:
    """A failure that no row tells gets a row of its own."""
    if not said.get("success", True) and all(well for _, well, _ in rows):
        rows.append(("router", False, words(said.get("error") or "not all workers succeeded")))
    return rows


@frozen
class _Call:
    """A call to all workers. `waits`: it is not done at a worker. `needless`: nothing is wrong if a
    worker with these reasons could not be called."""

    path: str
    done: str
    waits: Callable[[dict[str, Any]], bool]
    deferred: str
    needless: Callable[[list[str]], bool]


def _called(how: _Call) -> _Do:
    async def do(client: Client, settings: Reading, given: list[str], show: Show) -> Outcome:
        assert isinstance(settings, Choosing)
        content: dict[str, Any] = {}
        query = {"model": settings.model, "pool": settings.pool}
        if isinstance(settings, Refit):
            content["model_path"] = given[0]
            query["rolling"] = settings.rolling
        else:
            query["workers"] = ",".join(given) or None
        names = await _names(client)
        call = partial(
            client.ask, "POST", how.path, within=None, content=content, told="deferred", **query
        )
        said = await _watched(client, show, how.path.strip("/"), how.waits, call)
        rows = _result_rows(said, names, how)
        if "weight_version" in said and rows:
            rows.append(("version", True, tables.say(said["weight_version"])))
        return said, rows

    return do


async def _sync(client: Client, settings: Reading, given: list[str], show: Show) -> Outcome:
    assert isinstance(settings, Sync)
    content: dict[str, Any] = {"timeout": settings.within}
    content |= {"model": settings.model} if settings.model else {}
    content |= {"pool": settings.pool} if settings.pool else {}
    content |= {"workers": given} if given else {}
    names = await _names(client)
    call = partial(
        client.ask, "POST", "/weights/sync", within=None, content=content, told="workers"
    )
    said = await _watched(client, show, "sync", _has_old_weights, call)
    rows: list[Row] = []
    for row in said.get("workers", []):
        if isinstance(row, dict):
            well = row.get("weights") == "current"
            why = row.get("weights_reason")
            what = f"version {tables.say(row.get('weight_version'))}"
            what = what if well else f"{tables.say(row.get('weights'))}, {what}"
            rows.append((_name(row, names), well, f"{what}: {words(why)}" if why else what))
    later = "cannot be called now: will follow"
    rows += [(_name(row, names), True, later) for row in said.get("deferred", [])]
    return said, _also(rows, {"success": "error" not in said, **said})


async def _scale(client: Client, settings: Reading, given: list[str], show: Show) -> Outcome:
    assert isinstance(settings, Scale)
    if not given[0].isdecimal():
        raise SettingsError([Problem("N", f"expected a number of workers, got {given[0]!r}")])
    show("scaling ...")
    content: dict[str, Any] = {"num_workers": int(given[0][:9])}
    content |= {"launcher": settings.launcher} if settings.launcher else {}
    said = await client.ask("POST", "/launcher/scale", content=content)
    rows: list[Row] = [(tables.say(name), True, "starting") for name in said.get("starting", [])]
    rows += [(tables.say(name), True, "ending") for name in said.get("ending", [])]
    rows.append((tables.say(said.get("launcher")), True, f"{said.get('num_workers')} workers"))
    return said, rows


def _has_old_weights(worker: dict[str, Any]) -> bool:
    return worker.get("weights") != "current"


def _is_awake(worker: dict[str, Any]) -> bool:
    return worker.get("memory") != "asleep"


def _is_asleep(worker: dict[str, Any]) -> bool:
    return worker.get("memory") != "awake"


_SLEEP = _Call(
    "/release_memory_occupation",
    "asleep",
    _is_awake,
    "not called",
    needless=lambda reasons: "asleep" in reasons,
)
_WAKE = _Call(
    "/resume_memory_occupation",
    "awake",
    _is_asleep,
    "not called",
    needless=lambda reasons: not reasons,
)
_REFIT = _Call(
    "/update_weights_from_disk",
    "updated",
    _has_old_weights,
    "will follow before it serves again",
    needless=lambda _: True,
)

_Do = Callable[[Client, Reading, list[str], Show], Awaitable[Outcome]]
_DO: dict[str, _Do] = {
    "drain": _drain,
    "undrain": _put({"draining": False}, "enabled"),
    "quarantine": _put({"is_dead": True}, "quarantined"),
    "recover": _put({"is_dead": False}, "recovered"),
    "remove": _remove,
    "restart": _restart,
    "sleep": _called(_SLEEP),
    "wake": _called(_WAKE),
    "refit": _called(_REFIT),
    "scale": _scale,
    "sync": _sync,
}
