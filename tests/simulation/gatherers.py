"""Trainers that are the first rank of collectives, in which all workers take part."""

from __future__ import annotations

import random
from typing import Any

import trio
from attrs import frozen

from tests.simulation.actors import HELD, committed, order, send
from tests.simulation.deployment import World
from tests.simulation.truth import DISTRIBUTED, Change
from tests.simulation.universe import Life, Wrong
from tests.simulation.worker import MODEL, MODULES, Worker

_GRACE = 10.0  # seconds that the router gives the others once one has failed
_SLACK = 5.0


@frozen
class Gathered(Change):
    """A change in which all members take part; one of them or all may refuse it."""

    members: tuple[str, ...] = ()  # names of workers
    refuses: str = ""  # a name, or "all"

    def content(self, *, named: bool = True) -> dict[str, Any]:
        found = super().content(named=named)
        del found["serialized_named_tensors"]
        told = {"members": list(self.members), "refuses": self.refuses}
        return {**found, "names": [self.label], "group_name": "g", **told}


async def gatherer(world: World, number: int) -> None:
    """A trainer that is the first rank of one collective after the other."""
    who = f"gatherer {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        await world.pause(dice.choice([2, 10]) * dice.random() * world.theme.pace)
        if world.over.is_set():
            return
        count += 1
        label = f"/ckpt/{world.round}-{who.replace(' ', '')}-{count}"
        with world.operation():
            await (_in_transaction if dice.random() < 0.5 else _alone)(world, who, dice, label)


def _made(
    dice: random.Random, label: str, members: list[Worker], *, whole: bool = True
) -> Gathered:
    """In a transaction it is `whole`: its trainer answers for that."""
    names = tuple(worker.name for worker in members)
    refuses = dice.choice([*names, "all"]) if dice.random() < 0.2 else ""
    targets = (dice.choice(MODULES),) if not whole and dice.random() < 0.2 else None
    return Gathered(label, DISTRIBUTED, targets, members=names, refuses=refuses)


async def _alone(world: World, who: str, dice: random.Random, label: str) -> None:
    answer = await world.ask(who, "GET", "/workers")
    if answer is None:
        return
    up = {told["url"] for told in answer.json()["workers"] if told["routable"]}
    members = [worker for worker in world.workers if worker.url in up]
    if not members:
        return
    change, life = _made(dice, label, members, whole=False), world.router.life
    began = trio.current_time()
    where = "workers=" + ",".join(worker.url for worker in members)
    told = await send(world, who, change, where)
    if told is not None and told.get("results") and told["deferred"]:
        raise Wrong(f"{label} has gone to some of its members: {told}")
    _check(world, label, life, began)


async def _in_transaction(world: World, who: str, dice: random.Random, label: str) -> None:
    with world.change():
        said = {"model": MODEL, "timeout": HELD, "label": label}
        began, life = trio.current_time(), world.router.life
        unknown = Gathered(label, DISTRIBUTED)
        told = await order(world, who, unknown, "/weights/begin", said)
        world.prove([], unknown)
        if told is None or "txn" not in told:
            return
        ids = {
            worker: name
            for worker in world.workers
            for name in told["workers"]
            if f"{worker.host.address}%3A" in name
        }
        change, txn = _made(dice, label, list(ids)), told["txn"]
        ended = False

        async def call(target: str, after: float) -> None:
            nonlocal ended
            await trio.sleep(after)
            said = change.content(named=False)
            told = await order(world, who, change, f"{DISTRIBUTED}?txn={txn}{target}", said)
            _check(world, label, life, began)
            ended = ended or told is None or told.get("code") == "unknown_transaction"

        each = dice.random() < 0.5
        async with trio.open_nursery() as nursery:
            for name in ids.values() if each else [""]:
                target = f"&workers={name}" if name else ""
                nursery.start_soon(call, target, 2 * dice.random() * each)
        if ended:
            return
        if dice.random() < 0.2:
            await order(world, who, change, "/weights/abort", {"txn": txn})
            return
        told = await order(world, who, change, "/weights/commit", {"txn": txn, "label": label})
        await committed(world, change, txn, told)


def _check(world: World, label: str, life: Life | None, began: float) -> None:
    """An answer has come: soon after a member had failed, if one has. Raises Wrong."""
    meeting, now = world.meetings.get(label), trio.current_time()
    same = world.router.life is life and not world.blind and world.disturbed < began
    if meeting is None or meeting.failed is None or not same:
        return
    if now - meeting.failed > _GRACE + _SLACK:
        waited = now - meeting.failed
        raise Wrong(f"a member of {label} had failed, and its answer came {waited:.0f} s later")
