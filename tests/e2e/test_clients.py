"""Clients that nobody here wrote, against the built file and three simulated workers."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from attrs import frozen

from tests.e2e.processes import WITHIN, router, wait_until_ready, worker

PNG = b"\x89PNG\r\n\x1a\n"
KEY = "only-for-tests"

# The SDK warns of what OpenAI's own service will shut down; workers go on offering it.
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


@frozen
class Pool:
    """A router, and its workers: two for images, one for videos."""

    url: str
    workers: list[str]


@pytest.fixture(scope="module")
def pool(router_pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    logs = tmp_path_factory.mktemp("logs")
    with (
        worker(router_pyz, logs / "1.log", "painter", "T2I,TI2I") as first,
        worker(router_pyz, logs / "2.log", "painter", "T2I,TI2I") as second,
        worker(router_pyz, logs / "3.log", "director", "T2V") as third,
        router(
            router_pyz,
            logs / "router.log",
            *("--admin-api-key", KEY, "--worker-urls", first, second, third),
        ) as url,
    ):
        wait_until_ready(url)
        workers = [first, second, third]
        with direct() as session:
            for name in workers:
                while not session.get(f"{url}/workers/{name}").json()["worker"]["routable"]:
                    pass
        yield Pool(url, workers)


def direct() -> requests.Session:
    """A session that knows of no proxy."""
    session = requests.Session()
    session.trust_env = False
    return session


@pytest.fixture
def client(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with openai.OpenAI(
        base_url=f"{pool.url}/v1", api_key="sk-none", max_retries=0, timeout=WITHIN
    ) as client:
        yield client


# The OpenAI SDK.


def test_models(client: openai.OpenAI) -> None:
    assert sorted(model.id for model in client.models.list()) == ["director", "painter"]
    model = client.models.retrieve("director")
    assert (model.id, model.object) == ("director", "model")
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt-image-1")
    assert refused.value.code == "model_not_found"


def test_images_generate(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model="painter",
        prompt="a kite",
        size="1024x1024",
        n=2,
        response_format="b64_json",
        extra_body={"seed": 7, "num_inference_steps": 1},
    )
    assert answer.data is not None
    pictures = [base64.b64decode(item.b64_json or "") for item in answer.data]
    assert len(pictures) == 2
    assert all(picture.startswith(PNG) for picture in pictures)
    assert pictures[0] != pictures[1]


def test_the_url_of_an_image_is_one_of_the_router(client: openai.OpenAI, pool: Pool) -> None:
    for _ in range(3):
        raw = client.images.with_raw_response.generate(prompt="a kite", size="256x256")
        url = (raw.parse().data or [])[0].url
        assert url is not None
        with direct() as session:
            content = session.get(pool.url + url)
        assert content.headers["x-worker-id"] == raw.headers["x-worker-id"]
        assert content.content.startswith(PNG)


def test_images_edit(client: openai.OpenAI) -> None:
    picture = io.BytesIO(PNG + b"\0" * 3_000_000)
    picture.name = "kite.png"
    answer = client.images.edit(
        model="painter", image=picture, prompt="bluer", size="256x256", response_format="b64_json"
    )
    assert answer.data is not None
    assert base64.b64decode(answer.data[0].b64_json or "").startswith(PNG)


def test_videos_from_creation_to_deletion(client: openai.OpenAI, tmp_path: Path) -> None:
    job = client.videos.create(prompt="a kite", model="director", seconds="4", size="720x1280")
    assert job.status in ("queued", "in_progress")
    assert client.videos.retrieve(job.id).id == job.id
    done = client.videos.create_and_poll(
        prompt="two kites", model="director", seconds="4", size="720x1280", poll_interval_ms=50
    )
    assert (done.status, done.progress) == ("completed", 100)
    file = tmp_path / "kite.mp4"
    client.videos.download_content(done.id).write_to_file(file)
    assert file.stat().st_size > 1000
    for video_id in (done.id, job.id):
        assert client.videos.delete(video_id).id == video_id
        with pytest.raises(openai.NotFoundError) as refused:
            client.videos.retrieve(video_id)
        assert refused.value.body == "Unknown video_id"


def test_videos_are_listed_page_by_page(client: openai.OpenAI) -> None:
    made = [
        client.videos.create(prompt="x", seconds="4", size="720x1280", extra_body={"n": 1}).id
        for _ in range(7)
    ]
    assert [job.id for job in client.videos.list(limit=2)][:7] == made[::-1]
    oldest_first = [job.id for job in client.videos.list(limit=3, order="asc")]
    assert oldest_first[-7:] == made
    seen = []
    for job in client.videos.list(limit=2):  # and deleted as they are seen
        seen.append(job.id)
        client.videos.delete(job.id)
    assert seen == oldest_first[::-1]
    assert [job.id for job in client.videos.list()] == []


def test_errors_are_its_own_classes(client: openai.OpenAI, pool: Pool) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.videos.download_content("nobodys")
    assert unknown.value.status_code == 404
    assert unknown.value.request_id
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt="x", response_format="papyrus")  # type: ignore[call-overload]
    with pytest.raises(openai.BadRequestError) as wrong_model:
        client.videos.create(prompt="x", model="painter")
    assert wrong_model.value.body == "No video-capable workers available in current worker pool."
    assert wrong_model.value.response.json()["code"] == "no_capable_worker"
    with pytest.raises(openai.AuthenticationError):
        client.post("/set_lora", cast_to=object, options={"headers": {"Authorization": ""}})
    with pytest.raises(openai.PermissionDeniedError):
        client.post("/set_lora", cast_to=object)
    with direct() as session:
        session.headers["X-API-Key"] = KEY
        every = {"workers": ",".join(pool.workers[:2])}
        session.post(f"{pool.url}/release_memory_occupation", params=every).raise_for_status()
        try:
            with pytest.raises(openai.InternalServerError) as asleep:
                client.images.generate(prompt="x", model="painter")
            assert asleep.value.status_code == 503
            assert asleep.value.response.json()["code"] == "pool_asleep"
        finally:
            session.post(f"{pool.url}/resume_memory_occupation", params=every).raise_for_status()


def test_many_at_once(pool: Pool) -> None:
    import httpx  # the router's own dependency, as a client with many connections
    import trio

    statuses: list[int] = []

    async def main() -> None:
        async with httpx.AsyncClient(base_url=pool.url, trust_env=False, timeout=WITHIN) as http:

            async def one() -> None:
                body = {"prompt": "x", "size": "64x64", "num_inference_steps": 1}
                statuses.append((await http.post("/v1/images/generations", json=body)).status_code)

            async with trio.open_nursery() as nursery:
                for _ in range(40):
                    nursery.start_soon(one)

    trio.run(main)
    assert statuses == [200] * 40


# requests.


def test_requests(pool: Pool) -> None:
    with direct() as session:
        answer = session.get(f"{pool.url}/health")
        assert (answer.status_code, answer.json()["healthy_workers"]) == (200, 3)
        form = {"prompt": "bluer", "size": "64x64", "response_format": "b64_json"}
        files = {"image": ("kite.png", PNG + b"\0" * 2_000_000, "image/png")}
        answer = session.post(f"{pool.url}/v1/images/edits", data=form, files=files)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-worker-id"]
        rollout = {"prompt": "x", "seed": 1, "width": 64, "height": 64, "num_inference_steps": 1}
        with session.post(
            f"{pool.url}/rollout/generate", json={**rollout, "model": "painter"}, stream=True
        ) as streamed:
            assert streamed.headers["content-type"] == "application/msgpack"
            size = sum(len(piece) for piece in streamed.iter_content(65536))
            assert size == int(streamed.headers["content-length"])


def test_requests_as_an_operator(pool: Pool) -> None:
    with direct() as session:
        change: dict[str, Any] = {"json": {"model_path": "painter/v2"}}
        path = f"{pool.url}/update_weights_from_disk"
        assert session.post(path, **change).status_code == 401
        session.headers["Authorization"] = f"Bearer {KEY}"
        ambiguous = session.post(path, **change)
        assert (ambiguous.status_code, ambiguous.json()["code"]) == (400, "ambiguous_target")
        answer = session.post(path, params={"model": "painter"}, **change)
        assert (answer.status_code, len(answer.json()["results"])) == (200, 2)

        def chunks() -> Iterator[bytes]:
            yield b'{"serialized_named_tensors": ["'
            for _ in range(100):
                yield b"A" * 100_000
            yield b'"]}'

        answer = session.post(
            f"{pool.url}/update_weights_from_tensor", params={"model": "painter"}, data=chunks()
        )
        assert (answer.status_code, answer.json()["success"]) == (200, True)
        sums = session.post(f"{pool.url}/get_weights_checksum", json={}).json()
        assert (len(sums["results"]), sums["consistent"]) == (3, True)
        for name in pool.workers[:1]:
            gone = session.post(f"{pool.url}/remove_worker", params={"url": name})
            assert gone.status_code == 200
            assert name not in session.get(f"{pool.url}/list_workers").json()["urls"]
            back = session.post(f"{pool.url}/add_worker", params={"url": name})
            assert back.status_code == 200
        # Nothing proves that it still has those tensors, which cannot be sent again.
        change["json"]["model_path"] = "painter/v3"
        answer = session.post(path, params={"model": "painter"}, **change)
        assert (answer.status_code, len(answer.json()["results"])) == (200, 2)
        workers = session.get(f"{pool.url}/workers").json()["workers"]
        assert [worker["routable"] for worker in workers] == [True] * 3


# curl.


def curl(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--noproxy", "*", *arguments],
        capture_output=True,
        text=True,
        timeout=WITHIN,
        check=True,
    )


@pytest.mark.skipif(not shutil.which("curl"), reason="curl is missing")
def test_curl(pool: Pool, tmp_path: Path) -> None:
    picture = tmp_path / "kite.png"
    picture.write_bytes(PNG + b"\0" * 2_000_000)
    form = ["-F", "prompt=bluer", "-F", "size=64x64", "-F", f"image=@{picture}"]
    edited = curl(f"{pool.url}/v1/images/edits", *form)
    assert json.loads(edited.stdout)["data"][0]["b64_json"]

    body = '{"prompt": "a kite", "size": "64x64", "num_frames": 3, "num_inference_steps": 1}'
    # As many type it: without a content type of JSON.
    job = json.loads(curl(f"{pool.url}/v1/videos", "-d", body).stdout)
    status = job["status"]
    while status not in ("completed", "failed"):
        status = json.loads(curl(f"{pool.url}/v1/videos?id={job['id']}").stdout)["status"]
    assert status == "completed"
    video = tmp_path / "kite.mp4"
    curl("--fail", f"{pool.url}/v1/videos/{job['id']}/content", "-o", video)
    whole = video.read_bytes()
    part = tmp_path / "part"
    curl("--fail", "--range", "5-14", f"{pool.url}/v1/videos/{job['id']}/content", "-o", part)
    assert part.read_bytes() == whole[5:15]
    told = curl("-X", "DELETE", "-i", f"{pool.url}/v1/videos/{job['id']}").stdout
    assert told.startswith("HTTP/1.1 200")
    assert json.loads(told.rpartition("\n\n")[2])["status"] == "deleted"
    refused = curl("-X", "POST", "-i", f"{pool.url}/workers?url=http://10.0.0.1:1").stdout
    assert refused.startswith("HTTP/1.1 401")
    assert "www-authenticate: Bearer" in refused
