"""What a LoRA call does to a process of a simulated worker, and what it leaves there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sglang.simulated_worker.loras import Loras
from sglang.simulated_worker.weights import WeightsError
from tests.simulation.universe import Life, Wrong

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.worker import Reply, Worker


def shown(adapter: str, strength: float) -> str:
    """How a sample names the LoRA that acted on it."""
    return f"{adapter} at {strength:g}"


def acts(loras: Loras) -> str:
    return ", ".join(
        shown(path, strength)
        for applied in loras.active.values()
        if applied.merged
        for path, strength in zip(applied.paths, applied.strengths, strict=True)
    )


async def wear(worker: Worker, process: Process, call: str, content: dict[str, Any]) -> Reply:
    async with process.scheduler:
        worker.world.tell(worker)
        await worker.takes(process, worker.dice.uniform(0.05, 1))
        worker.world.may_have_other_weights(worker)
        loras, strength = process.loras, content.get("strength", 1.0)
        worker.note(f"{call} {content}")
        try:
            if call == "set_lora":
                name = content["lora_nickname"]
                loras.set([name], [content["lora_path"]], ["all"], [strength], None)
            else:
                loras.merge("all", strength, merged=call == "merge_lora_weights")
        except WeightsError as error:
            return 500, {"detail": f"Failed to set LoRA adapter: {error}"}
        process.weights = process.weights.worn(acts(loras))
        return 200, {"status": "ok", "message": call}


async def push(worker: Worker, process: Process, tensors: str) -> Reply:
    """A LoRA that comes as tensors."""
    async with process.scheduler:
        worker.world.tell(worker)
        await worker.takes(process, worker.dice.uniform(0.05, 1))
        worker.world.may_have_other_weights(worker)
        worker.note(f"has the pushed LoRA {tensors}")
        process.loras.push(tensors, None)
        process.weights = process.weights.worn(acts(process.loras))
        return 200, {"success": True, "message": "updated"}


def may_update(worker: Worker, process: Process, life: Life | None) -> None:
    """An update would miss layers that are wrapped, and the router must know that they are; unless
    nothing that the process has made can show that it is no new one. Raises Wrong."""
    if process.loras.wrapped and life is not None and not life.dead:
        if process.witnessed:
            raise Wrong(f"{worker.name} is wrapped, and is sent an update of its weights")
        process.spoilt = True
