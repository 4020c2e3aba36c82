"""Finds and lists the videos, meshes and images that workers hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

import trio
import trio.lowlevel
from attrs import define, field

from ..boundary import contained
from ..errors import NotFound, PoolUnavailable
from ..pool import events
from ..pool.assets import AssetKind, AssetMap
from ..pool.catalog import MOST, Page, Place, is_over, page_of_jobs, place_of, told_place
from ..pool.pools import absent, members
from ..pool.registry import Registry
from ..pool.worker import Health, Task, Worker
from ..text import is_id, segment
from .client import ControlClient, Unreachable
from .operations import Operation, Operations

_PATIENCE = 5.0  # seconds for a worker's answer; job reads do not queue behind generations
_AT_ONCE = 64  # workers asked at the same time
_NEGATIVE = 2.0  # seconds that "no worker knows the id" holds
_MOST_NEGATIVE = 10_000
_MOST_PAGES = 1_000  # per worker's list
_RESTARTS = 3  # restarts of reading a list in which jobs are deleted meanwhile

T = TypeVar("T")

_NAMES = {AssetKind.VIDEO: "video_id", AssetKind.MESH: "mesh_id", AssetKind.IMAGE: "image_id"}
_TASKS = {AssetKind.VIDEO: Task.VIDEO, AssetKind.MESH: Task.MESH}


def unknown_asset(asset_id: str, kind: AssetKind) -> NotFound:
    name = _NAMES[kind]
    return NotFound(f"Unknown {name}", code="unknown_asset", details={name: asset_id})


def _elsewhere(asset_id: str, kind: AssetKind, pool: str, named: str) -> NotFound:
    """The error for an asset of this pool, if the request names another."""
    error = unknown_asset(asset_id, kind)
    error.message += f" in the pool {named!r}: a worker of the pool {pool!r} has it"
    error.details["pool"] = pool
    return error


@define(eq=False)
class JobControl:
    """Asks workers for their jobs and images, and keeps the asset map up to date."""

    registry: Registry
    assets: AssetMap
    client: ControlClient
    operations: Operations
    # By kind, id and named pool: until when no worker of the pool knows the id.
    _unknown: dict[tuple[AssetKind, str, str | None], float] = field(init=False, factory=dict)
    _arrivals: int = field(init=False, default=0)  # workers that joined, returned or moved

    def __attrs_post_init__(self) -> None:
        self.registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.RoleChanged, events.FacetChanged),
            *(events.WorkerRemoved, events.Reincarnated),
        )

    async def owner(self, asset_id: str, kind: AssetKind, pool: str | None = None) -> Worker:
        """The worker that holds an asset, within the named pool; if the asset map does not know,
        the workers are asked.

        Raises NotFound if every worker said no, PoolUnavailable (`asset_lookup_incomplete`) if some
        workers did not answer; UnknownPool, or PoolUnavailable if the pool has no workers.
        """
        if error := absent(pool, self.registry):
            raise error
        known = self.assets.owner(asset_id, kind)
        if known is not None:
            if pool not in (None, known.worker.pool):
                raise _elsewhere(asset_id, kind, known.worker.pool, str(pool))
            return known.worker
        key = (kind, asset_id, pool)
        if self._unknown.get(key, -1.0) > trio.current_time() or not is_id(asset_id):
            raise unknown_asset(asset_id, kind)
        search = partial(self._search, asset_id, kind, pool)
        return await self.operations.start(search, identity=key, begun=False).result()

    async def page(self, kind: AssetKind, page: Page, pool: str | None = None) -> dict[str, Any]:
        """One page of the jobs of all workers, or of the named pool's, as OpenAI's list. Raises
        NotFound for a bad cursor; UnknownPool, or PoolUnavailable if the pool has no workers."""
        if error := absent(pool, self.registry):
            raise error
        since = self.assets.deletions
        asked = able(members(self.registry, pool), kind)
        lists = await self._ask_all(asked, partial(self.all_jobs, kind=kind))
        rows: dict[str, tuple[Worker, dict[str, Any]]] = {}
        for worker, listed in lists.items():
            for job in listed or ():
                if not self.assets.deleted(job["id"], since=since):
                    rows.setdefault(job["id"], (worker, job))
        self.learn(kind, rows.values())
        jobs = {job_id: job for job_id, (_, job) in rows.items()}
        places = {job_id: place_of(self.assets.order(job_id), job) for job_id, job in jobs.items()}
        after: Place | None = None
        if page.after is not None:
            # The cursor may have been deleted since: its place is still known.
            order = self.assets.order(page.after)
            after = places.get(page.after) or (place_of(order, {}) if order else None)
            if after is None:
                raise NotFound(f"No job has the id {page.after!r}", code="unknown_cursor")
        placed = [(places[job_id], job) for job_id, job in jobs.items()]
        data, more = page_of_jobs(placed, page, after)
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more,
            "unavailable_workers": [w.url for w in asked if w in lists and lists[w] is None],
        }

    def learn(self, kind: AssetKind, listed: Iterable[tuple[Worker, dict[str, Any]]]) -> int:
        """Enter the jobs that workers list. Returns how many were new to the router: each new job
        gets its final place in the order now."""
        fresh = 0
        for worker, job in sorted(listed, key=lambda row: told_place(row[1])):
            job_id, over = job["id"], is_over(job)
            if self.assets.owner(job_id, kind) is not None:
                if over:
                    self.assets.finish(job_id)
            elif not self.assets.full:
                # Only if there is room: otherwise a list would push out assets learned elsewhere,
                # or its own.
                self.assets.learn(job_id, worker, kind, finished=over)
                fresh += 1
        return fresh

    async def _search(
        self, asset_id: str, kind: AssetKind, pool: str | None, _: Operation[Worker]
    ) -> Worker:
        """One search serves all clients that want the id."""
        arrivals = self._arrivals
        knows = partial(self._knows, asset_id=asset_id, kind=kind)
        asked = [worker for worker in members(self.registry, pool) if not worker.is_plain]
        said = await self._ask_all(asked, knows, enough=True)
        owner = next(filter(said.get, said), None)
        if owner is not None:
            self.assets.learn(asset_id, owner, kind)
        elif None not in said.values() and arrivals == self._arrivals:
            if len(self._unknown) >= _MOST_NEGATIVE:
                self._unknown.clear()
            self._unknown[kind, asset_id, pool] = trio.current_time() + _NEGATIVE
        return _conclude(said, asset_id, kind)

    async def _ask_all(
        self,
        workers: Iterable[Worker],
        ask: Callable[[Worker], Awaitable[T | None]],
        *,
        enough: T | None = None,
    ) -> dict[Worker, T | None]:
        """The answer of each worker, None if it gave none; ends once a worker answers `enough`."""
        said: dict[Worker, T | None] = {}
        limit = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:

            async def ask_one(worker: Worker) -> None:
                answer = None
                with contained("worker", f"asking worker {worker.url} for what it has made"):
                    async with limit:
                        answer = await ask(worker)
                if not worker.removed:
                    said[worker] = answer
                    if enough is not None and answer == enough:
                        nursery.cancel_scope.cancel()

            for worker in workers:
                nursery.start_soon(ask_one, worker)
        return said

    async def _knows(self, worker: Worker, asset_id: str, kind: AssetKind) -> bool | None:
        """Whether the worker knows the asset; None if it did not say."""
        path = f"/v1/{kind}/{segment(asset_id)}"
        try:
            if kind is AssetKind.IMAGE:
                status = await self.client.status(worker.url, path + "/content", within=_PATIENCE)
            else:
                status = (await self.client.get(worker.url, path, within=_PATIENCE)).status
        except Unreachable as error:
            # The assets of a process are gone with it.
            return False if error.refused else None
        if status in (200, 206):
            return True
        # 405: the worker has no such endpoint; 422: this cannot be an id there.
        return False if status in (400, 404, 405, 422) else None

    async def all_jobs(self, worker: Worker, kind: AssetKind) -> list[dict[str, Any]] | None:
        """All jobs of one worker; None if the worker did not answer."""
        for _ in range(_RESTARTS):
            try:
                return await self._read_list(worker, kind)
            except _CursorLost:
                pass
        return None

    async def _read_list(self, worker: Worker, kind: AssetKind) -> list[dict[str, Any]] | None:
        jobs: dict[str, dict[str, Any]] = {}
        first = path = f"/v1/{kind}?limit={MOST}&order=asc"
        for _ in range(_MOST_PAGES):
            try:
                answer = await self.client.get(worker.url, path, within=_PATIENCE)
            except Unreachable:
                return None
            if answer.status in (404, 405):
                return []
            content = answer.fields
            data = content.get("data")
            if answer.status != 200 or not isinstance(data, list):
                return None
            found = [j for j in data if isinstance(j, dict) and is_id(j.get("id"))]
            if not found and path != first:
                raise _CursorLost
            fresh = [job for job in found if job["id"] not in jobs]
            jobs.update((job["id"], job) for job in fresh)
            if not fresh or not content.get("has_more"):
                break
            path = f"{first}&after={segment(fresh[-1]['id'])}"
        return list(jobs.values())

    async def _sweep(self) -> None:
        """Drop the assets of owners that are gone. There may be a million of them."""
        for _ in self.assets.sweep():
            await trio.lowlevel.checkpoint()

    def _observe(self, event: events.Event) -> None:
        match event:
            case (
                events.WorkerAdded()
                | events.RoleChanged()
                | events.FacetChanged(facet="health", new=Health.HEALTHY)
            ):
                self._unknown.clear()  # this worker may know an id that no other knew
                self._arrivals += 1
            case events.WorkerRemoved() | events.Reincarnated():
                self.operations.start(lambda _: self._sweep())


class _CursorLost(Exception):
    """The job before the next page was deleted: workers then return an empty page."""


def _conclude(said: Mapping[Worker, bool | None], asset_id: str, kind: AssetKind) -> Worker:
    """The owner. Raises NotFound, or PoolUnavailable if some workers did not answer."""
    owner = next(filter(said.get, said), None)
    if owner is not None:
        return owner
    if silent := [worker.url for worker, knows in said.items() if knows is None]:
        raise PoolUnavailable(
            f"Some workers did not answer whether they know {asset_id}",
            code="asset_lookup_incomplete",
            details={"unavailable_workers": silent},
            headers=[("Retry-After", "2")],
        )
    raise unknown_asset(asset_id, kind)


def able(workers: Iterable[Worker], kind: AssetKind) -> list[Worker]:
    """The workers that may hold jobs of the kind: all except workers known to be unable to."""
    task = _TASKS[kind]
    some = [w for w in workers if not w.is_plain]
    return [w for w in some if not w.capabilities or w.capabilities.can(task) is not False]
