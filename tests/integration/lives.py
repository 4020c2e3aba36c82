"""Routers in this process one after the other, on the state that the one before has left."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from attrs import define, field

from router import service
from router.server import open_listeners
from router.settings import RouterSettings
from router.store.store import Store
from tests.integration.deployment import Deployment, run

Test = Callable[["Lives"], Awaitable[None]]
RunLives = Callable[[Test], None]


@define(eq=False)
class Lives:
    """Workers that outlive the routers in front of them. `folder` is the state of the next one."""

    folder: Path
    nursery: trio.Nursery
    workers: list[Any] = field(factory=list)
    _deaths: int = 0

    @asynccontextmanager
    async def router(self, *, crash: bool = True, **settings: Any) -> AsyncIterator[Deployment]:
        """A router for the length of the block. At its end it is as if it had been killed there:
        what is on the disk in that moment is what the next one finds; or it is stopped."""
        options = {
            "host": "127.0.0.1",
            "health_check_interval": 0.05,
            "shutdown_timeout": 2.0,
            **settings,
        }
        stop = trio.Event()
        store = Store.open(self.folder)
        listeners = open_listeners("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:
            running = await nursery.start(
                service.serve, RouterSettings(port=0, **options), listeners, stop, store
            )
            address = f"http://127.0.0.1:{running.port}"
            async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=None) as http:
                deployment = Deployment(running, http, self.nursery, self.workers)
                yield deployment
                if crash:
                    self._deaths += 1
                    left = self.folder.with_name(f"state-{self._deaths}")
                    shutil.copytree(self.folder, left)
                    self.folder = left
            if crash:
                nursery.cancel_scope.cancel()
            else:
                stop.set()
        store.close()


def run_lives(test: Test, folder: Path) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            lives = Lives(folder / "state", nursery)
            try:
                await test(lives)
            finally:
                for worker in lives.workers:
                    worker.kill()

    run(main)
