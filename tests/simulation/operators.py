"""An operator: workers come and go, sleep and wake, and what was acknowledged must hold."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable

import trio

from tests.simulation.actors import send
from tests.simulation.breakers import some
from tests.simulation.deployment import JOBS, OPERATION, World
from tests.simulation.http import Answer
from tests.simulation.truth import DISK, Change
from tests.simulation.universe import Wrong, pick
from tests.simulation.worker import MODEL, Worker

# The last: whom it is to be about, if that is possible.
Deed = Callable[[World, str, random.Random, Worker | None], Awaitable[None]]


# Seconds within which a wake is answered that waits for nobody but a change that is being made.
_WAKE = 100.0


def _where(worker: Worker) -> str:
    return f"/workers/{worker.url}"


async def _ask(
    world: World,
    who: str,
    method: str,
    target: str,
    content: object = None,
    within: float = OPERATION,
) -> Answer:
    """Until the router has answered. Raises Wrong."""
    while True:
        answer = await world.ask(who, method, target, content, within=within)
        if answer is not None:
            told = "" if answer.status == 200 else answer.body.decode()[:300]
            world.note(who, f"{method} {target}: {answer.status} {told}")
            world.outcomes[f"{target.split('?')[0].split('/')[1]} {answer.status}"] += 1
            return answer
        await trio.sleep(0.1)  # it ends, and nobody listens


async def register(world: World, who: str, worker: Worker) -> None:
    answer = await _ask(world, who, "POST", f"/workers?url={worker.url}")
    if answer.status in (200, 201, 202):
        world.members.add(worker.name)


def _leaves(world: World, worker: Worker) -> None:
    """It is about to be removed, and the router to forget what it has made."""
    world.members.discard(worker.name)
    worker.removals += 1
    if worker.process is not None:
        worker.process.delivered = math.inf


def pick_of(dice: random.Random, able: list[Worker], victim: Worker | None) -> Worker:
    return victim if victim in able else dice.choice(able)


async def come_and_go(world: World, who: str, dice: random.Random, victim: Worker | None) -> None:
    """Removed, with or without a drain, and registered again."""
    able = [worker for worker in world.workers if not worker.engaged]
    if not able:  # one that is being put to sleep must not be registered again meanwhile
        return
    worker = pick_of(dice, able, victim)
    await _come_and_go(world, who, dice, worker)


async def _come_and_go(world: World, who: str, dice: random.Random, worker: Worker) -> None:
    with world.handling([worker]):
        await _gone_and_back(world, who, dice, worker)


async def _gone_and_back(world: World, who: str, dice: random.Random, worker: Worker) -> None:
    if worker.name in world.members:
        _leaves(world, worker)
        world.sleepers.discard(worker.name)  # one that is registered again is awake
        drain = dice.choice(["?drain=true", ""])
        # A drain waits for jobs, whatever they take.
        answer = await _ask(world, who, "DELETE", _where(worker) + drain, within=JOBS)
        if answer.status == 200:
            await world.pause(dice.choice([0.0, 0.0, 0.0, 1.0, 20.0]) * dice.random())
            if worker.alive and worker.process is not None and worker.process.asleep:
                # "Wake it first", say the documents: nobody else knows that it sleeps.
                worker.process.asleep = False
    await register(world, who, worker)


async def quarantine(world: World, who: str, dice: random.Random, victim: Worker | None) -> None:
    """Others may put all to sleep meanwhile."""
    worker = victim or dice.choice(world.workers)
    field = dice.choice(["is_dead", "draining"])
    with world.handling([worker], blocks=False):
        await _ask(world, who, "PUT", _where(worker), {field: True})
        await world.pause(20 * dice.random())
        await _ask(world, who, "PUT", _where(worker), {field: False})


async def retire_the_dead(
    world: World, who: str, dice: random.Random, victim: Worker | None
) -> None:
    """Removed, with a drain, after it has died and before it is back."""
    able = [
        worker
        for worker in world.workers
        if worker.name in world.members and not (worker.taken or worker.engaged)
    ]
    busy = [w for w in able if w.process is not None and w.process.unfinished]
    if not able:
        return
    worker = victim if victim in able else dice.choice(busy or able)
    worker.taken = True
    with world.handling([worker]):
        worker.kill()
        await world.pause(30 * dice.random())
        _leaves(world, worker)
        world.sleepers.discard(worker.name)
        await _ask(world, who, "DELETE", f"{_where(worker)}?drain=true")
        await worker.start()
        worker.taken = False
        await register(world, who, worker)


async def nap(world: World, who: str, dice: random.Random, _: Worker | None) -> None:
    """Some sleep or all do, and are woken."""
    if any(worker.engaged for worker in world.workers):
        return
    chosen = dice.sample(world.workers, dice.randrange(1, len(world.workers) + 1))
    query = f"?model={MODEL}"
    if len(chosen) < len(world.workers):
        query = f"?workers={','.join(worker.url for worker in chosen)}"
    for worker in chosen:
        worker.handled += 1
        worker.engaged += 1
        worker.napping += 1
        world.proven.pop(worker.name, None)
    answer = await _ask(world, who, "POST", f"/release_memory_occupation{query}", {})
    told = answer.json()
    asleep = {row["worker_url"] for row in told.get("results", ()) if row["status_code"] == 200}
    for worker in chosen:
        if worker.url in asleep and worker.name in world.members:
            world.sleepers.add(worker.name)
    await world.pause(dice.choice([1.0, 30.0]) * dice.random())
    for worker in chosen:
        worker.handled -= 1
        worker.engaged -= 1
        worker.napping -= 1
    await wake(world, who, query, chosen)


async def wake(world: World, who: str, query: str, chosen: list[Worker]) -> None:
    for worker in chosen:
        world.sleepers.discard(worker.name)
    alone = world.operating <= 1  # else it waits for others
    within = _WAKE if alone else OPERATION
    await _ask(world, who, "POST", f"/resume_memory_occupation{query}", {}, within=within)


async def collide(world: World, who: str, dice: random.Random, _: Worker | None = None) -> None:
    """Several things at the same time; perhaps while all sleep."""
    if any(worker.engaged for worker in world.workers):
        return
    everyone = f"?model={MODEL}"
    away = dice.choice(world.workers) if dice.random() < 0.5 else None
    moved = [] if away is None else [away]
    with world.handling(world.workers, away=False), world.handling(moved):
        if away is not None and away.name in world.members:
            _leaves(world, away)
            await _ask(world, who, "DELETE", _where(away))
        sleeps = dice.random() < 0.6
        if sleeps:
            for worker in world.workers:
                worker.napping += 1
            await _ask(world, who, "POST", f"/release_memory_occupation{everyone}", {})
            if dice.random() < 0.7:
                await change(world, who, dice)
        if away is not None and away.process is not None:
            away.process.asleep = False  # whoever registers it has woken it

        async def end_nap() -> None:
            for worker in world.workers:
                worker.napping -= 1
            await wake(world, who, everyone, world.workers)

        async def meddle() -> None:
            victim = await world.opportunity(dice, 3 * dice.random(), victim=True)
            able = [worker for worker in world.workers if worker.engaged == 1]
            if able:
                await _come_and_go(world, who, dice, pick_of(dice, able, victim))

        async with trio.open_nursery() as nursery:

            async def soon(act: Callable[[], Awaitable[None]]) -> None:
                await trio.sleep(dice.choice([0.0, 0.1, 3.0]) * dice.random())
                await act()

            if sleeps:
                nursery.start_soon(soon, end_nap)
            if away is not None:
                nursery.start_soon(soon, lambda: register(world, who, away))
            for _ in range(dice.randrange(1, 3)):
                nursery.start_soon(soon, lambda: change(world, who, dice))
            for _ in range(dice.randrange(1, 4)):
                nursery.start_soon(meddle)


async def change(world: World, who: str, dice: random.Random) -> None:
    """A change of all weights, from disk, now and then one that is refused."""
    world.changes += 1
    wrong = "/nonexistent" if dice.random() < 0.15 else ""
    label = f"{wrong}/ckpt/{world.round}-{who.replace(' ', '')}-{world.changes}"
    await send(world, who, Change(label, DISK, refused=bool(wrong)))


async def sync(world: World, who: str, dice: random.Random, _: Worker | None) -> None:
    await _ask(world, who, "POST", "/weights/sync", {"timeout": 20})


DEEDS: dict[Deed, float] = {
    come_and_go: 3,
    retire_the_dead: 2,
    quarantine: 2,
    nap: 4,
    collide: 4,
    sync: 0.5,
}
# At a worker, in a bad moment.
AIMED: dict[Deed, float] = {come_and_go: 3, retire_the_dead: 1, quarantine: 1}


async def operator(world: World, number: int) -> None:
    who = f"operator {number}"
    dice = world.dice(who)
    if dice.random() < 0.6:  # the first thing of all
        with world.operation():
            await collide(world, who, dice)
    while not world.over.is_set():
        victim = await world.opportunity(
            dice, dice.choice([3.0, 30.0]) * dice.random(), victim=True
        )
        if world.over.is_set():
            return
        with world.operation():
            deeds = DEEDS if victim is None else AIMED
            await pick(dice, some(world, deeds))(world, who, dice, victim)


async def tidy_up(world: World) -> None:
    """All are registered, enabled, and awake."""
    who = "the end"
    for worker in world.workers:
        with trio.move_on_after(60):
            while worker.name not in world.members:
                await register(world, who, worker)
                await trio.sleep(1)
            enabled = {"draining": False, "is_dead": False}
            while (await _ask(world, who, "PUT", _where(worker), enabled)).status == 503:
                await trio.sleep(1)  # its disk was full a moment ago
    world.sleepers.clear()
    with trio.move_on_after(60) as scope:
        while True:
            answer = await _ask(world, who, "POST", f"/resume_memory_occupation?model={MODEL}", {})
            if answer.status == 200:
                wake_by_hand(world)
                return
            await trio.sleep(1)
    if scope.cancelled_caught:
        raise Wrong("the workers cannot be woken within a minute after the faults have stopped")


def wake_by_hand(world: World) -> None:
    """A worker that was removed while it was being put to sleep, and is registered again, counts
    as awake, whatever it is: "wake it first", say the documents."""
    for worker in world.workers:
        if worker.process is not None and worker.process.asleep:
            if not worker.removals:
                raise Wrong(f"all workers are awake, says the router, and {worker.name} sleeps")
            worker.note("is woken by hand")
            worker.process.asleep = False


async def submit(world: World, who: str, steps: int = 1) -> Answer | None:
    """A video job; None if the router or its answer ended."""
    content = {"model": MODEL, "prompt": "x", "num_inference_steps": steps}
    world.submitting += 1
    try:
        return await world.ask(who, "POST", "/v1/videos", content, broken=True)
    finally:
        world.submitting -= 1


async def flood(world: World, who: str, dice: random.Random) -> None:
    """Very many short videos; and then the worker with most of them is frozen. With many workers
    it would take too many."""
    if len(world.workers) > 4:
        return

    async def some() -> None:
        for _ in range(world.theme.flood * len(world.workers) // 8):
            await submit(world, who)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(some)
    able = [worker for worker in world.workers if worker.process and not worker.taken]
    if not able:
        return
    worker = max(able, key=lambda worker: worker.process.unfinished if worker.process else 0)
    worker.taken = True
    world.proven.pop(worker.name, None)
    worker.note("is frozen in a flood")
    worker.freeze()
    await world.pause(dice.uniform(20, 50))
    worker.thaw()
    worker.note("is thawed")
    worker.taken = False
    worker.disturbed = worker.moved = trio.current_time()


async def filmer(world: World, number: int) -> None:
    """A client that has videos made, and asks for each until it is over."""
    who = f"filmer {number}"
    dice, count = world.dice(who), 0
    if world.theme.flood and not number:
        await flood(world, who, dice)
    while not world.over.is_set():
        await world.pause(dice.uniform(2, 30) * world.theme.pace)
        burst, count = (0 if count or number else world.theme.burst), count + 1
        if burst and dice.random() < 0.75:
            burst = 1
        for _ in range(burst * len(world.workers)):
            taken = await submit(world, who)
            if taken is None or taken.status != 200:
                break
        steps = dice.randrange(1, world.theme.video)
        answer = await submit(world, who, steps)
        if answer is None or answer.status != 200:
            world.outcomes["no video"] += 1
            continue
        job = answer.json()["id"]
        owner = answer.headers["x-worker-id"]
        worker = next(w for w in world.workers if owner.endswith(f"{w.host.address}%3A30000"))
        process, registered = worker.process, worker.name in world.members
        if process is not None and job not in process.jobs:
            process = None  # the one that made it has died before its answer was here
        left = worker.removals
        world.note(who, f"{job} is made by {worker.name}")
        while not world.over.is_set():
            await world.pause(dice.uniform(1, 5))
            look = await world.ask(who, "GET", f"/v1/videos/{job}", broken=True)
            if look is None or look.status >= 500:
                continue
            gone = worker.process is not process or worker.removals != left or not registered
            if look.status == 404:
                if not gone and worker.alive:
                    raise Wrong(f"{job} is not known any more, and {worker.name} lives")
                break
            if look.status == 200 and look.json()["status"] in ("completed", "failed"):
                world.outcomes["video"] += 1
                break
