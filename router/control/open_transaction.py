"""One open transaction: its workers, their calls, and which workers have all of it."""

from __future__ import annotations

import json
from collections.abc import Sequence

import trio
from attrs import define, evolve, field

from ..errors import BadRequest
from ..pool.match import no_workers
from ..pool.weights import Meaning, meaning, wraps
from ..pool.weights.answers import alike, words
from ..pool.weights.recipe import (
    COLLECTIVES,
    GROUPS,
    PUSHES,
    SETS,
    TENSOR,
    UPDATES,
    pushes_lora,
    step_of,
)
from ..pool.worker import Worker
from .calls import Claim, Row
from .fenced_change import FencedChange
from .operations import Operations
from .order import SIGNALS, Order
from .pushed import LoraWatch
from .refit import LoraActive, WeightControl

NEUTRAL = (*GROUPS, *SIGNALS)  # calls that say nothing about the weights
# Calls around the weights, which bring none.
_BRACKETS = ("/begin_weight_update", "/end_weight_update")


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
    # The last call that was to bring weights to all workers has brought them to none.
    owing: bool = field(init=False, default=False)
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
        return [w for w in self.present if w in named and w not in self.spoilt and not self.owing]

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
            self.failed(worker, None, why, self.agents.grace)
            self.ledgers.unknown(self.change, worker, why)
        else:
            self.ledgers.release(worker, why)
        self.let_go(worker)

    async def call(
        self, control: WeightControl, order: Order, named: Sequence[Worker] | None
    ) -> list[Row]:
        """Make a call on the named workers, or on all. Raises PoolUnavailable, LoraActive,
        StateUnavailable, and the errors of reading a streamed body."""
        call, path = order.call, order.call.path
        for worker in self.present if named is None or path in COLLECTIVES else named:
            if worker.suspicion is not None:
                self.part(worker, "it may be another process")
        workers = [w for w in self.present if named is None or w in named]
        if named is None and not workers:
            raise no_workers()
        lora = path not in UPDATES or pushes_lora(path, order.content or {})
        if isinstance(call.body, bytes):
            if path not in NEUTRAL:
                await self._prepare(control, path, workers, lora=lora)
        else:

            async def proved(pushes: bool, _: object) -> None:
                nonlocal lora
                lora = pushes
                await self._prepare(control, path, workers, lora=lora)

            call = evolve(call, body=LoraWatch(call.body, proved))
        failure, rows = None, []
        if path in COLLECTIVES and (missing := self.missing):
            rows = [Row.failed(w, missing, "left_change", sent=False) for w in workers]
        else:
            claims = [self.claims[worker] for worker in workers if worker not in self.left]
            failure = await self.send(claims, call)
            rows = [claim.row for claim in claims if claim.row is not None]
            for claim in claims:
                claim.send(None)
            self.agents.look(workers)
        # With the same call for all workers, the trainer may yet correct it.
        part = named if named is not None and set(named) != set(self.claims) else ()
        if path not in NEUTRAL:
            applied = self._applied(rows, path, lora=lora) if failure is None else []
            if path not in _BRACKETS:
                self.named.update(part)
                self.owing = self.owing if part else not applied
            if part or applied:
                self.spoilt.update(set(workers).difference(applied))
            if applied:
                self._note(order, repeatable=not part, lora=lora)
        if failure is not None:
            raise failure
        gone = [worker for worker in named or () if worker not in workers]
        return rows + [Row.failed(w, self.left[w], "left_change", sent=False) for w in gone]

    async def _prepare(
        self, control: WeightControl, path: str, workers: Sequence[Worker], *, lora: bool
    ) -> None:
        """Refuse an update that would miss wrapped layers; note that a LoRA may come."""
        if lora:
            self.change.lora = True
            for worker in workers:
                self.ledgers.expect_lora(worker, wraps=path in SETS)
        elif self.change.only_lora:
            raise LoraActive(
                "The transaction has begun as a LoRA change: its workers may skip wrapped layers in"
                " an update, and still answer 200",
                details={"workers": [worker.worker_id for worker in workers]},
            )
        else:
            control.check_loras(path, workers)
        await self.store.commit()

    def _applied(self, rows: Sequence[Row], path: str, *, lora: bool) -> list[Worker]:
        """The workers that have applied a call; those that may have applied a part are spoilt. A
        refusal that all workers share changed nothing."""
        applied: list[Worker] = []
        shared = len({alike(row.status, row.body) for row in rows}) == 1
        for row in rows:
            what = meaning(path, row.status, row.body, sent=row.sent)
            done = what is Meaning.APPLIED
            if (done and lora and path in SETS) or (
                row.answered and wraps(path, row.status, row.body)
            ):
                self.ledgers.wrapped(row.worker, self.claims[row.worker].incarnation)
            if done:
                applied.append(row.worker)
                continue
            self.change.error = words(row.body)
            if what is Meaning.UNKNOWN or (what is Meaning.REFUSED and not shared):
                self.spoilt.add(row.worker)
        return applied

    def _note(self, order: Order, *, repeatable: bool, lora: bool) -> None:
        """Note what a replay must repeat of a call, or that it cannot be repeated."""
        path, step = order.call.path, None
        if repeatable and path not in PUSHES and order.content is not None:
            step = step_of(path, json.dumps(order.content), order.content)
        elif lora:
            step = step_of(TENSOR, "{}", {})
        if step is None:
            self.change.opaque = True
        else:
            self.change.steps.append(step)

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
