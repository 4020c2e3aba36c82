"""Other pools beside the model that everybody else uses: a teacher, and plain HTTP workers.

Their clients and trainers know one pool each: whatever reaches a worker must be meant for it.
"""

from __future__ import annotations

from typing import Any

import trio

from tests.simulation.actors import CODES, EXPECTED
from tests.simulation.deployment import OPERATION, World
from tests.simulation.network import Cut
from tests.simulation.requests import MORE
from tests.simulation.runs import check_samples
from tests.simulation.truth import DISK, Change, Sample, Truth
from tests.simulation.universe import Wrong
from tests.simulation.worker import MODULES, Weights, Worker

TEACHER, REWARD = "teacher", "reward"


async def pooled(world: World, number: int) -> None:
    """Workers of two more pools for the length of a round, and all who use them."""
    others = [
        Worker(world.universe, world.network, f"{pool}{n}", host, pool=pool, world=world)
        for pool, count, first in ((TEACHER, 2, 101), (REWARD, 1, 201))
        for n in range(count)
        if (host := world.network.host(f"192.0.2.{first + n}"))
    ]
    for worker in others:
        await worker.start()
        said = {"url": worker.url, "pool": worker.pool}
        said |= {"kind": "http"} if worker.pool == REWARD else {}
        await _until_done(world, "POST", "/workers", said)
    truth = Truth(Weights((TEACHER,) * len(MODULES)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_asks, world, truth)
        nursery.start_soon(_teaches, world, truth)
        nursery.start_soon(_scores, world)
    for worker in others:
        await _until_done(world, "DELETE", f"/workers/{worker.url}", None)
        worker.kill()


async def _until_done(world: World, method: str, target: str, content: object) -> None:
    while True:
        answer = await world.ask("pools", method, target, content, within=OPERATION)
        if answer is not None and answer.status in (200, 201, 202, 404):
            return
        if answer is not None and answer.status < 500:
            raise Wrong(f"{method} {target}: {answer.status} {answer.body.decode()[:300]}")
        await trio.sleep(1)


async def _asks(world: World, truth: Truth) -> None:
    """Rollouts of the teacher."""
    dice, count = world.dice("student"), 0
    while not world.over.is_set():
        count += 1
        name, floor = f"{TEACHER}/{world.round}-{count}", truth.acknowledged
        content = {"prompt": name, "seed": 1, "num_outputs_per_prompt": dice.randrange(1, 5)}
        content |= {"num_inference_steps": dice.randrange(1, 100), "rollout_sde_type": "ode"}
        headers, query = {"x-pool": TEACHER}, ""
        if dice.random() < 0.5:
            headers, query = {}, f"?pool={TEACHER}"
        headers |= {"x-split": "true"} if dice.random() < 0.5 else {}
        try:
            target = f"/rollout/generate{query}"
            answer = await world.ask(name, "POST", target, content, headers=headers)
        except Cut:
            raise Wrong(f"{name}: its answer broke off without a reason") from None
        if answer is not None and answer.status == 200:
            world.outcomes["rollout of a teacher"] += 1
            made_by = Weights.of(check_samples(content, answer.body))
            version, worker = answer.headers["x-weight-version"], answer.headers["x-worker-id"]
            truth.saw(Sample(name, worker, int(version), floor, made_by))
        elif answer is not None and answer.code not in EXPECTED | MORE:
            raise Wrong(f"{name}: {answer.status} {answer.body.decode()[:300]}")
        await world.pause(2 * dice.random())


async def _teaches(world: World, truth: Truth) -> None:
    """Changes the teacher's weights, which are no business of any other pool."""
    dice, count = world.dice("teacher"), 0
    while not world.over.is_set():
        await world.pause(20 * dice.random())
        count += 1
        change = truth.sent(Change(f"/ckpt/{TEACHER}/{world.round}-{count}", DISK))
        target = f"{DISK}?pool={TEACHER}"
        answer = await world.ask("teacher", "POST", target, change.content(), within=OPERATION)
        if answer is not None and "results" in (told := answer.json()):
            truth.answered(change, told)
        elif answer is not None and answer.code not in CODES:
            raise Wrong(f"{change.label}: {answer.status} {answer.body.decode()[:300]}")
        look = await world.ask("teacher", "GET", f"/weights?pool={TEACHER}")
        if look is not None:
            for ledger in look.json()["models"]:
                truth.told(ledger)


async def _scores(world: World) -> None:
    """Sends what is to be judged to plain HTTP workers."""
    dice = world.dice("judge")
    while not world.over.is_set():
        content: dict[str, Any] = {"prompt": f"{REWARD}/", "num_inference_steps": 1}
        answer = await world.ask("judge", "POST", f"/score?pool={REWARD}", content)
        if answer is not None and answer.status == 200:
            world.outcomes["score"] += 1
            if answer.json()["score"] != 1:
                raise Wrong(f"a score of another worker: {answer.body.decode()}")
        elif answer is not None and answer.code not in EXPECTED:
            raise Wrong(f"/score: {answer.status} {answer.body.decode()[:300]}")
        await world.pause(2 * dice.random())
