"""Who acts: clients and trainers."""

from __future__ import annotations

from typing import Any

import trio
from attrs import evolve

from tests.simulation.deployment import OPERATION, World
from tests.simulation.network import Cut
from tests.simulation.numbers import REFUSED, Wish, check_refusal, chosen, wished
from tests.simulation.overseer import refused_change, refused_generation
from tests.simulation.truth import DISK, TENSOR, Change, Sample
from tests.simulation.universe import Wrong, pick
from tests.simulation.worker import MODEL, MODULES, Weights, Worker

# What a client may be told while things break, by code. Anything else is a mistake.
EXPECTED = {
    *("no_routable_worker", "pool_asleep", "weights_unavailable", "no_workers", "queue_timeout"),
    *("worker_disconnected", "worker_failed", "worker_invalid_answer", "connect_failed"),
    *("connect_timeout", "response_timeout", "shutting_down", "too_many_jobs"),
}


# And a trainer.
CODES = {
    *("no_workers", "pool_asleep", "state_unavailable", "unknown_transaction", "drain_timeout"),
    *("nothing_applied", "unknown_model", "shutting_down", "queue_timeout", "change_pending"),
    *("weight_version_not_greater", "collective_broken"),
}


_QUIET = 20  # seconds since something happened to a worker, after which the router knows of it
HELD = 60  # seconds that a transaction may be open


async def painter(world: World, number: int) -> None:
    """A client that asks for one image after the other, and looks at each."""
    who = f"client {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        count += 1
        request = f"c{world.round}-{number}-{count}"
        floor = world.truth.acknowledged
        content = {
            "model": MODEL,
            "prompt": "a red kite",
            "num_inference_steps": dice.randrange(1, 300),
        }
        headers = {"x-request-id": request, "x-client-id": f"c{number % 3}"}
        least = dice.random() < 0.2 and not (world.theme.sound or world.theme.runs)
        wish = wished(world, f"{who} {count}") if not world.theme.sound else Wish()
        if least and not wish.headers:
            headers["x-min-weight-version"] = str(floor)
        headers |= wish.headers
        leaves = dice.uniform(0, 4) if dice.random() < 0.1 else float("inf")
        if not (least or wish.headers):
            world.painting[request] = trio.current_time()
        with trio.move_on_after(leaves) as scope:
            await paint(world, request, content, headers, floor, wish)
        world.painting.pop(request, None)
        if scope.cancelled_caught:
            world.outcomes["left"] += 1
        await world.pause(dice.uniform(0, 2) * world.theme.pace)


async def paint(
    world: World,
    request: str,
    content: object,
    headers: dict[str, str],
    floor: int,
    wish: Wish,
) -> None:
    life, run = world.router.life, world.truth.begun
    breaks = sum(worker.broken for worker in world.workers)
    joined = {w.name: w.removals for w in world.workers if w.name in world.members}
    try:
        answer = await world.ask(
            request, "POST", "/v1/images/generations", content, headers=headers
        )
    except Cut:
        if sum(worker.broken for worker in world.workers) == breaks:
            raise Wrong(f"{request}: its answer broke off without a reason") from None
        world.outcomes["broke off"] += 1
        return
    if answer is None:
        world.outcomes["router ended"] += 1
    elif answer.status == 200:
        told = answer.json()
        version, worker = answer.headers["x-weight-version"], answer.headers["x-worker-id"]
        world.outcomes["image"] += 1
        weights = Weights.of(told["made_by"])
        floor = max(floor, wish.floor)
        world.truth.saw(Sample(request, worker, int(version), floor, weights, wish.exact, run))
        for made_by in world.workers:
            process = made_by.process
            # What was asked for before a removal does not testify after it.
            stays = made_by.name in world.members and joined.get(made_by.name) == made_by.removals
            if process and told["id"] in process.images and stays and not world.blind:
                process.delivered = min(process.delivered, trio.current_time())
    else:
        world.outcomes[answer.code or str(answer.status)] += 1
        theirs = "x-worker-id" in answer.headers  # passed on as it came
        if world.theme.sound:
            raise Wrong(f"all is well, and {request}: {answer.status} {answer.body.decode()[:300]}")
        if wish.headers and answer.code in REFUSED:
            await check_refusal(world, request, wish, answer, life)
            return
        if answer.code not in EXPECTED and not theirs:
            raise Wrong(f"{request}: {answer.status} {answer.body.decode()[:300]}")
        if answer.code == "weights_unavailable" and world.replayable:
            await learn(world)  # tensors may have come since the last look
        if wish.exact is None and wish.floor <= floor:
            refused_generation(world, request, answer.code)


async def trainer(world: World, number: int) -> None:
    """Sends one change after the other, whatever became of the one before."""
    who = f"trainer {number}"
    dice, count = world.dice(who), 0
    while not world.over.is_set():
        theme = world.theme
        await world.pause(dice.choice([2, 20]) * dice.random() * theme.pace)
        if world.over.is_set():
            return
        count += 1
        tensor, begin = theme.tensors, theme.begun
        kind = pick(
            dice,
            {"whole": 6, "part": 2, "wrong": not theme.sound, "tensor": tensor, "begun": begin},
        )
        label = f"{'/nonexistent' if kind == 'wrong' else ''}/ckpt/{world.round}-{number}-{count}"
        told = kind == "tensor" or (kind == "begun" and dice.random() < tensor / 10)
        change = Change(
            label,
            TENSOR if told else DISK,
            (dice.choice(MODULES),) if kind == "part" else None,
            refused=kind == "wrong",
            number=chosen(world, f"{who} {count}", label),
            full=kind == "tensor" and world.dice(f"{label} full").random() < theme.wholes,
        )
        with world.operation():
            await (begun if kind == "begun" else send)(world, who, change)


async def send(
    world: World, who: str, change: Change, where: str = f"model={MODEL}"
) -> dict[str, Any] | None:
    """What the router tells; None if it ended. `where`: of the query."""
    target = f"{change.path}?{where}"
    if world.theme.rolling:
        dice = world.dice(f"{who} {change.label} turns")
        target += dice.choice(["", "&rolling=1", "&rolling=1", "&rolling=50%25"])
    with world.change():
        began = trio.current_time()
        told = await order(world, who, change, target, change.content())
        changed: list[Worker] = []
        if told is not None and "results" in told:
            world.truth.answered(change, told)
            done = {row["worker_url"] for row in told["results"] if row["status_code"] == 200}
            for worker in world.workers:
                healed = worker.url in done and world.changing == 1 and quiet(worker, began)
                healed = healed and change.full and world.truth.is_current(change)
                if healed and worker.url in told["behind"]:
                    raise Wrong(f"{worker.name} has all of {change.label}, and is behind")
            if told["success"] and not told["deferred"]:
                changed = [worker for worker in world.workers if worker.url in done]
        world.prove(changed, change)
        if changed and world.changing == 1:
            await _succeeded(world, change, changed)
        return told


async def _succeeded(world: World, change: Change, changed: list[Worker]) -> None:
    """Success means that each called worker has all weights of the version. Raises Wrong."""
    life, began = world.router.life, trio.current_time()
    answer = await world.ask("a trainer", "GET", "/workers")
    if answer is None or world.router.life is not life or world.changing > 1:
        return
    reasons = {told["url"]: told["reasons"] for told in answer.json()["workers"]}
    for worker in changed:
        if quiet(worker, began) and "weights_behind" in reasons.get(worker.url, ()):
            raise Wrong(f"{change.label} is said to be a success, and {worker.name} is behind")


def quiet(worker: Worker, since: float) -> bool:
    return not (worker.taken or worker.handled) and worker.disturbed < since - _QUIET


async def begun(world: World, who: str, change: Change) -> None:
    """The same change, made between a begin and a commit."""
    with world.change():
        early = world.dice(f"{who} {change.label} number").random() < 0.5
        named = change.named() if early else {"label": change.label}
        said = {"model": MODEL, "timeout": HELD, **named}
        told = await order(world, who, change, "/weights/begin", said)
        if told is None:
            world.prove([], change)
        elif "txn" in told:  # else nothing has been done
            await _fill(world, who, change, told["txn"], {} if early else change.named())


async def _fill(world: World, who: str, change: Change, txn: str, named: dict[str, Any]) -> None:
    """`named`: which version it is to be, if its begin has not said so."""
    world.prove([], change)
    dice = world.dice(f"{who} {change.label}")
    await world.pause(3 * dice.random())
    target = f"{change.path}?txn={txn}"
    told = await order(world, who, change, target, change.content(named=False))
    if told is None:
        return
    if dice.random() < 0.2 and not world.theme.sound:
        await order(world, who, change, "/weights/abort", {"txn": txn})
        return
    said = {"txn": txn, **(named or change.named())}
    if not named:
        said.pop("weight_version", None)
    told = await order(world, who, change, "/weights/commit", said)
    if told is not None and told.get("code") == "weight_version_not_greater":
        # It is open as before, and may be whatever the router counts.
        change = evolve(change, number=None)
        said = {"txn": txn, "label": change.label}
        told = await order(world, who, change, "/weights/commit", said)
    await committed(world, change, txn, told)


async def committed(world: World, change: Change, txn: str, told: dict[str, Any] | None) -> None:
    """What the router has answered to a commit holds."""
    if told is not None and told.get("code") == "state_unavailable":
        await _wait_out(world, change, txn)
    elif told is not None and told.get("workers"):
        world.truth.learn(told["weight_version"], change.label)
        world.truth.acknowledge(told["weight_version"], change)
        good = [w for w in world.workers if any(w.host.address in name for name in told["workers"])]
        world.prove([] if told["behind"] or told["deferred"] else good, change)


async def _wait_out(world: World, change: Change, txn: str) -> None:
    """Nobody commits the transaction any more: the router holds the workers until its time is up.
    Raises Wrong if it holds them for longer."""
    life, transactions = world.router.life, world.router.running.parts.transactions
    with trio.move_on_after(HELD + 1) as scope:
        while life is not None and not life.dead and txn in transactions._open:
            await trio.sleep(0.1)
    if scope.cancelled_caught:
        raise Wrong(f"{change.label} was not committed, and is open after {HELD} s")


async def order(
    world: World, who: str, change: Change, target: str, content: object
) -> dict[str, Any] | None:
    """What the router tells; None if it ended."""
    world.truth.sent(change)
    floor = world.truth.acknowledged
    world.note(who, f"{change.label} {target} {change.targets or ''}")
    world.tell(None)
    answer = await world.ask(who, "POST", target, content, within=OPERATION)
    if answer is None:
        world.note(who, f"{change.label}: the answer was lost")
        return None
    told = answer.json()
    world.note(who, f"{change.label}: {answer.status} {answer.body.decode()[:500]}")
    world.outcomes[f"change {answer.status}"] += 1
    if answer.code == "weight_version_not_greater":
        world.truth.refused(change, told["weight_version"], floor)
    expected = CODES | ({"unknown_worker"} if "workers=" in target else set())
    if answer.status not in (200, 400, 502) and answer.code not in expected:
        raise Wrong(f"{change.label}: {answer.status} {answer.body.decode()[:500]}")
    if "txn=" not in target and "workers=" not in target:  # else it is for some alone
        refused_change(world, change.label, answer.code, told.get("left") or {})
    return dict(told)


async def listener(world: World) -> None:
    """Hears which versions the router has issued, and that none is lost."""
    while True:
        await learn(world)
        await trio.sleep(2 * max(1, world.theme.pace / 2))


async def learn(world: World) -> dict[str, object] | None:
    floor = world.truth.acknowledged
    answer = await world.ask("listener", "GET", "/weights")
    if answer is None:
        return None
    for ledger in answer.json()["models"]:
        if ledger["model"] != MODEL:
            continue
        if world.truth.bygone < floor and ledger["weight_version"] < floor:
            raise Wrong(f"{floor} was acknowledged, and now it is {ledger['weight_version']}")
        world.truth.told(ledger)
        world.replayable = ledger["replayable"]
        return dict(ledger)
    return None
