"""Follows what occupies a worker though no exchange does: unfinished jobs, and ghosts.

A video or mesh job is load until its status is terminal. A ghost is a generation whose client has
left: a worker cannot abort, so its slot stays taken until a call that queues behind running work
has come back.
"""

from __future__ import annotations

import random

import trio
from attrs import define, field

from ..dispatch import Dispatcher
from ..pool import events
from ..pool.assets import AssetKind, AssetMap
from ..pool.catalog import TERMINAL
from ..pool.registry import Registry
from ..pool.worker import Hold, HoldKind
from .client import ControlClient, Unreachable

_KINDS = {"video": AssetKind.VIDEO, "mesh": AssetKind.MESH}
_SOONEST, _LATEST = 0.5, 15.0  # seconds between two looks at a job
_PATIENCE = 5.0  # seconds for an answer to a look
_AT_ONCE = 32  # looks side by side
_BARRIER = 1800.0  # seconds that a ghost's barrier may take
_UNKNOWN_COST = 30.0  # seconds that a ghost is given where no barrier exists and nothing is known


@define(eq=False)
class Follower:
    """One task for each unfinished job and each ghost."""

    registry: Registry
    dispatcher: Dispatcher
    assets: AssetMap
    client: ControlClient
    rng: random.Random = field(factory=random.Random)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _looks: trio.CapacityLimiter = field(init=False, factory=lambda: trio.CapacityLimiter(_AT_ONCE))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow whatever comes to be held; never returns."""
        async with trio.open_nursery() as self._nursery:
            self.registry.subscribe(self._observe)
            task_status.started()
            await trio.sleep_forever()

    def _observe(self, event: events.Event) -> None:
        if isinstance(event, events.Held) and self._nursery is not None:
            follow = self._job if event.hold.kind is HoldKind.JOB else self._ghost
            self._nursery.start_soon(follow, event.hold)

    async def _job(self, hold: Hold) -> None:
        """Look at the job until it has ended; passing polls may tell us first."""
        kind = _KINDS[hold.endpoint]
        speeds = self.dispatcher.speeds
        while _occupies(hold, HoldKind.JOB) and hold.job_id is not None:
            left = speeds.expected(hold.worker.url, hold.endpoint, hold.work) - (
                trio.current_time() - hold.since
            )
            pause = min(_LATEST, max(_SOONEST, left / 4))
            await trio.sleep(pause * self.rng.uniform(0.8, 1.2))
            if not _occupies(hold, HoldKind.JOB):
                return
            try:
                async with self._looks:
                    path = f"/v1/{kind}/{hold.job_id}"
                    answer = await self.client.get(hold.worker.url, path, within=_PATIENCE)
            except Unreachable:
                continue  # its health is judged elsewhere; a new process ends the hold
            job = answer.json()
            status = job.get("status") if isinstance(job, dict) else None
            if answer.status == 404 or status in TERMINAL:
                if answer.status == 200:
                    self.assets.finish(hold.job_id)
                self.dispatcher.job_ended(hold.job_id, ok=status == "completed")

    async def _ghost(self, hold: Hold) -> None:
        """Free the slot once the worker has done what it was doing."""
        url = hold.worker.url
        try:
            path = "/v1/list_loras"
            status = (await self.client.call("GET", url, path, within=_BARRIER)).status
        except Unreachable:
            status = 0  # gone, or not answering for longer than anything may take
        if status in (404, 405):
            speeds = self.dispatcher.speeds
            known = speeds.per_unit(url, hold.endpoint)
            expected = known * hold.work if known is not None else _UNKNOWN_COST
            await trio.sleep(max(0.0, hold.since + expected - trio.current_time()))
        self.registry.drop(hold)


def _occupies(hold: Hold, kind: HoldKind) -> bool:
    return hold in hold.worker.holds and hold.kind is kind
