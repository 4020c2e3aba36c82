"""Sends a worker the weight changes that it lacks.

Joiners, new processes, sleepers that woke, those that missed a change or failed one: whoever is
not current and can be called gets what it lacks, before it is routable.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from attrs import define, field

from ..errors import StateUnavailable
from ..pool.weights import Ledgers, Meaning, Step, meaning
from ..pool.weights.answers import words
from ..pool.weights.recipe import FRESH
from ..pool.worker import Origin, Weights, Worker
from ..store.store import Store
from .calls import send
from .client import Call, ControlClient

logger = logging.getLogger("router.control")


@define(eq=False)
class Replayer:
    """Replays ledgers on workers. Its agent calls it while the worker is idle and can be called.

    `restart`: starts a worker of ours again, which is tried where it can be helped in no other way.
    """

    client: ControlClient
    ledgers: Ledgers
    store: Store
    call_timeout: float = 1800.0
    restart: Callable[[Worker], None] | None = None
    # Those that were restarted, and are not current since: once must be enough.
    restarted: set[Worker] = field(init=False, factory=set)

    def lacks(self, worker: Worker) -> tuple[bool, bool]:
        """Whether a replay would bring the worker up; and whether a pending change, which it
        can be given, comes first."""
        ledger = self.ledgers.ledger_of(worker)
        if ledger is None or worker.removed or worker.weights is Weights.UPDATING:
            return False, False
        lags = worker.weights in (Weights.BEHIND, Weights.FAILED)
        awaiting = bool(ledger.pending) and self.ledgers.may_begin(ledger.pending[0], worker)
        return lags and self.ledgers.needs_replay(worker), awaiting

    def delayed(self, worker: Worker, reason: str) -> None:
        """The replay did not come about; it is due again."""
        self.ledgers.delayed(worker, reason)

    async def replay(self, worker: Worker) -> None:
        """Send the worker its plan. What came of it is in the ledgers."""
        ledger = self.ledgers.ledger_of(worker)
        assert ledger is not None
        plan, recipe, version = self.ledgers.plan(worker), ledger.recipe, ledger.version
        incarnation = worker.incarnation
        logger.info("worker %s: replaying weight version %d", worker.url, version)
        last_base = max((i for i, step in enumerate(plan.steps) if not step.is_lora), default=None)
        for number, step in enumerate(plan.steps):
            if not await self._send(worker, step, incarnation):
                await self._save()
                return
            if number == last_base:
                self.ledgers.base_replayed(worker, recipe)
        if not _is(worker, incarnation):
            return
        lora = any(step.is_lora and not step.optional for step in plan.steps)
        self.ledgers.replayed(
            worker, recipe, lora=lora, reason=f"version {version} was replayed on it"
        )
        await self._save()

    async def _send(self, worker: Worker, step: Step, incarnation: int) -> bool:
        """Send one call of a plan; whether the next one may follow."""
        before = self.ledgers.weight_state(worker)
        if not step.optional:
            self.ledgers.sending(worker, lora=step.is_lora)
            await self._save()
            if not _is(worker, incarnation):
                return False
        call = Call.of_json(step.path, self.call_timeout, step.body.encode())
        row = await send(self.client, worker, call)
        if not _is(worker, incarnation):
            return False
        what = meaning(step.path, row.status, row.body, sent=row.sent)
        if what is Meaning.APPLIED:
            return True
        if step.optional and row.answered and await self._acts_no_lora(worker):
            return True
        if what is Meaning.UNCHANGED:
            self.ledgers.returned(worker, before)
        reason = f"{step.path}: {words(row.body)}"
        if not row.answered:
            self.ledgers.delayed(worker, reason)
            return False
        ours = worker.origin is Origin.LAUNCHED and worker not in self.restarted
        # A process that nothing was done to yet would refuse it again.
        if ours and self.restart is not None and before != FRESH:
            self.restarted.add(worker)
            self.ledgers.delayed(worker, f"{reason}; it is restarted")  # requests may wait for it
            self.restart(worker)
        else:
            self.ledgers.failed(worker, reason)
        return False

    async def _acts_no_lora(self, worker: Worker) -> bool:
        """Whether the worker says that no LoRA has an effect on it."""
        row = await send(
            self.client, worker, Call("/v1/list_loras", self.call_timeout, method="GET")
        )
        return row.status == 200 and isinstance(row.body, dict) and not row.body.get("active")

    async def _save(self) -> None:
        try:
            await self.store.commit()
        except StateUnavailable as error:
            logger.warning("what was replayed is not on the disk: %s", error)


def _is(worker: Worker, incarnation: int) -> bool:
    """Whether it is still the same registration of the same process."""
    return worker.incarnation == incarnation and not worker.removed
