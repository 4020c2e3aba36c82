"""A watchman in virtual time, over workers that are all one scripted `Process`."""

from __future__ import annotations

import json
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from attrs import Factory, define

from router.control import watch as watch_module
from router.control.client import Answer, Unreachable
from router.control.identity import ProcessIdentity
from router.control.watch import Watchman
from router.net.addresses import Addresses
from router.net.trust import Trust
from router.pool import events
from router.pool.assets import AssetKind, AssetMap
from router.pool.registry import Registry
from router.pool.worker import Health, Origin, Worker

URL = "http://w:1"
OK = Answer(200, b'{"status":"ok"}')
WARMING = Answer(503, b"")
DEAD = Answer(503, b'{"status":"unhealthy","error":"OOM"}')
REFUSED = Unreachable("GET /health failed: connection refused", refused=True)
HANGS = "hangs"


def models(*names: str) -> Answer:
    return Answer(200, json.dumps({"data": [{"id": name} for name in names]}).encode())


@define(eq=False)
class Process:
    """A worker's side: what it answers, and what it was asked when."""

    answers: dict[str, Any] = Factory(dict)
    asked: list[tuple[float, str]] = Factory(list)
    takes: float = 0.0  # seconds per answer
    listens: bool = True
    called: bool = False  # by a call of the router that takes long
    hangs_up: bool = False  # on idle connections, as soon as they are open
    idle: list[Any] = Factory(list)  # its ends of the idle connections
    opened: int = 0  # idle connections
    knows: set[str] = Factory(set)  # the jobs and images that it made
    # What happens, once, while the answer to a path is on its way.
    meanwhile: dict[str, Callable[[], None]] = Factory(dict)

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        self.asked.append((trio.current_time(), path))
        answer = self.answers.get(path) or self._usual(path)
        if answer == HANGS:
            await trio.sleep(within)
            raise Unreachable(f"GET {path} had no answer within {within:g} s", timed_out=True)
        await trio.sleep(self.takes)
        if path in self.meanwhile:
            self.meanwhile.pop(path)()
            await settle()
        if isinstance(answer, Unreachable):
            raise answer
        assert isinstance(answer, Answer)
        return answer

    async def status(self, url: str, path: str, *, within: float) -> int:
        return (await self.get(url, path, within=within)).status

    def is_calling(self, url: str, path: str | None = None) -> bool:
        return self.called

    def _usual(self, path: str) -> Answer:
        if path == "/health":
            return OK
        if not path.startswith(("/v1/videos/", "/v1/meshes/", "/v1/images/")):
            return models("m")
        asset_id = path.split("/")[3]
        if asset_id in self.knows:
            return Answer(200, json.dumps({"id": asset_id}).encode())
        return Answer(404, b'{"detail":"Image not found"}')

    def restart(self) -> None:
        """Another process, at once."""
        self.knows.clear()
        self.die()

    async def open_idle(
        self, url: str, addresses: Addresses, trust: Trust
    ) -> trio.abc.Stream | None:
        await trio.lowlevel.checkpoint()
        if not self.listens:
            return None
        ours, theirs = trio.testing.memory_stream_pair()
        self.idle.append(theirs)
        self.opened += 1
        assert self.opened < 10_000, "in virtual time a busy loop would go on for ever"
        if self.hangs_up:
            self.die()
        return ours

    def die(self) -> None:
        for stream in self.idle:
            stream.send_stream.close()
        self.idle.clear()

    def times(self, path: str = "/health") -> list[float]:
        return [round(when, 6) for when, asked in self.asked if asked == path]

    def health(self, answer: Any) -> None:
        self.answers["/health"] = answer


@define(eq=False)
class Scene:
    process: Process
    registry: Registry
    watchman: Watchman
    told: list[events.Event]
    assets: AssetMap

    def add(self, url: str = URL) -> Worker:
        return self.registry.add(url, Origin.REGISTERED)

    async def healthy(self) -> Worker:
        """A worker that was met, a moment ago."""
        worker = self.add()
        await settle()
        assert worker.health is Health.HEALTHY
        return worker

    def make(self, worker: Worker, asset_id: str, kind: AssetKind = AssetKind.VIDEO) -> None:
        """The worker makes something, and the router sees it."""
        self.process.knows.add(asset_id)
        self.assets.learn(asset_id, worker, kind)

    def count(self, kind: type[events.Event]) -> int:
        return sum(isinstance(event, kind) for event in self.told)


async def settle() -> None:
    """Let everything happen that takes no time."""
    await trio.testing.wait_all_tasks_blocked()


Body = Callable[[Scene], Awaitable[None]]


def run_scene(
    monkeypatch: pytest.MonkeyPatch, body: Body, *, interval: float = 10.0, jitter: float = 0.0
) -> None:
    """Run a scene: a watchman over a registry whose workers are all `Process`."""
    monkeypatch.setattr(watch_module, "_JITTER", jitter)

    async def main() -> None:
        process, registry, assets = Process(), Registry(failure_threshold=3), AssetMap()
        client: Any = process
        monkeypatch.setattr(watch_module, "open_idle", process.open_idle)
        told: list[events.Event] = []
        registry.subscribe(told.append)
        identity = ProcessIdentity(assets, client)
        watchman = Watchman(registry, client, identity, interval, random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(watchman.run)
            await body(Scene(process, registry, watchman, told, assets))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


Play = Callable[..., None]
