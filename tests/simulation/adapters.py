"""A pool whose trainer sets LoRAs, and changes the weights below them when it may.

Its workers break too. Nobody launched them: when they are wrapped, somebody has to restart them.
"""

from __future__ import annotations

import random
from typing import Any

import trio
from attrs import define, field, frozen

from tests.simulation.actors import CODES, EXPECTED
from tests.simulation.breakers import cut, freeze, ill, part, restart
from tests.simulation.deployment import OPERATION, World
from tests.simulation.http import Answer
from tests.simulation.loras import shown
from tests.simulation.network import Cut
from tests.simulation.truth import DISK, TENSOR, Change, Sample, Truth
from tests.simulation.universe import Wrong, pick
from tests.simulation.worker import MODULES, Weights, Worker

SET, MERGE, UNMERGE = "/v1/set_lora", "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"
_WORKERS, _WELL = 3, 60.0  # seconds
_KINDS = {
    **{"set": 4, "missing": 2, "merge": 2, "unmerge": 3, "push": 2},
    **{"disk": 4, "part": 1, "tensor": 1, "sync": 1, "way out": 2},
}


@frozen
class Adapted(Change):
    """A change of the LoRA or of the weights. `replaces`: it leaves nothing of what was pushed."""

    kind: str = ""
    strength: float = 1.0

    @property
    def replaces(self) -> bool:
        return self.kind == "disk"

    def body(self) -> dict[str, Any]:
        match self.kind:
            case "set" | "missing":
                return {"label": self.label, "lora_nickname": self.label, "lora_path": self.label}
            case "merge":
                return {"label": self.label, "target": "all", "strength": self.strength}
            case "unmerge":
                return {"label": self.label, "target": "all"}
            case "push":
                return {**self.content(), "weight_update_mode": "lora_merge"}
        return self.content()


@define
class Worn:
    """The LoRA of a version. `adapter`: empty if there is none, None if that is not known."""

    adapter: str | None
    strength: float = 1.0
    acts: bool | None = None

    def changed(self, change: Adapted) -> Worn:
        match change.kind:
            case "set":
                return Worn(change.label, 1.0, acts=True)
            case "push":
                return Worn(f"ipc:{change.label}:None", 1.0, acts=True)
            case "merge":
                return Worn(self.adapter, change.strength, acts=self.adapter != "")
            case "unmerge":
                return Worn(self.adapter, self.strength, acts=False)
        pushed = self.adapter is not None and self.adapter.startswith("ipc:")
        return Worn("", acts=False) if change.replaces and pushed else self


@define(eq=False)
class AdaptedTruth(Truth):
    """What each version must look like, LoRA and all."""

    def state(self, version: int) -> Weights | None:
        first = version
        while first and first in self.versions:
            first -= 1
        modules = self.start.modules if not first else ("",) * len(MODULES)
        found, worn = Weights(modules), Worn("" if not first else None, acts=not first and None)
        for number in range(first + 1, version + 1):
            change = self.versions[number]
            assert isinstance(change, Adapted)
            worn = worn.changed(change)
            found = change.applied(found) if change.path in (DISK, TENSOR) else found
            if change.kind == "push":
                found = Weights(modules)
            modules = found.modules
        if "" in modules or (worn.adapter is None and worn.acts is not False):
            return None
        return found.worn(shown(worn.adapter or "", worn.strength) if worn.acts else "")


@define(eq=False)
class Adapters:
    """The pool, in one round."""

    world: World
    name: str
    workers: list[Worker]
    truth: AdaptedTruth
    count: int = field(init=False, default=0)

    async def ask(self, method: str, target: str, content: object = None) -> Answer | None:
        return await self.world.ask(self.name, method, target, content, within=OPERATION)

    async def surely(self, method: str, target: str, content: object = None) -> Answer:
        """Until the router has answered, and is able to."""
        while True:
            answer = await self.ask(method, target, content)
            if answer is not None and answer.code not in ("state_unavailable", "shutting_down"):
                return answer
            await trio.sleep(1)

    async def paints(self) -> None:
        dice, count = self.world.dice(f"painter of {self.name}"), 0
        while not self.world.over.is_set():
            count += 1
            await self._paint(f"{self.name}/{count}", dice.randrange(1, 100))
            await self.world.pause(dice.random())

    async def _paint(self, request: str, steps: int) -> None:
        content = {"prompt": f"{request}", "num_inference_steps": steps}
        floor, breaks = self.truth.acknowledged, sum(worker.broken for worker in self.workers)
        target = f"/v1/images/generations?pool={self.name}"
        try:
            answer = await self.world.ask(request, "POST", target, content)
        except Cut:
            if sum(worker.broken for worker in self.workers) == breaks:
                raise Wrong(f"{request}: its answer broke off without a reason") from None
            return
        if answer is None:
            return
        self.world.outcomes[f"adapted image {answer.code or answer.status}"] += 1
        if answer.status == 200:
            told = answer.json()
            made_by = Weights.of(told["made_by"])
            for process in [worker.process for worker in self.workers]:
                if process and told["id"] in process.images:
                    if process.spoilt:
                        return
                    if not self.world.blind:
                        process.delivered = min(process.delivered, trio.current_time())
            version, worker = answer.headers["x-weight-version"], answer.headers["x-worker-id"]
            self.truth.saw(Sample(request, worker, int(version), floor, made_by))
        elif answer.code not in EXPECTED and "x-worker-id" not in answer.headers:
            raise Wrong(f"{request}: {answer.status} {answer.body.decode()[:300]}")

    async def trains(self) -> None:
        dice = self.world.dice(f"trainer of {self.name}")
        while not self.world.over.is_set():
            await self.world.pause(dice.choice([1, 10]) * dice.random())
            kind = pick(dice, _KINDS)
            if self.world.over.is_set():
                return
            match kind:
                case "sync":
                    await self._sync()
                case "way out":
                    await self._change("unmerge")
                    for worker in self.workers:
                        await self._restart(worker, dice)
                case _:
                    await self._change(kind, dice.choice([0.5, 1.0, 2.0]), dice.random() < 0.3)

    async def _restart(self, worker: Worker, dice: random.Random) -> None:
        if not worker.taken:
            worker.taken = True
            await restart(self.world, worker, dice)
            worker.taken = False

    async def _change(self, kind: str, strength: float = 1.0, unwrap: bool = False) -> bool:
        """Whether all that were called have it."""
        self.count += 1
        where = "/nonexistent" if kind == "missing" else ""
        path = {"merge": MERGE, "unmerge": UNMERGE, "disk": DISK, "part": DISK}.get(kind, TENSOR)
        change = Adapted(
            f"{where}/{self.name}/{kind}-{self.count}",
            SET if kind in ("set", "missing") else path,
            (MODULES[1],) if kind == "part" else None,
            refused=kind == "missing",
            kind=kind,
            strength=strength,
        )
        self.truth.sent(change)
        target = f"{change.path}?pool={self.name}" + ("&unwrap=true" if unwrap else "")
        before = [worker.process for worker in self.workers]
        self.world.note(self.name, f"{target} {change.body()}")
        self.world.tell(None)
        answer = await self.ask("POST", target, change.body())
        if answer is None:
            await self._learn()
            return False
        told = answer.json()
        self.world.note(self.name, f"{change.label}: {answer.status} {answer.body.decode()[:500]}")
        self.world.outcomes[f"{kind} {answer.code or answer.status}"] += 1
        if answer.code == "lora_active":
            self._check_active(change, told, before)
        elif answer.code == "weight_call_refused" or "results" in told:
            if change.refused and any(row["status_code"] == 200 for row in told["results"]):
                raise Wrong(f"{change.label} is nowhere, and is said to be set: {told}")
            self.truth.answered(change, told)
        elif answer.code not in CODES:
            raise Wrong(f"{change.label}: {answer.status} {answer.body.decode()[:300]}")
        await self._learn()
        return (
            answer.status == 200 and not told["pending"]
            if "pending" in told
            else (answer.status == 200)
        )

    def _check_active(self, change: Adapted, told: dict[str, Any], before: list[Any]) -> None:
        """An update is refused only where layers may be wrapped, and nobody is restarted for it.
        Raises Wrong."""
        if change.path not in (DISK, TENSOR) or change.kind == "push" or told["launched"]:
            raise Wrong(f"{change.label} was refused: {told}")
        del self.truth.changes[change.label]  # no version may be that

    async def _sync(self) -> None:
        said = {"pool": self.name, "timeout": 20}
        answer = await self.ask("POST", "/weights/sync?unwrap=true", said)
        if answer is None:
            return
        told = answer.json()
        self.world.outcomes[f"unwrap {answer.code or answer.status}"] += 1
        if answer.code == "lora_active" or answer.status in (200, 504):
            if told["restarted"]:
                raise Wrong(f"the router has restarted what it has not launched: {told}")
        elif answer.code == "full_update_needed":
            if await self._learn():
                raise Wrong(f"no call is said to help, and all can be sent again: {told}")
        elif answer.code not in CODES:
            raise Wrong(f"/weights/sync: {answer.status} {answer.body.decode()[:300]}")
        wrapped = {w.host.address for w in self.workers if w.process and w.process.loras.wrapped}
        if answer.status == 200 and len(told["workers"]) == _WORKERS and len(wrapped) == _WORKERS:
            raise Wrong("all workers are wrapped, and the router says that none is")

    async def _learn(self) -> bool:
        """What the router says of the versions; whether they can be sent again."""
        answer = await self.surely("GET", f"/weights?pool={self.name}")
        replayable = True
        for ledger in answer.json().get("models", ()):
            self.truth.told(ledger)
            replayable = ledger["replayable"]
        return replayable

    async def breaks(self) -> None:
        dice = self.world.dice(f"breaker of {self.name}")
        deeds = {restart: 4, freeze: 2, part: 2, cut: 1, ill: 2}
        while not self.world.over.is_set():
            victim = await self.world.opportunity(dice, 15 * dice.random(), victim=True)
            able = [worker for worker in self.workers if not worker.taken]
            if not able or self.world.over.is_set():
                continue
            worker = victim if victim in able else dice.choice(able)
            worker.taken = True
            await pick(dice, deeds)(self.world, worker, dice)
            worker.taken = False

    async def rests(self) -> None:
        """In the calm, nobody is kept out without a reason; and the way out leads out. Raises
        Wrong."""
        replayable = await self._learn()
        kept = await self._kept_out()
        for worker in self.workers:
            process = worker.process
            wrapped = process is not None and process.loras.wrapped
            if worker in kept and replayable and not wrapped:
                raise Wrong(f"{worker.name} is not wrapped, and is kept out: {kept[worker]}")
        for _ in range(3):
            await self._change("unmerge")
            for worker in self.workers:
                worker.kill()
                await trio.sleep(5)
                await worker.start()
            await self._kept_out()
            if await self._change("disk"):
                break
        if kept := await self._kept_out():
            raise Wrong(f"the way out of wrapped layers leads nowhere: {list(kept.values())}")

    async def _kept_out(self) -> dict[Worker, Any]:
        """Workers that get no requests a minute later, and why."""
        kept: dict[Worker, Any] = {}
        with trio.move_on_after(_WELL):
            while True:
                answer = await self.surely("GET", "/workers")
                listed = {told["url"]: told for told in answer.json()["workers"]}
                kept = {
                    worker: listed[worker.url]["reasons"]
                    for worker in self.workers
                    if not listed[worker.url]["routable"]
                    and listed[worker.url]["reasons"] != ["on_trial"]
                }
                if not kept:
                    break
                await trio.sleep(1)
        return kept


async def adapters(world: World, number: int) -> None:
    """The pool for the length of a round, and all who use it."""
    name = f"adapted{world.round}"
    truth = AdaptedTruth(Weights((name,) * len(MODULES)))
    workers = [
        Worker(
            *(world.universe, world.network, f"{name}-{n}", world.network.host(f"192.0.2.{n}")),
            pool=name,
            world=world,
            truth=truth,
        )
        for n in range(151, 151 + _WORKERS)
    ]
    pool = Adapters(world, name, workers, truth)
    world.adapted = workers
    for worker in workers:
        await worker.start()
        await pool.surely("POST", "/workers", {"url": worker.url, "pool": name})
    async with trio.open_nursery() as nursery:
        for act in (pool.paints, pool.paints, pool.trains, pool.breaks):
            nursery.start_soon(act)
    await pool.rests()
    world.note(name, f"judged {dict(truth.judged)}, open {list(truth.open)}")
    for worker in workers:
        await pool.surely("DELETE", f"/workers/{worker.url}")
        worker.kill()
