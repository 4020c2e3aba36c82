"""One history: chaos, then calm, again and again; and what must be true in the calm."""

from __future__ import annotations

from typing import Any

import trio

from tests.simulation.actors import learn, listener, painter, register, trainer
from tests.simulation.deployment import PATIENCE, World, made
from tests.simulation.universe import Universe, Wrong

CLIENTS, TRAINERS, WORKERS = 4, 1, 3
CHAOS = 120.0  # seconds of each round
CALM = 60.0  # within which all must be well once the faults have stopped


async def live(universe: Universe, hours: float) -> None:
    async with made(universe, WORKERS) as world:
        for worker in world.workers:
            await register(world, worker.url)
        while True:
            await chaos(world)
            await calm(world)
            if universe.now >= hours * 3600:
                break
        world.truth.settle()
        universe.note("end", f"{dict(world.outcomes)} {dict(world.truth.judged)}")


async def chaos(world: World) -> None:
    world.over = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener, world)
        async with trio.open_nursery() as actors:
            for number in range(CLIENTS):
                actors.start_soon(painter, world, number)
            for number in range(TRAINERS):
                actors.start_soon(trainer, world, number)
            await trio.sleep(CHAOS)
            world.note("chaos", "is over")
            world.over.set()
            actors.cancel_scope.deadline = trio.current_time() + PATIENCE
        if actors.cancel_scope.cancelled_caught:
            raise Wrong(f"some were not answered within {PATIENCE:g} s")
        nursery.cancel_scope.cancel()


async def calm(world: World) -> None:
    """Without anybody acting, all living workers are routable within a minute."""
    reasons: dict[str, Any] = {}
    with trio.move_on_after(CALM):
        while True:
            reasons = await lacking(world)
            if not reasons:
                break
            await trio.sleep(1)
    if reasons:
        raise Wrong(f"not routable {CALM:g} s after the faults have stopped: {reasons}")
    await learn(world)
    world.note("calm", "all is well")


async def lacking(world: World) -> dict[str, Any]:
    """Workers that are not routable, and why."""
    answer = await world.ask("calm", "GET", "/workers")
    if answer is None:
        return {"the router": "ended"}
    listed = {told["url"]: told for told in answer.json()["workers"]}
    return {
        worker.name: listed[worker.url]["reasons"] if worker.url in listed else "not listed"
        for worker in world.workers
        if worker.url not in listed or not listed[worker.url]["routable"]
    }
