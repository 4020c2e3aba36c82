"""Changes of many calls, or made past the router: `POST /weights/begin`, `/commit`, `/abort`.

From begin to commit the workers are fenced and idle, and belong to the client that began.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import trio
from attrs import define, field

from ..errors import Conflict, NotFound, PoolUnavailable
from ..pool.match import Targets, no_workers, select
from ..pool.pools import pool_and_model
from ..pool.weights import Change, number_of
from ..pool.weights.recipe import (
    DISK,
    SET_LORA,
    TENSOR,
    step_of,
)
from ..pool.worker import Worker
from .calls import Outcome, answer
from .open_transaction import OpenTransaction
from .operations import Operation, Work
from .order import Choose, Order
from .refit import WeightControl

logger = logging.getLogger("router.control")

_ONLY_LORAS = '. A transaction of LoRAs only begins with "lora": true'


class UnknownTransaction(NotFound):
    """The transaction never began, or is over: committed, aborted, or out of time."""

    default_code = "unknown_transaction"


class NothingApplied(Conflict):
    """No worker has applied all of the transaction."""

    default_code = "nothing_applied"


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
            rows = await self._find(txn).call(self.weights, order, named)
        status, said = answer(rows, Targets((), ()))
        said["txn"] = txn
        said["weight_version"] = self.weights.ledgers.ledger(opened.change.model).version
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
            opened.done = len(good)
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
                control.check_loras(DISK, targets.eligible, _ONLY_LORAS)
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
