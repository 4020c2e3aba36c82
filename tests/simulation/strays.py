"""Trainers that put engines to sleep and wake them past the router, and tell it or do not."""

from __future__ import annotations

import random

import trio

from tests.simulation.deployment import OPERATION, World
from tests.simulation.universe import Wrong
from tests.simulation.worker import Worker

# Seconds after which no generation is on its way to a worker of which the router knows it sleeps.
_UNDER_WAY = 15.0


async def stray(world: World, number: int) -> None:
    """Puts some to sleep directly, and wakes them."""
    who = f"stray {number}"
    dice = world.dice(who)
    while not world.over.is_set():
        await world.pause(dice.choice([3.0, 20.0]) * dice.random())
        able = [w for w in world.workers if w.process and not (w.engaged or w.taken or w.napping)]
        if world.over.is_set() or not able:
            continue
        chosen = dice.sample(able, dice.randrange(1, min(len(able), 2) + 1))
        for worker in chosen:
            worker.napping += 1
        with world.handling(chosen):
            await _nap(world, who, dice, chosen)
        for worker in chosen:
            worker.napping -= 1
            worker.erred = trio.current_time()


async def _nap(world: World, who: str, dice: random.Random, chosen: list[Worker]) -> None:
    says = dice.choice(["before", "after", "never", "never", "of the end"])
    world.note(who, f"puts to sleep {[worker.name for worker in chosen]}, and says so {says}")
    believed = says == "before" and await _say(world, who, dice, chosen, sleeping=True)
    for worker in chosen:
        await directly(worker, asleep=True)
    if says == "after":
        believed = await _say(world, who, dice, chosen, sleeping=True)
    rest = dice.choice([3.0, 40.0]) * dice.random()
    if believed:
        await world.pause(min(rest, _UNDER_WAY))
        if rest > _UNDER_WAY:
            world.sleepers.update(w.name for w in chosen if w.name in world.members)
            await world.pause(rest - _UNDER_WAY)
    else:
        await world.pause(rest)
    for worker in chosen:
        await directly(worker, asleep=False)
        world.sleepers.discard(worker.name)
    if says != "never":
        while not await _say(world, who, dice, chosen, sleeping=False):
            await trio.sleep(1)
        for worker in chosen:  # the router may have put a new process to sleep meanwhile
            await directly(worker, asleep=False)


async def directly(worker: Worker, *, asleep: bool) -> None:
    """Past the router. Of a process that dies meanwhile nothing is to be had."""
    process, over = worker.process, trio.Event()
    if process is None or process.nursery is None:
        return

    async def call() -> None:
        if process.asleep is not asleep:
            process.strayed = True
            await worker.memory(process, asleep)
        over.set()

    process.nursery.start_soon(call)
    while worker.process is process and not over.is_set():
        with trio.move_on_after(0.5):
            await over.wait()


async def _say(
    world: World, who: str, dice: random.Random, chosen: list[Worker], *, sleeping: bool
) -> bool:
    """Whether the router believes it."""
    some = [worker for worker in chosen if worker.name in world.members]
    if not some:
        return True
    told, target, method = {"sleeping": sleeping}, f"/workers/{some[0].url}", "PUT"
    if len(some) > 1 or dice.random() < 0.5:
        told |= {"workers": [worker.url for worker in some]}
        target, method = "/workers/sleeping", "POST"
    answer = await world.ask(who, method, target, told, within=OPERATION)
    if answer is None:
        return False
    world.note(who, f"sleeping: {sleeping}: {answer.status} {answer.body.decode()[:100]}")
    world.outcomes[f"statement {answer.status}"] += 1
    if answer.status == 404 and any(worker.name not in world.members for worker in some):
        return True
    if answer.status != 200 and answer.code not in ("worker_busy", "state_unavailable"):
        raise Wrong(f"{who}: {answer.status} {answer.body.decode()[:300]}")
    return answer.status == 200
