"""Stores the pool, and restores it from the store: workers, jobs, speeds and assets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import trio
from attrs import define, field, frozen

from .. import wall
from ..dispatch import Dispatcher
from ..pool import events
from ..pool.assets import AssetKind, AssetLog, AssetMap, Owner
from ..pool.cost import ALL
from ..pool.registry import Registry
from ..pool.worker import ROUTER_RESTARTED, Hold, HoldKind, Origin, Worker, WorkerRecord
from ..store.showing import lasting
from ..store.store import Store
from ..text import is_id
from .identity import trusts_absence

_SPEEDS_EVERY = 15.0  # seconds
_PREFIX = "assets/"  # prefix of the asset tables, one table per owner


@frozen
class JobRecord:
    """A video or mesh job that has not ended. Times are wall-clock seconds."""

    table: ClassVar[str] = "jobs"

    job_id: str
    url: str
    incarnation: int
    endpoint: str  # the kind of endpoint, as speeds are learnt
    work: float
    submitted: float
    begun: float | None = None

    @property
    def key(self) -> str:
        return self.job_id


@frozen
class SpeedRecord:
    """The last measurements of a worker, or of all workers together (`*`), by kind of endpoint."""

    table: ClassVar[str] = "speeds"

    worker: str
    measured: Mapping[str, list[float]]

    @property
    def key(self) -> str:
        return self.worker


@frozen
class OwnerRecord:
    """A worker's process as the owner of assets of one kind.

    The assets have their own table, `assets/NUMBER`, which maps an asset id to its place in the
    order of creation, negative once the asset has ended. So an owner that is gone takes its assets
    along at once, and rows are small: there may be a million.
    """

    table: ClassVar[str] = "owners"

    number: int  # never used again
    url: str
    incarnation: int
    kind: AssetKind

    @property
    def key(self) -> str:
        return str(self.number)


@define(eq=False)
class StoredAssets(AssetLog):
    """Logs an asset map to the store, and restores it."""

    store: Store
    assets: AssetMap
    # Owners that wait for their workers to be added.
    _waiting: dict[str, list[OwnerRecord]] = field(init=False, factory=dict)

    def restore(self, find: Callable[[str], Worker | None], awaited: Callable[[str], bool]) -> None:
        """Restore the assets of present workers, and keep the assets of `awaited` workers, which
        may be added later. Drop all others."""
        if not self.store.keeps:
            return
        owners = self.store.restored(OwnerRecord)
        self.assets.last_owner = max((owner.number for owner in owners.values()), default=0)
        # The newest first: older versions left owners of an earlier registration behind.
        for owner in sorted(owners.values(), key=lambda owner: -owner.number):
            worker = find(owner.url)
            if worker is not None:
                self._adopt(owner, worker)
            elif awaited(owner.url):
                self._waiting.setdefault(owner.url, []).append(owner)
            else:
                self.owner_gone(owner.number)
        for table in self.store.tables():
            if table.startswith(_PREFIX) and table.removeprefix(_PREFIX) not in owners:
                self.store.clear(table)
        self.assets.sort()
        self.assets.log = self

    def added(self, worker: Worker) -> None:
        """Restore the assets that waited for the worker."""
        waiting = self._waiting.pop(worker.url, [])
        for owner in waiting:
            self._adopt(owner, worker)
        if waiting:
            self.assets.sort()

    def drop_waiting(self) -> None:
        """Drop the assets of workers that were never added."""
        for owners in self._waiting.values():
            for owner in owners:
                self.owner_gone(owner.number)
        self._waiting.clear()

    def entered(self, number: int, asset_id: str, order: int, *, finished: bool, new: bool) -> None:
        self.store.put_row(f"{_PREFIX}{number}", asset_id, -order if finished else order, new=new)

    def dropped(self, number: int, asset_id: str) -> None:
        self.store.delete_row(f"{_PREFIX}{number}", asset_id)

    def owner_entered(self, number: int, owner: Owner) -> None:
        self.store.put(OwnerRecord(number, owner.worker.url, owner.incarnation, owner.kind))

    def owner_gone(self, number: int) -> None:
        self.store.clear(f"{_PREFIX}{number}")
        self.store.delete(OwnerRecord, str(number))

    def _adopt(self, owner: OwnerRecord, worker: Worker) -> None:
        adopted = Owner(worker, owner.incarnation, owner.kind)
        if adopted.gone or self.assets.knows(adopted):
            self.owner_gone(owner.number)
            return
        table = f"{_PREFIX}{owner.number}"
        rows = self.store.rows(table)
        if unfit := [asset_id for asset_id in rows if not is_id(asset_id)]:  # of older versions
            rows = dict(rows)
            for asset_id in unfit:
                del rows[asset_id]
                self.store.delete_row(table, asset_id)
        self.assets.adopt(owner.number, adopted, rows)


@define(eq=False)
class PoolPersistence:
    """Puts each event of the pool into the store as it happens."""

    store: Store
    registry: Registry
    dispatcher: Dispatcher
    assets: AssetMap
    trust_downtime: float = 0.0  # seconds; a shorter absence replaced no worker
    wall: Callable[[], float] = lambda: wall.seconds()
    _stored_assets: StoredAssets = field(init=False)
    _recorded: dict[Worker, WorkerRecord] = field(init=False, factory=dict)
    _waiting: dict[str, list[JobRecord]] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self._stored_assets = StoredAssets(self.store, self.assets)

    def restore(self, static: Mapping[str, int | None]) -> str | None:
        """Restore the pool. Returns a summary for people, or None if the store held no workers.
        `static` are the URLs that today's settings name, with their slots.

        Call this after all observers of the registry have subscribed. Launched workers are restored
        when their launcher adds them; `settle` forgets the others. Raises StateRefused.
        """
        records = sorted(self.store.restored(WorkerRecord).values(), key=lambda r: r.number)
        kept = []
        for record in records:
            if record.url in static or record.registered or record.origin is Origin.LAUNCHED:
                kept.append(record)
            else:  # no flag names it any more
                self.store.delete(WorkerRecord, record.url)
        jobs = self.store.restored(JobRecord)
        for job_id in [job_id for job_id in jobs if not is_id(job_id)]:  # of older versions
            del jobs[job_id]
            self.store.delete(JobRecord, job_id)
        for job in jobs.values():
            self._waiting.setdefault(job.url, []).append(job)
        speeds = self.store.restored(SpeedRecord)
        for speed in speeds.values():
            self.dispatcher.speeds.restore(speed.worker, speed.measured)
        trusted = trusts_absence(self.store.absence, self.trust_downtime)
        self.registry.recall(kept, doubt=None if trusted else ROUTER_RESTARTED)
        self.registry.subscribe(self._observe, events.OfWorker, events.OfHold)
        for record in kept:
            if record.registered and record.url not in static:
                self.registry.add(record.url, Origin.REGISTERED)
            elif record.url in static:
                self.registry.add(record.url, Origin.STATIC, concurrency=static[record.url])
        for url, slots in static.items():
            if self.registry.find(url) is None:
                self.registry.add(url, Origin.STATIC, concurrency=slots)
        self._stored_assets.restore(self.registry.find, lambda url: url in self.registry.past)
        return self._summarise(len(kept), len(jobs)) if records else None

    def settle(self) -> None:
        """Forget the rows of workers that were not added again: all launchers have added theirs."""
        for url in self.registry.past:
            self.store.delete(WorkerRecord, url)
        self.registry.past.clear()
        for jobs in self._waiting.values():
            for job in jobs:
                self.store.delete(JobRecord, job.job_id)
        self._waiting.clear()
        self._stored_assets.drop_waiting()
        known = {worker.url for worker in self.registry}
        for name in self.store.rows(SpeedRecord.table):
            if name != ALL and name not in known:
                self.dispatcher.speeds.forget(name)
                self.store.delete(SpeedRecord, name)
        self.store.release()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Store the speeds regularly, because they change with every generation; never returns."""
        task_status.started()
        while True:
            await trio.sleep(_SPEEDS_EVERY)
            self.put_speeds()

    def put_speeds(self) -> None:
        """Store the speeds measured since the last call."""
        for name, measured in self.dispatcher.speeds.changed().items():
            self.store.put(SpeedRecord(name, measured))

    def _summarise(self, workers: int, jobs: int) -> str:
        parts = [
            _count(workers, "worker"),
            _count(jobs, "unfinished job"),
            _count(len(self.assets), "asset"),
        ]
        for model, row in self.store.rows("ledgers").items():
            parts.append(f"weights of {model} at version {row.get('version')}")
        absence = self.store.absence
        age = "" if absence is None else f"; the router was last alive {lasting(absence)} before"
        return ", ".join(parts) + age

    def _observe(self, event: events.Event) -> None:
        worker = event.worker
        match event:
            case events.WorkerAdded(past=past) if past is not None:
                self._recorded[worker] = past
                self._resume_jobs(worker)
                self._stored_assets.added(worker)
                self._enter_ghost(worker)
                if past.origin is worker.origin:
                    return  # the event with its capabilities follows
            case events.WorkerRemoved():
                self._recorded.pop(worker, None)
                self.store.delete(WorkerRecord, worker.url)
                self.store.delete(SpeedRecord, worker.url)
            case events.Reincarnated():
                for hold in worker.holds:  # jobs that this process was given
                    if hold.kind is HoldKind.JOB and hold.job_id is not None:
                        self._put_job(hold, hold.job_id)
            case events.Held(hold) if hold.job_id is not None:
                if hold.kind is HoldKind.JOB:
                    self._put_job(hold, hold.job_id)
                else:  # deleted: no client asks for the job any more
                    self.store.delete(JobRecord, hold.job_id)
            case events.SlotFreed(hold) if hold.job_id is not None and hold.kind is HoldKind.JOB:
                self.store.delete(JobRecord, hold.job_id)
        if isinstance(event, events.OfWorker) and not worker.removed:
            self._put(worker)

    def _put(self, worker: Worker) -> None:
        """Store the worker's record if it has changed."""
        record, before = WorkerRecord.of(worker), self._recorded.get(worker)
        if before is None:
            # A launched worker has yet to serve: a start that fails leaves no record.
            before = WorkerRecord(
                worker.url, worker.number, Origin.LAUNCHED, incarnation=worker.incarnation
            )
        if record != before:
            self._recorded[worker] = record
            self.store.put(record)

    def _enter_ghost(self, worker: Worker) -> None:
        """The work from before the restart may go on: a ghost takes one slot until the worker
        gets to a call that queues behind it. The ghost stays even if nothing proves which process
        runs."""
        now = trio.current_time()
        ghost = Hold(
            *(worker, worker.incarnation, HoldKind.GHOST), since=now, begun=now, doubtful=True
        )
        self.registry.occupy(ghost)

    def _resume_jobs(self, worker: Worker) -> None:
        now, wall = trio.current_time(), self.wall()
        for job in self._waiting.pop(worker.url, []):
            if job.incarnation != worker.incarnation:
                self.store.delete(JobRecord, job.job_id)
                continue
            hold = Hold(
                *(worker, worker.incarnation, HoldKind.JOB, job.endpoint, job.work),
                since=now - max(0.0, wall - job.submitted),
                begun=None if job.begun is None else now - max(0.0, wall - job.begun),
                job=True,
                job_id=job.job_id,
            )
            self.dispatcher.job_found(hold)

    def _put_job(self, hold: Hold, job_id: str) -> None:
        now, wall = trio.current_time(), self.wall()
        self.store.put(
            JobRecord(
                *(job_id, hold.worker.url, hold.incarnation, hold.endpoint, hold.work),
                submitted=wall - (now - hold.since),
                begun=None if hold.begun is None else wall - (now - hold.begun),
            )
        )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
