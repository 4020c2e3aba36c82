"""Finds the jobs that were never recorded: submitted in the moment in which the router died."""

from __future__ import annotations

import logging
from collections.abc import Sequence, Set
from functools import partial
from typing import Any

import trio
from attrs import define, field

from ..backoff import Backoff
from ..boundary import keep_running
from ..dispatch import Dispatcher
from ..pool import events
from ..pool.assets import AssetKind, AssetMap
from ..pool.catalog import is_over
from ..pool.registry import Registry
from ..pool.worker import Health, Hold, HoldKind, Worker
from .jobs import JobControl, able

logger = logging.getLogger("router.control")

_ENDPOINTS = {AssetKind.VIDEO: "video", AssetKind.MESH: "mesh"}


@define(eq=False)
class Recovery:
    """Reads each restored worker's list of jobs once, as soon as it is healthy again."""

    registry: Registry
    dispatcher: Dispatcher
    assets: AssetMap
    jobs: JobControl
    _due: set[Worker] = field(init=False, factory=set)
    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(
        self,
        restored: Set[Worker],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Read the lists; never returns. `restored` are those that are there already."""
        async with trio.open_nursery() as self._nursery:
            self._due |= restored
            self.registry.subscribe(
                self._observe,
                *(events.WorkerAdded, events.FacetChanged),
                *(events.Reincarnated, events.WorkerRemoved),
            )
            task_status.started()
            await trio.sleep_forever()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker, past) if past is not None:
                self._due.add(worker)
            case events.Reincarnated(worker) | events.WorkerRemoved(worker):
                self._due.discard(worker)  # its jobs ended with its process
            case events.FacetChanged(worker, facet="health", new=Health.HEALTHY):
                if worker in self._due:
                    assert self._nursery is not None
                    self._due.discard(worker)
                    recover = partial(self._recover, worker, worker.incarnation)
                    what = f"reading the jobs of worker {worker.url}"
                    self._nursery.start_soon(keep_running, what, recover)

    async def _recover(self, worker: Worker, incarnation: int) -> None:
        for kind in _ENDPOINTS:
            backoff = Backoff()
            while able([worker], kind):
                since = self.assets.deletions
                jobs = await self.jobs.all_jobs(worker, kind)
                if worker.removed or worker.incarnation != incarnation:
                    return
                if jobs is not None:
                    there = [j for j in jobs if not self.assets.deleted(j["id"], since=since)]
                    self._enter(worker, kind, there)
                    break
                await backoff.pause()

    def _enter(self, worker: Worker, kind: AssetKind, jobs: Sequence[dict[str, Any]]) -> None:
        if fresh := self.jobs.learn(kind, [(worker, job) for job in jobs]):
            logger.info("worker %s: %d of its %s were not recorded", worker.url, fresh, kind)
        for job in jobs:
            if not is_over(job):
                hold = Hold(
                    *(worker, worker.incarnation, HoldKind.JOB, _ENDPOINTS[kind]),
                    since=trio.current_time(),
                    job=True,
                    job_id=job["id"],
                )
                self.dispatcher.job_found(hold)
