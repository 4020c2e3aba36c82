"""Pools of simulated workers behind a router in this process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from attrs import frozen

from router.pool.worker import Worker
from simulated_worker import SimulatedWorker, WorkerConfig, serve
from tests.integration.deployment import Deployment, deployed, run

IMAGES = {"model_path": "image/a"}
VIDEOS = {"model_path": "video/b"}
BOTH = {"model_path": "both/c", "task_types": ("T2I", "TI2I", "T2V")}
MESHES = {"model_path": "mesh/d"}


@frozen
class Member:
    """A simulated worker, as it is and as the router knows it."""

    sim: SimulatedWorker
    known: Worker

    @property
    def url(self) -> str:
        return self.sim.url

    @property
    def id(self) -> str:
        return self.known.worker_id

    def asked(self, method: str, path: str) -> list[Any]:
        """The requests that it got."""
        entries = self.sim.log.requests
        return [e for e in entries if e.method == method and e.target.split("?")[0] == path]


Test = Callable[..., Awaitable[None]]


RunPool = Callable[..., None]


def run_with_pool(test: Test, *kinds: dict[str, Any], **settings: Any) -> None:
    async def main() -> None:
        async with deployed(**settings) as deployment:
            members = []
            for kind in kinds:
                sim = await deployment.simulated(**kind)
                members.append(Member(sim, await deployment.register(sim.url)))
            await test(deployment, *members)

    run(main)


def is_ours(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of an error that the router made."""
    assert answer.status_code == status, answer.text
    body: dict[str, Any] = answer.json()
    assert body["code"] == code
    assert [*body][:2] == ["error", "code"]
    assert answer.text.endswith("}\n")
    assert isinstance(body["error"], str)
    assert body["error"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert "x-worker-id" not in answer.headers
    return body


async def restart(pool: Deployment, member: Member, **config: Any) -> Member:
    """Another process at the same address; registered or not, as it was."""
    member.sim.kill()
    await member.sim.ended.wait()
    quick = {"time_scale": 0.01, "warmup_seconds": 0.0, "load_seconds": 0.0, **config}
    sim: SimulatedWorker = await pool.nursery.start(
        serve, WorkerConfig(port=member.sim.port, strict_ports=True, **quick)
    )
    pool.started.append(sim)
    return Member(sim, member.known)


def direct_to(url: str) -> httpx.AsyncClient:
    """A client of a worker, past the router."""
    return httpx.AsyncClient(base_url=url, trust_env=False, timeout=None)
