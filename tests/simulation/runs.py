"""Which generations and jobs have run, by the names that their clients give: once, or never.

Every rollout and every keyed job says in its prompt what its client calls it. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack  # type: ignore[import-untyped]
from attrs import define, field

from tests.simulation.process import Process
from tests.simulation.universe import Life, Wrong

if TYPE_CHECKING:
    from tests.simulation.worker import Worker

ASLEEP = {"detail": "Server is sleeping. Call resume_memory_occupation first."}


@define(eq=False)
class Run:
    """A generation or a job at one process."""

    process: Process
    life: Life | None  # of the router, that has sent it
    incarnation: int  # of the worker, says the router

    @property
    def lives(self) -> bool:
        return self.process.worker.process is self.process


@define(eq=False)
class Runs:
    """All runs. `keyed`: names of those that have an Idempotency-Key."""

    # How many processes of a worker the router has counted by now.
    incarnation: Callable[[Worker], int]
    rollouts: dict[tuple[str, int], list[Run]] = field(factory=dict)  # by name and first seed
    groups: dict[str, list[Run]] = field(factory=dict)  # the same, by name
    jobs: dict[str, list[Run]] = field(factory=dict)
    keyed: set[str] = field(factory=set)
    cancelled: set[str] = field(factory=set)
    failed: set[tuple[str, Life | None]] = field(factory=set)  # a part of it has failed, in a life

    def rollout(self, name: str, seed: int, process: Process, life: Life | None) -> Run:
        """A rollout begins. Raises Wrong."""
        self.may_run(name)
        run, before = self._run(process, life), self.rollouts.setdefault((name, seed), [])
        if name in self.keyed and life is not None and not life.dead:
            for other in before:
                again = other.life is life and (name, life) not in self.failed
                # If one part is lost, so is the whole.
                parts = [part for part in self.groups[name] if part.life is life]
                if again and all(map(self._lasts, parts)):
                    raise Wrong(f"{name} runs on {process.worker.name}, and runs a second time")
        before.append(run)
        self.groups.setdefault(name, []).append(run)
        return run

    def _run(self, process: Process, life: Life | None) -> Run:
        return Run(process, life, self.incarnation(process.worker))

    def _lasts(self, run: Run) -> bool:
        """Whether its process lives, and the router does not take it for another one."""
        return run.lives and self.incarnation(run.process.worker) <= run.incarnation

    def fail(self, name: str, run: Run) -> None:
        self.failed.add((name, run.life))

    def job(self, name: str, process: Process, life: Life | None) -> None:
        """A job begins. Raises Wrong."""
        before = self.jobs.setdefault(name, [])
        if name in self.keyed and life is not None and not life.dead:
            for other in before:
                if self._lasts(other):
                    first = other.process.worker.name
                    raise Wrong(f"{name} runs on {first}, and again on {process.worker.name}")
        before.append(self._run(process, life))

    def cancel(self, name: str) -> None:
        """Its client was told that it is cancelled. Raises Wrong."""
        self.cancelled.add(name)
        if any(known == name for known, _ in self.rollouts):
            raise Wrong(f"{name} was cancelled, and a worker had it")

    def may_run(self, name: str) -> None:
        if name in self.cancelled:
            raise Wrong(f"{name} was cancelled, and runs")


def samples(content: dict[str, Any], name: str, made_by: dict[str, Any]) -> bytes:
    """What a worker answers to a rollout: each sample repeats the seed of the request."""
    seed = content["seed"]
    made = [
        {
            "request_id": name,
            "prompt": content["prompt"],
            "seed": seed,
            "generated_output": f"{content['prompt']} {seed + number}",
            "made_by": made_by,
        }
        for number in range(content.get("num_outputs_per_prompt") or 1)
    ]
    return bytes(msgpack.packb(made))


def check_samples(content: dict[str, Any], body: bytes) -> dict[str, Any]:
    """That one worker could have made the whole answer; who the samples say has made them. Raises
    Wrong."""
    found = msgpack.unpackb(body)
    made_by: dict[str, Any] = found[0]["made_by"]
    expected = msgpack.unpackb(samples(content, "", made_by))
    for sample in found:
        sample["request_id"] = ""
    if found != expected:
        raise Wrong(f"{content} was answered with {found}")
    return made_by
