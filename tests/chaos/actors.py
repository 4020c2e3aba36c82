"""Who acts in the chaos: clients, a trainer for each model, and those who break things."""

from __future__ import annotations

import base64
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio
from attrs import define, field

from tests.chaos.link import Answer, Broken, Link
from tests.chaos.processes import PATIENCE, Process
from tests.chaos.truth import PROMPT, SIDE, Change, Model, Seen, Wrong

# What a client may be told while things break, by code. Anything else is a mistake.
EXPECTED = {
    *("no_routable_worker", "pool_asleep", "weights_unavailable", "no_workers", "queue_timeout"),
    *("worker_disconnected", "worker_failed", "worker_invalid_answer", "connect_failed"),
    *("connect_timeout", "response_timeout", "shutting_down"),
}
DISK, LORA = "chaos-disk", "chaos-lora"


@define(eq=False)
class World:
    """All there is. `over` is set when the breaking ends."""

    seed: int
    router: Process
    workers: dict[str, list[Process]]  # by model
    models: dict[str, Model]
    over: trio.Event = field(factory=trio.Event)
    diary: list[str] = field(factory=list)
    outcomes: Counter[str] = field(factory=Counter)
    # How often the router was killed, and any worker.
    router_kills: int = 0
    worker_kills: int = 0
    # The router listens.
    up: trio.Event = field(init=False, factory=trio.Event)
    _began: float = field(init=False, factory=trio.current_time)

    def note(self, what: str) -> None:
        self.diary.append(f"{trio.current_time() - self._began:7.2f} {what}")

    def dice(self, who: str) -> random.Random:
        return random.Random(f"{self.seed} {who}")

    @property
    def everybody(self) -> list[Process]:
        return [worker for some in self.workers.values() for worker in some]

    def free(self, dice: random.Random, some: list[Process]) -> Process | None:
        """A worker that nobody is at."""
        able = [worker for worker in some if not worker.taken]
        return dice.choice(able) if able else None

    def link(self) -> Link:
        """A connection to the router."""
        return Link(self.router.url, PATIENCE)

    async def ask(
        self, method: str, path: str, link: Link | None = None, **more: Any
    ) -> Answer | None:
        """The router's answer; None if it broke off for a good reason. Without a link on a
        connection of its own."""
        while not self.up.is_set():
            await self.up.wait()
        router_kills, worker_kills = self.router_kills, self.worker_kills
        own = link is None
        link = link or self.link()
        if link.era != router_kills:  # it leads to a router that is dead
            link.close()
            link.era = router_kills
        try:
            return await link.ask(method, path, **more)
        except Broken as error:
            # An answer that its worker broke off is broken off for the client as well.
            cut = error.begun and self.worker_kills > worker_kills
            if not (self.router_kills > router_kills or cut):
                raise Wrong(f"{method} {path} broke off without a reason: {error}") from None
            return None
        except trio.TooSlowError:
            raise Wrong(f"{method} {path}: no answer within {PATIENCE:g} s") from None
        finally:
            if own:
                link.close()

    async def pause(self, seconds: float) -> None:
        """Sleep, at most until it is over."""
        with trio.move_on_after(seconds):
            await self.over.wait()


# Clients.


async def client(world: World, number: int) -> None:
    """Asks for one image after the other, and looks at each."""
    with world.link() as link:
        await ask_for_images(world, number, link)


async def ask_for_images(world: World, number: int, link: Link) -> None:
    dice = world.dice(f"client {number}")
    model = world.models[dice.choice([DISK, DISK, LORA])]
    # Whoever has no name shares the turns of one: as many as there are of each name.
    headers = {"x-client-id": f"client-{number % 11}"} if number % 11 else {}
    count = 0
    while not world.over.is_set():
        count += 1
        request = f"c{number}-{count}"
        floor, seed, steps = model.acknowledged, dice.randrange(10**6), dice.randrange(400, 4000)
        wanted = {"x-min-weight-version": str(floor)} if dice.random() < 0.3 else {}
        answer = await world.ask(
            *("POST", "/v1/images/generations", link),
            headers={**headers, **wanted, "x-request-id": request},
            content={
                "model": model.name,
                "prompt": PROMPT,
                "size": f"{SIDE}x{SIDE}",
                "num_inference_steps": steps,
                "seed": seed,
                "response_format": "b64_json",
                "output_format": "png",
            },
        )
        if answer is None or answer.status != 200:
            look_at_refusal(world, request, answer)
            await world.pause(0.1 + 0.2 * dice.random())
            continue
        world.outcomes["image"] += 1
        if "x-weight-version" not in answer.headers:
            raise Wrong(f"{request}: an image without X-Weight-Version")
        model.saw(
            Seen(
                request,
                answer.headers["x-worker-id"],
                int(answer.headers["x-weight-version"]),
                floor,
                seed,
                steps,
                base64.b64decode(answer.json()["data"][0]["b64_json"]),
            )
        )


def look_at_refusal(world: World, request: str, answer: Answer | None) -> None:
    """Errors are expected, but only those that the router owns up to."""
    if answer is None:
        world.outcomes["router killed"] += 1
        return
    try:
        code = answer.json()["code"]
    except (ValueError, KeyError, TypeError):
        code = None
    world.outcomes[code or "?"] += 1
    if code not in EXPECTED:
        maker = answer.headers.get("x-worker-id", "the router")
        raise Wrong(f"{request}: {maker} answered {answer.status}: {answer.text[:300]}")


# Trainers.


def next_disk(model: Model, label: str, dice: random.Random) -> Change:
    path = f"/nonexistent/{label}" if dice.random() < 0.2 else f"chaos/{label}"
    return model.disk(label, path)


def next_lora(model: Model, label: str, dice: random.Random) -> Change:
    if dice.random() < 0.2:
        return model.bare(label)
    path = f"/nonexistent/{label}" if dice.random() < 0.2 else f"chaos/{label}"
    return model.lora(label, path, dice.choice([0.5, 1.0]))


async def trainer(
    world: World,
    name: str,
    every: float,
    make: Callable[[Model, str, random.Random], Change],
) -> None:
    """Sends a change every so often, whatever became of the one before."""
    dice = world.dice(f"trainer of {name}")
    model, count = world.models[name], 0
    async with trio.open_nursery() as nursery:
        while not world.over.is_set():
            count += 1
            change = make(model, f"{name}-{count}", dice)
            if name == DISK and dice.random() < 0.25:
                await spoil(world, dice)
            nursery.start_soon(send_change, world, model, change)
            await world.pause(every)


async def spoil(world: World, dice: random.Random) -> None:
    """One worker will refuse the next change, and perhaps have done it nevertheless."""
    worker = dice.choice(world.workers[DISK])
    effect = dice.choice(["none", "partial", "rollback", "applied"])
    fault = {
        "fault": "fail_next_update",
        "path": "/update_weights_from_disk",
        "status": 400 if effect == "none" else 500,
        "effect": effect,
        "seconds": 2,
    }
    try:
        with Link(worker.url, within=0.5) as link:
            await link.ask("POST", "/simulate", content=fault)
    except (Broken, trio.TooSlowError):
        return
    world.note(f"{worker.name} will refuse a change: {effect}")


async def send_change(world: World, model: Model, change: Change) -> None:
    world.note(f"{change.label}: {change.path} {change.body.get('model_path', '')}")
    answer = await world.ask("POST", change.path, params={"model": model.name}, content=change.body)
    if answer is None:
        change.lost = True
        world.note(f"{change.label}: the answer was lost")
        return
    told: Mapping[str, Any] = answer.json()
    world.note(f"{change.label}: {answer.status} {brief(told)}")
    world.outcomes[f"change {answer.status}"] += 1
    # Nobody was called: there is nobody, or a router that has just begun has yet to hear what
    # its workers serve.
    if answer.status == 503 or (told.get("code") == "unknown_model" and world.router_kills):
        return
    if "results" not in told:
        raise Wrong(f"{change.label}: {answer.status} {answer.text[:500]}")
    model.answered(change, told)


def brief(told: Mapping[str, Any]) -> str:
    rows = [row["status_code"] for row in told.get("results") or ()]
    deferred = [row["worker_url"][-5:] for row in told.get("deferred") or ()]
    return (
        f"version {told.get('weight_version')} rows {rows} deferred {deferred} "
        f"{told.get('code', '')}{told.get('message', '')}"
    )


async def listener(world: World) -> None:
    """Hears which versions the router has issued."""
    while True:
        await learn_versions(world)
        await trio.sleep(0.5)


async def learn_versions(world: World) -> None:
    answer = await world.ask("GET", "/weights")
    if answer is not None:
        assert answer.status == 200, answer.text
        for ledger in answer.json()["models"]:
            if ledger["weight_version"]:
                world.models[ledger["model"]].learn(ledger["weight_version"], ledger["label"])


# Those who break things.


async def breaker(world: World, number: int) -> None:
    """Takes one worker after the other, and does something to it."""
    dice = world.dice(f"breaker {number}")
    deeds: list[Callable[[World, Process, random.Random], Awaitable[None]]]
    deeds = [kill_worker, kill_worker, freeze, sleep_and_wake, sleep_and_wake]
    while not world.over.is_set():
        worker = world.free(dice, world.everybody)
        if worker is not None:
            worker.taken = True
            await dice.choice(deeds)(world, worker, dice)
            worker.taken = False
        await world.pause(0.3 + dice.random())


async def kill_worker(world: World, worker: Process, dice: random.Random) -> None:
    world.note(f"{worker.name}: killed")
    world.worker_kills += 1
    worker.kill()
    await world.pause(dice.choice([0.0, 0.1, 1.5]) * dice.random())
    worker.start()
    await worker.listens()
    world.note(f"{worker.name}: listens again")


async def freeze(world: World, worker: Process, dice: random.Random) -> None:
    world.note(f"{worker.name}: frozen")
    worker.freeze()
    await world.pause(2.5 * dice.random())
    if dice.random() < 0.2:
        world.worker_kills += 1
        worker.kill()
        worker.start()
        await worker.listens()
        world.note(f"{worker.name}: killed while frozen, and listens again")
        return
    worker.thaw()
    world.note(f"{worker.name}: thawed")


async def sleep_and_wake(world: World, worker: Process, dice: random.Random) -> None:
    await memory_call(world, worker, "release")
    await world.pause(2 * dice.random())
    if dice.random() < 0.2:
        world.note(f"{worker.name}: killed in its sleep")
        world.worker_kills += 1
        worker.kill()
        worker.start()
        await worker.listens()
    await wake(world, worker)


async def memory_call(world: World, worker: Process, what: str) -> int:
    answer = await world.ask(
        "POST", f"/{what}_memory_occupation", params={"workers": worker.url}, content={}
    )
    status = 0 if answer is None else answer.status
    why = "" if answer is None or status == 200 else answer.text[:300]
    world.note(f"{worker.name}: {what} {status} {why}")
    world.outcomes[f"{what} {status}"] += 1
    return status


async def wake(world: World, worker: Process) -> None:
    """Until it is awake, whatever is in the way."""
    with trio.fail_after(PATIENCE):
        while await memory_call(world, worker, "resume") != 200:
            await trio.sleep(0.2)


async def kill_router(world: World) -> None:
    world.note("the router: killed")
    world.router_kills += 1
    world.up = trio.Event()
    world.router.kill()
    world.router.start()
    await world.router.listens()
    world.up.set()
    world.note("the router: listens again")
