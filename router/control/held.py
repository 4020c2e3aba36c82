"""Changes of many calls, or made past the router: `POST /weights/begin`, `/commit`, `/abort`.

From begin to commit the workers are fenced and idle, and belong to whoever began.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any, TypeAlias
from uuid import uuid4

import trio
from attrs import define, field

from ..errors import BadRequest, Conflict, NotFound, RouterError, StateUnavailable
from ..pool import events
from ..pool.targets import Targets, no_workers
from ..pool.weights import Change, Kind, Meaning, meaning
from ..pool.weights.answers import words
from ..pool.weights.recipe import DISK, TENSOR, step_of
from ..pool.worker import Worker
from .broadcast import Row, answer, broadcast
from .refit import Choose, Order, WeightControl
from .transaction import DEPARTURES, Member, departure
from .turns import Turn

logger = logging.getLogger("router.control")

Answer: TypeAlias = tuple[int, dict[str, Any]]


class UnknownTransaction(NotFound):
    """It was never begun, or is over: committed, aborted, or out of time."""

    default_code = "unknown_transaction"


class NothingApplied(Conflict):
    """No worker has all of the transaction."""

    default_code = "nothing_applied"


@define(eq=False)
class Held:
    """A transaction that is open."""

    change: Change
    turn: Turn
    members: dict[Worker, Member] = field(factory=dict)
    deferred: Sequence[Worker] = ()
    # Those that refused a part of it, or may have: they will not have all.
    spoilt: set[Worker] = field(factory=set)
    lock: trio.Lock = field(factory=trio.Lock)
    ready: trio.Event = field(factory=trio.Event)  # all are idle, or have left
    over: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    begun: bool = False
    error: RouterError | None = None

    @property
    def txn(self) -> str:
        return self.change.change_id

    @property
    def present(self) -> list[Worker]:
        """The workers that have not left."""
        return [member.worker for member in self.members.values() if member.left is None]


@define(eq=False)
class Transactions:
    """The transactions that clients hold open, at most one for each model."""

    weights: WeightControl
    _open: dict[str, Held] = field(init=False, factory=dict)

    def __attrs_post_init__(self) -> None:
        self.weights.registry.subscribe(self._observe, *DEPARTURES)

    async def begin(self, choose: Choose, label: str | None, within: float) -> Answer:
        """Fence and drain the workers, and hold them for `within` seconds at most."""
        control = self.weights
        control.store.check()
        model, _ = control.one_model(choose())
        change = control.ledgers.make(uuid4().hex, model, "", None, label)
        held = Held(change, control.queue(model))
        control.errands.start(lambda _: self._hold(held, choose, within))
        try:
            await held.ready.wait()
        except BaseException:
            if not held.begun:
                held.scope.cancel()
            else:  # nobody knows its name: nothing can have happened
                self._release(held, touched=())
            raise
        if held.error is not None:
            raise held.error
        present = held.present
        return 200, {
            "txn": held.txn,
            "model": model,
            "workers": [worker.worker_id for worker in present],
            "deferred": Targets(present, held.deferred).deferred_rows(),
            "weight_version": control.ledgers.ledger(model).version,
            "timeout": within,
        }

    async def call(self, txn: str, order: Order) -> Answer:
        """Make one call of the transaction on all of its workers."""
        held = self._find(txn)
        async with held.lock:
            self._find(txn)
            control, change, path = self.weights, held.change, order.call.path
            for member in held.members.values():
                if member.worker.suspicion is not None:
                    self._part(held, member, "it may be another process")
            workers = held.present
            if not workers:
                raise no_workers()
            control.check_loras(path, change.model, workers)
            step = None
            if order.content is not None and isinstance(order.call.body, bytes):
                step = step_of(path, json.dumps(order.content), order.content)
            for worker in workers:
                held.members[worker].called = worker.incarnation
                if path not in (DISK, TENSOR):
                    control.ledgers.forewarn_of_lora(worker)
            await control.store.commit()
            rows = await broadcast(control.client, workers, order.call)
            applied = self._weigh(held, rows, path)
            if applied:
                part = control.ledgers.make(txn, change.model, path, None, None)
                change.opaque = change.opaque or part.kind is Kind.TENSOR or step is None
                if step is not None and part.kind is not Kind.TENSOR:
                    change.steps.append(step)
                held.spoilt.update(row.worker for row in rows if row not in applied)
        status, said = answer(rows, Targets(workers, ()))
        said["txn"] = txn
        said["weight_version"] = control.ledgers.ledger(change.model).version
        return status, said

    async def commit(self, txn: str, label: str | None) -> Answer:
        """Issue one version for all of it, and let the workers go.

        Raises UnknownTransaction; NothingApplied if no worker has all of it, and then it is as
        if it had been aborted; StateUnavailable.
        """
        held = self._find(txn)
        async with held.lock:
            self._find(txn)
            control, change = self.weights, held.change
            control.store.check()  # it stays open, and may be committed once the disk is well
            good = [worker for worker in held.present if worker not in held.spoilt]
            if not good:
                self._release(held, touched=None)
                raise NothingApplied("No worker has all of the transaction; it is aborted")
            version = control.ledgers.commit(change, label)
            for worker in good:
                control.ledgers.applied(change, worker, worker.incarnation)
            bad = [worker for worker in held.members if worker not in good]
            try:
                await control.store.commit()
            finally:
                self._release(held, touched=bad)
            return 200 if not bad else 502, {
                "txn": txn,
                "weight_version": version,
                "label": change.label,
                "workers": [worker.worker_id for worker in good],
                "behind": [worker.worker_id for worker in bad],
                "deferred": Targets(good, held.deferred).deferred_rows(),
                "success": not bad,
            }

    async def abort(self, txn: str, touched: Sequence[str] | None) -> Answer:
        """Give it up. The workers that were `touched` (ids; None: all) are of unknown weights."""
        held = self._find(txn)
        workers: list[Worker] | None = None
        if touched is not None:
            workers = [self.weights.registry.get(name) for name in touched]
            if some := [w.worker_id for w in workers if w not in held.members]:
                raise BadRequest(
                    f"Not part of the transaction: {', '.join(some)}", code="invalid_field"
                )
        self._release(held, touched=workers)
        await self.weights.store.commit()
        lost = list(held.members) if workers is None else workers
        return 200, {"txn": txn, "unknown": [worker.worker_id for worker in lost]}

    async def _hold(self, held: Held, choose: Choose, within: float) -> None:
        control = self.weights
        try:
            with held.scope:
                async with control.turns.having(held.turn) as turn:
                    await trio.lowlevel.checkpoint_if_cancelled()
                    held.begun = True
                    await self._fence(held, turn, choose)
                    held.ready.set()
                    with trio.move_on_after(within):
                        await held.over.wait()
                    if not held.over.is_set():
                        logger.warning("transaction %s was not committed in time", held.txn)
                        async with held.lock:
                            self._release(held, touched=None, why="it was not committed in time")
        except RouterError as error:
            held.error = error
        held.ready.set()

    async def _fence(self, held: Held, turn: Turn, choose: Choose) -> None:
        control, change = self.weights, held.change
        found, chosen = control.one_model(choose())
        targets = control.members(turn, chosen)
        if found != change.model or not targets.eligible:
            raise no_workers()
        control.ledgers.open(change, targets.eligible)
        try:
            await control.store.commit()
        except StateUnavailable:
            control.ledgers.withdraw(change)
            raise
        if held.over.is_set():  # its client has left
            control.ledgers.close(change)
            return
        for worker in list(turn.workers.difference(targets.eligible)):
            turn.release(worker)
        held.deferred = targets.deferred
        held.members = {worker: Member(worker) for worker in targets.eligible}
        self._open[held.txn] = held
        for worker in held.members:
            control.ledgers.fence(worker, "a transaction was begun")
        async with trio.open_nursery() as nursery:
            for member in held.members.values():
                nursery.start_soon(self._drain, held, member)

    async def _drain(self, held: Held, member: Member) -> None:
        with member.scope:
            if not await self.weights.dispatcher.idle(member.worker, self.weights.drain_timeout):
                self._part(held, member, "its work did not end")

    def _weigh(self, held: Held, rows: list[Row], path: str) -> list[Row]:
        """Those rows that say that the call was applied; workers that may have applied a part of
        it are spoilt."""
        applied: list[Row] = []
        for row in rows:
            what = meaning(path, row.status, row.body, sent=row.sent)
            if what is Meaning.APPLIED:
                applied.append(row)
            else:
                held.change.error = words(row.body)
                if what is not Meaning.UNCHANGED:
                    held.spoilt.add(row.worker)
        return applied

    def _release(
        self, held: Held, touched: Sequence[Worker] | None, why: str = "it was not completed"
    ) -> None:
        """It is over: let the workers go, those that were touched as of unknown weights."""
        if held.over.is_set():
            return
        held.over.set()
        self._open.pop(held.txn, None)
        ledgers, change = self.weights.ledgers, held.change
        lost = set(held.members if touched is None else touched)
        for worker, member in held.members.items():
            if member.reported:
                continue
            member.reported = True
            member.scope.cancel()
            if worker in lost:
                ledgers.unknown(change, worker, why)
            else:
                ledgers.release(worker, "the transaction is over")
        ledgers.close(change)

    def _part(self, held: Held, member: Member, why: str) -> None:
        """A worker leaves the transaction. What it has nobody can say."""
        if member.left is None and not member.reported:
            member.left = why
            member.reported = True
            member.scope.cancel()
            if member.called is not None or held.ready.is_set():
                self.weights.ledgers.unknown(held.change, member.worker, why)
            else:
                self.weights.ledgers.release(member.worker, why)
            held.turn.release(member.worker)

    def _observe(self, event: events.Event) -> None:
        gone = departure(event)
        if gone is not None:
            for held in list(self._open.values()):
                if gone[0] in held.members:
                    self._part(held, held.members[gone[0]], gone[1])

    def _find(self, txn: str) -> Held:
        held = self._open.get(txn)
        if held is None:
            raise UnknownTransaction(f"No transaction {txn!r} is open")
        return held
