"""Finding and listing the videos, meshes and images that workers hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import trio
from attrs import define, field, frozen

from ..errors import NotFound, PoolUnavailable
from ..pool import events
from ..pool.assets import AssetKind, AssetMap
from ..pool.catalog import MOST, TERMINAL, Page, page_of_jobs
from ..pool.registry import Registry
from ..pool.worker import Health, Task, Worker
from .client import ControlClient, Unreachable

_PATIENCE = 5.0  # seconds for a worker's answer; job reads do not queue behind generations
_AT_ONCE = 64  # workers asked side by side
_NEGATIVE = 2.0  # seconds that "nobody knows it" holds
_MOST_NEGATIVE = 10_000
_MOST_PAGES = 1_000  # of one worker's list

_NAMES = {AssetKind.VIDEO: "video_id", AssetKind.MESH: "mesh_id", AssetKind.IMAGE: "image_id"}
_TASKS = {AssetKind.VIDEO: Task.VIDEO, AssetKind.MESH: Task.MESH}


def unknown_asset(asset_id: str, kind: AssetKind) -> NotFound:
    name = _NAMES[kind]
    return NotFound(f"Unknown {name}", code="unknown_asset", details={name: asset_id})


@frozen
class _Listed:
    worker: Worker
    jobs: Sequence[dict[str, Any]]


@define(eq=False)
class JobControl:
    """Asks workers for what they hold, and keeps the asset map up to date with it."""

    registry: Registry
    assets: AssetMap
    client: ControlClient
    _unknown: dict[tuple[AssetKind, str], float] = field(init=False, factory=dict)
    _asking: dict[tuple[AssetKind, str], trio.Event] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.registry.subscribe(self._observe)

    async def owner(self, asset_id: str, kind: AssetKind) -> Worker:
        """The worker that holds an asset; workers are asked if it is not known.

        Raises NotFound if every worker said no, PoolUnavailable (`asset_lookup_incomplete`) if
        some did not answer. DESIGN section 5, "Unknown asset id".
        """
        key = (kind, asset_id)
        while True:
            known = self.assets.owner(asset_id, kind)
            if known is not None:
                return known.worker
            if self._unknown.get(key, -1.0) > trio.current_time():
                raise unknown_asset(asset_id, kind)
            asking = self._asking.get(key)
            if asking is None:
                break
            await asking.wait()
        over = self._asking[key] = trio.Event()
        try:
            return await self._ask_around(asset_id, kind)
        finally:
            del self._asking[key]
            over.set()

    async def page(self, kind: AssetKind, page: Page) -> dict[str, Any]:
        """One page of all workers' jobs, as OpenAI's list. Raises NotFound for a bad cursor."""
        listed, silent = await self._lists(kind)
        jobs: dict[str, dict[str, Any]] = {}
        fresh: list[tuple[Any, str, Worker]] = []
        for row in listed:
            for job in row.jobs:
                if job["id"] not in jobs:
                    jobs[job["id"]] = job
                    if self.assets.owner(job["id"], kind) is None:
                        fresh.append((job.get("created_at") or 0, job["id"], row.worker))
        for _, job_id, worker in sorted(fresh, key=lambda entry: entry[:2]):
            self.assets.learn(job_id, worker, kind, finished=is_over(jobs[job_id]))
        after: int | None = None
        if page.after is not None:
            after = self.assets.order(page.after)
            if not after:
                raise NotFound(f"No job has the id {page.after!r}", code="unknown_cursor")
        placed = [(self.assets.order(job_id), job) for job_id, job in jobs.items()]
        data, more = page_of_jobs(placed, page, after)
        return {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more,
            "unavailable_workers": [worker.url for worker in silent],
        }

    async def _ask_around(self, asset_id: str, kind: AssetKind) -> Worker:
        found: list[Worker] = []
        unsure: list[Worker] = []
        limit = trio.CapacityLimiter(_AT_ONCE)
        async with trio.open_nursery() as nursery:

            async def ask(worker: Worker) -> None:
                async with limit:
                    answer = await self._knows(worker, asset_id, kind)
                if answer is None:
                    unsure.append(worker)
                elif answer:
                    found.append(worker)
                    nursery.cancel_scope.cancel()

            for worker in self.registry:
                nursery.start_soon(ask, worker)
        if found:
            self.assets.learn(asset_id, found[0], kind)
            return found[0]
        if unsure:
            raise PoolUnavailable(
                f"Some workers did not answer whether they know {asset_id}",
                code="asset_lookup_incomplete",
                details={"unavailable_workers": [worker.url for worker in unsure]},
                headers=[("Retry-After", "2")],
            )
        self._remember_unknown((kind, asset_id))
        raise unknown_asset(asset_id, kind)

    async def _knows(self, worker: Worker, asset_id: str, kind: AssetKind) -> bool | None:
        """Whether the worker knows the asset; None if it did not say."""
        path = f"/v1/{kind}/{asset_id}"
        try:
            if kind is AssetKind.IMAGE:
                status = await self.client.status(worker.url, path + "/content", within=_PATIENCE)
            else:
                status = (await self.client.get(worker.url, path, within=_PATIENCE)).status
        except Unreachable as error:
            # Whatever a process held is gone with it.
            return False if error.refused else None
        if status in (200, 206):
            return True
        # 405: it has no such endpoint, 422: it cannot be an id there.
        return False if status in (400, 404, 405, 422) else None

    def _remember_unknown(self, key: tuple[AssetKind, str]) -> None:
        if len(self._unknown) >= _MOST_NEGATIVE:
            self._unknown.clear()
        self._unknown[key] = trio.current_time() + _NEGATIVE

    async def _lists(self, kind: AssetKind) -> tuple[list[_Listed], list[Worker]]:
        listed: list[_Listed] = []
        silent: list[Worker] = []
        limit = trio.CapacityLimiter(_AT_ONCE)

        async def ask(worker: Worker) -> None:
            async with limit:
                jobs = await self._all_jobs(worker, kind)
            if jobs is None:
                silent.append(worker)
            else:
                listed.append(_Listed(worker, jobs))

        async with trio.open_nursery() as nursery:
            for worker in _able(self.registry, kind):
                nursery.start_soon(ask, worker)
        return listed, silent

    async def _all_jobs(self, worker: Worker, kind: AssetKind) -> list[dict[str, Any]] | None:
        """All jobs of one worker; None if it did not answer."""
        jobs: dict[str, dict[str, Any]] = {}
        path = f"/v1/{kind}?limit={MOST}&order=asc"
        for _ in range(_MOST_PAGES):
            try:
                answer = await self.client.get(worker.url, path, within=_PATIENCE)
            except Unreachable as error:
                return [] if error.refused and worker.health is Health.UNKNOWN else None
            if answer.status in (404, 405):
                return []
            content = answer.json()
            data = content.get("data") if isinstance(content, dict) else None
            if answer.status != 200 or not isinstance(data, list):
                return None
            fresh = [j for j in data if isinstance(j, dict) and isinstance(j.get("id"), str)]
            fresh = [job for job in fresh if job["id"] not in jobs]
            jobs.update((job["id"], job) for job in fresh)
            if not fresh or not content.get("has_more"):
                break
            path = f"/v1/{kind}?limit={MOST}&order=asc&after={fresh[-1]['id']}"
        return list(jobs.values())

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded() | events.FacetChanged(facet="health", new=Health.HEALTHY):
                self._unknown.clear()  # it may know what nobody knew
            case events.WorkerRemoved() | events.Reincarnated():
                pass  # its entries count as unknown from now on, and go when room is needed


def is_over(job: dict[str, Any]) -> bool:
    """Whether a job will not change any more."""
    return job.get("status") in TERMINAL


def _able(workers: Iterable[Worker], kind: AssetKind) -> list[Worker]:
    """The workers that may hold jobs of the kind: all but those known to be unable to."""
    task = _TASKS[kind]
    return [w for w in workers if not w.capabilities or w.capabilities.can(task) is not False]
