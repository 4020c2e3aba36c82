"""`--dashboard-previews`: the newest images, as they passed."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from router.observe import previews
from tests.integration.api.pools import IMAGES, Member, is_ours, run_with_pool
from tests.integration.deployment import IMAGE, Deployment, run_deployed

GENERATIONS = "/v1/images/generations"
KEY = "the-admin-key"


async def rows(pool: Deployment) -> list[dict[str, Any]]:
    answer = await pool.http.get("/previews")
    assert answer.status_code == 200
    listed: list[dict[str, Any]] = answer.json()["previews"]
    return listed


async def made(pool: Deployment, **more: object) -> httpx.Response:
    answer = await pool.http.post(GENERATIONS, json={**IMAGE, **more})
    assert answer.status_code == 200, answer.text
    return answer


def test_the_image_of_an_answer_is_kept() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        assert await rows(pool) == []
        said = await made(pool, response_format="b64_json", prompt="my secret plan")
        (row,) = await rows(pool)
        assert (row["worker_id"], row["weight_version"]) == (a.id, 0)
        assert set(row) == {"id", "at", "worker_id", "weight_version"}
        image = await pool.http.get(f"/previews/{row['id']}")
        assert image.content == base64.b64decode(said.json()["data"][0]["b64_json"])
        assert image.headers["content-type"] == "image/png"
        assert image.headers["x-content-type-options"] == "nosniff"
        assert (await pool.http.get(f"/previews/{row['id']}")).content == image.content
        is_ours(await pool.http.get("/previews/99"), 404, "unknown_preview")

    run_with_pool(test, IMAGES, dashboard_previews=True)


def test_an_image_that_is_read_as_a_file_is_kept_once() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        said = (await made(pool, response_format="url")).json()
        assert await rows(pool) == []  # the answer itself has no image
        path = f"/v1/images/{said['id']}/content"
        files = [await pool.http.get(path) for _ in range(2)]
        (row,) = await rows(pool)
        image = await pool.http.get(f"/previews/{row['id']}")
        assert image.content == files[0].content == files[1].content

    run_with_pool(test, IMAGES, dashboard_previews=True)


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        for seed in range(30):
            await made(pool, response_format="b64_json", seed=seed)
        listed = await rows(pool)
        assert [row["id"] for row in listed] == list(range(30, 18, -1))
        kept = pool.running.parts.previews
        assert len(kept._kept) == 24
        assert not kept._open
        monkeypatch.setattr(previews, "_MOST_BYTES", sum(one.size for one in kept._kept) // 8)
        await made(pool, response_format="b64_json")
        assert len(await rows(pool)) <= 3
        monkeypatch.setattr(previews, "_LARGEST", 100)
        await made(pool, response_format="b64_json")
        assert kept.newest == 31
        monkeypatch.setattr(previews, "_AT_ONCE", 0)
        await made(pool, response_format="b64_json")
        assert kept.newest == 31

    run_with_pool(test, IMAGES, dashboard_previews=True)


def test_what_breaks_off_is_not_kept() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("die_at_byte", path=GENERATIONS, byte=5000)
        with pytest.raises(httpx.RemoteProtocolError):
            await pool.image(response_format="b64_json", size="256x256")
        a.sim.faults.add("status", path=GENERATIONS, status=500, count=1)
        assert (await pool.image()).status_code == 500
        assert await rows(pool) == []
        assert not pool.running.parts.previews._open

    run_with_pool(test, IMAGES, dashboard_previews=True)


def test_they_need_the_admin_key_if_there_is_one() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await made(pool, response_format="b64_json")
        assert len(await rows(pool)) == 1
        with_key = pool.http.headers.pop("x-api-key")
        for path in ("/previews", "/previews/1"):
            is_ours(await pool.http.get(path), 401, "admin_key_missing")
        pool.http.headers["x-api-key"] = with_key

    run_with_key(test)


def run_with_key(test: Any) -> None:
    async def keyed(pool: Deployment) -> None:
        pool.http.headers["x-api-key"] = KEY
        sim = await pool.simulated(**IMAGES)
        await test(pool, Member(sim, await pool.register(sim.url)))

    run_deployed(keyed, admin_api_key=KEY, dashboard_previews=True)


def test_without_the_flag_nothing_is_kept() -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await made(pool, response_format="b64_json")
        for path in ("/previews", "/previews/1"):
            is_ours(await pool.http.get(path), 404, "previews_off")
        assert pool.running.parts.previews.newest == 0

    run_with_pool(test, IMAGES)


@pytest.mark.parametrize(
    "data",
    [
        b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        b"<html>",
        b'{"data": [{"b64_json": null}]}',
        b'{"data": [{"b64_json": "PGh0bWw+"}]}',
        b"",
    ],
)
def test_only_images_are_shown(data: bytes) -> None:
    kept = previews.Previews(enabled=True)
    glimpse = kept.begin("a", -1, "/x")
    assert glimpse is not None
    for at in range(0, len(data), 3):
        glimpse.saw(data[at : at + 3])
    glimpse.over()
    assert all(one.image() is None for one in kept)
