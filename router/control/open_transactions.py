"""Changes of many calls, or made past the router: `POST /weights/begin`, `/commit`, `/abort`.

From begin to commit the workers are fenced and idle, and belong to the client that began.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import trio
from attrs import define, evolve, field

from ..errors import BadRequest, Conflict, NotFound, PoolUnavailable
from ..pool.match import Targets, no_workers, select
from ..pool.pools import pool_and_model
from ..pool.weights import Change, Meaning, meaning, number_of, wraps
from ..pool.weights.answers import alike, words
from ..pool.weights.recipe import (
    COLLECTIVES,
    DISK,
    PUSHES,
    SET_LORA,
    SETS,
    TENSOR,
    UPDATES,
    pushes_lora,
    step_of,
)
from ..pool.worker import Worker
from .calls import Claim, Outcome, Row, answer
from .fenced_change import FencedChange
from .operations import Operation, Operations, Work
from .pushed import LoraWatch
from .refit import GROUPS, SIGNALS, Choose, LoraActive, Order, WeightControl

logger = logging.getLogger("router.control")


NEUTRAL = (*GROUPS, *SIGNALS)  # calls that say nothing about the weights
# Calls around the weights, which bring none.
_BRACKETS = ("/begin_weight_update", "/end_weight_update")
_ONLY_LORAS = '. A transaction of LoRAs only begins with "lora": true'


class UnknownTransaction(NotFound):
    """The transaction never began, or is over: committed, aborted, or out of time."""

    default_code = "unknown_transaction"


class NothingApplied(Conflict):
    """No worker has applied all of the transaction."""

    default_code = "nothing_applied"


@define(eq=False)
class OpenTransaction(FencedChange):
    """An open transaction."""

    deferred: Sequence[Worker] = field(init=False, default=())
    begun: bool = field(init=False, default=False)  # the client knows the transaction's id
    # Why workers have left; the weights of these workers are unknown.
    left: dict[Worker, str] = field(init=False, factory=dict)
    told: Sequence[Worker] = field(init=False, default=())  # the workers that the client knows of
    # Workers that refused a part, or may have applied only a part: they lack the whole.
    spoilt: set[Worker] = field(init=False, factory=set)
    # Workers named by a call that brought weights to these workers only: the parts may differ, so
    # the other workers lack something.
    named: set[Worker] = field(init=False, factory=set)
    # Calls of one worker come one after another, in order of arrival.
    turns: Operations = field(init=False, factory=Operations)
    over: trio.Event = field(init=False, factory=trio.Event)

    @property
    def present(self) -> list[Worker]:
        """The workers that have not left."""
        return [worker for worker in self.claims if worker not in self.left]

    @property
    def whole(self) -> list[Worker]:
        """The workers that have all of it, as far as its calls say. Without a call that names
        workers, the client has pushed the same to all of them."""
        named = self.named or self.claims
        return [w for w in self.present if w in named and w not in self.spoilt]

    @property
    def missing(self) -> str | None:
        """Why no collective can end, if a worker has left: the others would wait for it."""
        gone = [f"{w.worker_id} ({self.left[w]})" for w in self.told if w in self.left]
        if not gone:
            return None
        return (
            f"This call needs all workers of the transaction. These have left: {', '.join(gone)}."
            " Abort, form the group anew, and begin again"
        )

    def check(self, workers: Sequence[Worker]) -> None:
        """Raises BadRequest, which names the workers that are not of the transaction."""
        if strangers := [w.worker_id for w in workers if w not in self.claims]:
            raise BadRequest(
                f"Not part of the transaction: {', '.join(strangers)}",
                code="invalid_field",
                details={"workers": strangers},
            )

    async def record(self, claim: Claim) -> None:
        """A worker has answered a call, or leaves."""
        if claim.call is None or claim.left is not None:
            assert claim.row is not None
            self.part(claim.worker, words(claim.row.body))

    def part(self, worker: Worker, why: str) -> None:
        """A worker leaves. After the begin there may have been a call: its weights are then
        unknown."""
        if worker in self.left or self.over.is_set():
            return
        self.left[worker] = why
        if self.begun:
            self.ledgers.unknown(self.change, worker, why)
        else:
            self.ledgers.release(worker, why)
        self.let_go(worker)

    def applied_by(self, rows: list[Row], path: str, *, lora: bool) -> list[Row]:
        """The rows whose call was applied; workers that may have applied a part are spoilt. A
        refusal that all workers share changed nothing."""
        applied: list[Row] = []
        shared = len({alike(row.status, row.body) for row in rows}) == 1
        for row in rows:
            what = meaning(path, row.status, row.body, sent=row.sent)
            done = what is Meaning.APPLIED
            if (done and lora and path in SETS) or (
                row.answered and wraps(path, row.status, row.body)
            ):
                self.ledgers.wrapped(row.worker, self.claims[row.worker].incarnation)
            if done:
                applied.append(row)
                continue
            self.change.error = words(row.body)
            if what is Meaning.UNKNOWN or (what is Meaning.REFUSED and not shared):
                self.spoilt.add(row.worker)
        return applied

    def release(self, touched: Sequence[Worker] | None, why: str = "it was not completed") -> None:
        """The transaction is over: let the workers go. The weights of `touched` workers (None: all)
        are unknown."""
        if self.over.is_set():
            return
        self.over.set()
        for worker in self.present:
            if touched is None or worker in touched:
                self.ledgers.unknown(self.change, worker, why)
            else:
                self.ledgers.release(worker, "the transaction is over")
        self.ledgers.close(self.change)


@define(eq=False)
class Transactions:
    """The transactions that clients hold open, at most one per model."""

    weights: WeightControl
    _open: dict[str, OpenTransaction] = field(init=False, factory=dict)

    async def begin(
        self,
        choose: Choose,
        label: str | None,
        within: float,
        number: int | str | None = None,
        *,
        lora: bool = False,
    ) -> Outcome:
        """Fence and drain the workers, and hold them for at most `within` seconds. `number`: the
        version that the client wants for it. `lora`: it is of LoRAs only, whoever makes its calls.
        Raises NotGreater, LoraActive."""
        control = self.weights
        control.store.check()
        model = control.one_model(choose())
        name = label or (None if number is None else str(number))
        change = control.ledgers.make(uuid4().hex, model, "", None, name)
        change.lora = change.only_lora = lora
        hold = partial(self._hold, change, choose, within, number)
        workers = control.ledgers.workers_of(model)
        operation = control.operations.start(hold, workers, model, begun=False)
        try:
            return await operation.result()
        except trio.Cancelled:
            if change.change_id in self._open:  # no client knows the id: nothing can have happened
                self._open[change.change_id].release(touched=())
            raise

    def chosen(self, txn: str, workers: str | None) -> list[Worker]:
        """The workers of the transaction: those named (`?workers=`), or all that have not left.

        Raises UnknownTransaction, BadRequest, NotFound.
        """
        opened = self._find(txn)
        if workers is None:
            return opened.present
        chosen = select(self.weights.registry, model=None, workers=workers)
        opened.check(chosen)
        return chosen

    async def call(self, txn: str, order: Order) -> Outcome:
        """Make one call of the transaction, on the workers that the order names or on all of them.
        Calls for different workers run side by side. The call goes on if the caller is cancelled,
        like `commit` and `abort`."""
        named = None if order.who[1] is None else self.chosen(txn, order.who[1])
        return await self._finish(lambda _: self._call(txn, order, named))

    async def _call(self, txn: str, order: Order, named: list[Worker] | None) -> Outcome:
        opened = self._find(txn)
        async with opened.turns.take(opened.claims if named is None else named):
            self._find(txn)
            control, change, path = self.weights, opened.change, order.call.path
            every = named is None or path in COLLECTIVES
            for worker in opened.present if every or named is None else named:
                if worker.suspicion is not None:
                    opened.part(worker, "it may be another process")
            workers = [w for w in opened.present if named is None or w in named]
            if named is None and not workers:
                raise no_workers()
            call, lora = order.call, pushes_lora(path, order.content or {})

            async def prepare(pushes: bool, _: object = None) -> None:
                nonlocal lora
                lora = pushes or path not in UPDATES
                if not lora:
                    if change.only_lora:
                        raise LoraActive(
                            "The transaction has begun as a LoRA change: its workers may skip"
                            " wrapped layers in an update, and still answer 200",
                            details={"workers": [worker.worker_id for worker in workers]},
                        )
                    control.check_loras(path, change.model, workers)
                else:
                    change.lora = True
                    for worker in workers:
                        control.ledgers.expect_lora(worker, wraps=path in SETS)
                await control.store.commit()

            step = None
            if not isinstance(call.body, bytes):
                call = evolve(call, body=LoraWatch(call.body, prepare))
            elif path not in NEUTRAL:
                await prepare(lora)
                if order.content is not None and path not in PUSHES:
                    step = step_of(path, json.dumps(order.content), order.content)
            claims = [opened.claims[worker] for worker in workers if worker not in opened.left]
            failure = None
            if path in COLLECTIVES and (missing := opened.missing):
                rows = [Row.failed(w, missing, "left_change", sent=False) for w in workers]
            else:
                failure = await opened.send(claims, call)
                rows = [claim.row for claim in claims if claim.row is not None]
                for claim in claims:
                    claim.send(None)
                control.agents.look(workers)
            # With the same call for all workers, the trainer may yet correct it.
            part = named if named is not None and set(named) != set(opened.claims) else ()
            applied: list[Row] = []
            if path not in NEUTRAL:
                if failure is None:
                    applied = opened.applied_by(rows, path, lora=lora)
                if path not in _BRACKETS:
                    opened.named.update(part)
                if part or applied:
                    opened.spoilt.update({*workers}.difference(row.worker for row in applied))
            if failure is not None:
                raise failure
            if applied:
                if lora and (part or step is None):
                    step = step_of(TENSOR, "{}", {})
                if not lora and (part or step is None):
                    change.opaque = True
                elif step is not None:
                    change.steps.append(step)
            if named is not None:
                gone = [worker for worker in named if worker not in workers]
                rows += [Row.failed(w, opened.left[w], "left_change", sent=False) for w in gone]
        status, said = answer(rows, Targets(workers, ()))
        said["txn"] = txn
        said["weight_version"] = control.ledgers.ledger(change.model).version
        return status, said

    async def commit(
        self,
        txn: str,
        label: str | None,
        number: int | str | None = None,
        having: Sequence[str] | None = None,
    ) -> Outcome:
        """Issue one version for the whole transaction, and let the workers go. `number`: the
        version that the client wants, instead of the one at the beginning. `having`: the workers
        (ids) that have all of it, as the client knows; None: as the calls say. A worker that failed
        a call never has.

        Raises UnknownTransaction; BadRequest, NotFound; NotGreater; NothingApplied if no worker has
        applied all of it, which also aborts it; StateUnavailable.
        """
        return await self._finish(lambda _: self._commit(txn, label, number, having))

    async def _commit(
        self, txn: str, label: str | None, number: int | str | None, having: Sequence[str] | None
    ) -> Outcome:
        opened = self._find(txn)
        async with opened.turns.take(opened.claims):
            self._find(txn)
            control, change = self.weights, opened.change
            # Without the disk, or with such a number, it stays open and may be committed later.
            control.store.check()
            if number is None:
                number = change.chosen  # a statement may have overtaken it
            elif change.label is None or number_of(change.label) is not None:
                label = label or str(number)
            good = opened.whole
            if having is not None:
                told = self._members(opened, having)
                good = [w for w in opened.present if w in told and w not in opened.spoilt]
            control.ledgers.choose(change, number)
            if not good or change.outdated:
                opened.release(touched=None)
                why = "A new run has begun" if change.outdated else "No worker has all of it"
                raise NothingApplied(f"{why}: the transaction is aborted")
            if change.only_lora and not change.steps:  # pushed past the router
                change.steps.append(step_of(TENSOR, "{}", {}))
            version = control.ledgers.commit(change, label)
            for worker in good:
                process = opened.claims[worker].incarnation or 0
                control.ledgers.applied(change, worker, process)
            bad = [worker for worker in opened.claims if worker not in good]
            try:
                await control.store.commit()
            finally:
                opened.release(touched=bad)
            bad += control.ledgers.behind(good, opened.deferred)
            # A worker whose process may have ended serves again only once it proves the same.
            bad += [w for w in good if w.suspicion is not None and w not in bad]
            return 200 if not bad else 502, {
                "txn": txn,
                "weight_version": version,
                "label": change.label,
                "workers": [worker.worker_id for worker in good if worker not in bad],
                "behind": [worker.worker_id for worker in bad],
                "deferred": Targets(good, opened.deferred).deferred_rows(),
                "success": not bad,
            }

    async def abort(self, txn: str, touched: Sequence[str] | None) -> Outcome:
        """Abort it. The weights of the `touched` workers (ids; None: all) are unknown."""
        return await self._finish(lambda _: self._abort(txn, touched))

    async def _abort(self, txn: str, touched: Sequence[str] | None) -> Outcome:
        opened = self._find(txn)
        workers = None if touched is None else self._members(opened, touched)
        opened.release(touched=workers)
        await self.weights.store.commit()
        lost = list(opened.claims) if workers is None else workers
        return 200, {"txn": txn, "unknown": [worker.worker_id for worker in lost]}

    def _members(self, opened: OpenTransaction, names: Sequence[str]) -> list[Worker]:
        workers = [self.weights.registry.get(name) for name in names]
        opened.check(workers)
        return workers

    async def _finish(self, work: Work[Outcome]) -> Outcome:
        return await self.weights.operations.start(work).result()

    async def _hold(
        self,
        change: Change,
        choose: Choose,
        within: float,
        number: int | str | None,
        operation: Operation[Outcome],
    ) -> Outcome:
        """Answer the client that began once the workers are idle, and hold them until the
        transaction is over. Until the answer, the transaction ends with its client."""
        control = self.weights
        opened = OpenTransaction(change, operation, control.agents, control.ledgers, control.store)
        try:
            kind = SET_LORA if change.only_lora else ""
            targets = await control.targets(choose, operation, kind, last=True)
            control.ledgers.choose(change, number)
            if not targets.eligible:
                raise no_workers(targets.deferred)
            if not change.only_lora:
                control.check_loras(DISK, change.model, targets.eligible, _ONLY_LORAS)
            opened.deferred = targets.deferred
            async with opened.fenced(targets.eligible, "a transaction was begun"):
                for claim in opened.claims.values():
                    await claim.idle.wait()
                if not opened.present:
                    raise _nobody_left(opened)
                await operation.begin()
                opened.begun, self._open[change.change_id] = True, opened
                opened.told = opened.present
                said = 200, self._begun(opened, within)
                operation.tell(said)
                with trio.move_on_after(within):
                    await opened.over.wait()
                if not opened.over.is_set():
                    logger.warning("transaction %s was not committed in time", change.change_id)
                    async with opened.turns.take(opened.claims):
                        opened.release(touched=None, why="it was not committed in time")
        finally:
            self._open.pop(change.change_id, None)
            if not opened.begun and opened.claims:
                opened.release(touched=())
        return said

    def _begun(self, opened: OpenTransaction, within: float) -> dict[str, Any]:
        change = opened.change
        pool, model = pool_and_model(change.model)
        return {
            "txn": change.change_id,
            "model": model,
            "pool": pool,
            "workers": [worker.worker_id for worker in opened.present],
            "deferred": Targets(opened.present, opened.deferred).deferred_rows(),
            "weight_version": self.weights.ledgers.ledger(change.model).version,
            "timeout": within,
        }

    def _find(self, txn: str) -> OpenTransaction:
        opened = self._open.get(txn)
        if opened is None or opened.over.is_set():
            raise UnknownTransaction(f"No transaction {txn!r} is open")
        return opened


def _nobody_left(opened: OpenTransaction) -> PoolUnavailable:
    """The error if all workers left before they were idle, or were busy for too long."""
    left = {worker.worker_id: why for worker, why in opened.left.items()}
    said = "; ".join(f"{name}: {why}" for name, why in left.items())
    return PoolUnavailable(
        f"No worker could be held for the transaction: {said}",
        code="no_workers",
        details={"left": left},
    )
