"""Clients that ask for groups of samples: with keys, in groups, split; and that cancel."""

from __future__ import annotations

import random
from typing import Any

import trio

from tests.simulation.actors import EXPECTED
from tests.simulation.deployment import World
from tests.simulation.http import Answer
from tests.simulation.network import Cut
from tests.simulation.runs import check_samples
from tests.simulation.truth import Sample
from tests.simulation.universe import Life, Wrong
from tests.simulation.worker import MODEL, Weights

_TRIES = 60  # blind ones
MORE = {"cancelled", "idempotency_mismatch", "already_done", "state_unavailable", "worker_cut_off"}
MORE |= {"weight_version_passed"}


def _group(dice: random.Random, name: str, steps: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": name,
        "seed": dice.choice([0, 126, 2**31, 65_533]),
        "num_outputs_per_prompt": dice.choice([1, 2, 5, 8, 17]),
        "num_inference_steps": dice.randrange(1, steps),
        "rollout_sde_type": "ode",
        "rollout_log_prob_no_const": True,
    }


async def roller(world: World, number: int) -> None:
    """Asks for one group after the other, most with a key, and gives none up."""
    who = f"roller {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        count += 1
        name = f"r{world.round}-{number}-{count}"
        content = _group(dice, name, 300)
        headers = {"x-client-id": f"r{number % 2}"}
        if dice.random() < 0.5:
            headers["x-split"] = "true"
        if dice.random() < 0.7:
            headers["idempotency-key"] = name
            world.runs.keyed.add(name)
            await _insist(world, dice, name, content, headers)
        else:
            await _once(world, name, content, headers, {})
        await world.pause(dice.uniform(0, 2) * world.theme.pace)


async def _insist(
    world: World,
    dice: random.Random,
    name: str,
    content: dict[str, Any],
    headers: dict[str, str],
) -> None:
    """Ask again and again, also while the first request runs, until one has an answer."""
    got: dict[Life, bytes] = {}

    async def again(tries: int) -> None:
        for _ in range(tries):
            leaves = dice.choice([0.5, 5, 60]) * dice.random() if dice.random() < 0.4 else 1e9
            answer = None
            with trio.move_on_after(leaves):
                answer = await _once(world, name, content, headers, got)
            if answer is not None and answer.status < 300:
                return
            if answer is not None and answer.status in (502, 504, 409) and world.over.is_set():
                return
            await world.pause(dice.choice([0.0, 1.0, 8.0]) * dice.random())
            if world.over.is_set():
                return

    async with trio.open_nursery() as nursery:
        for _ in range(dice.choice([1, 1, 2, 4])):
            nursery.start_soon(again, _TRIES)


async def _once(
    world: World,
    name: str,
    content: dict[str, Any],
    headers: dict[str, str],
    got: dict[Life, bytes],
) -> Answer | None:
    """Ask, and check the answer; `got`: what the router has answered in each of its lives."""
    floor, life = world.truth.acknowledged, world.router.life
    breaks = sum(worker.broken for worker in world.workers)
    try:
        answer = await world.ask(name, "POST", "/rollout/generate", content, headers=headers)
    except Cut:
        if sum(worker.broken for worker in world.workers) == breaks:
            raise Wrong(f"{name}: its answer broke off without a reason") from None
        return None
    if answer is None:
        return None
    if answer.status != 200:
        world.outcomes[f"rollout {answer.code or answer.status}"] += 1
        if answer.code not in EXPECTED | MORE and "x-worker-id" not in answer.headers:
            raise Wrong(f"{name}: {answer.status} {answer.body.decode()[:300]}")
        if answer.code == "cancelled":
            world.runs.cancel(name)
        return answer
    world.outcomes["rollout split" if "x-split-workers" in answer.headers else "rollout"] += 1
    made_by = Weights.of(check_samples(content, answer.body))
    replayed = answer.headers.get("idempotent-replayed") == "true"
    version, worker = int(answer.headers["x-weight-version"]), answer.headers["x-worker-id"]
    world.truth.saw(Sample(name, worker, version, 0 if replayed else floor, made_by))
    known = life is not None and life is world.router.life and "idempotency-key" in headers
    if known and life is not None and got.setdefault(life, answer.body) != answer.body:
        raise Wrong(f"{name} got two answers")
    return answer


async def canceller(world: World, number: int) -> None:
    """Asks for many groups at the same time, and cancels those that wait."""
    who = f"canceller {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        await world.pause(dice.uniform(1, 10) * world.theme.pace)
        count += 1
        batch = f"b{world.round}-{number}-{count}"
        by = dice.choice(["group", "client"])
        headers = {"x-group-id" if by == "group" else "x-client-id": batch}
        if dice.random() < 0.3:
            headers["x-split"] = "true"
        answers: list[Answer | None] = []
        told: list[Answer | None] = []

        async def one(name: str, headers: dict[str, str], answers: list[Answer | None]) -> None:
            answers.append(await _once(world, name, _group(dice, name, 100), headers, {}))

        async with trio.open_nursery() as nursery:
            for each in range(dice.randrange(2, 12)):
                nursery.start_soon(one, f"{batch}-{each}", headers, answers)
            await world.pause(dice.uniform(0, 5))
            told.append(await world.ask(who, "DELETE", f"/queue?{by}={batch}"))
        if None in (*answers, *told) or told[0] is None:
            continue  # the router has ended, or an answer broke off
        said = told[0].json()["cancelled"]
        found = sum(answer is not None and answer.code == "cancelled" for answer in answers)
        world.outcomes["cancelled"] += found
        if said != found:
            raise Wrong(f"{batch}: {said} were cancelled, says the router, and {found} were told")


async def insister(world: World, number: int) -> None:
    """Submits videos with keys, again and again, whatever becomes of the router."""
    who = f"insister {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        count += 1
        name = f"v{world.round}-{number}-{count}"
        world.runs.keyed.add(name)
        content = {"model": MODEL, "prompt": name, "num_inference_steps": dice.randrange(1, 20)}
        for _ in range(dice.randrange(2, 6)):
            with trio.move_on_after(1e9 if dice.random() < 0.6 else 4 * dice.random()):
                world.submitting += 1
                try:
                    answer = await world.ask(
                        *(name, "POST", "/v1/videos", content),
                        headers={"idempotency-key": name},
                        broken=True,
                    )
                finally:
                    world.submitting -= 1
                if answer is not None:
                    _check_job(world, name, answer)
            await world.pause(dice.choice([0.0, 1.0, 15.0]) * dice.random())
        await world.pause(dice.uniform(0, 4) * world.theme.pace)


def _check_job(world: World, name: str, answer: Answer) -> None:
    world.outcomes[f"keyed job {answer.code or answer.status}"] += 1
    if answer.status == 200:
        if answer.json()["prompt"] != name:
            raise Wrong(f"{name} got another job: {answer.json()}")
    elif answer.code not in EXPECTED | MORE and "x-worker-id" not in answer.headers:
        raise Wrong(f"{name}: {answer.status} {answer.body.decode()[:300]}")
