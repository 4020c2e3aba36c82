"""`status`, `workers`, `queue`, `weights` and `jobs`: one look at a running router."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .. import wall
from ..text import segment
from . import tables
from .client import Client, connected
from .flags import Jobs, Reading
from .screen import Screen

Shown = tuple[Any, list[Any], bool]
"""The JSON, what is shown instead, and whether all is well."""


async def show(name: str, settings: Reading, words: list[str]) -> int:
    """Show it; the exit status."""
    screen = Screen()
    async with connected(settings) as client:
        document, shown, well = await _COMMANDS[name](client, settings, words)
    if settings.json:
        screen.json(document)
    else:
        for part in shown:
            screen.show(part)
    return 0 if well else 1


async def _status(client: Client, _: Reading, __: list[str]) -> Shown:
    health = await client.ask("GET", "/health", told="status")
    ready = health.get("status") == "healthy"
    document = {
        "url": client.url,
        "ready": ready,
        "health": health,
        "queue": await client.ask("GET", "/queue"),
        "weights": (await client.ask("GET", "/weights")).get("models", []),
    }
    return document, [tables.status(document, ready)], ready


async def _workers(client: Client, _: Reading, words: list[str]) -> Shown:
    if words:
        one = (await client.ask("GET", f"/workers/{segment(words[0])}")).get("worker", {})
        return one, [tables.worker(one)], True
    document = await client.ask("GET", "/workers")
    found = document.get("workers", [])
    return document, [tables.workers(found) if found else "no workers"], True


async def _queue(client: Client, _: Reading, __: list[str]) -> Shown:
    document = await client.ask("GET", "/queue")
    return document, tables.queue(document), True


async def _weights(client: Client, _: Reading, __: list[str]) -> Shown:
    document = await client.ask("GET", "/weights")
    models = document.get("models", [])
    listed = (await client.ask("GET", "/workers")).get("workers", [])
    names = {worker.get("worker_id"): tables.name_of(worker) for worker in listed}
    return document, tables.weights(models, names) if models else ["no models"], True


async def _jobs(client: Client, settings: Reading, _: list[str]) -> Shown:
    assert isinstance(settings, Jobs)
    document, silent = {}, set[str]()
    for kind, path in (("video", "/v1/videos"), ("mesh", "/v1/meshes")):
        page = await client.ask("GET", path, limit=str(settings.limit))
        document[kind] = page.get("data", [])
        silent |= {*page.get("unavailable_workers", [])}
    shown: list[Any] = [tables.jobs(document, wall.seconds())] if any(document.values()) else []
    if silent:
        shown.append(f"these workers did not say which jobs they have: {', '.join(sorted(silent))}")
    return document, shown or ["no jobs"], not silent


_COMMANDS: dict[str, Callable[[Client, Reading, list[str]], Awaitable[Shown]]] = {
    "status": _status,
    "workers": _workers,
    "queue": _queue,
    "weights": _weights,
    "jobs": _jobs,
}
