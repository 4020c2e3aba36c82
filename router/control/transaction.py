"""One weight change on its workers: fence, drain, call, unfence."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterable, Sequence

import trio
from attrs import define, field

from ..dispatch import Dispatcher
from ..errors import RouterError, StateUnavailable
from ..pool import events
from ..pool.weights import Change, Ledgers, Meaning, meaning
from ..pool.weights.answers import alike, words
from ..pool.worker import Admin, Health, Worker
from ..store.store import Store
from .broadcast import Call, Row, call_one, send_copy
from .client import ControlClient
from .copying import Copy, copy_out
from .turns import Turn

logger = logging.getLogger("router.control")


@define(eq=False)
class Member:
    """A worker that a change is about."""

    worker: Worker
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    called: int | None = None  # the incarnation that was called
    left: str | None = None  # why it has left the change
    reported: bool = False
    refusal: tuple[int, str] | None = None
    # Set, and replaced, when it is proven to be the same process.
    absolved: trio.Event = field(factory=trio.Event)

    async def is_known(self) -> None:
        """Wait until there is no doubt which process it is: what a new one was sent while it was
        taken for the old one would be forgotten."""
        while self.worker.suspicion is not None:
            await self.absolved.wait()


# The events by which a worker may leave a change.
DEPARTURES = (events.FacetChanged, events.WorkerRemoved, events.Reincarnated)


def departure(event: events.Event) -> tuple[Worker, str] | None:
    """Who cannot take part in a change any more, and why."""
    match event:
        case events.FacetChanged(worker, facet="health", new=new) if new != Health.HEALTHY:
            return worker, f"it became {new}"
        case events.FacetChanged(worker, facet="admin", new=Admin.QUARANTINED):
            return worker, "it was quarantined"
        case events.WorkerRemoved(worker):
            return worker, "it was removed"
        case events.Reincarnated(worker):
            return worker, "another process took its place"
    return None


@define(eq=False)
class Transaction:
    """The change on these workers, in its turn. `told` must hear the registry while it runs."""

    change: Change
    call: Call
    targets: Sequence[Worker]
    turn: Turn | None  # what it is released from, one worker after the other
    dispatcher: Dispatcher
    client: ControlClient
    ledgers: Ledgers
    store: Store
    drain_timeout: float
    rows: dict[Worker, Row] = field(init=False, factory=dict)
    # What was done could not be made durable.
    undurable: StateUnavailable | None = field(init=False, default=None)
    _members: dict[Worker, Member] = field(init=False, factory=dict)

    async def run(self) -> list[Row]:
        """Do it; the rows of the targets in their order.

        Raises StateUnavailable if its intent cannot be made durable, and then nothing was done;
        or what reading a streamed body raises, and then nobody got it. If it is cancelled the
        intent stays open, as after a crash.
        """
        self.ledgers.open(self.change, self.targets)
        self._members = {worker: Member(worker) for worker in self.targets}
        try:
            await self.store.commit()
        except StateUnavailable:
            self.ledgers.withdraw(self.change)
            raise
        for member in self._members.values():
            if member.left is None:
                self.ledgers.fence(member.worker, f"{self.change.name}: a change")
        failure: RouterError | None = None
        if isinstance(self.call.body, bytes):
            async with trio.open_nursery() as nursery:
                for member in self._members.values():
                    nursery.start_soon(self._change, member, self.call.body)
        else:
            failure = await self._stream(self.call.body)
        self._conclude()
        if any(row.sent for row in self.rows.values()) or self.change.version is not None:
            self.ledgers.close(self.change)
        else:
            self.ledgers.came_to_nothing(self.change)
        if failure is not None:
            raise failure
        return [self.rows[worker] for worker in self.targets]

    def told(self, event: events.Event) -> None:
        """Something has happened in the registry."""
        if isinstance(event, events.Absolved) and event.worker in self._members:
            known = self._members[event.worker]
            known.absolved.set()
            known.absolved = trio.Event()
        gone = departure(event)
        if gone is None:
            return
        member = self._members.get(gone[0])
        if member is not None and member.left is None and not member.reported:
            member.left = gone[1]
            member.scope.cancel()

    async def _change(self, member: Member, body: bytes) -> None:
        with member.scope:
            if await self._drained(member):
                member.called = member.worker.incarnation
                await call_one(self.client, member.worker, self.call, body, self.rows)
        await self._report(member)

    async def _stream(self, body: AsyncIterable[bytes]) -> RouterError | None:
        """Drain all, then copy the body to those that are idle as it comes; why it broke off."""
        async with trio.open_nursery() as nursery:
            for member in self._members.values():
                nursery.start_soon(self._drain_only, member)
        while gone := [m for m in self._members.values() if m.left and not m.reported]:
            for member in gone:  # it was idle, and has left while others were busy
                with member.scope:
                    await trio.lowlevel.checkpoint()
                await self._report(member)
        ready = [m for m in self._members.values() if not m.reported]
        copies = {member: Copy() for member in ready}
        failure: RouterError | None = None
        async with trio.open_nursery() as nursery:
            for member, copied in copies.items():
                nursery.start_soon(self._copy, member, copied)
            if copies:
                try:
                    await copy_out(body, list(copies.values()))
                except RouterError as error:  # caught here, lest the nursery wrap and cancel
                    failure = error
        return failure

    async def _drain_only(self, member: Member) -> None:
        with member.scope:
            if await self._drained(member):
                member.scope = trio.CancelScope()
                return
        await self._report(member)

    async def _copy(self, member: Member, copied: Copy) -> None:
        with member.scope, copied:
            member.called = member.worker.incarnation
            await send_copy(self.client, member.worker, self.call, copied, self.rows)
        await self._report(member)

    async def _drained(self, member: Member) -> bool:
        """Wait until nothing runs on the worker; if that takes too long its row says so."""
        worker, within = member.worker, self.drain_timeout
        await trio.lowlevel.checkpoint_if_cancelled()  # it left while the intent was written
        with trio.move_on_after(within):
            if await self.dispatcher.idle(worker, within):
                await member.is_known()
                return True
        said = _said(f"its work did not end within {within:g} s", "drain_timeout")
        self.rows[worker] = Row(worker, 504, said, sent=False, answered=False)
        return False

    async def _report(self, member: Member) -> None:
        """Tell the ledger what came of it, and let the worker go."""
        worker, change = member.worker, self.change
        if member.scope.cancelled_caught and worker not in self.rows:
            said = _said(f"it left the change: {member.left}", "left_change")
            sent = member.called is not None
            self.rows[worker] = Row(worker, 502, said, sent=sent, answered=False)
        row = self.rows[worker]
        member.reported = True
        reason = words(row.body)
        match meaning(change.path, row.status, row.body, sent=row.sent):
            case Meaning.APPLIED:
                assert member.called is not None
                self.ledgers.applied(change, worker, member.called)
                self._unsure()
                # Its outcome is durable before it serves again.
                try:
                    await self.store.commit()
                except StateUnavailable as error:
                    self.undurable = error
                self.ledgers.release(worker, "the change was applied")
            case Meaning.UNCHANGED:
                self.ledgers.unchanged(change, worker, reason)
            case Meaning.REFUSED:
                change.error = reason
                member.refusal = alike(row.status, row.body)
                if change.version is not None:
                    self.ledgers.unknown(change, worker, reason)
            case Meaning.UNKNOWN:
                self.ledgers.unknown(change, worker, reason)
        if member.refusal is None or change.version is not None:
            self._let_go(worker)
        self._let_refusers_go()

    def _let_go(self, worker: Worker) -> None:
        if self.turn is not None:
            self.turn.release(worker)

    def _unsure(self) -> None:
        """The change stands: what those have that refused it is not known."""
        for member in self._members.values():
            if member.refusal is not None:
                reason = words(self.rows[member.worker].body)
                self.ledgers.unknown(self.change, member.worker, reason)
                self._let_go(member.worker)

    def _let_refusers_go(self) -> None:
        """Those that refused serve on once all that were called have given the same refusal: one
        that is still busy holds nobody else."""
        called = [m for m in self._members.values() if m.called is not None]
        if self.change.version is not None or not all(m.reported for m in called):
            return
        refusals = {m.refusal for m in called if self.rows[m.worker].answered}
        if len(refusals) == 1 and None not in refusals:
            for member in called:
                if member.refusal is not None:
                    reason = words(self.rows[member.worker].body)
                    self.ledgers.unchanged(self.change, member.worker, reason)
                    self._let_go(member.worker)

    def _conclude(self) -> None:
        """All have been called: those whose refusals differ are of unknown weights."""
        if self.change.version is not None:
            return
        refusals = {m.refusal for m in self._members.values() if self.rows[m.worker].answered}
        if len(refusals) > 1:
            self._unsure()


def _said(error: str, code: str) -> dict[str, object]:
    return {"error": error, "code": code, "success": False}
