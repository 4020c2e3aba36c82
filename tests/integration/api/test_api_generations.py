"""Generations: to one fitting worker, and images from the worker that made them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from simulated_worker.pictures import made_by
from tests.integration.api.pools import (
    BOTH,
    IMAGES,
    VIDEOS,
    Member,
    RunPool,
    is_ours,
    restart,
)
from tests.integration.deployment import IMAGE, Deployment, until

ACTIONS = {"model_path": "openpi/pi0", "task_types": ("VLA_ACTION",)}
EDIT = {"data": {"prompt": "bluer", "size": "64x64"}, "files": {"image": ("a.png", b"png", "x")}}
ROLLOUT = {
    "prompt": "a kite",
    "seed": 1,
    "width": 64,
    "height": 64,
    "num_inference_steps": 1,
}


@pytest.mark.parametrize(
    ("path", "request_", "kind"),
    [
        ("/v1/images/generations", {"json": IMAGE}, IMAGES),
        ("/v1/images/edits", EDIT, {**IMAGES, "task_types": ("TI2I",)}),
        ("/rollout/generate", {"json": {**ROLLOUT, "simulate_bytes": 5000}}, IMAGES),
        ("/v1/actions/generations", {"json": {"observation": {}}}, ACTIONS),
        ("/vertex_generate", {"json": {"instances": [{"prompt": "x"}]}}, IMAGES),
    ],
)
def test_one_worker_answers_and_is_named(
    run_pool: RunPool, path: str, request_: dict[str, Any], kind: dict[str, Any]
) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        answer = await pool.http.post(path, **request_)
        assert answer.status_code == 200, answer.text
        made = [member for member in members if member.asked("POST", path)]
        assert [answer.headers["x-worker-id"]] == [member.id for member in made]
        [entry] = made[0].asked("POST", path)
        assert entry.request_id == answer.headers["x-request-id"]

    run_pool(test, kind, kind)


def test_the_path_of_older_forks(run_pool: RunPool) -> None:
    """`/v1/diffusion/generate`: current workers have it not, and say so themselves."""

    async def test(pool: Deployment, worker: Member) -> None:
        answer = await pool.http.post("/v1/diffusion/generate", json=ROLLOUT)
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
        assert answer.headers["x-worker-id"] == worker.id

    run_pool(test, IMAGES)


@pytest.mark.parametrize("n", [1, 2])
def test_the_content_of_an_image_comes_from_its_maker(run_pool: RunPool, n: int) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        for _ in range(4):
            made = await pool.image(n=n)
            url = made.json()["data"][-1]["url"]
            content = await pool.http.get(url)
            assert content.status_code == 200
            assert content.headers["x-worker-id"] == made.headers["x-worker-id"]
            assert content.content.startswith(b"\x89PNG")
            path = url.split("?")[0]
            maker, other = members
            if maker.id != made.headers["x-worker-id"]:
                maker, other = other, maker
            assert len(maker.asked("GET", path)) == 1  # not even asked whether it knows it
            assert other.asked("GET", path) == []

    run_pool(test, IMAGES, IMAGES)


def test_edits_are_remembered_too_and_megabytes_of_pixels_are_not(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        form = {"prompt": "bluer", "size": "1024x1024", "response_format": "url"}
        made = await pool.http.post(
            "/v1/images/edits", data=form, files={"image": ("a.png", b"png" * 1000, "image/png")}
        )
        url = made.json()["data"][0]["url"]
        assert (await pool.http.get(url)).headers["x-worker-id"] == made.headers["x-worker-id"]
        assert sum(len(member.asked("GET", url)) for member in members) == 1

        made = await pool.image(size="2048x2048", response_format="b64_json")
        assert len(made.content) > 100_000
        url = f"/v1/images/{made.json()['id']}/content"
        assert (await pool.http.get(url)).headers["x-worker-id"] == made.headers["x-worker-id"]
        assert sum(len(member.asked("GET", url)) for member in members) == 1

    both = {**IMAGES, "task_types": ("T2I", "TI2I")}
    run_pool(test, both, both)


def test_images_of_a_worker_that_sleeps_are_served(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        made = await pool.image()
        (await pool.http.post("/release_memory_occupation")).raise_for_status()
        content = await pool.http.get(made.json()["data"][0]["url"])
        assert content.status_code == 200
        assert content.headers["x-worker-id"] == made.headers["x-worker-id"]

    run_pool(test, IMAGES, IMAGES)


def test_an_image_that_nobody_made(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        answer = await pool.http.get("/v1/images/nothing/content")
        body = is_ours(answer, 404, "unknown_asset")
        assert (body["error"], body["image_id"]) == ("Unknown image_id", "nothing")
        assert a.asked("GET", "/v1/images/nothing/content")
        assert b.asked("GET", "/v1/images/nothing/content")

    run_pool(test, IMAGES, IMAGES)


def test_a_mixed_pool_needs_no_configuration(run_pool: RunPool) -> None:
    async def test(pool: Deployment, images: Member, videos: Member) -> None:
        for _ in range(3):
            made = await pool.image(response_format="url")
            assert made.headers["x-worker-id"] == images.id
            job = await pool.http.post("/v1/videos", json={"prompt": "a kite", "size": "64x64"})
            assert (job.status_code, job.headers["x-worker-id"]) == (200, videos.id)
        wrong = await pool.image(model="gpt-image-1")  # one model makes images: any name will do
        assert wrong.headers["x-worker-id"] == images.id

        # A name that somebody serves binds: its worker says itself what it thinks of that.
        named = await pool.image(model="video/b")
        assert named.headers["x-worker-id"] == videos.id
        answer = await pool.http.post("/v1/videos", json={"prompt": "x", "model": "image/a"})
        is_ours(answer, 400, "no_capable_worker")

    run_pool(test, IMAGES, VIDEOS)


def test_two_models_of_one_kind(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for member, model in ((a, "image/a"), (b, "image/other")) * 3:
            made = await pool.image(model=model, response_format="b64_json")
            assert made.headers["x-worker-id"] == member.id
        form = {"prompt": (None, "x"), "model": (None, "image/other"), "image": ("i", b"x" * 10)}
        edited = await pool.http.post("/v1/images/edits", files=form)
        assert edited.headers["x-worker-id"] == b.id
        asked = await pool.http.post(
            "/v1/images/edits?model=image%2Fother", files={"image": ("i", b"x" * 10)}
        )
        assert asked.headers["x-worker-id"] == b.id

        before = a.sim.log.generations(), b.sim.log.generations()
        for more in ({}, {"model": None}, {"model": 7}, {"model": ""}):
            told = is_ours(await pool.image(**more), 400, "ambiguous_model")
            assert told["models"] == ["image/a", "image/other"]
        wrong = is_ours(await pool.image(model="Image/Other"), 404, "unknown_model")
        assert wrong["models"] == ["image/a", "image/other"]
        assert wrong["nearest"] == "image/other"
        twice = "/v1/images/generations?model=image/a"
        is_ours(await pool.http.post(twice, json={"model": "image/other"}), 400, "ambiguous_model")
        for path in ("/v1/actions/generations", "/vertex_generate"):
            is_ours(await pool.http.post(path, json={"prompt": "x"}), 400, "ambiguous_model")
        rollout = await pool.http.post("/rollout/generate", json={"prompt": "x"})
        told = is_ours(rollout, 400, "ambiguous_target")
        assert told["models"] == ["image/a", "image/other"]
        assert (a.sim.log.generations(), b.sim.log.generations()) == before
        # What makes nothing goes to any worker, as before.
        assert (await pool.http.get("/stats")).headers["x-worker-id"] in (a.id, b.id)

    run_pool(test, IMAGES, {"model_path": "image/other"})


def test_a_worker_that_does_both(run_pool: RunPool) -> None:
    async def test(pool: Deployment, both: Member, images: Member) -> None:
        makers = {(await pool.image()).headers["x-worker-id"] for _ in range(4)}
        assert makers == {both.id, images.id}
        job = await pool.http.post("/v1/videos", json={"prompt": "a kite", "size": "64x64"})
        assert job.headers["x-worker-id"] == both.id

    run_pool(test, BOTH, {**IMAGES, "model_path": BOTH["model_path"]})


@pytest.mark.parametrize("strict", [False, True])
def test_a_pool_of_one_model_takes_any_name_unless_it_is_strict(
    run_pool: RunPool, strict: bool
) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        assert (await pool.image()).status_code == 200
        assert (await pool.image(model="image/a")).status_code == 200
        named = await pool.image(model="image-a")
        if strict:
            told = is_ours(named, 404, "unknown_model")
            assert (told["models"], told["nearest"]) == (["image/a"], "image/a")
        else:
            assert named.headers["x-worker-id"] == worker.id

    run_pool(test, IMAGES, strict_model=strict)


def test_images_go_elsewhere_only_where_nobody_makes_them(run_pool: RunPool) -> None:
    async def test(pool: Deployment, videos: Member) -> None:
        answer = await pool.image()
        assert answer.headers["x-worker-id"] == videos.id

    run_pool(test, VIDEOS)


def test_errors_of_workers_pass_untouched(run_pool: RunPool) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        direct = httpx.AsyncClient(base_url=worker.url, trust_env=False)
        async with direct:
            for method, path, content in (
                ("POST", "/v1/images/generations", b'{"prompt": 7}'),
                ("POST", "/v1/images/generations", b"{"),
                ("PATCH", "/v1/images/generations", b""),
                ("POST", "/rollout/generate", b'{"prompt": "no seed"}'),
            ):
                headers = {"content-type": "application/json"}
                expected = await direct.request(method, path, content=content, headers=headers)
                got = await pool.http.request(method, path, content=content, headers=headers)
                assert expected.status_code >= 400
                assert got.status_code == expected.status_code
                assert got.content == expected.content
                assert got.headers["content-type"] == expected.headers["content-type"]
                assert got.headers["x-worker-id"] == worker.id

    run_pool(test, IMAGES)


def test_shapes_that_nobody_expects_pass_untouched(run_pool: RunPool) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        for kind, body in (("text/plain", "Internal Server Error"), ("application/json", "")):
            worker.sim.faults.add(
                "status", path="/v1/images", status=503, body=body, content_type=kind, count=1
            )
            answer = await pool.image()
            assert (answer.status_code, answer.text) == (503, body)
            assert answer.headers["x-worker-id"] == worker.id

    run_pool(test, IMAGES)


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_anything_else_goes_to_one_worker(run_pool: RunPool, method: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        answer = await pool.http.request(method, "/some/thing%2Felse?a=%20b")
        seen = [e for member in (a, b) for e in member.sim.log.requests if "some" in e.target]
        assert [(e.method, e.target) for e in seen] == [(method, "/some/thing%2Felse?a=%20b")]
        is_ours(answer, 404, "unknown_path")  # the worker does not know it

    run_pool(test, IMAGES, IMAGES)


def test_capabilities_are_read_again_when_a_worker_comes_back(run_pool: RunPool) -> None:
    async def test(pool: Deployment, steady: Member, changed: Member) -> None:
        answer = await pool.http.post("/v1/videos", json={"prompt": "x"})
        is_ours(answer, 400, "no_capable_worker")
        again = await restart(pool, changed, **VIDEOS)
        await until(lambda: changed.known.incarnation == 2 and changed.known.health == "healthy")
        assert again.url == changed.url
        answer = await pool.http.post("/v1/videos", json={"prompt": "x", "size": "64x64"})
        assert (answer.status_code, answer.headers["x-worker-id"]) == (200, changed.id)

    run_pool(test, IMAGES, IMAGES)


def test_an_unreadable_capability_is_no_inability(run_pool: RunPool) -> None:
    async def test(pool: Deployment) -> None:
        sim = await pool.simulated(**VIDEOS)
        sim.faults.add("status", path="/model_info", status=500, count=2)
        await pool.register(sim.url)
        answer = await pool.http.post("/v1/videos", json={"prompt": "x", "size": "64x64"})
        assert answer.status_code == 200

    run_pool(test)


def test_pictures_tell_who_made_them(run_pool: RunPool) -> None:
    """The pool really is two models: what comes back is of the weights that were asked for."""

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        pictures = []
        for model in ("image/a", "image/other"):
            made = await pool.image(model=model)
            pictures.append((await pool.http.get(made.json()["data"][0]["url"])).content)
        assert made_by(pictures[0]) != made_by(pictures[1])

    run_pool(test, IMAGES, {"model_path": "image/other"})
