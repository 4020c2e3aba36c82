"""X-Weight-Version on answers, X-Min-Weight-Version on requests: a whole router before simulated
workers."""

from __future__ import annotations

import hashlib
from typing import Any

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
    return await asking(router, min_weight_version=at_least)


async def asking(router: Deployment, **given: int | str) -> httpx.Response:
    """An image, with these X- headers."""
    headers = {f"x-{name.replace('_', '-')}": str(value) for name, value in given.items()}
    return await router.http.post("/v1/images/generations", json=IMAGE, headers=headers)


async def rollout(router: Deployment, want: object, **headers: str) -> httpx.Response:
    body = {**IMAGE, "seed": 1, "width": 64, "height": 64, "weight_version": want}
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await router.http.post("/rollout/generate", json=body, headers=names)


def is_refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    said: dict[str, Any] = answer.json()
    assert (answer.status_code, said["code"]) == (status, code), answer.text
    return said


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


@pytest.mark.parametrize("given", ["", "-1", "1.5"])
def test_what_is_no_number_is_refused(run_router: RunRouter, given: str) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        refused = await image(router, given)
        assert refused.status_code == 400
        assert refused.json()["code"] == "invalid_header"

    run_router(test)


def test_an_exact_version_is_served_and_its_past_and_future_are_not(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        assert version(await asking(router, exact_weight_version=0)) == 0
        said = is_refused(
            await asking(router, exact_weight_version=1), 409, "weight_version_unknown"
        )
        assert said["retryable"] is True
        await refit(router, "w/1")
        assert version(await asking(router, exact_weight_version=1, max_weight_lag=0)) == 1
        said = is_refused(
            await asking(router, exact_weight_version=0), 409, "weight_version_passed"
        )
        assert said["retryable"] is False
        both = await asking(router, exact_weight_version=0, min_weight_version=1)
        is_refused(both, 400, "invalid_header")

    run_router(test)


def test_a_label_names_the_newest_version_that_has_it(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        said = is_refused(
            await asking(router, min_weight_version="a"), 409, "weight_version_unknown"
        )
        assert said["retryable"] is True
        for label in ("a", "b", "a"):
            body = {"model_path": f"w/{label}", "label": label}
            (await router.http.post(DISK, json=body)).raise_for_status()
        assert version(await asking(router, min_weight_version="b")) == 3
        assert version(await asking(router, exact_weight_version="a")) == 3
        passed = await asking(router, exact_weight_version="b")
        is_refused(passed, 409, "weight_version_passed")

    run_router(test)


def test_a_rollout_may_say_it_in_its_body_which_goes_on_unchanged(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        workers = await two(router)
        await refit(router, "w/1")
        body = b'{"weight_version": {"min_version":  "1", "exact_version": 1}, "seed": 1}'
        answer = await router.http.post("/rollout/generate", content=body)
        assert version(answer) == 1
        asked = [r for worker in workers for r in worker.log.requests if "rollout" in r.target]
        assert [r.body_sha256 for r in asked] == [hashlib.sha256(body).hexdigest()]
        is_refused(await rollout(router, {"min_version": 2}), 409, "weight_version_unknown")
        is_refused(await rollout(router, {"exact_version": 0}), 409, "weight_version_passed")
        for bad in (-1, 1.5, True, [1], "", "-1", "9" * 19):
            is_refused(await rollout(router, {"min_version": bad}), 400, "invalid_field")
        is_refused(await rollout(router, {"min": 1}), 400, "unsupported_fields")
        # The header and the body must both be met.
        newer = await rollout(router, {"min_version": 0}, x_min_weight_version="2")
        is_refused(newer, 409, "weight_version_unknown")
        exact = await rollout(router, {"exact_version": 1}, x_exact_weight_version="0")
        is_refused(exact, 400, "invalid_header")
        for other in (None, "1", 7, ["x"]):  # between the trainer and the worker
            assert version(await rollout(router, other)) == 1

    run_router(test)


@pytest.mark.parametrize("first", [True, False])
def test_the_field_of_a_long_rollout_is_found_on_both_sides_of_the_model(
    run_router: RunRouter, first: bool
) -> None:
    async def test(router: Deployment) -> None:
        await two(router)
        want = {"weight_version": {"min_version": 1}}
        body = {"model": "m", "prompt": "a", "seed": 1}
        body = {**want, **body} if first else {**body, **want}
        answer = await router.http.post("/rollout/generate", json={**body, "more": "x" * 2**21})
        is_refused(answer, 409, "weight_version_unknown")

    run_router(test)


def test_a_version_that_passes_by_a_waiting_request(run_router: RunRouter) -> None:
    async def test(router: Deployment) -> None:
        worker = await router.simulated(model_path="m", task_types=BOTH)
        await router.register(worker.url)
        known = router.running.parts.registry.get(worker.url)
        worker.faults.add("delay", path=DISK, by=0.2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refit, router, "w/1")
            await until(lambda: known.weights == "updating")
            answer = await asking(router, exact_weight_version=0)
        is_refused(answer, 409, "weight_version_passed")

    run_router(test)
