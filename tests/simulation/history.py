"""One history: chaos, then calm, again and again; and what must be true in the calm."""

from __future__ import annotations

from typing import Any

import trio

from tests.simulation.actors import learn, listener, painter, send, trainer
from tests.simulation.adapters import adapters
from tests.simulation.breakers import breaker, disk_breaker, router_breaker
from tests.simulation.deployment import JOBS, World, made
from tests.simulation.eras import beginner
from tests.simulation.gatherers import gatherer
from tests.simulation.operators import (
    filmer,
    operator,
    register,
    tidy_up,
)
from tests.simulation.overseer import overseer
from tests.simulation.parts import pusher
from tests.simulation.pools import pooled
from tests.simulation.requests import canceller, insister, roller
from tests.simulation.strays import stray
from tests.simulation.themes import ORDINARY, Theme, drawn
from tests.simulation.truth import DISK, Change
from tests.simulation.universe import Universe, Wrong

CHAOS = 120.0  # seconds of each round
CALM = 60.0  # within which all must be well once the faults have stopped


async def live(
    universe: Universe,
    hours: float,
    chaos: float = CHAOS,
    ordinary: float = 0.0,
    theme: str | None = None,
) -> None:
    """`chaos`: seconds of each round; `ordinary`: of light work without faults after it; `theme`:
    of all rounds."""
    async with made(universe) as world:
        for worker in world.workers:
            await register(world, "the beginning", worker)
            if worker.process is not None:
                world.proven[worker.name] = worker.process
        while True:
            mind = drawn(world.dice(f"theme {world.round + 1}"), theme)
            for _ in range(mind.parts):
                await some_time(world, mind, chaos / mind.parts)
                await calm(world)
            if ordinary:
                await some_time(world, ORDINARY, ordinary)
                await calm(world)
            if universe.now >= hours * 3600:
                break
        world.truth.settle()
        universe.note("end", f"{dict(world.outcomes)} {dict(world.truth.judged)}")


async def some_time(world: World, theme: Theme, seconds: float) -> None:
    world.over = trio.Event()
    world.round += 1
    world.theme = theme
    world.note("a round", f"begins: {theme}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener, world)
        nursery.start_soon(overseer, world)
        async with trio.open_nursery() as actors:
            for actor, count in (
                (painter, theme.clients),
                (trainer, theme.trainers),
                (breaker, theme.breakers),
                (operator, theme.operators),
                (filmer, theme.filmers),
                (stray, theme.strays),
                (roller, theme.rollers),
                (canceller, theme.cancellers),
                (insister, theme.insisters),
                (pusher, theme.pushers),
                (gatherer, theme.gatherers),
                (beginner, theme.runs),
                (pooled, theme.pools),
                (adapters, theme.adapters),
            ):
                for number in range(count):
                    actors.start_soon(actor, world, number)
            if theme.kills:
                actors.start_soon(router_breaker, world)
            if theme.disk:
                actors.start_soon(disk_breaker, world)
            await trio.sleep(seconds)
            world.note("a round", "is over")
            world.over.set()
            world.tell(None)
            with trio.move_on_after(JOBS) as scope:
                while actors.child_tasks:
                    await trio.sleep(0.5)
            if scope.cancelled_caught:
                raise Wrong(f"not over within {JOBS:g} s: {list(world.asking.values())}")
        nursery.cancel_scope.cancel()


async def calm(world: World) -> None:
    """Without anybody acting, all living workers are routable within a minute; or truly cannot be,
    for want of weights that nobody can send them again, until somebody sends others."""
    while any(worker.process and worker.process.unfinished for worker in world.workers):
        await trio.sleep(1)  # weights are changed once jobs have ended
    world.universe.check()
    await tidy_up(world)
    reasons = await within_a_minute(world)
    ledger = await learn(world)
    for worker in world.workers:
        if reasons.get(worker.name) == ["weights_behind"] and world.has_latest(worker):
            raise Wrong(f"{worker.name} has the latest weights, as was said, and counts as behind")
    if reasons and ledger is not None and not ledger["replayable"]:
        if any(why != ["weights_behind"] for why in reasons.values()):
            raise Wrong(f"they wait for weights, and tell other reasons: {reasons}")
        world.note("calm", f"others wait for weights that cannot be sent again: {reasons}")
        await send(world, "calm", Change(f"/ckpt/calm-{world.universe.now:.0f}", DISK))
        reasons = await within_a_minute(world)
    if reasons:
        raise Wrong(f"not routable {CALM:g} s after the faults have stopped: {reasons}")
    if (ledger := await learn(world)) is not None and not ledger["pending"]:
        world.truth.at_rest(int(str(ledger["latest_issued"])))
    world.note("calm", "all is well")


async def within_a_minute(world: World) -> dict[str, Any]:
    """Workers that are not routable by then, and why."""
    reasons: dict[str, Any] = {}
    with trio.move_on_after(CALM):
        while True:
            reasons = await lacking(world)
            if not reasons:
                break
            await trio.sleep(1)
    return reasons


async def lacking(world: World) -> dict[str, Any]:
    """Workers that are not routable, and why."""
    answer = await world.ask("calm", "GET", "/workers")
    if answer is None:
        return {"the router": "ended"}
    listed = {told["url"]: told for told in answer.json()["workers"]}
    return {
        worker.name: listed[worker.url]["reasons"] or "its slots are taken"
        if worker.url in listed
        else "not listed"
        for worker in world.workers
        if worker.url not in listed or not may_serve(listed[worker.url])
    }


def may_serve(told: dict[str, Any]) -> bool:
    """Routable; or on trial, which ends by requests. And nothing holds a slot."""
    routable = bool(told["routable"]) or told["reasons"] == ["on_trial"]
    return routable and not told["slots_in_use"]
