"""Merged lists: jobs of all workers, and models."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import trio

from router.pool.assets import AssetKind
from tests.integration.api.pools import (
    IMAGES,
    MESHES,
    VIDEOS,
    Member,
    RunPool,
    direct_to,
    is_ours,
)
from tests.integration.api.test_api_jobs import VIDEO, submit
from tests.integration.deployment import Deployment, answer, until

OTHER = {"model_path": "video/other"}


async def listed(pool: Deployment, **query: Any) -> list[str]:
    got = await pool.http.get("/v1/videos", params=query)
    assert got.status_code == 200, got.text
    return [job["id"] for job in got.json()["data"]]


def test_all_jobs_in_order_of_creation(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        made = [(await submit(pool))["id"] for _ in range(7)]
        assert await listed(pool, order="asc") == made
        assert await listed(pool) == made[::-1]
        assert await listed(pool, order="desc", limit=3) == made[:3:-1]
        assert await listed(pool, order="desc", after=made[4], limit=2) == [made[3], made[2]]
        assert await listed(pool, order="asc", after=made[6]) == []
        page = (await pool.http.get("/v1/videos", params={"limit": 2, "order": "asc"})).json()
        assert {**page, "data": None} == {
            "object": "list",
            "data": None,
            "first_id": made[0],
            "last_id": made[1],
            "has_more": True,
            "unavailable_workers": [],
        }
        assert page["data"][0]["object"] == "video"
        assert members[0].asked("GET", "/v1/videos")
        assert members[2].asked("GET", "/v1/videos") == []  # it cannot have any

    run_pool(test, VIDEOS, VIDEOS, IMAGES)


def test_a_mesh_is_no_video(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        video, mesh = await submit(pool), await submit(pool, "/v1/meshes")
        assert await listed(pool) == [video["id"]]
        meshes = (await pool.http.get("/v1/meshes")).json()
        assert [job["id"] for job in meshes["data"]] == [mesh["id"]]
        read = await pool.http.get(f"/v1/meshes/{video['id']}")
        is_ours(read, 404, "unknown_asset")

    run_pool(test, VIDEOS, MESHES)


def test_jobs_that_were_made_past_the_router(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        made = []
        for member in members * 2:
            async with direct_to(member.url) as direct:
                made.append((await direct.post("/v1/videos", json=VIDEO)).json()["id"])
        first = await listed(pool, order="asc")
        assert sorted(first) == sorted(made)
        newest = (await submit(pool))["id"]
        assert await listed(pool, order="asc") == [*first, newest]
        owners = {(await pool.http.get(f"/v1/videos/{job}")).headers["x-worker-id"] for job in made}
        assert owners == {member.id for member in members}

    run_pool(test, VIDEOS, VIDEOS)


def test_more_jobs_than_a_worker_puts_on_a_page(run_pool: RunPool) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        async with direct_to(worker.url) as direct:
            answers = [await direct.post("/v1/videos", json=VIDEO) for _ in range(103)]
        made = [answer.json()["id"] for answer in answers]
        pages = [await listed(pool, order="asc", limit=60)]
        pages.append(await listed(pool, order="asc", limit=60, after=pages[0][-1]))
        assert [len(page) for page in pages] == [60, 43]
        assert sorted(pages[0] + pages[1]) == sorted(made)

    run_pool(test, VIDEOS)


def test_one_who_deletes_what_he_has_seen_sees_all(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        made = [(await submit(pool))["id"] for _ in range(6)]
        seen: list[str] = []
        while page := await listed(pool, limit=2, **({"after": seen[-1]} if seen else {})):
            for job_id in page:
                await pool.http.delete(f"/v1/videos/{job_id}")
            seen += page
        assert seen == made[::-1]

    run_pool(test, VIDEOS, VIDEOS)


def test_a_removed_worker_does_not_end_the_paging(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for model in ("video/b", "video/other") * 2:
            await submit(pool, model=model)
        first = await listed(pool, order="asc", limit=1)
        await pool.http.delete(f"/workers/{a.id}")
        assert len(await listed(pool, order="asc", after=first[0])) == 2

    run_pool(test, VIDEOS, OTHER)


def test_a_list_that_loses_its_cursor_is_read_again(run_pool: RunPool) -> None:
    """A worker answers an `after` that it does not know with an empty page."""

    async def test(pool: Deployment) -> None:
        def page(*names: str, more: bool) -> bytes:
            data = [{"id": name, "created_at": 1} for name in names]
            return answer(200, {"data": data, "has_more": more})

        start = "/v1/videos?limit=100&order=asc"
        first = iter([page("a", "b", more=True), page("a", "c", more=True)])

        async def beginning(stream: Any) -> None:
            await stream.send_all(next(first))

        worker = await pool.script(
            **{
                start: beginning,
                f"{start}&after=b": page(more=False),
                f"{start}&after=c": page("d", more=False),
            }
        )
        worker.answers["/v1/models"] = answer(200, {"data": [{"task_type": "T2V"}]})
        worker.answers["/model_info"] = answer(200, {})
        await pool.register(worker.url)
        assert await listed(pool, order="asc") == ["a", "c", "d"]

    run_pool(test)


def test_a_list_that_is_older_than_a_deletion_does_not_bring_it_back(run_pool: RunPool) -> None:
    async def test(pool: Deployment) -> None:
        worker = await pool.script()
        worker.answers["/v1/models"] = answer(200, {"data": [{"id": "m", "task_type": "T2V"}]})
        worker.answers["/model_info"] = answer(200, {})
        worker.answers["/v1/videos"] = answer(200, {"id": "gone", "status": "completed"})
        worker.answers["/v1/videos/gone"] = answer(200, {"id": "gone", "deleted": True})
        await pool.register(worker.url)
        await submit(pool)
        asked, gate = trio.Event(), trio.Event()

        async def old_list(stream: trio.SocketStream) -> None:
            asked.set()
            await gate.wait()
            await stream.send_all(answer(200, {"data": [{"id": "gone", "status": "completed"}]}))

        worker.answers["/v1/videos?limit=100&order=asc"] = old_list

        async def list_them() -> None:
            assert await listed(pool) == []

        async with trio.open_nursery() as nursery:
            nursery.start_soon(list_them)
            await asked.wait()
            assert (await pool.http.delete("/v1/videos/gone")).status_code == 200
            gate.set()
        assert pool.running.parts.jobs.assets.owner("gone", AssetKind.VIDEO) is None

    run_pool(test)


@pytest.mark.parametrize("how", ["refuses", "fails", "says nonsense", "breaks off"])
def test_who_does_not_answer_is_named(run_pool: RunPool, how: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        job = await submit(pool, model="video/b")
        await submit(pool, model="video/other")
        if how == "refuses":
            b.sim.kill()
            await b.sim.ended.wait()
        elif how == "fails":
            b.sim.faults.add("status", path="/v1/videos", status=500)
        elif how == "says nonsense":
            b.sim.faults.add("status", path="/v1/videos", status=200, body="[]")
        else:
            b.sim.faults.add("die_at_byte", path="/v1/videos", byte=20, count=99)
        got = (await pool.http.get("/v1/videos")).json()
        assert [j["id"] for j in got["data"]] == [job["id"]]
        assert got["unavailable_workers"] == [b.url]

    run_pool(test, VIDEOS, OTHER)


def test_one_that_was_never_reached_is_named_too(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        script = await pool.script()
        script.refuse()
        await pool.http.post("/workers", params={"url": script.url})
        got = (await pool.http.get("/v1/videos")).json()
        assert got["unavailable_workers"] == [script.url]

    run_pool(test, VIDEOS)


def test_odd_rows_do_no_harm(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        rows = [
            {"id": "1", "created_at": "yesterday", "status": {}},
            {"id": "2", "created_at": 10**30},
            {"id": 3},
            "text",
            {"created_at": 5},
        ]
        a.sim.faults.add("status", path="/v1/videos", status=200, body={"data": rows})
        assert await listed(pool, order="asc") == ["1", "2"]

    run_pool(test, VIDEOS)


def test_one_worker_behind_two_addresses(run_pool: RunPool) -> None:
    """A proxy in front of it looks like another worker."""

    async def test(pool: Deployment, a: Member) -> None:
        async def forward(client: trio.SocketStream) -> None:
            port = int(a.url.rpartition(":")[2])
            worker = await trio.open_tcp_stream("127.0.0.1", port)
            async with worker, trio.open_nursery() as both:
                both.start_soon(_copy, client, worker)
                await _copy(worker, client)
                both.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, forward, [listener])
            await pool.register(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
            made = [(await submit(pool))["id"] for _ in range(3)]
            assert await listed(pool, order="asc") == made
            nursery.cancel_scope.cancel()

    run_pool(test, VIDEOS)


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        async for piece in source:
            await target.send_all(piece)


@pytest.mark.parametrize("name", ["id", "video_id"])
def test_a_query_polls_one_job(run_pool: RunPool, name: str) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        jobs = [await submit(pool) for _ in range(3)]
        for job in jobs:
            got = await pool.http.get("/v1/videos", params={name: job["id"]})
            assert (got.status_code, got.json()["id"]) == (200, job["id"])
            assert got.headers["x-worker-id"] == job["worker"]
        for odd in ("nobodys", "../../x", "a/content", "a?b", "."):
            unknown = await pool.http.get("/v1/videos", params={name: odd})
            assert unknown.status_code == 404, odd
            body = is_ours(unknown, 404, "unknown_asset")
            assert body["error"] == "Unknown video_id"

    run_pool(test, VIDEOS, VIDEOS)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "order=up", "limit="])
def test_bad_pages(run_pool: RunPool, query: str) -> None:
    async def test(pool: Deployment) -> None:
        is_ours(await pool.http.get(f"/v1/videos?{query}"), 400, "invalid_field")

    run_pool(test)


def test_a_cursor_that_nobody_knows(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        got = await pool.http.get("/v1/videos", params={"after": "nobodys"})
        is_ours(got, 404, "unknown_cursor")

    run_pool(test, VIDEOS)


# Models.


def test_models_are_merged(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        got = (await pool.http.get("/v1/models")).json()
        assert got["object"] == "list"
        assert [card["id"] for card in got["data"]] == ["image/a", "video/b"]
        async with direct_to(members[2].url) as direct:
            card = (await direct.get("/v1/models/video/b")).json()
        one = await pool.http.get("/v1/models/video/b")
        assert one.status_code == 200
        assert {**one.json(), "created": 0} == {**card, "created": 0}
        encoded = await pool.http.get("/v1/models/video%2Fb")
        assert encoded.json()["id"] == "video/b"

    run_pool(test, IMAGES, IMAGES, VIDEOS)


def test_a_model_that_nobody_serves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        got = await pool.http.get("/v1/models/gpt-image-1")
        assert got.status_code == 404
        assert got.json() == {
            "error": {
                "message": "The model 'gpt-image-1' does not exist",
                "type": "invalid_request_error",
                "param": "model",
                "code": "model_not_found",
            }
        }

    run_pool(test, IMAGES)


def test_models_where_some_or_all_fail(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("status", path="/v1/models", status=500, body="oops")
        got = await pool.http.get("/v1/models")
        assert [card["id"] for card in got.json()["data"]] == ["image/a"]
        assert (await pool.http.get("/v1/models/image/a")).status_code == 200
        # It may be the one that did not answer: nobody may say that there is none.
        body = is_ours(await pool.http.get("/v1/models/video/b"), 502, "models_unavailable")
        assert list(body["details"]) == [b.url]

        a.sim.faults.add("status", path="/v1/models", status=200, body="[1]")
        body = is_ours(await pool.http.get("/v1/models"), 502, "models_unavailable")
        assert sorted(body["details"]) == sorted([a.url, b.url])
        assert body["details"][b.url] == "GET /v1/models answered 500"
        json.dumps(body)

    run_pool(test, IMAGES, VIDEOS)


def test_models_of_nobody(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("kill_scheduler")
        await until(lambda: a.known.health == "unhealthy")
        for path in ("/v1/models", "/v1/models/image/a"):
            is_ours(await pool.http.get(path), 503, "no_workers")
        await pool.http.delete(f"/workers/{a.id}")
        is_ours(await pool.http.get("/v1/models"), 503, "no_workers")

    run_pool(test, IMAGES)


def test_sleeping_and_draining_workers_still_have_models(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post("/release_memory_occupation")
        await pool.http.put(f"/workers/{a.id}", json={"draining": True})
        assert [c["id"] for c in (await pool.http.get("/v1/models")).json()["data"]] == ["image/a"]

    run_pool(test, IMAGES)
