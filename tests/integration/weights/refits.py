"""What tests of weight changes have in common."""

from __future__ import annotations

from typing import Any

import httpx

from simulated_worker.weights import Weights
from tests.integration.api.pools import Member
from tests.integration.deployment import Deployment

DISK, TENSOR = "/update_weights_from_disk", "/update_weights_from_tensor"
SET, MERGE, UNMERGE = "/v1/set_lora", "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"
SLEEP, WAKE = "/release_memory_occupation", "/resume_memory_occupation"

TENSORS = {"serialized_named_tensors": ["eyJhIjogIjEifQ=="]}


async def refit(pool: Deployment, path: str, **query: str) -> httpx.Response:
    """A full update from disk."""
    return await pool.http.post(DISK, json={"model_path": path}, params=query)


async def refitted(pool: Deployment, path: str, **query: str) -> dict[str, Any]:
    """One that must succeed; its answer."""
    answer = await refit(pool, path, **query)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    assert said["success"] is True
    return said


def has(member: Member, path: str) -> bool:
    """Whether the worker's weights are those of that path, and nothing else."""
    scheduler = member.sim.scheduler
    meant = Weights.load(path, tuple(scheduler.weights.modules))
    return bool(scheduler.weights.identity == meant.identity and not scheduler.loras.identity)


def current(*members: Member) -> bool:
    return all(member.known.weights == "current" for member in members)


def paths(member: Member) -> list[str]:
    """The weight changes that the worker was sent, in order."""
    ends = ("update_weights_from_disk", "update_weights_from_tensor", "lora", "lora_weights")
    return [
        e.target.split("?")[0]
        for e in member.sim.log.requests
        if e.method == "POST" and e.target.split("?")[0].endswith(ends)
    ]


async def ledger(pool: Deployment) -> dict[str, Any]:
    """The only ledger."""
    [found] = (await pool.http.get("/weights")).json()["models"]
    assert isinstance(found, dict)
    return found
