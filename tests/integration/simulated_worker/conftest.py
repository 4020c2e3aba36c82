"""Runs a test against one worker in this process, with time made short."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker, WorkerConfig, serve
from tests.patience import fail_after

Body = Callable[[SimulatedWorker, httpx.AsyncClient], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run_worker() -> Run:
    """`run_worker(test, **settings)`: `test` gets the worker and a client of it.

    The client uses no connection twice, unless `keep_alive`: a worker closes one after the
    plain-text 500 without saying so.
    """

    def run(test: Body, *, keep_alive: bool = False, **settings: Any) -> None:
        quick: dict[str, Any] = {"time_scale": 0.02, "warmup_seconds": 0.0, "load_seconds": 0.5}
        config = WorkerConfig(**{**quick, **settings})

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                worker = await nursery.start(serve, config)
                timeout = httpx.Timeout(30)
                limits = httpx.Limits(max_keepalive_connections=20 if keep_alive else 0)
                with fail_after(30):
                    async with httpx.AsyncClient(
                        base_url=worker.url, trust_env=False, timeout=timeout, limits=limits
                    ) as client:
                        await test(worker, client)
                worker.kill()

        trio.run(main)

    return run
