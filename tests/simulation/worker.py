"""A simulated worker: one process at a time at one address, as the worker contract has it.

Every answer to a generation tells which weights made it. A fault of the worker is drawn from the
seed by who breaks things; the worker itself only carries it out.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import AsyncIterator
from typing import Any

import trio
from attrs import define, field

from tests.simulation import collectives, loras
from tests.simulation.http import Request, ServerSide
from tests.simulation.network import Cut, Host, Network, Wire
from tests.simulation.process import MODEL, MODULES, Faults, Process, Weights
from tests.simulation.runs import ASLEEP, samples
from tests.simulation.universe import LIFE, Life, Universe, Wrong

_IDLE = 5.0  # seconds until a kept-alive connection is closed
_SLOWER = 60.0  # at most so much longer it takes at a slow worker
_POOLS = ("teacher", "reward")
_JSON = "application/json"
# Seconds after the word that it sleeps in which a worker gets no generation; before, one may be on
# its way.
_SOON, _DOZES = 1.0, 4.9

Reply = tuple[int, Any]


@define(eq=False)
class Worker:
    """One worker: its machine, and its processes one after the other."""

    universe: Universe
    network: Network
    name: str
    host: Host
    slots: int = 1
    pool: str = ""  # also how what is meant for it is called
    faults: Faults = field(factory=Faults)
    process: Process | None = None
    taken: bool = False  # somebody is breaking it
    served: int = 0  # generations
    removals: int = 0  # times that somebody had it removed
    # When something happened to it, and when requests last failed there.
    disturbed: float = -math.inf
    erred: float = -math.inf
    slowed: int = 0  # the last round in which it was slow
    silent_since: float | None = None  # since when it answers late or not, but lives
    napping: int = 0  # operators that have put it to sleep, and not sent a wake since
    away: int = 0  # operators that have removed or quarantined it, or are about to
    moved: float = -math.inf  # when that last ended, or something broke it
    handled: int = 0  # operators that are about to do something to it
    engaged: int = 0  # those among them that must have it for themselves
    serving: set[str] = field(factory=set)  # names of requests
    broken: int = 0  # times that it died, or that an answer of it broke off
    _processes: int = field(init=False, default=0)
    _ids: int = field(init=False, default=0)
    dice: random.Random = field(init=False)
    world: Any = None  # which judges what comes
    truth: Any = None  # of its pool, if that is not the world's

    def __attrs_post_init__(self) -> None:
        self.dice = self.universe.dice(f"worker {self.name}")

    @property
    def url(self) -> str:
        return f"http://{self.host.address}:30000"

    @property
    def model(self) -> str:
        return self.pool or MODEL

    @property
    def alive(self) -> bool:
        return self.process is not None

    def note(self, what: str) -> None:
        self.universe.note(self.name, what)

    async def start(self, warmup: float = 0.0) -> None:
        """A new process, with the weights of the start."""
        assert self.process is None
        self._processes += 1
        weights = Weights((self.model,) * len(MODULES))
        process = Process(self, self._processes, trio.current_time() + warmup, weights)
        self.process = process
        await self.network.nursery.start(self._run, process)
        self.note(f"process {process.number} listens")

    async def _run(self, process: Process, *, task_status: trio.TaskStatus[None]) -> None:
        LIFE.set(None)
        with process.scope:
            async with trio.open_nursery() as process.nursery:
                self.host.listen(self._serve, process.nursery)
                task_status.started()
                await trio.sleep_forever()

    def kill(self) -> None:
        process = self.process
        if process is None:
            return
        self.process = None
        self.broken += 1
        self.note(f"process {process.number} dies")
        for wire in self.host.forget():
            self.network.lose(wire)
        self.silent(False)
        process.scope.cancel()

    def silent(self, silent: bool) -> None:
        if not silent:
            self.silent_since = None
        elif self.silent_since is None:
            self.silent_since = trio.current_time()

    def freeze(self) -> None:
        if self.process is not None:
            self.silent(True)
            self.process.thawed = trio.Event()

    def thaw(self) -> None:
        self.silent(False)
        if self.process is not None:
            self.process.thawed.set()

    async def _serve(self, wire: Wire) -> None:
        process = self.process
        assert process is not None
        side = ServerSide(wire, _IDLE)
        await self._tick(process)
        while (request := await side.next()) is not None:
            await self._tick(process)
            status, content = await self._answer(process, request)
            await self._tick(process)
            match content:
                case str():
                    kind, body = "text/plain", content.encode()
                case bytes():
                    kind, body = "application/msgpack", content
                case _:
                    kind, body = _JSON, json.dumps(content).encode()
            cut = request.method == "POST" and self.dice.random() < self.faults.cutting
            if cut:
                self.broken += 1
                self.note(f"breaks off its answer to {request.path}")
            await side.answer(status, body, kind, cut=cut)
            if content is ASLEEP:
                process.dozed = trio.current_time(), request.wire.life
            if isinstance(content, str) and status == 500:
                return

    async def _tick(self, process: Process) -> None:
        """A frozen process does nothing, and then goes on in the order in which things came: it
        accepts connections in that order, and the router uses each for one call."""
        if process.thawed.is_set() and not process.door.locked():
            return
        async with process.door:
            while not process.thawed.is_set():
                await process.thawed.wait()

    @contextlib.asynccontextmanager
    async def turn(self, process: Process) -> AsyncIterator[None]:
        with process.working():
            async with process.scheduler:
                yield

    async def takes(self, process: Process, seconds: float) -> None:
        await trio.sleep(min(seconds * self.faults.slow, seconds + _SLOWER))
        await self._tick(process)

    async def _answer(self, process: Process, request: Request) -> Reply:
        warming = trio.current_time() < process.warm_at
        match request.method, request.path.split("/")[1:]:
            case "GET", ["health"]:
                await trio.sleep(self.faults.slow_health)
                if warming:
                    return 503, ""
                if self.faults.dead_backend:
                    return 503, {"status": "unhealthy", "error": "the scheduler died"}
                return 200, {"status": "ok"}
            case "GET", ["v1", "models"]:
                await trio.sleep(max(0.0, process.warm_at - trio.current_time()))
                return 200, {"object": "list", "data": [self._card()]}
            case "GET", ["server_info"]:
                return 200, {
                    "model_path": self.model,
                    "served_model_name": self.model,
                    "dp_size": self.slots,
                }
            case "GET", ["model_info"]:
                return 200, {"model_path": self.model, "output_types": ["IMAGE", "VIDEO"]}
            case "GET", ["v1", "list_loras"]:
                async with process.scheduler:
                    await self.takes(process, 0.01)
                    return 200, process.loras.as_json()
            case "GET", ["v1", "images", name, "content"]:
                if name in process.images:
                    return 200, "PNG"
                return 404, {"detail": "Image not found"}
            case "GET" | "DELETE", ["v1", "videos", name]:
                job = process.jobs.get(name)
                if job is None:
                    return 404, {"detail": "Video not found"}
                if request.method == "DELETE":
                    del process.jobs[name]
                    return 200, {**job, "status": "deleted"}
                return 200, job
            case "GET", ["v1", "videos"]:
                return 200, {"object": "list", "data": list(process.jobs.values())}
            case "GET", _:
                return 404, {"detail": "Not Found"}
        if self.faults.dead_backend:
            return 503, {"error": "the scheduler died"}
        return await self._post(process, request)

    def _card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "supported_task_types": ["T2I", "T2V"]}

    async def _post(self, process: Process, request: Request) -> Reply:
        content = request.json()
        self._check_pool(content)
        match request.path.split("/")[1:]:
            case ["v1", "images", "generations"]:
                return await self._generate(process, request, content)
            case ["rollout", "generate"]:
                return await self._rollout(process, request, content)
            case ["score"] if self.pool:
                return 200, {"score": 1}
            case ["v1", "videos"]:
                return self._submit(process, request, content)
            case ["update_weights_from_disk" | "update_weights_from_tensor"]:
                self._may_change(request.wire.life)
                path = content.get("model_path") or "".join(content["serialized_named_tensors"])
                path = path.removesuffix(f"#{self.name}")  # its own part
                if content.get("weight_update_mode") == "lora_merge":
                    return await loras.push(self, process, path)
                return await self._update(process, request, path, content.get("target_modules"))
            case ["update_weights_from_distributed"]:
                return await collectives.take_part(self, process, content)
            case ["release_memory_occupation"]:
                return await self.memory(process, True)
            case ["resume_memory_occupation"]:
                return await self.memory(process, False)
            case ["v1", "set_lora" | "merge_lora_weights" | "unmerge_lora_weights" as call]:
                return await loras.wear(self, process, call, content)
            case ["get_weights_checksum"]:
                async with process.scheduler:
                    await self.takes(process, 0.05)
                    return 200, dict(zip(MODULES, process.weights.modules, strict=True))
        return 404, {"detail": "Not Found"}

    def _check_pool(self, content: dict[str, Any]) -> None:
        """Whether it is meant for the pool, as far as it says so."""
        said = f"{content.get('prompt', '')} {content.get('model_path', '')}/"
        pools = {*_POOLS, self.pool} - {""} if said != " /" else ()
        if any((pool == self.pool) is not (f"{pool}/" in said) for pool in pools):
            raise Wrong(f"{self.name} gets what is not meant for its pool: {said}")

    def _id(self, process: Process, kind: str) -> str:
        self._ids += 1
        return f"{kind}-{self.name}-{process.number}-{self._ids}"

    async def _generate(self, process: Process, request: Request, content: dict[str, Any]) -> Reply:
        name, life = self._id(process, "image"), request.wire.life
        self._look(process, life)
        process.busy[name] = (life, self.host.link.breaks)
        self.serving.add(request.name)
        try:
            async with self.turn(process):
                await self.takes(process, 0.02 * content.get("num_inference_steps", 1))
                if process.asleep:
                    return 500, "Internal Server Error"
                if self.dice.random() < self.faults.failing:
                    return 500, "Internal Server Error"
                self.served += 1
                process.images.add(name)
                made = {"url": f"/v1/images/{name}/content"}
                return 200, {"id": name, "data": [made], "made_by": process.weights.told()}
        finally:
            process.busy.pop(name, None)
            self.serving.discard(request.name)

    async def _rollout(self, process: Process, request: Request, content: dict[str, Any]) -> Reply:
        name, life = self._id(process, "rollout"), request.wire.life
        self._look(process, life)
        called, runs = content["prompt"], self.world.runs
        run = runs.rollout(called, content["seed"], process, life)
        process.busy[name] = (life, self.host.link.breaks)
        self.serving.add(request.name)
        try:
            async with self.turn(process):
                count = content.get("num_outputs_per_prompt") or 1
                await self.takes(process, 0.01 * content["num_inference_steps"] * count)
                if process.asleep:
                    runs.fail(called, run)
                    return 500, ASLEEP
                if self.dice.random() < self.faults.failing:
                    runs.fail(called, run)
                    return 500, {"detail": "out of memory"}
                self.served += 1
                return 200, samples(content, name, process.weights.told())
        finally:
            process.busy.pop(name, None)
            self.serving.discard(request.name)

    def _look(self, process: Process, life: Life | None) -> None:
        """Should this generation have come?"""
        if life is None or life.dead:
            return  # a router sent it that is no more
        if process.asleep and not process.strayed:
            raise Wrong(f"{self.name} is asleep, and gets a generation")
        said, to = process.dozed
        link, now = self.host.link, trio.current_time()
        quiet = link.up and not link.loss and link.delay < 0.01 and not self.taken
        quiet = quiet and max(self.disturbed, process.filmed + 10) < said and self.handled == 1
        if process.asleep and to is life and quiet and _SOON < now - said < _DOZES:
            raise Wrong(f"{self.name} has said that it sleeps, and gets generations")
        self.world.may_generate(self)

    def _may_change(self, life: Life | None) -> None:
        if life is not None and not life.dead:
            self.world.may_change(self)

    def full(self, life: Life | None) -> bool:
        """Whether this life of the router has given it all that it can do at a time, and nothing
        has come between them since."""
        assert self.process is not None
        ours = [breaks for sent_by, breaks in self.process.busy.values() if sent_by is life]
        return len(ours) >= self.slots and min(ours) == self.host.link.breaks

    def _submit(self, process: Process, request: Request, content: dict[str, Any]) -> Reply:
        name = self._id(process, "video")
        self.world.runs.job(content.get("prompt", ""), process, request.wire.life)
        job: dict[str, Any] = {
            "id": name,
            "object": "video",
            "status": "queued",
            "model": content.get("model"),
            "prompt": content.get("prompt"),
            "progress": 0,
            "created_at": int(self.universe.now),
            "error": None,
        }
        process.jobs[name] = job
        self.world.tell(self)
        assert process.nursery is not None
        process.nursery.start_soon(self._film, process, job, content.get("num_inference_steps", 1))
        return 200, dict(job)

    async def _film(self, process: Process, job: dict[str, Any], steps: int) -> None:
        process.unfinished += 1
        submitted = trio.current_time()
        with process.working():
            async with process.scheduler:
                job["status"] = "in_progress"
                if process.asleep:
                    job |= {"status": "failed", "error": {"message": ASLEEP["detail"]}}
                else:
                    await self.takes(process, 0.2 * steps)
                    job |= {"status": "completed", "progress": 100}
        process.unfinished -= 1
        process.filmed = trio.current_time()
        process.ended.append((submitted, process.filmed))

    async def _update(
        self, process: Process, request: Request, path: str, targets: object
    ) -> Reply:
        self.note(f"is sent {path}")
        async with self.turn(process):
            self.world.tell(self)
            fault, self.faults.next_update = self.faults.next_update, ""
            await self.takes(process, self.dice.uniform(0.05, 3))
            if process.asleep:
                return 500, {"success": False, "message": "the engine sleeps"}
            if path.startswith("/nonexistent") or fault == "none":
                return 400, {"success": False, "message": "no such path"}
            self.world.may_have_other_weights(self)
            loras.may_update(self, process, request.wire.life)
            if fault == "partial" or process.loras.wrapped:
                process.weights = process.weights.loaded(f"half of {path}", [MODULES[0]])
            else:
                process.weights = process.weights.loaded(path, targets)
            if fault == "hang":
                await trio.sleep_forever()
            if fault in ("partial", "applied"):
                return 500, {"success": False, "message": "failed to update module"}
            self.note(f"has {path}")
            return 200, {"success": True, "message": "updated"}

    async def memory(self, process: Process, asleep: bool) -> Reply:
        async with process.scheduler:
            self.world.tell(self)
            await self.takes(process, self.dice.uniform(0.05, 2))
            process.asleep, process.awake_since = asleep, trio.current_time()
            process.strayed = process.strayed and asleep
            self.note("sleeps" if asleep else "is awake")
            return 200, {"success": True, "sleeping": asleep, "message": ""}


__all__ = ["MODEL", "MODULES", "Cut", "Faults", "Process", "Weights", "Worker"]
