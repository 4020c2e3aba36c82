"""Runs of the trainer: a new one begins by a call, or at a start of the router."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import trio

from tests.simulation.deployment import OPERATION, World
from tests.simulation.universe import Wrong
from tests.simulation.worker import MODEL


async def beginner(world: World, number: int) -> None:
    """A trainer that begins one run after the other."""
    who = f"beginner {number}"
    dice, count, truth = world.dice(who), 0, world.truth
    while not world.over.is_set():
        rest = dice.choice([10.0, 60.0]) * dice.random()
        await world.opportunity(dice, rest, victim=dice.random() < 0.5)
        if world.over.is_set() or truth.asked != truth.begun:
            continue
        count += 1
        name = f"run-{world.round}-{count}"
        with _anew(world), world.trouble(), world.change():
            await _say(world, who, name)
        if dice.random() < 0.3:
            run = truth.asked
            if await _say(world, who, name) and truth.asked == run:
                raise Wrong(f"{name} is said again, and begins anew")


async def _say(world: World, who: str, name: str) -> bool:
    """Until the router has heard it. Whether the run has begun anew by that."""
    while True:
        said = {"run": name, "model": MODEL}
        answer = await world.ask(who, "POST", "/weights", said, within=OPERATION)
        if answer is not None:
            world.note(who, f"{name}: {answer.status} {answer.body.decode()[:300]}")
            world.outcomes[f"run {answer.status}"] += 1
            if answer.status == 200:
                return bool(answer.json()["begun_anew"])
            if answer.code != "state_unavailable":
                raise Wrong(f"{name}: {answer.status} {answer.body.decode()[:300]}")
        await trio.sleep(0.5)


@contextlib.contextmanager
def _anew(world: World) -> Iterator[None]:
    """At the end of this, another run has begun."""
    world.truth.ask_run()
    world.proven.clear()
    yield
    world.proven.clear()
    world.truth.begin_run()


@contextlib.contextmanager
def perhaps_anew(world: World, dice: random.Random) -> Iterator[None]:
    """A start of the router, which may begin another run."""
    truth, router = world.truth, world.router
    if not world.theme.runs or truth.asked != truth.begun or dice.random() < 0.5:
        yield
        return
    if dice.random() < 0.4:
        router.fresh_weights = True
    else:
        known = router.run_id is not None and dice.random() < 0.3
        router.run_id = None if known else f"start-{router.lives}"
    world.note("the router", f"run {router.run_id}, fresh weights: {router.fresh_weights}")
    with _anew(world):
        yield
    router.fresh_weights = False
