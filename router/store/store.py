"""The records of this router: those found at the start, and those put since."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import trio
from attrs import define, field, frozen

from .. import threads
from ..backoff import Backoff
from ..bus import Bus, Event
from ..errors import StateUnavailable, describe
from . import files
from .changes import Changes, Tables
from .journal import Journal
from .lines import BadLine, Unreadable
from .opening import StateRefused, take
from .reading import Damaged
from .records import R, Record, structured, unstructured
from .snapshot import Pace, compact

logger = logging.getLogger("router.store")

T = TypeVar("T")

# Seconds until changes are written that no `commit` waits for.
_LAZY = 0.1
# If a batch follows another within _BUSY seconds, it gathers changes for _GATHER seconds: on a fast
# disk a thread per change would cost more than the disk does.
_BUSY, _GATHER = 0.02, 0.008
# Seconds until a failed write is tried again.
_RETRY_FIRST, _RETRY_MOST = 0.25, 5.0
# A snapshot is made when the journals since the last snapshot are larger than it and than _LEAST,
# or when there are _MOST_JOURNALS of them.
_LEAST = 8 * 1024 * 1024
_MOST_JOURNALS = 16
_COMPACT_AGAIN = 60.0  # seconds until a failed snapshot is tried again
_ALIVE = 5.0  # seconds between two signs of life
_LAST = 30.0  # seconds that a stop waits for the disk


@frozen
class StateWritten(Event):
    """A batch of changes is on the disk. `seconds` is the time of its write and sync, with the wait
    for a thread; `synced` is the time of the sync alone."""

    batch: int
    seconds: float
    synced: float


@define(eq=False)
class Store:
    """Keeps records; without a directory, only as long as the process lives.

    `put` and `delete` take effect at once in memory and soon after on the disk, in order. Await
    `commit` before acknowledging a change. Changes made between two awaits reach the disk together
    or not at all.
    """

    # Why records cannot be made durable now, in one sentence; None while they can.
    failing: str | None = None
    # The state directory; None: records are not kept.
    folder: Path | None = None
    # Acknowledge changes that cannot be made durable, instead of refusing them
    # (`--state-best-effort`).
    best_effort: bool = False
    # Seconds from the previous router's last sign of life to the start; None if there was none.
    absence: float | None = None
    # Publishes each batch that reaches the disk.
    bus: Bus = field(init=False, factory=Bus, repr=False)
    _tables: Tables = field(factory=dict, alias="tables", repr=False)
    _lock: files.Lock | None = field(default=None, alias="lock", repr=False)
    _journal: Journal | None = field(default=None, alias="journal", repr=False)
    _base: int = field(default=0, alias="base")  # the number of the last snapshot
    _seq: int = field(default=0, alias="seq")  # of the last batch on the disk
    _unsaved: int = field(default=0, alias="unsaved")  # batches since the last snapshot
    _pending: Changes = field(init=False, factory=Changes, repr=False)
    _entered: int = field(init=False, default=0)  # changes so far
    _durable: int = field(init=False, default=0)  # changes on the disk
    _due: trio.Event = field(init=False, factory=trio.Event, repr=False)  # changes are pending
    _wanted: trio.Event = field(init=False, factory=trio.Event, repr=False)  # and awaited
    _tried: trio.Event = field(init=False, factory=trio.Event, repr=False)  # replaced at each try
    _writing: trio.Lock = field(init=False, factory=trio.Lock, repr=False)
    _compacting: trio.Lock = field(init=False, factory=trio.Lock, repr=False)
    _compact_after: float = field(init=False, default=0.0)
    # If the task of a snapshot is cancelled, the snapshot is broken off.
    _pace: Pace = field(
        init=False, factory=lambda: Pace(poll=trio.from_thread.check_cancelled), repr=False
    )
    _alive: bool = field(init=False, default=False)  # it has given a sign of life
    _closed_size: int = field(init=False, default=0)  # of the older journals since the snapshot
    _snapshot_size: int = field(init=False, default=0)
    # Of its own, so that it does not wait behind other work.
    _threads: trio.CapacityLimiter = field(
        init=False, factory=lambda: trio.CapacityLimiter(3), repr=False
    )
    # When the ending store stops waiting for the disk; and the scopes that wait now.
    _last: float = field(init=False, default=math.inf)
    _waits: set[trio.CancelScope] = field(init=False, factory=set, repr=False)

    @classmethod
    def open(cls, folder: Path, *, fresh: bool = False, best_effort: bool = False) -> Store:
        """The store of a directory. Raises StateRefused if it cannot be used, OSError if it cannot
        be written."""
        taken = take(folder, fresh=fresh)
        loaded = taken.loaded
        store = cls(
            folder=folder,
            best_effort=best_effort,
            absence=None if fresh else taken.absence,
            tables=loaded.tables,
            lock=taken.lock,
            journal=taken.journal,
            base=loaded.base,
            seq=loaded.seq or 0,
            unsaved=loaded.batches,
        )
        with contextlib.suppress(OSError):
            for number in range(loaded.base or 1, taken.journal.number):
                store._closed_size += files.journal(folder, number).stat().st_size
            if loaded.base:
                store._snapshot_size = files.snapshot(folder, loaded.base).stat().st_size
        return store

    @property
    def keeps(self) -> bool:
        """Whether there is a directory: otherwise nothing outlives the process."""
        return self._journal is not None

    def restored(self, kind: type[R]) -> dict[str, R]:
        """The records of one table by key, as found at the start. Raises StateRefused if they do
        not fit `kind`."""
        found = {}
        for key, value in self.rows(kind.table).items():
            try:
                found[key] = structured(value, kind)
            # cattrs raises groups of various errors.
            except (ExceptionGroup, ValueError, TypeError, KeyError, AttributeError) as error:
                raise StateRefused(
                    f"The state in {self.folder} has an invalid row {key!r} in the table "
                    f"{kind.table}; 'state show' prints the row, and --fresh starts without state"
                ) from error
        return found

    def rows(self, table: str) -> dict[str, Any]:
        """The rows of a table as found at the start: JSON values by key."""
        return self._tables.get(table, {})

    def tables(self) -> list[str]:
        """The tables found at the start."""
        return list(self._tables)

    def release(self) -> None:
        """Release the rows found at the start: all of them are restored."""
        self._tables = {}

    def put(self, record: Record) -> None:
        """Enter a record, or replace the one of the same key."""
        if self._journal is not None:
            self.put_row(record.table, record.key, unstructured(record))

    def delete(self, kind: type[Record], key: str) -> None:
        """Drop a record, if it is there."""
        self.delete_row(kind.table, key)

    def put_row(self, table: str, key: str, value: Any, *, new: bool = False) -> None:
        """Enter a row of JSON values. `new`: no file has a row of this key."""
        if self._journal is not None:
            self._pending.put(table, key, value, new=new)
            self._enter()

    def delete_row(self, table: str, key: str) -> None:
        """Drop a row, if it is there."""
        if self._journal is not None:
            self._pending.delete(table, key)
            self._enter()

    def clear(self, table: str) -> None:
        """Drop all rows of a table."""
        if self._journal is not None:
            self._pending.clear(table)
            self._enter()

    def check(self) -> None:
        """Refuse a change before it begins if it could not be made durable. Raises
        StateUnavailable."""
        if self.failing is not None and not self.best_effort:
            raise StateUnavailable(f"The router cannot write its state: {self.failing}")

    async def commit(self) -> None:
        """Wait until all changes so far are durable. Raises StateUnavailable.

        Only yields without a directory, or with `best_effort` while the disk fails.
        """
        mine = self._entered
        if self._durable >= mine or self.failing is not None:
            await trio.lowlevel.checkpoint()
        while self._durable < mine and self.failing is None:
            self._wanted.set()
            await self._tried.wait()
        if self._durable < mine:
            self.check()

    @asynccontextmanager
    async def running(self, *, serving: bool = True) -> AsyncIterator[None]:
        """Write changes for the length of the block. At its end pending changes are written, if the
        disk permits it within half a minute; call `finish` before the end to make a snapshot, too.
        `serving`: a router runs, so give signs of life.

        While the disk hangs, the directory stays locked until the process has ended, because an
        unfinished write may still reach the disk.
        """
        if self._journal is None:
            yield
            return
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_always, nursery)
                if serving:
                    nursery.start_soon(self._show_life)
                try:
                    yield
                finally:
                    self._end_soon()
                    nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                self._end_soon()
                await self._write()
                with trio.move_on_at(max(self._last, trio.current_time() + 1)):
                    while self._threads.borrowed_tokens:  # noqa: ASYNC110 no event tells
                        await trio.sleep(0.01)
            if self._durable < self._entered:
                logger.error(
                    "the last changes of the state in %s could not be written: %d changes are lost"
                    " (%s)",
                    *(self.folder, len(self._pending), self.failing),
                )
            self.close()

    async def finish(self) -> None:
        """Make a snapshot of everything; nothing may be put afterwards."""
        self._pace.hurried = True
        self._end_soon()
        await self._write()
        if self.keeps and self._unsaved:
            await self._compact()

    def close(self) -> None:
        """Release the directory for other processes, unless a thread of ours hangs in it."""
        if self._threads.borrowed_tokens:
            return
        if self._journal is not None:
            self._journal.close()
            self._journal = None
        if self._lock is not None:
            if self._alive:
                with contextlib.suppress(OSError):
                    self._lock.touch()
            self._lock.release()

    def _end_soon(self) -> None:
        """From now on, bound all waiting for the disk."""
        self._last = min(self._last, trio.current_time() + _LAST)
        for scope in self._waits:
            scope.deadline = self._last

    def _enter(self) -> None:
        self._entered += 1
        self._due.set()

    async def _write_always(self, nursery: trio.Nursery) -> None:
        backoff, busy_until = Backoff(_RETRY_FIRST, _RETRY_MOST), 0.0
        while True:
            if self._wants_snapshot():
                nursery.start_soon(self._compact)
            while self._durable == self._entered:
                await self._due.wait()
            with trio.move_on_after(_LAZY):
                await self._wanted.wait()
            if trio.current_time() < busy_until:
                await trio.sleep(_GATHER)
            await self._write()
            busy_until = trio.current_time() + _BUSY
            if self.failing is None:
                backoff.reset()
            else:
                await backoff.pause()

    async def _write(self) -> None:
        """Try to write all pending changes, as one batch."""
        async with self._writing:
            journal, batch, upto = self._journal, self._pending, self._entered
            for event in (self._due, self._wanted):
                event.set()  # tasks that wait for this event look again
            self._pending, self._due, self._wanted = Changes(), trio.Event(), trio.Event()
            written: StateWritten | None = None
            try:
                if journal is not None and batch:
                    began = trio.current_time()
                    append = partial(journal.append, batch, self._seq + 1)
                    synced = await self._in_thread(append)
                    self._seq += 1
                    self._unsaved += 1
                    written = StateWritten(self._seq, trio.current_time() - began, synced)
            except BaseException as error:
                batch.follow(self._pending)
                self._pending = batch
                self._due.set()
                if not isinstance(error, OSError):
                    raise
                self._failed(describe(error))
            else:
                self._durable = upto
                if written is not None:
                    self.bus.publish(written)
                if self.failing is not None:
                    self.failing = None
                    logger.warning("the state in %s can be written again", self.folder)
            self._tried.set()
            self._tried = trio.Event()

    def _failed(self, why: str) -> None:
        if self.failing is None:
            what = "acknowledges changes unwritten" if self.best_effort else "refuses changes"
            logger.error(
                "the state in %s cannot be written: %s; the router %s until a write succeeds",
                *(self.folder, why, what),
            )
        self.failing = why

    def _wants_snapshot(self) -> bool:
        assert self._journal is not None
        if self._compacting.locked() or self.failing is not None:
            return False
        if not self._unsaved or trio.current_time() < self._compact_after:
            return False
        many = self._journal.number - (self._base or 1) >= _MOST_JOURNALS
        size = self._closed_size + self._journal.size
        return many or size > max(_LEAST, self._snapshot_size)

    async def _compact(self) -> None:
        """Begin a new journal, and make a snapshot of the older ones."""
        assert self.folder is not None
        async with self._compacting:
            closed = self._unsaved
            try:
                number = await self._rotate()
                if number is None:
                    return
                self._snapshot_size = await self._in_thread(
                    partial(compact, self.folder, self._base, number, self._pace), polls=True
                )
            except (OSError, BadLine, Damaged, Unreadable) as error:
                self._compact_after = trio.current_time() + _COMPACT_AGAIN
                logger.error("no snapshot was made in %s: %s", self.folder, describe(error))
                return
            self._base, self._closed_size = number, 0
            self._unsaved -= closed

    async def _rotate(self) -> int | None:
        """Begin a new journal and return its number. None while the disk fails: a partly written
        batch must stay at the end of the last journal."""
        async with self._writing:
            journal, folder = self._journal, self.folder
            if journal is None or folder is None or self.failing is not None:
                return None
            number, after = journal.number + 1, journal.after
            following = await self._in_thread(
                partial(Journal.create, folder, number, self._seq, after)
            )
            self._journal = following
            self._closed_size += journal.size
            journal.close()
            return number

    async def _show_life(self) -> None:
        assert self._lock is not None
        while True:
            await trio.sleep(_ALIVE)  # a router that ends at once has seen no worker
            self._alive = True
            with contextlib.suppress(OSError):
                await self._in_thread(self._lock.touch)

    async def _in_thread(self, work: Callable[[], T], *, polls: bool = False) -> T:
        """Do work on the disk in a thread. With `polls` the work itself checks for a cancellation;
        other work is finished first. Raises OSError if it hangs beyond the end."""
        with trio.CancelScope(deadline=self._last, shield=not polls) as scope:
            self._waits.add(scope)
            try:
                return await threads.run(work, limiter=self._threads, abandon_on_cancel=True)
            finally:
                self._waits.discard(scope)
        raise OSError("the disk does not respond")
