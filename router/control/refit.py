"""Weight and LoRA changes on the workers of a model, and questions about weights."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

import trio
from attrs import define, evolve, field

from ..errors import BadRequest, Conflict, PoolUnavailable, StateUnavailable
from ..pool.lifecycle import reachable
from ..pool.match import Targets, no_workers
from ..pool.registry import Registry
from ..pool.weights import Change, Ledger, Ledgers, label_of
from ..pool.weights.numbers import check_length
from ..pool.weights.recipe import (
    DISK,
    GROUPS,
    PUSHES,
    SET_LORA,
    UPDATES,
    pushes_lora,
)
from ..pool.worker import Health, Memory, Origin, Worker
from ..store.store import Store
from ..text import from_json
from .agent import Agents
from .calls import Outcome, Pipe, Row, answer, broadcast
from .client import Call
from .fenced_change import OneCallChange, Rolling
from .operations import Operation, Operations
from .order import Choose, Order
from .pushed import LoraWatch, version_in, version_of

logger = logging.getLogger("router.control")

# Seconds after a start that pending changes wait for the first probes of all workers.
_FIRST_PROBES = 10.0


class LoraActive(Conflict):
    """Some of the workers had a LoRA since their start: an update would miss wrapped layers."""

    default_code = "lora_active"


@define(eq=False)
class WeightControl:
    """Changes weights, one change at a time per model, in order of arrival.

    `call_timeout`: seconds for the answer to a change that had to wait. `full_tensors`: tensors
    replace all weights unless a request says otherwise.
    """

    agents: Agents
    ledgers: Ledgers
    store: Store
    call_timeout: float = 1800.0
    full_tensors: bool = False
    registry: Registry = field(init=False)
    operations: Operations = field(init=False)
    _probed: float = field(init=False, factory=lambda: trio.current_time() + _FIRST_PROBES)

    def __attrs_post_init__(self) -> None:
        self.registry, self.operations = self.agents.registry, self.agents.operations
        self.agents.catch_up = self.catch_up

    async def change(self, order: Order) -> Outcome:
        """Make the change; returns status and body of the answer. Joins an equal change that waits
        or runs.

        The change goes on if the caller is cancelled, unless its turn has not come. Raises
        BadRequest (`ambiguous_target`), Conflict (`lora_active`, `weight_version_not_greater`),
        PoolUnavailable, StateUnavailable.
        """
        self.store.check()
        model = self.one_model(order.choose())
        work = partial(self._change, order, model)
        workers = self.ledgers.workers_of(model)
        operation = self.operations.start(work, workers, model, order.digest, begun=False)
        return await operation.result()

    def one_model(self, chosen: list[Worker]) -> str:
        """The model that the chosen workers serve. Raises BadRequest if they serve several,
        PoolUnavailable if no worker's model is known."""
        models = dict.fromkeys(self.ledgers.model_of(worker) for worker in chosen)
        models.pop(None, None)
        names = [name for name in models if name is not None]
        if len(names) > 1:
            raise BadRequest(
                f"The workers serve several models ({', '.join(names)}): "
                "a change is made on those of one model",
                code="ambiguous_target",
                details={"models": names},
            )
        if not names:
            raise no_workers()
        return names[0]

    def members(self, operation: Operation[Any], chosen: list[Worker], path: str = "") -> Targets:
        """The chosen workers that get a change whose turn has come. A worker that joined later is
        taken in, unless another operation holds it or waits for it."""
        targets = Targets.of((w for w in chosen if not w.removed), awake=True)
        eligible = [
            worker
            for worker in targets.eligible
            if self.ledgers.model_of(worker) == operation.model
            and self.ledgers.can_take(worker, path)
            and self.operations.extend(operation, worker)
        ]
        left = [w for w in targets.eligible if w not in eligible]
        return Targets(eligible, [*targets.deferred, *left])

    def check_loras(self, path: str, workers: Sequence[Worker], hint: str = "") -> None:
        """Raises LoraActive if an update would miss layers of some workers."""
        if path in UPDATES and (some := self.ledgers.had_lora(workers)):
            raise LoraActive(
                "These workers had a LoRA since their start. They would skip its wrapped layers in"
                " an update, and still answer 200. Take out a LoRA that acts"
                " (/v1/unmerge_lora_weights), then restart these workers; ?unwrap=true does both"
                f" for those that the router launched{hint}",
                details={
                    "workers": [worker.worker_id for worker in some],
                    "launched": [w.worker_id for w in some if w.origin is Origin.LAUNCHED],
                },
            )

    async def catch_up(self, worker: Worker) -> None:
        """Make the pending changes of this worker's model, in their turn. The work goes on if the
        caller is cancelled."""
        model = self.ledgers.model_of(worker)
        if model is None:
            return
        work = self.operations.start(lambda _: self._catch_up(model), identity=("pending", model))
        await work.result()

    async def _catch_up(self, model: str) -> None:
        ledger = self.ledgers.ledger(model)
        try:
            left = max(0.0, self._probed - trio.current_time())
            await self.agents.until(lambda: not any(map(_unprobed, self.registry)), left)
            workers = self.ledgers.workers_of(model)
            async with self.operations.take(workers, model) as operation:
                await self._make_what_came_before(ledger, operation)
        except StateUnavailable as error:
            logger.warning("a pending change of model %s waits: %s", model, error)

    async def targets(
        self, choose: Choose, operation: Operation[Any], path: str = "", *, last: bool = False
    ) -> Targets:
        """The workers that get a change whose turn has come, once the earlier pending changes are
        made: as many as can be made now or, with `last`, all.

        Raises BadRequest, PoolUnavailable.
        """
        chosen = choose()
        if self.one_model(chosen) != operation.model:
            raise no_workers()  # the intended workers are gone
        ledger = self.ledgers.ledger(operation.model)
        await self._make_what_came_before(ledger, operation)
        targets = self.members(operation, chosen, path)
        deadline = trio.current_time() + self.agents.drain_timeout
        while last and (due := ledger.due) is not None and targets.eligible:
            settled = partial(self._is_settled, due, operation)
            await self.agents.until(settled, max(0.0, deadline - trio.current_time()))
            late = trio.current_time() >= deadline
            if late or not self._ready(due, operation):
                raise PoolUnavailable(
                    f"{due.name} came before, and waits for a worker that can be given it",
                    code="change_pending",
                )
            await self._make_what_came_before(ledger, operation)
            targets = self.members(operation, chosen, path)
        return targets

    def _is_settled(self, change: Change, operation: Operation[Any]) -> bool:
        """Whether a worker can take a pending change, or none will without outside action."""
        workers = [w for w in operation.workers if reachable(w) and not w.is_sleeping]
        hope = any(w.suspicion is not None or self.ledgers.needs_replay(w) for w in workers)
        return bool(self._ready(change, operation)) or not hope

    def _ready(self, change: Change, operation: Operation[Any]) -> list[Worker]:
        """The workers that can take a pending change now."""
        targets = self.members(operation, self.ledgers.workers_of(change.model))
        certain = [worker for worker in targets.eligible if worker.suspicion is None]
        return [worker for worker in certain if self.ledgers.may_begin(change, worker)]

    async def _make_what_came_before(self, ledger: Ledger, operation: Operation[Any]) -> None:
        async with operation.unbroken():
            while (due := ledger.due) is not None and await self._make_pending(due, operation):
                pass

    async def _make_pending(self, change: Change, operation: Operation[Any]) -> bool:
        """Make a pending change; returns whether the change is no longer pending."""
        ledger, ready = self.ledgers.ledger(change.model), self._ready(change, operation)
        able = [w for w in ready if change.path != DISK or not self.ledgers.had_lora([w])]
        if not ready:
            return False
        earlier = ledger.before(change)
        if able:
            body = (change.body or "").encode()
            call = Call.of_json(change.path, self.call_timeout, body)
            # Changes behind this one need the workers too.
            await self._carry_out(change, call, able, operation, keeps=True)
            if earlier and change.version is not None:
                names = ", ".join(other.name for other in earlier)
                logger.info("model %s: %s replaced %s", change.model, change.name, names)
        else:
            change.error = "its workers had a LoRA since their start"
            self.ledgers.close(change)
        await self.store.commit()
        return change not in ledger.pending

    async def ask(self, chosen: list[Worker], call: Call) -> Outcome:
        """Ask every reachable worker; the answer also tells whether those of each model agree."""
        rows, (status, body) = await self._tell(chosen, call)
        first: dict[str | None, Any] = {}
        for row in rows:
            first.setdefault(self.ledgers.model_of(row.worker), row.body)
        agree = all(row.body == first[self.ledgers.model_of(row.worker)] for row in rows)
        body["consistent"] = body["success"] and agree
        return status, body

    async def tell(self, order: Order) -> Outcome:
        """Send a call that changes no weights to every reachable worker at the same moment. A call
        about a group waits for its turn among the changes of the workers' model."""
        if order.call.path not in GROUPS:
            return (await self._tell(order.choose(), order.call))[1]
        model = self.one_model(order.choose())

        async def work(_: Operation[Outcome]) -> Outcome:
            chosen = order.choose()
            order.check(Targets.of(chosen))
            return (await self._tell(chosen, order.call))[1]

        workers = self.ledgers.workers_of(model)
        return await self.operations.start(work, workers, model).result()

    async def _tell(self, chosen: list[Worker], call: Call) -> tuple[list[Row], Outcome]:
        targets = Targets.of(chosen)
        if not targets.eligible:
            raise no_workers()
        grace = self.agents.grace if call.path in GROUPS else math.inf
        rows = await broadcast(self.agents.client, targets.eligible, call, grace)
        return rows, answer(rows, targets)

    async def _change(self, order: Order, model: str, operation: Operation[Outcome]) -> Outcome:
        await operation.begin()
        path, body = order.call.path, order.call.body
        content = order.content or {}
        # Encoded anew: the client's JSON may be UTF-16, or start with a byte order mark.
        text = json.dumps(content) if path not in PUSHES and isinstance(body, bytes) else None
        ledger, call = self.ledgers.ledger(model), order.call
        lora = pushes_lora(path, content)
        kind = SET_LORA if lora else path  # a pushed LoRA goes where any LoRA may go
        # A change that cannot be repeated cannot wait on the disk behind pending changes.
        targets = await self.targets(order.choose, operation, kind, last=text is None)
        order.check(targets)
        # A worker that is awake and yet deferred is about to be brought to the current weights,
        # unless it waits for a change itself.
        sleepers = [
            w
            for w in targets.deferred
            if reachable(w)
            and (w.memory is not Memory.AWAKE or (w in operation.workers and not w.stuck))
        ]
        concerned = [*targets.eligible, *sleepers]
        if isinstance(body, bytes):
            self.check_loras(kind, concerned)
        label = label_of(path, content)
        change = self.ledgers.make(uuid4().hex, model, path, text, label, order.digest)
        change.lora = lora
        if isinstance(body, Pipe):  # refused before its tensors were sent, if its beginning says so
            self._number(change, version_in(body.beginning))
        elif self.ledgers.choose(change, content.get("weight_version")) is not None:
            return self._waits(change, targets)
        if not isinstance(body, bytes):
            proved = partial(self._prove, change, concerned, order.full)
            call = evolve(call, body=LoraWatch(body, proved))
        if ledger.pending and change.body is not None:
            later = [*targets.eligible, *sleepers]
            targets, sleepers = Targets((), [*targets.eligible, *targets.deferred]), later
        if not targets.eligible:
            if not sleepers:
                raise no_workers(targets.deferred)
            return await self._defer(change, targets, sleepers)
        change.full = path in PUSHES and (self.full_tensors if order.full is None else order.full)
        self._warn_of_repetition(change)
        able = list(targets.eligible)
        rows = await self._carry_out(change, call, able, operation, rolling=order.rolling)
        await self.store.commit()
        status, said = answer(rows, targets)
        behind = self.ledgers.behind(targets.eligible, targets.deferred)
        if behind and status == 200:
            status, said["success"] = 502, False
        said["behind"] = [worker.url for worker in behind]
        said["weight_version"] = self.ledgers.ledger(model).version
        return status, said

    async def _prove(
        self,
        change: Change,
        workers: list[Worker],
        full: bool | None,
        lora: bool,
        fields: Mapping[str, Any],
    ) -> None:
        """The end of a streamed body shows whether the change pushes a LoRA, whether its tensors
        replace all weights, and which version it wants to be. Raises BadRequest, LoraActive,
        NotGreater, StateUnavailable."""
        if not lora:
            self.check_loras(change.path, workers)
        version, said = version_of(fields), fields.get("full", change.full)
        if not isinstance(said, bool):
            raise BadRequest("full must be a boolean", code="invalid_field")
        change.full = said if full is None else full
        self._number(change, version)
        if lora or version is not None:
            self.ledgers.proved(change, lora=lora)
            await self.store.commit()

    def _number(self, change: Change, version: int | str | None) -> None:
        check_length("weight_version", version)
        if version is not None and str(version) != change.label:  # else the beginning said so
            self.ledgers.choose(change, version)
            change.label = str(version)

    async def _defer(self, change: Change, targets: Targets, sleepers: list[Worker]) -> Outcome:
        if change.body is None:
            raise PoolUnavailable(
                "All workers are asleep, and this change cannot be kept for them: wake them first",
                code="pool_asleep",
                details={"deferred": targets.deferred_rows()},
            )
        self.ledgers.defer(change, sleepers)
        await self.store.commit()
        return self._waits(change, targets)

    def _waits(self, change: Change, targets: Targets) -> Outcome:
        return 200, {
            "results": [],
            "deferred": targets.deferred_rows(),
            "behind": [],
            "weight_version": self.ledgers.ledger(change.model).version,
            "pending": True,
            "success": True,
        }

    async def _carry_out(
        self,
        change: Change,
        call: Call,
        workers: list[Worker],
        operation: Operation[Any],
        *,
        keeps: bool = False,
        rolling: Rolling | None = None,
    ) -> list[Row]:
        parts = self.agents, self.ledgers, self.store
        transaction = OneCallChange(change, operation, *parts, keeps=keeps, rolling=rolling)
        rows = await transaction.run(call, workers)
        what = change.name
        if change.version is None:
            logger.warning("model %s: %s changed nothing: %s", change.model, what, change.error)
        else:
            done = sum(row.success for row in rows)
            logger.info(
                "model %s: %s is weight version %d, applied by %d of %d workers",
                change.model,
                what,
                change.version,
                done,
                len(rows),
            )
        if transaction.undurable is not None:
            raise transaction.undurable
        return rows

    def _warn_of_repetition(self, change: Change) -> None:
        """Workers that read one path at different times may have different weights."""
        path = change.content.get("model_path")
        base = self.ledgers.ledger(change.model).recipe.base
        old = [from_json(step.body) or {} for step in base]
        if change.path == DISK and any(known.get("model_path") == path for known in old):
            logger.warning(
                "model %s: %s was loaded before: what a path holds must not change,"
                " or workers that replay it get other weights than those that have it",
                change.model,
                path,
            )


def _unprobed(worker: Worker) -> bool:
    unknown = worker.health is Health.UNKNOWN and worker.consecutive_failures == 0
    return unknown and not worker.is_plain
