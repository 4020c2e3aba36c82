"""Sends a worker the weight changes that it lacks.

Workers that joined, new processes, workers that woke, and workers that missed or failed a change:
every reachable worker that is not current gets the missing changes before it is routable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from attrs import define, evolve, field

from ..errors import StateUnavailable
from ..pool.weights import Ledger, Ledgers, Meaning, Step, meaning, wraps
from ..pool.weights.answers import words
from ..pool.weights.recipe import FRESH, SET_LORA, UNMERGE, merged, step_of, taken_out
from ..pool.worker import Origin, Weights, Worker
from ..store.store import Store
from ..text import from_json
from .calls import Row, send
from .client import Call, ControlClient

logger = logging.getLogger("router.control")


@define(eq=False)
class Replayer:
    """Replays ledgers on workers. A worker's agent calls it while the worker is idle and reachable.

    `restart` starts a launched worker again; used only if nothing else can help the worker.
    """

    client: ControlClient
    ledgers: Ledgers
    store: Store
    call_timeout: float = 1800.0
    restart: Callable[[Worker], None] | None = None
    # Workers that were restarted and have not been current since: one restart must be enough.
    restarted: set[Worker] = field(init=False, factory=set)

    def lacks(self, worker: Worker) -> tuple[bool, bool]:
        """Whether a replay would make the worker current; and whether a pending change that the
        worker can take comes first."""
        ledger = self.ledgers.ledger_of(worker)
        if ledger is None or worker.removed or worker.weights is Weights.UPDATING:
            return False, False
        lags = worker.weights in (Weights.BEHIND, Weights.FAILED)
        due = ledger.due
        awaiting = due is not None and self.ledgers.may_begin(due, worker)
        return lags and self.ledgers.needs_replay(worker), awaiting

    def delayed(self, worker: Worker, reason: str) -> None:
        """The replay did not happen; it is due again."""
        self.ledgers.delayed(worker, reason)

    async def replay(self, worker: Worker) -> None:
        """Send the worker its plan. The outcome is in the ledgers."""
        ledger = self.ledgers.ledger_of(worker)
        assert ledger is not None
        plan, recipe, version = self.ledgers.plan(worker), ledger.recipe, ledger.version
        incarnation = worker.incarnation
        logger.info("worker %s: replaying weight version %d", worker.url, version)
        last_base = max((i for i, step in enumerate(plan.steps) if not step.is_lora), default=None)
        for number, step in enumerate(plan.steps):
            if not await self._send(worker, step, partial(self._is, worker, incarnation, ledger)):
                await self._save()
                return
            if number == last_base:
                self.ledgers.base_replayed(worker, recipe)
        if not self._is(worker, incarnation, ledger):
            return
        self.ledgers.replayed(worker, plan, recipe, f"version {version} was replayed on it")
        await self._save()

    async def _send(self, worker: Worker, step: Step, same: Callable[[], bool]) -> bool:
        """Send one call of a plan; returns whether the next call may follow. `same`: whether the
        plan is still about this worker."""
        before = self.ledgers.weight_state(worker)
        if not step.optional:
            self.ledgers.sending(worker, lora=step.is_lora)
            await self._save()
            if not same():
                return False
        call = Call.of_json(step.path, self.call_timeout, step.body.encode())
        row = await send(self.client, worker, call)
        if not same():
            return False
        what = meaning(step.path, row.status, row.body, sent=row.sent)
        if what is Meaning.APPLIED:
            return True
        if step.optional and row.answered and await self._acts_no_lora(worker):
            return True
        if what is Meaning.UNCHANGED:
            wrapped = before.wrapped or wraps(step.path, row.status, row.body)
            self.ledgers.returned(worker, evolve(before, wrapped=wrapped))
        reason = f"{step.path}: {words(row.body)}"
        if not row.answered:
            self.ledgers.delayed(worker, reason)
            return False
        ours = worker.origin is Origin.LAUNCHED and worker not in self.restarted
        # A fresh process would refuse the call again.
        if ours and self.restart is not None and before != FRESH:
            self.restarted.add(worker)
            self.ledgers.delayed(worker, f"{reason}; it is restarted")  # requests may wait for it
            self.restart(worker)
        else:
            self.ledgers.failed(worker, reason)
        return False

    async def call(self, worker: Worker, call: Call) -> Row:
        """Send a call of a change, and the calls without which the worker may skip it."""
        lora = call.path in (SET_LORA, UNMERGE) and isinstance(call.body, bytes)
        calls = self._calls(call) if lora and self.ledgers.skips(worker, call.path) else [call]
        row = await send(self.client, worker, calls[0])
        if not row.success:
            return row
        for following in calls[1:]:
            row = await send(self.client, worker, following)
            if not row.success:  # the calls before it have had an effect: no refusal
                why = f"{following.path}: {words(row.body)}"
                return Row.failed(worker, why, "worker_failed")
        return row

    def _calls(self, call: Call) -> list[Call]:
        """The calls with which a worker does not skip a LoRA call: a merge before an unmerge; a
        `set_lora` twice, with what acts taken out in between. Taken out before the first, it would
        be lost by a refusal."""
        assert isinstance(call.body, bytes)
        content = from_json(call.body)
        targets = step_of(call.path, "", content if isinstance(content, dict) else {}).modules or ()
        steps = merged(targets) if call.path == UNMERGE else taken_out(targets)
        between = [Call.of_json(s.path, call.within, s.body.encode()) for s in steps]
        return [*between, call] if call.path == UNMERGE else [call, *between, call]

    async def _acts_no_lora(self, worker: Worker) -> bool:
        """Whether the worker says that no LoRA is active."""
        row = await send(
            self.client, worker, Call("/v1/list_loras", self.call_timeout, method="GET")
        )
        return row.status == 200 and isinstance(row.body, dict) and not row.body.get("active")

    def _is(self, worker: Worker, incarnation: int, ledger: Ledger) -> bool:
        """Whether this is still the same registration of the same process, in the same pool."""
        same = worker.incarnation == incarnation and not worker.removed
        return same and self.ledgers.ledger_of(worker) is ledger

    async def _save(self) -> None:
        try:
            await self.store.commit()
        except StateUnavailable as error:
            logger.warning("what was replayed is not on the disk: %s", error)
