"""X-Weight-Version on answers, X-Min-Weight-Version on requests: a whole router before simulated
workers."""

from __future__ import annotations

import httpx
import pytest
import trio
from wsproto.events import AcceptConnection

from simulated_worker import SimulatedWorker
from tests.integration.deployment import IMAGE, Deployment, RunRouter, until
from tests.integration.test_websocket_relay import Client

BOTH = ["T2I", "T2V"]
DISK = "/update_weights_from_disk"


async def two(router: Deployment, **config: object) -> tuple[SimulatedWorker, SimulatedWorker]:
    """Two routable workers of one model."""
    workers = []
    for _ in range(2):
        worker = await router.simulated(model_path="m", task_types=BOTH, **config)
        await router.register(worker.url)
        workers.append(worker)
    return workers[0], workers[1]


async def refit(router: Deployment, path: str) -> int:
    told = await router.http.post(DISK, json={"model_path": path})
    assert told.status_code == 200, told.text
    version: int = told.json()["weight_version"]
    return version


def version(answer: httpx.Response) -> int:
    assert answer.headers.get_list("x-weight-version") == [answer.headers["x-weight-version"]]
    return int(answer.headers["x-weight-version"])


async def image(router: Deployment, at_least: int | str) -> httpx.Response:
    headers = {"x-min-weight-version": str(at_least)}
    return await router.http.post("/v1/images/generations", json=IMAGE, headers=headers)


def test_every_generation_tells_its_version(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker, other = await two(router)
        for expected in range(3):
            if expected:
                assert await refit(router, f"w/{expected}") == expected
            for path, body in (
                ("/v1/images/generations", IMAGE),
                ("/v1/images/generations", {**IMAGE, "n": "two"}),  # a worker's own error
                ("/rollout/generate", {**IMAGE, "seed": 1, "width": 64, "height": 64}),
                ("/v1/videos", {**IMAGE, "num_frames": 2}),
            ):
                answer = await router.http.post(path, json=body)
                assert answer.headers["x-worker-id"]
                assert version(answer) == expected, path
        entries = [e for w in (worker, other) for e in w.log.generations()]
        assert len({entry.weights for entry in entries}) == 3

    run_router(test)


def test_what_is_read_may_be_older(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        job = (await router.http.post("/v1/videos", json={**IMAGE, "num_frames": 2})).json()["id"]
        url = (await router.image(response_format="url")).json()["data"][0]["url"]
        await refit(router, "w/1")
        for path in (f"/v1/videos/{job}", f"/v1/videos/{job}/content", url):
            answer = await router.http.get(path, headers={"x-min-weight-version": "9"})
            assert answer.status_code == 200
            assert answer.headers["x-worker-id"]
            assert "x-weight-version" not in answer.headers

    run_router(test)


def test_a_session_tells_its_version(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        await refit(router, "w/1")
        client = Client(await trio.open_tcp_stream("127.0.0.1", router.running.port))
        wanted = [(b"X-Min-Weight-Version", b"1")]
        answer = await client.open(extra_headers=wanted)
        assert isinstance(answer, AcceptConnection)
        assert dict(answer.extra_headers)[b"x-weight-version"] == b"1"
        await client.stream.aclose()

    run_router(test)


def test_a_version_that_was_issued_is_served_and_another_is_not(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        workers = await two(router)
        assert (await image(router, 0)).status_code == 200
        for n in (1, 2):
            refused = await image(router, n)
            assert refused.status_code == 409
            assert refused.json()["code"] == "weight_version_unknown"
            assert refused.json()["weight_version"] == n - 1
            await refit(router, f"w/{n}")
            for at_least in range(n + 1):
                assert version(await image(router, at_least)) == n
        assert all(
            name != "x-min-weight-version"
            for worker in workers
            for request in worker.log.requests
            for name, _ in request.headers
        )

    run_router(test)


@pytest.mark.parametrize("need", ["image", "video"])
def test_it_waits_for_a_worker_that_has_it(run_router: RunRouter, need: str) -> None:
    """It has yet to get those that are wanted; a worker of another model serves on meanwhile."""

    async def test(router: Deployment) -> None:
        old = await router.simulated(model_path="old", task_types=BOTH)
        await router.register(old.url)
        new = await router.simulated(model_path="new", task_types=BOTH)
        await router.register(new.url)
        for n in (1, 2):
            told = await router.http.post(f"{DISK}?model=new", json={"model_path": f"w/{n}"})
            assert told.json()["weight_version"] == n
        new.faults.add("delay", path=DISK, by=0.2)
        answers: list[httpx.Response] = []

        async def ask() -> None:
            path = "/v1/images/generations" if need == "image" else "/v1/videos"
            body = {**IMAGE, "model": "new", **({} if need == "image" else {"num_frames": 2})}
            headers = {"x-min-weight-version": "2"}
            answers.append(await router.http.post(path, json=body, headers=headers))

        async def change() -> None:
            (
                await router.http.post(f"{DISK}?model=new", json={"model_path": "w/3"})
            ).raise_for_status()

        worker = router.running.parts.registry.get(new.url)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(change)
            await until(lambda: worker.weights == "updating")
            nursery.start_soon(ask)
            await until(lambda: router.running.parts.dispatcher.queue.waiting == 1)
            served = await router.image(model="old")
            assert served.headers["x-worker-id"].endswith(str(old.port))
            assert not answers
        assert version(answers[0]) == 3

    run_router(test)


@pytest.mark.parametrize("given", ["", "-1", "new", "1.5"])
def test_what_is_no_number_is_refused(run_router: RunRouter, given: str) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        refused = await image(router, given)
        assert refused.status_code == 400
        assert refused.json()["code"] == "invalid_header"

    run_router(test)
