"""Follows the work that occupies a worker without an exchange: unfinished jobs, and ghosts.

A video or mesh job is load until its status is terminal. A ghost is a generation whose client has
left: a worker cannot abort, so the slot stays taken until a call that queues behind running work
has returned. A restored worker has one ghost for the work that it had when the router ended; it is
then also asked for jobs that were submitted at the moment the router died and never recorded.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import trio
from attrs import define, field

from ..backoff import Backoff
from ..boundary import keep_running
from ..dispatch import Dispatcher
from ..pool import events
from ..pool.assets import AssetKind
from ..pool.catalog import is_over
from ..pool.registry import Registry
from ..pool.worker import Health, Hold, HoldKind, Worker
from ..text import segment
from .client import Call, Unreachable
from .jobs import JobControl, able
from .tasks import Tasks

logger = logging.getLogger("router.control")

_KINDS = {"video": AssetKind.VIDEO, "mesh": AssetKind.MESH}
# Seconds between two polls of a job: a share of the expected remaining time, within bounds; for a
# late job a share of its delay, so that a long job is not polled without end.
_SOONEST, _LATEST = 0.1, 15.0
_OF_LEFT, _OF_LATE, _OF_UNKNOWN = 0.25, 0.5, 0.05
_PATIENCE = 5.0  # seconds for the answer to a poll
_AT_ONCE = 4  # concurrent polls of one worker's jobs
_BARRIER = 1800.0  # seconds that a ghost's barrier may take
_AGAIN = 5.0  # longest pause in seconds before a broken barrier is tried again


@define(eq=False)
class Follower(Tasks):
    """One task for each unfinished job, each ghost, and each restored worker's lists."""

    registry: Registry
    dispatcher: Dispatcher
    jobs: JobControl
    rng: random.Random = field(factory=random.Random)
    # One limiter per worker with jobs: a worker that hangs delays no poll of another.
    _looks: WeakKeyDictionary[Worker, trio.CapacityLimiter] = field(
        init=False, factory=WeakKeyDictionary
    )

    def _begin(self) -> None:
        for worker in self.registry:
            for hold in worker.holds:  # from before a restart of the router
                self._follow(hold)
        self.registry.subscribe(self._observe, events.Held, events.FacetChanged)

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.Held(hold):
                self._follow(hold)
            case events.FacetChanged(worker, facet="health", new=Health.HEALTHY):
                for hold in worker.holds:
                    if hold.restored and hold.kind is HoldKind.GHOST:
                        self._follow(hold)

    def _follow(self, hold: Hold) -> None:
        worker = hold.worker
        if hold.kind is HoldKind.GHOST and hold.restored:
            # The barrier works only once the worker is healthy, and a thousand may start at once.
            if worker.health is not Health.HEALTHY:
                return
            hold.restored = False
            recover = partial(self._recover, worker, worker.incarnation)
            what = f"reading the jobs of worker {worker.url}"
            self._start(keep_running, what, recover)
        follow = self._job if hold.kind is HoldKind.JOB else self._ghost
        what = f"the look after a {hold.kind} of worker {worker.url}"
        self._start(keep_running, what, partial(follow, hold))

    async def _job(self, hold: Hold) -> None:
        """Poll the job until it has ended; a client's poll may report the end first."""
        kind = _KINDS[hold.endpoint]
        assert hold.job_id is not None
        path = f"/v1/{kind}/{segment(hold.job_id)}"
        while _occupies(hold, HoldKind.JOB):
            await trio.sleep(self._pause(hold) * self.rng.uniform(0.8, 1.2))
            async with self._looks.setdefault(hold.worker, trio.CapacityLimiter(_AT_ONCE)):
                if not _occupies(hold, HoldKind.JOB):
                    return
                try:
                    answer = await self.jobs.client.get(hold.worker.url, path, within=_PATIENCE)
                except Unreachable:
                    continue  # probes judge its health; a new process ends the hold
            job = answer.fields
            # The job may have been deleted during the poll: then a ghost has taken its place.
            over = answer.status == 404 or (answer.status == 200 and is_over(job))
            if over and _occupies(hold, HoldKind.JOB):
                self.jobs.assets.finish(hold.job_id)
                self.dispatcher.job_ended(hold.job_id, job.get("status"))

    def _pause(self, hold: Hold) -> float:
        """Seconds until the next poll of a job."""
        now, speeds, worker = trio.current_time(), self.dispatcher.speeds, hold.worker
        if speeds.per_unit(worker.url, hold.endpoint) is None:
            pause = (now - hold.since) * _OF_UNKNOWN
        elif hold.begun is None:
            ahead = 0.0
            for other in worker.holds:
                ahead += speeds.left(other)
                if other is hold:
                    break
            pause = ahead / worker.max_concurrency * _OF_LEFT
        else:
            expected = speeds.expected(worker.url, hold.endpoint, hold.work)
            left = expected - (now - hold.begun)
            pause = left * _OF_LEFT if left > 0 else -left * _OF_LATE
        return min(_LATEST, max(_SOONEST, pause))

    async def _ghost(self, hold: Hold) -> None:
        """Free the slot once the worker has finished the abandoned work."""
        backoff = Backoff(most=_AGAIN)
        with trio.move_on_after(_BARRIER):
            while _occupies(hold, HoldKind.GHOST):
                if await self._barrier(hold):
                    break
                await backoff.pause()
        self.registry.drop(hold)

    async def _barrier(self, hold: Hold) -> bool:
        """Wait until the worker has finished all earlier work; False if that cannot be told yet."""
        url = hold.worker.url
        if hold.worker.is_plain:
            await self._expected_end(hold)
            return True
        try:
            call = Call("/v1/list_loras", _BARRIER, method="GET")
            answer = await self.jobs.client.call(url, call)
        except Unreachable as error:
            return error.refused  # the work ended with the process
        if answer.status in (502, 504):
            return False  # a proxy gave up, not the worker
        if answer.status in (404, 405):
            await self._expected_end(hold)
        return True

    async def _expected_end(self, hold: Hold) -> None:
        expected = self.dispatcher.speeds.expected(hold.worker.url, hold.endpoint, hold.work)
        begun = hold.since if hold.begun is None else hold.begun
        await trio.sleep(max(0.0, begun + expected - trio.current_time()))

    async def _recover(self, worker: Worker, incarnation: int) -> None:
        """Find the jobs of a restored worker that were never recorded."""
        for endpoint, kind in _KINDS.items():
            backoff = Backoff()
            while able([worker], kind):
                since = self.jobs.assets.deletions
                jobs = await self.jobs.all_jobs(worker, kind)
                if worker.removed or worker.incarnation != incarnation:
                    return
                if jobs is not None:
                    deleted = partial(self.jobs.assets.deleted, since=since)
                    self._enter(worker, endpoint, [job for job in jobs if not deleted(job["id"])])
                    break
                await backoff.pause()

    def _enter(self, worker: Worker, endpoint: str, jobs: Sequence[dict[str, Any]]) -> None:
        kind = _KINDS[endpoint]
        if fresh := self.jobs.learn(kind, [(worker, job) for job in jobs]):
            logger.info("worker %s: %d of its %s were not recorded", worker.url, fresh, kind)
        for job in jobs:
            if not is_over(job):
                hold = Hold(
                    *(worker, worker.incarnation, HoldKind.JOB, endpoint),
                    since=trio.current_time(),
                    job=True,
                    job_id=job["id"],
                    doubtful=worker.suspicion is not None,
                )
                self.dispatcher.job_found(hold)


def _occupies(hold: Hold, kind: HoldKind) -> bool:
    return hold in hold.worker.holds and hold.kind is kind
