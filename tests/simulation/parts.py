"""Trainers that send each worker its own part of the weights, to all workers at the same time."""

from __future__ import annotations

import random
from typing import Any

import trio
from attrs import define, field

from tests.simulation.actors import HELD, committed, order, quiet
from tests.simulation.deployment import World
from tests.simulation.truth import DISK, TENSOR, Change
from tests.simulation.universe import Wrong
from tests.simulation.worker import MODEL, MODULES, Worker


async def pusher(world: World, number: int) -> None:
    """One transaction after the other, whatever became of the one before."""
    who = f"pusher {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        await world.pause(dice.choice([2, 15]) * dice.random() * world.theme.pace)
        if world.over.is_set():
            return
        count += 1
        label = f"/ckpt/{world.round}-{who.replace(' ', '')}-{count}"
        change = Change(label, dice.choice([TENSOR, TENSOR, DISK]))
        with world.operation(), world.change():
            began = trio.current_time()
            said = {"model": MODEL, "timeout": HELD, "label": change.label}
            told = await order(world, who, change, "/weights/begin", said)
            if told is None or "txn" in told:
                world.prove([], change)
            if told is not None and "txn" in told:
                push = _Push(world, who, dice, change, told["txn"])
                await push.make(told["workers"], began)


@define(eq=False)
class _Push:
    """One transaction. Names are the ids of workers."""

    world: World
    who: str
    dice: random.Random
    change: Change
    txn: str
    named: list[str] = field(factory=list)  # a call named them
    whole: list[str] = field(factory=list)  # they took every bucket
    left: list[str] = field(factory=list)  # their rank gave up between two buckets
    ended: bool = False  # the router or the transaction

    async def make(self, names: list[str], began: float) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._rank, name)
        if self.ended:
            return
        if not self.named or self.dice.random() < 0.2:
            touched = {"touched": self.named} if self.dice.random() < 0.5 else {}
            await self._order("/weights/abort", {"txn": self.txn} | touched)
            await self._check(began, ())
            return
        said: dict[str, Any] = {"txn": self.txn, "label": self.change.label}
        # A call that names all workers counts as a call without names: a refusal changes nothing.
        alone = len(names) == 1 and not self.whole
        if self.left or alone or self.dice.random() < 0.3:
            said["workers"] = self.whole
        told = await self._order("/weights/commit", said)
        await committed(self.world, self.change, self.txn, told)
        if told is not None and "workers" in told:
            if lost := [n for n in self.whole if self._quiet(n, began) and n in told["behind"]]:
                raise Wrong(f"{lost} took all of {self.change.label}, and are behind")
            await self._check(began, told["workers"])

    async def _rank(self, name: str) -> None:
        """Pushes to one worker, bucket by bucket."""
        worker, dice = self._worker(name), self.world.dice(f"{self.change.label} {name}")
        await self.world.pause(2 * dice.random())
        if dice.random() < 0.1:
            return
        buckets = dice.choice([[list(MODULES)], [[module] for module in MODULES]])
        for modules in buckets:
            if self.ended:
                return
            if name in self.named and dice.random() < 0.1:
                self.left.append(name)
                return
            self.named.append(name)
            part = f"{self.change.label}#{worker.name}"
            disk = self.change.path == DISK
            content = {"model_path": part} if disk else {"serialized_named_tensors": [part]}
            target = f"{self.change.path}?txn={self.txn}&workers={name}"
            told = await self._order(target, content | {"target_modules": modules})
            if told is None or told.get("code") == "unknown_transaction":
                self.ended = True
            if told is None or not told.get("success"):
                return
        self.whole.append(name)

    async def _order(self, target: str, content: object) -> dict[str, Any] | None:
        return await order(self.world, self.who, self.change, target, content)

    def _worker(self, name: str) -> Worker:
        return next(w for w in self.world.workers if f"{w.host.address}%3A" in name)

    def _quiet(self, name: str, since: float) -> bool:
        return self.world.changing == 1 and quiet(self._worker(name), since)

    async def _check(self, began: float, good: list[str] | tuple[()]) -> None:
        """Each worker that counts as current has the weights of its version; these do count so.
        Raises Wrong."""
        life = self.world.router.life
        answer = await self.world.ask(self.who, "GET", "/weights")
        if answer is None or self.world.router.life is not life:
            return
        for ledger in answer.json()["models"]:
            for row in ledger["workers"]:
                name, process = row["worker_id"], self._worker(row["worker_id"]).process
                if not self._quiet(name, began) or process is None:
                    continue
                if row["weights"] != "current":
                    if name in good:
                        raise Wrong(f"{name} has all of {self.change.label}, and is {row}")
                    continue
                state = self.world.truth.state(row["weight_version"])
                if state not in (None, process.weights):
                    raise Wrong(f"{name} counts as {state}, and has {process.weights}")
