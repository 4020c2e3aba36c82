"""Restarts of launched workers whose layers are wrapped: updates then reach all layers again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import uuid4

from attrs import define

from ..pool.lifecycle import reachable
from ..pool.weights.recipe import UNMERGE, step_of
from ..pool.worker import Origin, Worker
from .calls import Claim
from .fenced_change import FencedChange
from .operations import Operation
from .refit import WeightControl

_ALL = {"target": "all"}


@define(eq=False)
class _Unwrapping(FencedChange):
    """Workers that are idle and fenced until their process is on its way out."""

    @property
    def kind(self) -> str:
        return "unwrap"

    async def record(self, claim: Claim) -> None:
        """The worker has left: its process ends, or its work did not end in time."""
        self.ledgers.release(claim.worker)
        self.let_go(claim.worker)


async def unwrap(
    control: WeightControl, chosen: Sequence[Worker], within: float, *, only_stuck: bool = False
) -> list[Worker]:
    """Restart those of the chosen workers that are wrapped, were launched and are awake, once they
    are idle. Returns them when they can be called again, or after `within` seconds.

    A LoRA that acts is taken out: that is a new version. With `only_stuck`, restart only workers
    which get no requests before that anyway, and leave the LoRAs.

    Raises StateUnavailable.
    """
    control.store.check()
    restarted: list[Worker] = []
    for model in dict.fromkeys(map(control.ledgers.model_of, chosen)):
        workers = [w for w in chosen if control.ledgers.model_of(w) == model]
        if model is not None and any(_concerned(control, w, only_stuck) for w in workers):
            restarted += await _restart(control, model, workers, only_stuck)
    before = {worker: worker.incarnation for worker in restarted}
    await control.agents.until(lambda: all(map(_is_back, before, before.values())), within)
    return restarted


def _concerned(control: WeightControl, worker: Worker, only_stuck: bool) -> bool:
    wrapped = worker.origin is Origin.LAUNCHED and bool(control.ledgers.had_lora([worker]))
    stuck = worker.stuck and control.ledgers.restart_helps(worker)
    return wrapped and (stuck or not only_stuck)


def _is_back(worker: Worker, incarnation: int) -> bool:
    new = worker.incarnation > incarnation and worker.capabilities is not None
    return worker.removed or (new and reachable(worker))


async def _restart(
    control: WeightControl, model: str, chosen: Sequence[Worker], only_stuck: bool
) -> list[Worker]:
    async def work(operation: Operation[list[Worker]]) -> list[Worker]:
        await operation.begin()
        able = control.members(operation, list(chosen)).eligible
        workers = [w for w in able if _concerned(control, w, only_stuck)]
        change = control.ledgers.make(uuid4().hex, model, "", None, "without LoRA")
        unwrapping = _Unwrapping(change, operation, control.agents, control.ledgers, control.store)
        restart = control.agents.replayer.restart
        try:
            async with unwrapping.fenced(workers, "its layers are to be unwrapped"):
                claims = list(unwrapping.claims.values())
                for claim in claims:
                    await claim.idle.wait()
                held = [claim for claim in claims if claim.row is None]
                # Else the new processes would get the LoRA again, and be wrapped again.
                if held and not only_stuck and control.ledgers.ledger(model).recipe.acting_loras:
                    change.steps.append(step_of(UNMERGE, json.dumps(_ALL), _ALL))
                    control.ledgers.commit(change, None)
                    await control.store.commit()
                for claim in held:
                    assert restart is not None
                    restart(claim.worker)
                for claim in held:
                    await claim.over.wait()
                unwrapping.done = len(held)
        finally:
            for worker in workers:
                control.ledgers.release(worker)
            control.ledgers.close(change)
        return [claim.worker for claim in held]

    workers = control.ledgers.workers_of(model)
    return await control.operations.start(work, workers, model, begun=False).result()
