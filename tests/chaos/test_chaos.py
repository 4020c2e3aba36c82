"""Everything at once: clients, weight changes, and processes that die, freeze, sleep and return.

    CHAOS_SECONDS  how long (10; `nox -s chaos`: 60)
    CHAOS_SEED     to have the same dice again; how they fall still depends on the machine

Every image must show, to the last pixel, the weights of the version in its `X-Weight-Version`, and
never older ones than those that had been acknowledged before it was asked for. At the end all
workers must be routable again without an operator, and of one mind.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from router.settings import RouterSettings
from tests.chaos.actors import (
    DISK,
    LORA,
    World,
    breaker,
    client,
    kill_router,
    learn_versions,
    listener,
    next_disk,
    next_lora,
    trainer,
    wake,
)
from tests.chaos.link import Link
from tests.chaos.processes import PATIENCE, Process, free_ports, router, worker
from tests.chaos.truth import Model, Wrong

SECONDS = float(os.environ.get("CHAOS_SECONDS", "10"))
SEED = int(os.environ.get("CHAOS_SEED") or random.randrange(10**6))
CLIENTS = 200
BREAKERS = 2
POOLS = {DISK: 4, LORA: 2}
_SHOWN = 80  # lines of the diary

# A router that keeps no state knows nothing of its workers' weights after a restart.
_KEEPS_STATE = "state_dir" in {field.name for field in attrs.fields(RouterSettings)}
KILLS = 2 if _KEEPS_STATE else 0  # of the router


@asynccontextmanager
async def made(logs: Path) -> AsyncIterator[World]:
    """The world, all of it serving; ended with the block."""
    ports = iter(free_ports(1 + sum(POOLS.values())))
    workers = {
        name: [
            worker(f"{name}-{n}", next(ports), f"chaos/{name}", name, logs) for n in range(count)
        ]
        for name, count in POOLS.items()
    }
    urls = [one.url for some in workers.values() for one in some]
    settings: dict[str, Any] = {"state_dir": logs / "state"} if _KEEPS_STATE else {}
    front = router(next(ports), logs, urls, **settings)
    models = {name: Model(name, f"chaos/{name}") for name in POOLS}
    world = World(SEED, front, workers, models)
    processes = [front, *(one for some in workers.values() for one in some)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            await process.listens()
        world.up.set()
        await all_routable(world)
        yield world
    except BaseException:
        print(report(world))
        raise
    finally:
        for process in processes:
            process.kill()


async def all_routable(world: World) -> None:
    """Wait until every worker is, without anybody acting."""
    reasons: dict[str, Any] = {}
    with trio.move_on_after(PATIENCE):
        while True:
            answer = await world.ask("GET", "/workers")
            if answer is not None:
                listed = answer.json()["workers"]
                reasons = {w["display_id"]: w for w in listed if not w["routable"]}
                if not reasons and len(listed) == len(world.everybody):
                    return
            await trio.sleep(0.1)
    raise Wrong(f"not routable within {PATIENCE:g} s: {reasons}")


async def live(world: World) -> None:
    """The chaos, and its end."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener, world)
        async with trio.open_nursery() as actors:
            for number in range(CLIENTS):
                actors.start_soon(client, world, number)
            actors.start_soon(trainer, world, DISK, 1.0, next_disk)
            actors.start_soon(trainer, world, LORA, 1.0, next_lora)
            for number in range(BREAKERS):
                actors.start_soon(breaker, world, number)
            for kill in range(KILLS + 1):
                if kill:
                    await kill_router(world)
                await trio.sleep(SECONDS / (KILLS + 1))
            world.note("it is over")
            world.over.set()
            actors.cancel_scope.deadline = trio.current_time() + PATIENCE
        if actors.cancel_scope.cancelled_caught:
            raise Wrong(f"some were not answered within {PATIENCE:g} s after its end")
        nursery.cancel_scope.cancel()
    for one in world.everybody:
        await wake(world, one)
    await all_routable(world)
    await learn_versions(world)


async def look_back(world: World) -> None:
    """What must be true when all is calm."""
    for model in world.models.values():
        model.settle()
        # The images prove little if there were hardly any changes while they were made.
        assert len(model.proven) > 2, f"{model.name}: images of few versions: {model.proven}"
        query = {"model": model.name}
        sums = await world.ask("POST", "/get_weights_checksum", params=query, content={})
        assert sums is not None
        if model.name == DISK:  # the checksum of a LoRA worker also tells how it came to be
            assert sums.json()["consistent"] is True, sums.text
    latest = {name: max(model.versions) for name, model in world.models.items()}
    answer = await world.ask("GET", "/workers")
    assert answer is not None
    for told in answer.json()["workers"]:
        assert told["weight_version"] == latest[told["models"][0]], told
        model = world.models[told["models"][0]]
        # A generation at each, whose pixels are those of its version.
        with Link(told["url"], PATIENCE) as link:
            state = (await link.ask("GET", "/simulate")).json()["state"]
        paint = model.versions[told["weight_version"]].paint
        assert (state["weights"], state["lora"]) == (paint.weights, paint.lora), told
        assert state["asleep"] is False


def report(world: World) -> str:
    """What one wants to know of a failure."""
    processes: list[Process] = [world.router, *world.everybody]
    return "\n".join(
        [
            f"CHAOS_SEED={SEED} CHAOS_SECONDS={SECONDS:g}",
            f"outcomes: {dict(world.outcomes)}",
            *world.diary[-_SHOWN:],
            *(process.tail() for process in processes),
        ]
    )


@pytest.mark.slow
def test_every_image_is_of_the_weights_that_its_header_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with made(tmp_path) as world:
            await live(world)
            await look_back(world)
            shown = {name: dict(model.proven) for name, model in world.models.items()}
            print(f"CHAOS_SEED={SEED}: {dict(world.outcomes)}\nimages of each version: {shown}")

    trio.run(main, strict_exception_groups=True)
