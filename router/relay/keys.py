"""What came of each Idempotency-Key: bounded in number, bytes and time."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import ClassVar

import trio
from attrs import define, field, frozen

from .. import wall
from ..errors import Conflict, RouterError, WorkerFailed
from ..front.record import ExchangeRecord
from ..pool.registry import Registry
from ..pool.worker import Worker
from ..store.store import Store

_LIFE, _LIFE_OF_JOBS = 3600.0, 24 * 3600.0  # seconds that an outcome is kept
_LARGEST_STORED = 64 * 1024  # bytes of an answer on the disk
_SHARE = 16  # no answer may take more than this part of the bytes for all


def lost() -> WorkerFailed:
    """The error of a request that a worker may have, and whose answer will not come."""
    return WorkerFailed(
        "The first request with this key was broken off after a worker had it",
        details={"retry_safe": False},
    )


class Mismatch(Conflict):
    """The key was used for another request."""

    default_code = "idempotency_mismatch"


@define
class KeyLimits:
    """Bounds of what is kept. `count`: outcomes of generations, and as many of jobs. `size`: bytes
    of all answers together."""

    count: int = 10_000
    size: int = 512 * 1024**2


@frozen
class Answer:
    """A worker's whole answer."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes


@frozen
class KeyRecord:
    """A submission of a job: the same key gets the same job after a restart, or an error if the
    submission was not answered then."""

    table: ClassVar[str] = "idempotency"

    name: str
    digest: str
    url: str  # of the worker
    incarnation: int | None
    ended: float  # wall-clock seconds
    status: int  # 0: not answered
    headers: list[tuple[str, str]]
    body: str | None  # base64; None: too large to keep

    @property
    def key(self) -> str:
        return self.name


@define(eq=False)
class Entry:
    """One key: the request that runs, or what came of it."""

    name: str
    digest: str
    job: bool
    record: ExchangeRecord | None = None  # of the exchange that makes it
    over: trio.Event = field(factory=trio.Event)
    leave: Callable[[], None] = lambda: None  # cancels it
    joiners: int = 0
    left: bool = False  # the client that began it has left
    doomed: bool = False  # cancelled before a worker had the request, but not over yet
    # The outcome: an answer or an error; neither if the answer was not kept.
    answer: Answer | None = None
    error: RouterError | None = None
    # The process that has the generation or the job; None if it is not certain which.
    worker: Worker | None = None
    url: str = ""
    incarnation: int | None = None
    ended: float = 0.0
    # As in the record, of a split group that has failed.
    unfinished: Callable[[], bool] | None = None
    certain: bool = False

    @property
    def delivered(self) -> bool:
        """Whether a worker may have the whole request."""
        return self.record is not None and self.record.delivered is not None

    def forsaken(self) -> None:
        """A client has left. If none is there any more, the request leaves the queue. What a worker
        has cannot be stopped, and a retry may ask for its answer: it goes on."""
        if self.left and not self.joiners and not self.over.is_set() and not self.delivered:
            self.doomed = True
            self.leave()


@define(eq=False)
class Keys:
    """All keys. Those that run are as many as their clients; the limits are for what is over."""

    registry: Registry
    store: Store
    limits: KeyLimits = field(factory=KeyLimits)
    _entries: dict[str, Entry] = field(init=False, factory=dict)
    # Those that are over, the oldest first: generations, jobs.
    _over: tuple[dict[str, Entry], dict[str, Entry]] = field(init=False, factory=lambda: ({}, {}))
    # Those over with an answer, the oldest first.
    _answers: dict[str, Entry] = field(init=False, factory=dict)
    _kept: int = field(init=False, default=0)  # bytes of answers, also of those on their way

    def restore(self) -> None:
        """Restore the keys of jobs. Raises StateRefused."""
        shift = trio.current_time() - wall.seconds()
        records = self.store.restored(KeyRecord).values()
        for record in sorted(records, key=lambda record: record.ended):
            entry = Entry(record.name, record.digest, job=True)
            entry.url, entry.incarnation = record.url, record.incarnation
            if not record.status:
                entry.error, entry.incarnation = lost(), None  # nothing shows whose process has it
            elif record.body is not None and self.keep(len(record.body)):
                headers = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in record.headers]
                body = base64.b64decode(record.body)
                entry.answer = Answer(record.status, headers, body)
                self.drop(len(record.body) - len(body))
            self._entries[entry.name] = entry
            self.settle(entry, record.ended + shift)

    async def find(self, name: str, digest: str) -> Entry | None:
        """The entry of a key; None if the request is to be made. Raises Mismatch."""
        self._expire()
        while (entry := self._entries.get(name)) is not None:
            if entry.digest != digest:
                raise Mismatch(
                    "This Idempotency-Key was used for another request: the method, the path, the"
                    " query, the wished weights and the body must be the same"
                )
            if not entry.doomed:
                break
            await entry.over.wait()
        if entry is not None and entry.over.is_set() and self._is_lost(entry):
            self.forget(entry)
            return None
        return entry

    def begin(self, entry: Entry) -> None:
        """Enter a key whose request is about to be made."""
        self._entries[entry.name] = entry

    def put(self, entry: Entry, answer: Answer | None, status: int) -> None:
        """Enter a submission and its answer, or a status of 0, into the store, whose `commit` makes
        them durable."""
        assert entry.record is not None
        if answer is not None and len(answer.body) > _LARGEST_STORED:
            answer = None
        headers = [] if answer is None else answer.headers
        self.store.put(
            KeyRecord(
                *(entry.name, entry.digest, entry.record.worker or "", entry.record.incarnation),
                ended=wall.seconds(),
                status=status,
                headers=[(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers],
                body=None if answer is None else base64.b64encode(answer.body).decode(),
            )
        )

    def settle(self, entry: Entry, ended: float) -> None:
        """The request is over, and its outcome counts for the key."""
        entry.ended = ended
        if entry.record is not None:
            entry.url, entry.incarnation = entry.record.worker or "", entry.record.incarnation
            entry.worker = self.registry.find(entry.url)
            entry.unfinished, entry.certain = entry.record.unfinished, entry.record.certain
            entry.record = None
        entry.over.set()
        entry.doomed = False
        if entry.answer is not None:
            self._answers[entry.name] = entry
        over = self._over[entry.job]
        over[entry.name] = entry
        while len(over) > self.limits.count:
            self.forget(next(iter(over.values())))

    def forget(self, entry: Entry) -> None:
        """Free the key: the next request with it is made."""
        entry.over.set()
        if self._entries.get(entry.name) is entry:
            del self._entries[entry.name]
            if entry.job:
                self.store.delete(KeyRecord, entry.name)
        self._over[entry.job].pop(entry.name, None)
        if self._answers.pop(entry.name, None) is not None and entry.answer is not None:
            self.drop(len(entry.answer.body))

    def keep(self, count: int, total: int = 0) -> bool:
        """Take room for bytes of an answer of which `total` bytes are kept already; the oldest
        answers give way. False if there is no room: the answer cannot be kept."""
        if total + count > self.limits.size // _SHARE:
            return False
        self._kept += count
        while self._kept > self.limits.size and self._answers:
            oldest = self._answers.pop(next(iter(self._answers)))
            assert oldest.answer is not None
            self.drop(len(oldest.answer.body))
            oldest.answer = None
        if self._kept > self.limits.size:
            self.drop(count)
            return False
        return True

    def drop(self, count: int) -> None:
        """Give back room for bytes of an answer."""
        self._kept -= count

    def _expire(self) -> None:
        now = trio.current_time()
        for over, life in zip(self._over, (_LIFE, _LIFE_OF_JOBS), strict=True):
            while over and (oldest := next(iter(over.values()))).ended + life <= now:
                self.forget(oldest)

    def _is_lost(self, entry: Entry) -> bool:
        """Whether the generation or the job has ended with its process, and nobody has its result
        or will: another attempt doubles nothing."""
        if entry.unfinished is not None and (entry.certain or entry.unfinished()):
            return not entry.unfinished()
        answered = entry.answer is None or entry.answer.status < 500
        if not entry.job and entry.error is None and answered:
            return False
        worker = entry.worker or self.registry.find(entry.url)
        if worker is None or entry.incarnation is None:
            return False
        dead = worker.starting and not worker.ending  # its launcher has seen the end
        return dead or worker.incarnation > entry.incarnation
