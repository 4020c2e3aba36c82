"""Who breaks things. Each undoes what it did before it goes on, so that all is whole at the end."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from tests.simulation.deployment import World
from tests.simulation.eras import perhaps_anew
from tests.simulation.universe import Wrong, pick
from tests.simulation.worker import Worker

Deed = Callable[[World, Worker, random.Random], Awaitable[None]]

_STOPPED = 60.0  # seconds within which a stop must be over


async def restart(world: World, worker: Worker, dice: random.Random) -> None:
    """Killed; its machine says so at once."""
    worker.kill()
    await world.pause(dice.choice([0.0, 0.05, 1.0, 10.0, 40.0]) * dice.random())
    await worker.start(dice.choice([0.0, 0.0, 3.0]) * dice.random())


async def freeze(world: World, worker: Worker, dice: random.Random) -> None:
    worker.note("is frozen")
    worker.freeze()
    await world.pause(dice.choice([1.0, 10.0, 30.0, 120.0]) * dice.random())
    if dice.random() < 0.2:
        await restart(world, worker, dice)
        return
    worker.thaw()
    worker.note("is thawed")


async def part(world: World, worker: Worker, dice: random.Random) -> None:
    """Out of reach; perhaps another process is there when it is back."""
    worker.note("is out of reach")
    worker.host.link.down()
    await world.pause(dice.choice([1.0, 10.0, 60.0]) * dice.random())
    if dice.random() < 0.3:
        # Nobody loads a model as fast as to be missed by no probe.
        worker.kill()
        await trio.sleep(dice.uniform(30, 60))
        await worker.start()
    worker.host.link.mend()
    worker.note("is in reach")


async def cut(world: World, worker: Worker, dice: random.Random) -> None:
    """Some of its connections break."""
    worker.note("its connections break")
    worker.broken += 1
    worker.host.link.breaks += 1
    for wire in list(worker.host.wires):
        if dice.random() < 0.7:
            wire.close()


async def bad_network(world: World, worker: Worker, dice: random.Random) -> None:
    link = worker.host.link
    link.loss, link.delay = dice.choice([0.0, 0.1, 0.4]), dice.choice([0.001, 0.05, 0.5])
    worker.note(f"its network loses {link.loss:.0%} and takes {link.delay} s")
    await world.pause(30 * dice.random())
    link.loss, link.delay = 0.0, 0.001


async def ill(world: World, worker: Worker, dice: random.Random) -> None:
    """It does not do what it should."""
    faults = worker.faults
    which = world.theme.illness or pick(
        dice,
        {"failing": 2, "cutting": 1, "slow_health": 4, "slow": 1, "update": 4, "dead": 1},
    )
    worker.note(f"is ill: {which}")
    match which:
        case "failing":
            faults.failing = dice.choice([0.3, 1.0])
        case "cutting":
            faults.cutting = 0.5
        case "slow_health":
            faults.slow_health = dice.uniform(2, 9)
            worker.silent(faults.slow_health > 5)
        case "slow":
            faults.slow = dice.uniform(2, 10)
            worker.slowed = world.round
        case "update":
            faults.next_update = dice.choice(["none", "partial", "applied", "hang"])
        case "dead":
            faults.dead_backend = True
    longest = 60.0 if world.theme.illness else dice.choice([10.0, 60.0])
    await world.pause(longest * dice.random())
    dead, hung = faults.dead_backend, faults.next_update == "" and which == "update"
    if dead or faults.failing or faults.cutting:
        worker.erred = trio.current_time()
    if faults.slow_health:
        worker.silent(False)
    faults.failing = faults.cutting = faults.slow_health = 0.0
    faults.slow, faults.next_update, faults.dead_backend = 1.0, "", False
    if dead or hung:
        await restart(world, worker, dice)
    worker.note("is well")


DEEDS: dict[Deed, float] = {restart: 4, freeze: 2, part: 3, cut: 1, bad_network: 1, ill: 3}


def some(world: World, deeds: dict[Any, float]) -> dict[Any, float]:
    """As many of each as this round has."""
    weights = world.theme.deeds
    found = {deed: share * weights.get(deed.__name__, 1.0) for deed, share in deeds.items()}
    return found if any(found.values()) else deeds


async def breaker(world: World, number: int) -> None:
    """Takes one worker after the other, and does something to it."""
    dice = world.dice(f"breaker {number}")
    while not world.over.is_set():
        victim = await world.opportunity(
            dice, dice.choice([2.0, 20.0]) * dice.random(), victim=True
        )
        able = [worker for worker in world.workers if not worker.taken]
        if not able or world.over.is_set():
            continue
        worker = victim if victim in able else dice.choice(able)
        worker.taken = True
        world.proven.pop(worker.name, None)
        await pick(dice, some(world, DEEDS))(world, worker, dice)
        worker.taken = False
        worker.disturbed = worker.moved = trio.current_time()


async def router_breaker(world: World) -> None:
    """Ends the router, and starts it again from what its disk has kept."""
    dice, router, disk = world.dice("breaker of the router"), world.router, world.disk
    while not world.over.is_set():
        hasty = world.theme.hasty
        rest = dice.uniform(1, 6) if hasty else dice.uniform(5, 60)
        await world.opportunity(dice, rest, victim=dice.random() < 0.5)
        if world.over.is_set():
            return
        how = pick(dice, {"step": 4 * (not hasty), "write": 3, "answer": 3, "stop": 2})
        with world.trouble():
            await end_router(world, how, dice)
            longest = 0.5 if hasty else dice.choice([0.5, 5.0, 30.0])
            await world.pause(longest * dice.random())
            if dice.random() < 0.1:  # once more, while it starts
                disk.crash_in = dice.randrange(1, 8)
            with perhaps_anew(world, dice):
                await router.start()


async def end_router(world: World, how: str, dice: random.Random) -> None:
    router, disk = world.router, world.disk
    if how == "stop":
        await stop(world)
    else:
        world.note("the router", f"is about to be killed at a {how}")
        if how != "step":
            if how == "write":
                disk.crash_in = dice.randrange(1, 12)
            router.crash_at_answer = how == "answer"
            with trio.move_on_after(20):
                await router.over.wait()
            router.crash_at_answer = False
            await router.crash()
        else:
            await router.crash(dice.randrange(1, 3000))
        if dice.random() < 0.4:
            disk.lose_power()
    disk.heal()


async def stop(world: World) -> None:
    router = world.router
    world.note("the router", "is told to stop")
    assert router.stop is not None
    router.stop.set()
    with trio.move_on_after(_STOPPED) as scope:
        await router.over.wait()
    if scope.cancelled_caught:
        raise Wrong(f"the router did not stop within {_STOPPED:g} s")


async def disk_breaker(world: World) -> None:
    dice, disk = world.dice("breaker of the disk"), world.disk
    while not world.over.is_set():
        often = world.theme.full
        rest, longest = (3, 2) if often else (dice.choice([5, 40]), dice.choice([1, 20]))
        victim = not often and dice.random() < 0.3
        await world.opportunity(dice, rest * dice.random(), victim=victim)
        which = "full" if often else dice.choice(["full", "failing", "slow"])
        if world.over.is_set():
            return
        world.note("the disk", f"is {which}")
        with world.trouble():
            match which:
                case "full":
                    disk.full = True
                case "failing":
                    disk.failing = True
                case "slow":
                    disk.slow = dice.choice([0.1, 2.0])
            await world.pause(longest * dice.random())
            disk.full = disk.failing = False
            disk.slow = 0.0
        world.note("the disk", "is well")
