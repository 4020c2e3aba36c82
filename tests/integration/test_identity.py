"""Is it still the same process? Workers that restart, on real sockets and behind proxies."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import trio
from attrs import Factory, define

from router.control import watch as watch_module
from router.pool import events
from router.pool.lifecycle import routable
from router.pool.worker import Weights
from simulated_worker import SimulatedWorker
from simulated_worker.pictures import made_by
from simulated_worker.weights import identity_of
from tests.integration.deployment import Deployment, RunRouter, answer, until

VIDEO = {"prompt": "a red kite", "seconds": 1, "size": "64x64", "num_inference_steps": 1}
BOTH = {"model_path": "both/c", "task_types": ("T2I", "TI2I", "T2V")}


async def refit(at: Deployment, path: str = "new/weights") -> None:
    (await at.http.post("/update_weights_from_disk", json={"model_path": path})).raise_for_status()


async def video(at: Deployment) -> str:
    made = (await at.http.post("/v1/videos", json=VIDEO)).raise_for_status()
    return str(made.json()["id"])


def heard(at: Deployment) -> list[events.Event]:
    told: list[events.Event] = []
    at.running.parts.registry.subscribe(told.append)
    return told


def count(told: list[events.Event], kind: type[events.Event]) -> int:
    return sum(isinstance(event, kind) for event in told)


def updates(process: SimulatedWorker) -> int:
    """Weight updates that the worker was asked for."""
    targets = [entry.target for entry in process.log.requests]
    return targets.count("/update_weights_from_disk")


async def weights_of_an_image(at: Deployment) -> tuple[str, str]:
    """The version that the router says, and the weights that the picture tells."""
    made = (await at.image(response_format="b64_json")).raise_for_status()
    picture = base64.b64decode(made.json()["data"][0]["b64_json"])
    return made.headers["x-weight-version"], made_by(picture)["weights"]


def asked(process: SimulatedWorker, target: str) -> int:
    return sum(entry.target == target for entry in process.log.requests)


@define(eq=False)
class Proxy:
    """Something in between: passes bytes on to a worker, which it connects to with the first."""

    target: str
    port: int = 0
    idle: set[trio.SocketStream] = Factory(set)  # on which nothing was sent yet

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def run(self, *, task_status: trio.TaskStatus[Proxy]) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started(self)
        await trio.serve_listeners(self._pass, listeners)

    def hang_up(self) -> None:
        """End the idle connections."""
        for stream in self.idle:
            stream.socket.close()
        self.idle.clear()

    async def _pass(self, client: trio.SocketStream) -> None:
        self.idle.add(client)
        with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            async with client:
                first = await client.receive_some()
                self.idle.discard(client)
                if first:
                    await self._connect(client, first)

    async def _connect(self, client: trio.SocketStream, first: bytes) -> None:
        host, port = self.target.removeprefix("http://").split(":")
        async with (
            await trio.open_tcp_stream(host, int(port)) as worker,
            trio.open_nursery() as nursery,
        ):
            await worker.send_all(first)
            nursery.start_soon(self._copy, client, worker, nursery.cancel_scope)
            nursery.start_soon(self._copy, worker, client, nursery.cancel_scope)

    async def _copy(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            async for piece in source:
                await sink.send_all(piece)
        scope.cancel()


@asynccontextmanager
async def in_between(process: SimulatedWorker) -> AsyncIterator[Proxy]:
    async with trio.open_nursery() as nursery:
        yield await nursery.start(Proxy(process.url).run)
        nursery.cancel_scope.cancel()


@pytest.fixture
def far_apart() -> dict[str, float]:
    """No probe comes by itself."""
    return {"health_check_interval": 3600}


@pytest.mark.parametrize("down", [0.0, 0.05, 0.5])
def test_nothing_is_made_with_the_weights_of_a_fresh_start(
    run_router: RunRouter, far_apart: dict[str, float], down: float
) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        worker = await at.register(process.url)
        base = (await weights_of_an_image(at))[1]
        await refit(at)
        new = await weights_of_an_image(at)
        assert new[0] == "1"
        assert new[1] != base
        answered: list[tuple[str, str]] = []

        async def ask() -> None:
            # What ran in the process that dies is cut off, and is not asked for again.
            with suppress(httpx.HTTPError):
                answered.append(await weights_of_an_image(at))

        async with trio.open_nursery() as nursery:
            process.faults.add("restart", down=down)
            for _ in range(20):
                nursery.start_soon(ask)
                await trio.sleep(0.005)
        await until(lambda: routable(worker))
        await ask()
        assert answered
        assert set(answered) == {new}
        assert worker.incarnation == 2
        assert process.url == worker.url

    run_router(test, **far_apart)


def test_a_restart_among_others_costs_nobody_an_answer(
    run_router: RunRouter, far_apart: dict[str, float]
) -> None:
    async def test(at: Deployment) -> None:
        steady, other = await at.simulated(), await at.simulated()
        for process in (steady, other):
            await at.register(process.url)
        await refit(at)
        new = await weights_of_an_image(at)
        worker = at.running.parts.registry.get(other.url)
        other.faults.add("restart", down=0.05)
        await until(lambda: worker.suspicion)
        # From this moment on it is given nothing, though no probe has looked yet.
        assert {await weights_of_an_image(at) for _ in range(10)} == {new}
        await until(lambda: worker.incarnation == 2 and routable(worker))
        assert {await weights_of_an_image(at) for _ in range(10)} == {new}

    run_router(test, **far_apart)


def test_a_restart_during_a_weight_call(run_router: RunRouter, far_apart: dict[str, float]) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        worker = await at.register(process.url)
        await refit(at, "first/change")
        process.faults.add("delay", path="/update_weights", by=30)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(at.http.post, "/update_weights_from_disk", json={"model_path": "second"})
            )
            await until(lambda: updates(process) == 2)
            process.faults.add("restart", down=0.05)
        await until(lambda: worker.incarnation == 2 and routable(worker))
        version, weights = await weights_of_an_image(at)
        (known,) = (await at.http.get("/weights")).json()["models"]
        assert version == str(known["weight_version"]) == str(worker.weight_version)
        path = {"1": "first/change", "2": "second"}[version]
        assert weights == identity_of(path, "T2I")

    run_router(test, **far_apart)


def test_who_registers_again_after_a_restart_is_told_what_it_is_now(
    run_router: RunRouter, far_apart: dict[str, float]
) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        worker = await at.register(process.url)
        await refit(at)
        process.faults.add("restart", down=0.0)
        await until(lambda: worker.suspicion)
        posted = (await at.http.post("/workers", params={"url": process.url})).json()["worker"]
        assert (posted["incarnation"], posted["suspicion"]) == (2, None)
        await until(lambda: routable(worker))

    run_router(test, **far_apart)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one of many connections that last no second asks for a probe by its end."""
    monkeypatch.setattr(watch_module, "_BRIEF", 0.0)


@pytest.mark.usefixtures("at_once")
def test_a_connection_that_is_closed_while_a_witness_holds_costs_nothing(
    run_router: RunRouter, far_apart: dict[str, float]
) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated(**BOTH)
        async with in_between(process) as proxy:
            worker = await at.register(proxy.url)
            await refit(at)
            job = await video(at)
            await until(lambda: not worker.jobs)
            told, before = heard(at), asked(process, f"/v1/videos/{job}")
            for times in range(1, 6):
                await until(lambda: proxy.idle and worker.suspicion is None)
                proxy.hang_up()
                await until(lambda n=times: asked(process, f"/v1/videos/{job}") == before + n)
            await until(lambda: worker.suspicion is None)
            assert (worker.incarnation, worker.weights) == (1, Weights.CURRENT)
            assert (count(told, events.Suspected), count(told, events.Absolved)) == (3, 3)
            assert updates(process) == 1
            # It is still found out, where the end of a connection is no evidence any more.
            state = process.state
            process.faults.add("restart", down=0.0)
            await until(lambda: process.state is not state and proxy.idle)
            proxy.hang_up()
            await until(lambda: worker.incarnation == 2 and routable(worker))
            assert updates(process) == 2

    run_router(test, **far_apart)


@pytest.mark.usefixtures("at_once")
def test_an_image_is_a_witness_as_well(run_router: RunRouter, far_apart: dict[str, float]) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        async with in_between(process) as proxy:
            worker = await at.register(proxy.url)
            await refit(at)
            (await at.image()).raise_for_status()
            told = heard(at)
            proxy.hang_up()
            await until(lambda: count(told, events.Absolved))
            assert (worker.incarnation, updates(process)) == (1, 1)

    run_router(test, **far_apart)


@pytest.mark.usefixtures("at_once")
def test_without_a_witness_it_is_brought_up_again(
    run_router: RunRouter, far_apart: dict[str, float]
) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        async with in_between(process) as proxy:
            worker = await at.register(proxy.url)
            await refit(at)
            proxy.hang_up()
            await until(lambda: worker.incarnation == 2 and routable(worker))
            assert updates(process) == 2
            assert (await weights_of_an_image(at))[0] == "1"

    run_router(test, **far_apart)


def test_nothing_is_sent_where_the_worker_became_a_suspect_meanwhile(
    run_router: RunRouter, far_apart: dict[str, float]
) -> None:
    """Between its choice and the connection: that may be one to another process."""

    async def test(at: Deployment) -> None:
        script = await at.script(**{"/update_weights_from_disk": answer(200, {"success": True})})
        worker = await at.register(script.url)
        await refit(at)
        registry = at.running.parts.registry
        chosen: list[str] = []

        def doubt(event: events.Event) -> None:
            if isinstance(event, events.LeaseGranted):
                chosen.append(event.lease.worker.url)
                if len(chosen) == 1:
                    registry.suspect(worker, "for a test")

        registry.subscribe(doubt)
        path = "POST /v1/images/generations"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(at.image)
            await until(lambda: at.running.parts.dispatcher.queue.waiting)
            assert path not in script.asked
            assert worker.active_requests == 0
            registry.absolve(worker)
        assert script.asked.count(path) == 1
        assert len(chosen) == 2

    run_router(test, **far_apart)
