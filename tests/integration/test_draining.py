"""`POST /drain`: work that has begun ends, and nothing new begins."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
import trio
from wsproto.events import RejectConnection

from tests.integration.api.pools import is_ours
from tests.integration.deployment import (
    DEFAULTS,
    Deployment,
    RunRouter,
    ScriptedWorker,
    run_deployed,
    until,
    when,
)
from tests.integration.test_websocket_relay import Client

PATH = "/v1/images/generations"


@pytest.fixture
def run_router() -> RunRouter:
    return run_deployed


async def held(at: Deployment) -> tuple[ScriptedWorker, trio.Event]:
    """A worker whose generations last until the event."""
    gate = trio.Event()
    worker = await at.script(**{PATH: when(gate, DEFAULTS[PATH])})
    await at.register(worker.url)
    return worker, gate


async def drain(at: Deployment, within: int) -> httpx.Response:
    return await at.http.post("/drain", params={"within": within})


def test_what_has_begun_and_what_waits_ends_and_nothing_begins(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        _, gate = await held(at)
        answers: list[httpx.Response] = []
        drained: list[httpx.Response] = []

        async def note(into: list[httpx.Response], ask: Callable[[], object]) -> None:
            into.append(await ask())  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, answers, at.image)
            nursery.start_soon(note, answers, at.image)
            await until(lambda: at.running.parts.dispatcher.queue.waiting == 1)
            nursery.start_soon(note, drained, lambda: drain(at, 600))
            await until(lambda: at.running.parts.drain.active)

            refused = await at.image()
            assert is_ours(refused, 503, "draining")
            assert refused.headers["retry-after"] == "5"
            assert refused.headers["x-should-retry"] == "true"
            is_ours(await at.http.post("/v1/videos", json={"prompt": "x"}), 503, "draining")
            is_ours(await at.http.post("/some/new/endpoint"), 503, "draining")
            socket = Client(await trio.open_tcp_stream("127.0.0.1", at.running.port))
            refusal = await socket.open("/socket")
            assert isinstance(refusal, RejectConnection)
            assert refusal.status_code == 503
            await trio.aclose_forcefully(socket.stream)
            for path in ("/ready", "/health"):
                ready = await at.http.get(path)
                assert (ready.status_code, ready.json()["status"]) == (503, "draining")
            assert (await at.http.get("/live")).status_code == 200
            assert (await at.http.get("/workers")).status_code == 200
            shown = (await at.http.get("/drain")).json()
            assert shown == {"draining": True, "in_flight": 2}
            assert drained == []
            gate.set()
        assert [each.status_code for each in answers] == [200, 200]
        assert drained[0].json() == {"status": "success", "draining": True, "in_flight": 0}
        is_ours(await at.image(), 503, "draining")

    run_router(test)


def test_a_drain_that_lasts_too_long_goes_on_until_it_is_ended(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        _, gate = await held(at)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.image)
            await until(lambda: at.running.parts.drain.busy)
            busy = is_ours(await drain(at, 0), 504, "still_busy")
            assert busy["in_flight"] == 1
            is_ours(await at.image(), 503, "draining")

            called_off: list[httpx.Response] = []

            async def wait() -> None:
                called_off.append(await drain(at, 600))

            nursery.start_soon(wait)
            await at.http.get("/drain")
            ended = (await at.http.delete("/drain")).json()
            assert ended == {"status": "success", "draining": False, "in_flight": 1}
            gate.set()
        if called_off[0].status_code != 200:  # its request may have come only after the DELETE
            is_ours(called_off[0], 409, "conflict")
            assert (await at.image()).status_code == 200
            assert (await at.http.get("/ready")).status_code == 200

    run_router(test)


def test_a_wrong_time_is_refused_and_drains_nothing(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        refused = await at.http.post("/drain", params={"within": "soon"})
        is_ours(refused, 400, "invalid_field")
        assert (await at.http.get("/drain")).json() == {"draining": False, "in_flight": 0}

    run_router(test)


def test_draining_needs_the_admin_key(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        for method in ("POST", "DELETE"):
            assert (await at.http.request(method, "/drain")).status_code == 401
        allowed = await at.http.post("/drain", headers={"x-api-key": "key"})
        assert allowed.status_code == 200

    run_router(test, admin_api_key="key")
