"""Images: pictures that tell which weights made them, one at a time, in order."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker
from simulated_worker.pictures import expected_image, made_by
from simulated_worker.weights import identity_of

Run = Callable[..., None]
SMALL: dict[str, Any] = {"prompt": "a cat", "size": "48x32", "num_inference_steps": 4, "seed": 7}


def test_the_picture_is_the_one_its_weights_make(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = {**SMALL, "response_format": "b64_json"}
        answer = (await client.post("/v1/images/generations", json=body)).json()
        png = base64.b64decode(answer["data"][0]["b64_json"])
        weights = identity_of("models/flux")
        assert png == expected_image(weights, "a cat", 7, width=48, height=32, steps=4)
        assert made_by(png)["weights"] == weights == worker.log.generations()[0].weights
        assert png != expected_image(weights, "a cat", 8, width=48, height=32, steps=4)
        assert list(answer) == [
            "id",
            "created",
            "data",
            "peak_memory_mb",
            "inference_time_s",
            "usage",
        ]

    run_worker(test, model_path="models/flux")


def test_the_picture_opens(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/images/generations", json=SMALL)).json()
        png = (await client.get(answer["data"][0]["url"])).content
        assert struct.unpack(">II", png[16:24]) == (48, 32)
        at = png.index(b"IDAT")
        (length,) = struct.unpack(">I", png[at - 4 : at])
        assert len(zlib.decompress(png[at + 4 : at + 4 + length])) == 32 * (1 + 3 * 48)

    run_worker(test)


def test_several_outputs_have_variants_and_following_seeds(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/images/generations", json={**SMALL, "n": 2})).json()
        urls = [item["url"] for item in answer["data"]]
        assert urls == [f"/v1/images/{answer['id']}/content?variant={i}" for i in (0, 1)]
        second = await client.get(urls[1])
        single = (await client.post("/v1/images/generations", json={**SMALL, "seed": 8})).json()
        assert second.content == (await client.get(single["data"][0]["url"])).content
        assert second.headers["content-disposition"].endswith(f'{answer["id"]}_1.png"')
        for variant in ("2", "x", "-1"):
            wrong = await client.get(f"/v1/images/{answer['id']}/content?variant={variant}")
            assert wrong.json() == {"detail": f"Image variant {variant} not found"}

    run_worker(test)


@pytest.mark.parametrize(
    ("wanted", "status", "place"),
    [
        ("bytes=0-9", 206, (0, 10)),
        ("bytes=-5", 206, (-5, None)),
        ("bytes=5-", 206, (5, None)),
        ("bytes=5-99999999", 206, (5, None)),
    ],
)
def test_ranges(run_worker: Run, wanted: str, status: int, place: tuple[int, int | None]) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/images/generations", json=SMALL)).json()
        url = answer["data"][0]["url"]
        whole = await client.get(url)
        part = await client.get(url, headers={"range": wanted})
        assert part.status_code == status
        assert part.content == whole.content[slice(*place)]
        assert part.headers["etag"] == whole.headers["etag"]
        assert part.headers["content-range"].endswith(f"/{len(whole.content)}")
        fitting = {"range": wanted, "if-range": '"other"'}
        assert (await client.get(url, headers=fitting)).status_code == 200

    run_worker(test)


@pytest.mark.parametrize(
    ("wanted", "status", "text"),
    [
        ("bytes=9999999-", 416, ""),
        ("foo", 400, "Malformed range header."),
        ("bytes=9-5", 400, "Range header: start must be less than end"),
        ("bytes=a-b", 400, "Range header: range must be requested"),
    ],
)
def test_ranges_that_do_not_fit(run_worker: Run, wanted: str, status: int, text: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/images/generations", json=SMALL)).json()
        part = await client.get(answer["data"][0]["url"], headers={"range": wanted})
        assert (part.status_code, part.text) == (status, text)
        assert part.headers["content-type"] == "text/plain; charset=utf-8"

    run_worker(test)


def test_two_ranges_are_a_multipart(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = (await client.post("/v1/images/generations", json=SMALL)).json()
        url = answer["data"][0]["url"]
        part = await client.get(url, headers={"range": "bytes=0-3,8-9"})
        boundary = part.headers["content-type"].partition("boundary=")[2].encode()
        assert part.content.startswith(b"--" + boundary + b"\r\nContent-Type: image/png\r\n")
        assert part.content.endswith(b"--" + boundary + b"--")
        assert b"\r\n\r\n\x89PNG\r\n--" in part.content

    run_worker(test)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, {"type": "missing", "loc": ["body", "prompt"], "input": {}}),
        ({"prompt": 5}, 422, {"type": "string_type", "loc": ["body", "prompt"], "input": 5}),
        (
            {"prompt": "x", "width": 1.5},
            422,
            {"type": "int_from_float", "loc": ["body", "width"], "input": 1.5},
        ),
        ({"prompt": "x", "size": "abc"}, 400, "size must be formatted as positive WIDTHxHEIGHT"),
        ({"prompt": "x", "response_format": "foo"}, 400, "response_format=foo is not supported"),
        (
            {"prompt": "x", "num_inference_steps": -1},
            400,
            "num_inference_steps must be positive",
        ),
        (
            {"prompt": "x", "task_type": "T2V"},
            400,
            "Unsupported task_type T2V; this pipeline supports ['T2I']",
        ),
    ],
)
def test_refused_requests(run_worker: Run, body: Any, status: int, said: Any) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/images/generations", json=body)
        assert answer.status_code == status
        found = answer.json()["detail"]
        if isinstance(said, dict):
            assert said.items() <= found[0].items()
        else:
            assert found == said
        assert not worker.log.work

    run_worker(test)


@pytest.mark.parametrize(
    ("content", "kind", "error"),
    [
        (b"{bad", "application/json", "json_invalid"),
        (b"[1]", "application/json", "model_attributes_type"),
        (b"prompt=x", "application/x-www-form-urlencoded", "model_attributes_type"),
        (b"", "application/json", "missing"),
    ],
)
def test_bodies_that_are_no_object(run_worker: Run, content: bytes, kind: str, error: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/images/generations", content=content, headers={"content-type": kind}
        )
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["type"] == error

    run_worker(test)


def test_a_video_model_makes_no_images(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/images/generations", json=SMALL)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("This pipeline does not support IMAGE output")

    run_worker(test, model_path="Wan2.1-T2V")


async def generate(client: httpx.AsyncClient, answers: list[int], **fields: Any) -> None:
    answer = await client.post("/v1/images/generations", json={**SMALL, **fields})
    answers.append(answer.status_code)


@pytest.mark.parametrize(
    ("settings", "sizes", "together"),
    [
        ({}, ["32x32"] * 3, 1),
        ({"dp_size": 2}, ["32x32"] * 4, 2),
        ({"batching_max_size": 3}, ["32x32"] * 4, 3),
        ({"batching_max_size": 3}, ["32x32", "48x32", "64x32"], 1),
    ],
)
def test_how_many_run_side_by_side(
    run_worker: Run, settings: dict[str, Any], sizes: list[str], together: int
) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answers: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial_generate, client, answers, "16x16")
            while not worker.scheduler.running:
                await trio.sleep(0.001)
            for size in sizes:
                nursery.start_soon(partial_generate, client, answers, size)
        assert answers == [200] * (len(sizes) + 1)
        entries = worker.log.generations()
        most = max(
            sum(
                1
                for other in entries
                if other.start is not None
                and other.end is not None
                and entry.start is not None
                and other.start <= entry.start < other.end
            )
            for entry in entries
        )
        assert most == together

    run_worker(test, speed=0.002, **settings)


async def partial_generate(client: httpx.AsyncClient, answers: list[int], size: str) -> None:
    await generate(client, answers, size=size)


def test_control_calls_wait_their_turn_while_health_does_not(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answers: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial_generate, client, answers, "32x32")
            while not worker.scheduler.running:
                await trio.sleep(0.001)
            assert (await client.get("/health")).status_code == 200
            assert answers == []
            await client.get("/stats")
            assert [entry.outcome for entry in worker.log.generations()] == ["done"]

    run_worker(test, speed=0.0005)


def test_a_failed_generation_is_a_plain_500(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("fail_next_generation")
        failed = await client.post("/v1/images/generations", json=SMALL)
        assert (failed.status_code, failed.text) == (500, "Internal Server Error")
        assert (await client.post("/v1/images/generations", json=SMALL)).status_code == 200

    run_worker(test)


def test_edits_take_a_picture_and_follow_it(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        form = {"prompt": "p", "size": "16x16", "seed": "1", "num_inference_steps": "2"}
        pictures = []
        for upload in (b"one" * 400_000, b"two"):
            answer = await client.post(
                "/v1/images/edits", data=form, files={"image[]": ("a.png", upload, "image/png")}
            )
            assert answer.status_code == 200
            pictures.append(answer.json()["data"][0]["b64_json"])
        assert pictures[0] != pictures[1]
        plain = await client.post("/v1/images/generations", json=SMALL)
        assert plain.status_code == 200
        missing = await client.post("/v1/images/edits", files={"x": b""}, data={"prompt": "p"})
        assert missing.json() == {"detail": "Field 'image' or 'url' is required"}

    run_worker(test, model_path="Qwen-Image-Edit")


def test_an_image_model_without_edits_refuses_uploads(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            "/v1/images/edits", data={"prompt": "p"}, files={"image": ("a.png", b"x", "image/png")}
        )
        assert answer.status_code == 400
        assert answer.json() == {"detail": "input_reference is not supported for T2I models."}

    run_worker(test)
