"""Videos and meshes: able workers, owners, and ids that nobody remembers."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from router.control import jobs
from router.pool.assets import AssetKind
from router.pool.worker import Origin
from tests.integration.api.pools import (
    BOTH,
    IMAGES,
    MESHES,
    VIDEOS,
    Member,
    RunPool,
    direct_to,
    is_ours,
    restart,
)
from tests.integration.deployment import Deployment, answer, never, until, when
from tests.patience import fail_after, stretched

VIDEO = {"prompt": "a red kite", "size": "64x64", "num_frames": 3, "num_inference_steps": 1}
MESH = {"prompt": "a kite", "input_image": "http://example.org/kite.png"}
FROM_IMAGES = {"model_path": "video/i2v", "task_types": ("I2V",)}
PART = {"input_reference": ("a.png", b"x" * 5000, "image/png")}


async def submit(pool: Deployment, path: str = "/v1/videos", **more: Any) -> dict[str, Any]:
    made = await pool.http.post(path, json={**(VIDEO if "vid" in path else MESH), **more})
    assert made.status_code == 200, made.text
    job: dict[str, Any] = made.json()
    return {**job, "worker": made.headers["x-worker-id"]}


async def finished(pool: Deployment, job_id: str, path: str = "/v1/videos") -> dict[str, Any]:
    with fail_after(5):
        while True:
            job: dict[str, Any] = (await pool.http.get(f"{path}/{job_id}")).json()
            if job["status"] in ("completed", "failed"):
                return job
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "request_", "able"),
    [
        ("/v1/videos", {"json": VIDEO}, VIDEOS),
        ("/v1/videos", {"data": {"prompt": "x", "size": "64x64"}, "files": PART}, FROM_IMAGES),
        ("/v1/meshes", {"json": MESH}, MESHES),
        (
            "/v1/meshes",
            {"data": {"prompt": "x"}, "files": {"image": PART["input_reference"]}},
            MESHES,
        ),
    ],
    ids=["video", "video form", "mesh", "mesh form"],
)
def test_jobs_go_to_able_workers_and_stay_there(
    run_pool: RunPool, path: str, request_: dict[str, Any], able: dict[str, Any]
) -> None:
    async def test(pool: Deployment, other: Member, *members: Member) -> None:
        makers = set()
        for _ in range(4):
            made = await pool.http.post(path, **request_)
            assert made.status_code == 200, made.text
            job_id, maker = made.json()["id"], made.headers["x-worker-id"]
            makers.add(maker)
            job = await finished(pool, job_id, path)
            assert (job["id"], job["status"]) == (job_id, "completed")
            content = await pool.http.get(f"{path}/{job_id}/content")
            assert content.status_code == 200
            assert content.headers["x-worker-id"] == maker
            assert len(content.content) > 100
            deleted = await pool.http.delete(f"{path}/{job_id}")
            assert (deleted.status_code, deleted.json()["status"]) == (200, "deleted")
            assert deleted.headers["x-worker-id"] == maker
            again = await pool.http.get(f"{path}/{job_id}")
            is_ours(again, 404, "unknown_asset")
        assert makers == {member.id for member in members}
        assert other.asked("POST", path) == []

    run_pool(test, IMAGES, able, able)


@pytest.mark.parametrize(
    ("path", "body", "word", "able"),
    [
        ("/v1/videos", VIDEO, "video", VIDEOS),
        ("/v1/meshes", MESH, "mesh", MESHES),
    ],
)
def test_no_worker_is_able(
    run_pool: RunPool, path: str, body: Any, word: str, able: dict[str, Any]
) -> None:
    async def test(pool: Deployment, images: Member) -> None:
        refused = is_ours(await pool.http.post(path, json=body), 400, "no_capable_worker")
        assert refused["error"] == f"No {word}-capable workers available in current worker pool."
        form = await pool.http.post(path, data={"prompt": "x"}, files=PART)
        is_ours(form, 400, "no_capable_worker")
        assert images.asked("POST", path) == []

        # One that nobody has spoken to may be able: that is no lasting refusal.
        silent = await pool.script(**{"/health": never})
        pool.running.parts.registry.add(silent.url, Origin.REGISTERED)
        is_ours(await pool.http.post(path, json=body), 503, "no_routable_worker")

    run_pool(test, IMAGES)


def test_able_workers_that_are_asleep_or_down(run_pool: RunPool) -> None:
    async def test(pool: Deployment, images: Member, videos: Member) -> None:
        query = {"workers": videos.id}
        (await pool.http.post("/release_memory_occupation", params=query)).raise_for_status()
        is_ours(await pool.http.post("/v1/videos", json=VIDEO), 503, "pool_asleep")
        (await pool.http.post("/resume_memory_occupation", params=query)).raise_for_status()
        await submit(pool)
        (await pool.http.put(f"/workers/{videos.id}", json={"is_dead": True})).raise_for_status()
        is_ours(await pool.http.post("/v1/videos", json=VIDEO), 503, "no_routable_worker")
        (await pool.http.put(f"/workers/{videos.id}", json={"is_dead": False})).raise_for_status()
        await until(lambda: videos.known.health == "healthy")
        videos.sim.kill()
        await until(lambda: videos.known.health == "unhealthy")
        is_ours(await pool.http.post("/v1/videos", json=VIDEO), 503, "no_routable_worker")
        (await pool.http.delete(f"/workers/{videos.id}")).raise_for_status()
        is_ours(await pool.http.post("/v1/videos", json=VIDEO), 400, "no_capable_worker")

    run_pool(test, IMAGES, VIDEOS)


def test_an_empty_pool(run_pool: RunPool) -> None:
    async def test(pool: Deployment) -> None:
        is_ours(await pool.http.post("/v1/videos", json=VIDEO), 503, "no_workers")
        is_ours(await pool.http.get("/v1/videos/x"), 404, "unknown_asset")
        assert (await pool.http.get("/v1/videos")).json()["data"] == []

    run_pool(test)


def test_the_id_is_known_before_the_client_sees_it(run_pool: RunPool) -> None:
    """Also where the answer comes in many pieces, and its end late."""

    async def test(pool: Deployment, videos: Member) -> None:
        known = False
        assets = pool.running.parts.jobs.assets
        body = json.dumps({"id": "early", "status": "queued", "pad": "x" * 300}).encode()
        head = b"HTTP/1.1 200 X\r\ncontent-length: %d\r\n\r\n" % len(body)

        async def slowly(stream: trio.SocketStream) -> None:
            await stream.send_all(head)
            for i in range(0, len(body), 50):
                await stream.send_all(body[i : i + 50])
                await trio.sleep(0.005)

        script = await pool.script(
            **{"/v1/videos": slowly, "/v1/models": answer(200, {"data": [{"task_type": "T2V"}]})}
        )
        await pool.http.delete(f"/workers/{videos.id}")
        await pool.register(script.url)
        async with pool.http.stream("POST", "/v1/videos", json=VIDEO) as response:
            known = assets.owner("early", AssetKind.VIDEO) is not None
            await response.aread()
            assert response.json()["id"] == "early"
        assert known  # when the head of the answer came

    run_pool(test, VIDEOS)


@pytest.mark.parametrize("state", ["asleep", "draining", "quarantined", "unhealthy", "warming"])
def test_the_owner_reads_whatever_state_it_is_in(run_pool: RunPool, state: str) -> None:
    async def test(pool: Deployment, owner: Member, other: Member) -> None:
        job = await submit(pool, model="video/b")
        await finished(pool, job["id"])
        if state == "asleep":
            await pool.http.post("/release_memory_occupation", params={"workers": owner.id})
            assert owner.known.memory == "asleep"
        elif state == "draining":
            await pool.http.put(f"/workers/{owner.id}", json={"draining": True})
            assert owner.known.admin == "draining"
        elif state == "quarantined":
            await pool.http.put(f"/workers/{owner.id}", json={"is_dead": True})
            assert owner.known.admin == "quarantined"
        elif state == "unhealthy":
            owner.sim.faults.add("kill_scheduler")
            await until(lambda: owner.known.health == "unhealthy")
        else:
            owner.sim.faults.add("status", path="/health", status=503, body="")
            await until(lambda: owner.known.health == "warming")
        for path in ("", "/content"):
            read = await pool.http.get(f"/v1/videos/{job['id']}{path}")
            assert read.status_code == 200, read.text
            assert read.headers["x-worker-id"] == owner.id
        listed = (await pool.http.get("/v1/videos")).json()
        assert [j["id"] for j in listed["data"]] == [job["id"]]
        deleted = await pool.http.delete(f"/v1/videos/{job['id']}")
        assert deleted.json()["status"] == "deleted"

    run_pool(test, VIDEOS, {"model_path": "video/other"})


def test_content_of_a_job_that_is_not_done_is_the_workers_word(run_pool: RunPool) -> None:
    async def test(pool: Deployment, owner: Member) -> None:
        owner.sim.faults.add("slow", factor=1e6)
        job = await submit(pool)
        content = await pool.http.get(f"/v1/videos/{job['id']}/content")
        assert (content.status_code, content.json()) == (
            404,
            {"detail": "Generation is still in-progress"},
        )
        assert (await pool.http.get(f"/v1/videos/{job['id']}")).status_code == 200

    run_pool(test, VIDEOS)


def test_parts_of_a_video(run_pool: RunPool) -> None:
    async def test(pool: Deployment, owner: Member) -> None:
        job = await submit(pool)
        await finished(pool, job["id"])
        path = f"/v1/videos/{job['id']}/content"
        whole = (await pool.http.get(path)).content
        part = await pool.http.get(path, headers={"range": "bytes=10-19"})
        assert (part.status_code, part.content) == (206, whole[10:20])
        variant = await pool.http.get(path, params={"variant": 7})
        assert variant.status_code == 404
        assert "detail" in variant.json()

    run_pool(test, VIDEOS)


def test_a_removed_owner(run_pool: RunPool) -> None:
    async def test(pool: Deployment, owner: Member, other: Member) -> None:
        job = await submit(pool, model="video/b")
        assert job["worker"] == owner.id
        (await pool.http.delete(f"/workers/{owner.id}")).raise_for_status()
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            gone = await pool.http.request(method, f"/v1/videos/{job['id']}{path}")
            body = is_ours(gone, 404, "unknown_asset")
            assert (body["error"], body["video_id"]) == ("Unknown video_id", job["id"])
        assert owner.asked("GET", f"/v1/videos/{job['id']}") == []

        await pool.register(owner.url)  # it still knows
        back = await pool.http.get(f"/v1/videos/{job['id']}")
        assert (back.status_code, back.headers["x-worker-id"]) == (200, owner.id)
        asked = len(other.asked("GET", f"/v1/videos/{job['id']}"))
        await pool.http.get(f"/v1/videos/{job['id']}")
        assert len(other.asked("GET", f"/v1/videos/{job['id']}")) == asked  # remembered

    run_pool(test, VIDEOS, {"model_path": "video/other"})


def test_an_owner_that_hangs(run_pool: RunPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.relay.forward._OWNER", 0.2)

    async def test(pool: Deployment, owner: Member) -> None:
        job = await submit(pool, model="video/b")
        owner.sim.faults.add("hang", path=f"/v1/videos/{job['id']}")
        silent = await pool.http.get(f"/v1/videos/{job['id']}")
        body = is_ours(silent, 503, "owner_unavailable")
        assert "did not answer within 0.2 s" in body["error"]
        owner.sim.faults.clear()

    run_pool(test, VIDEOS)


def test_an_owner_that_refuses(run_pool: RunPool) -> None:
    async def test(pool: Deployment, owner: Member, other: Member) -> None:
        job = await submit(pool, model="video/b")
        owner.sim.faults.add("refuse")
        owner.sim._abort_connections()
        for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            silent = await pool.http.request(method, f"/v1/videos/{job['id']}{path}")
            body = is_ours(silent, 503, "owner_unavailable")
            assert body["worker_url"] == owner.url
        listed = (await pool.http.get("/v1/videos")).json()
        assert listed["unavailable_workers"] == [owner.url]

    run_pool(test, VIDEOS, {"model_path": "video/other"})


def test_an_owner_that_came_back_as_another_process(run_pool: RunPool) -> None:
    async def test(pool: Deployment, owner: Member, other: Member) -> None:
        job = await submit(pool, model="video/b")
        await restart(pool, owner, **VIDEOS)
        await until(lambda: owner.known.incarnation == 2 and owner.known.health == "healthy")
        is_ours(await pool.http.get(f"/v1/videos/{job['id']}"), 404, "unknown_asset")

    run_pool(test, VIDEOS, {"model_path": "video/other"})


def test_a_job_that_was_never_seen_is_asked_around(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        async with direct_to(members[1].url) as direct:
            job = (await direct.post("/v1/videos", json=VIDEO)).json()
        read = await pool.http.get(f"/v1/videos/{job['id']}")
        assert (read.status_code, read.headers["x-worker-id"]) == (200, members[1].id)
        assert read.json()["id"] == job["id"]

    run_pool(test, VIDEOS, VIDEOS, IMAGES)


@pytest.mark.parametrize(
    "odd", ["a%2Fb", "a%3Flimit%3D1", "%2E%2E", "a%23b", "a%20b", "%C3%A4", "x" * 3000]
)
def test_odd_ids_are_asked_about_as_they_are(run_pool: RunPool, odd: str) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        read = await pool.http.get(f"/v1/videos/{odd}")
        assert read.status_code == 404
        for entry in worker.sim.log.requests:
            if entry.target.startswith("/v1/videos"):
                assert entry.target == f"/v1/videos/{odd}"

    run_pool(test, VIDEOS)


def test_some_do_not_answer(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.faults.add("drop", path="/v1/videos")
        unsure = await pool.http.get("/v1/videos/nobodys")
        body = is_ours(unsure, 503, "asset_lookup_incomplete")
        assert body["unavailable_workers"] == [b.url]
        assert unsure.headers["retry-after"]
        b.sim.faults.clear()
        is_ours(await pool.http.get("/v1/videos/nobodys"), 404, "unknown_asset")  # not remembered

        b.sim.faults.add("status", path="/v1/videos", status=500)
        is_ours(await pool.http.get("/v1/videos/other"), 503, "asset_lookup_incomplete")
        b.sim.faults.clear()

        b.sim.kill()  # whatever it held is gone
        await until(lambda: b.known.health == "unhealthy")
        is_ours(await pool.http.get("/v1/videos/third"), 404, "unknown_asset")

    run_pool(test, VIDEOS, VIDEOS)


def test_nobody_knows_it_is_remembered_until_somebody_joins(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        path = "/v1/videos/nobodys"
        for _ in range(5):
            is_ours(await pool.http.get(path), 404, "unknown_asset")
        assert len(a.asked("GET", path)) == 1
        newcomer = await pool.simulated(**VIDEOS)
        await pool.register(newcomer.url)
        is_ours(await pool.http.get(path), 404, "unknown_asset")
        assert len(a.asked("GET", path)) == 2
        is_ours(await pool.http.get("/v1/meshes/nobodys"), 404, "unknown_asset")

        a.sim.faults.add("kill_scheduler")
        await until(lambda: a.known.health == "unhealthy")
        a.sim.faults.add("clear")
        await until(lambda: a.known.health == "healthy")
        is_ours(await pool.http.get(path), 404, "unknown_asset")
        assert len(a.asked("GET", path)) == 3

    run_pool(test, VIDEOS)


def test_what_nobody_knows_is_asked_again_after_two_seconds(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert jobs._NEGATIVE == 2.0
    monkeypatch.setattr(jobs, "_NEGATIVE", 1.0)

    async def test(pool: Deployment, a: Member) -> None:
        path = "/v1/videos/later"
        is_ours(await pool.http.get(path), 404, "unknown_asset")
        is_ours(await pool.http.get(path), 404, "unknown_asset")
        assert len(a.asked("GET", path)) == 1
        await trio.sleep(1.1)
        is_ours(await pool.http.get(path), 404, "unknown_asset")
        assert len(a.asked("GET", path)) == 2

    run_pool(test, VIDEOS)


def test_a_worker_that_joins_during_the_search_is_not_forgotten(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        sim = await pool.simulated(**VIDEOS)
        async with direct_to(sim.url) as direct:
            job = (await direct.post("/v1/videos", json=VIDEO)).json()
        path = f"/v1/videos/{job['id']}"
        a.sim.faults.add("delay", path="/v1/videos", by=0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pool.http.get, path)
            await until(lambda: a.asked("GET", path))
            await pool.register(sim.url)
        read = await pool.http.get(path)  # at once: what the search found is out of date
        assert (read.status_code, read.json()["id"]) == (200, job["id"])

    run_pool(test, VIDEOS)


def test_one_search_for_many_clients(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for member in (a, b):
            member.sim.faults.add("delay", path="/v1/videos", by=min(stretched(1.0), 4.0))
        answers: list[int] = []

        async def ask(path: str) -> None:
            answers.append((await pool.http.get(path)).status_code)

        async def many(path: str) -> list[int]:
            answers.clear()
            with fail_after(15):
                async with trio.open_nursery() as nursery:
                    for _ in range(30):
                        nursery.start_soon(ask, path)
            return answers

        assert await many("/v1/videos/nobodys") == [404] * 30
        assert len(a.asked("GET", "/v1/videos/nobodys")) == 1

        # Also where it ends in doubt: else each would wait for the one before it.
        b.sim.faults.add("status", path="/v1/videos", status=500)
        assert await many("/v1/videos/doubtful") == [503] * 30
        assert len(b.asked("GET", "/v1/videos/doubtful")) == 1

    run_pool(test, VIDEOS, VIDEOS)


def test_a_search_goes_on_for_others_when_its_first_client_leaves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        async with direct_to(b.url) as direct:
            job = (await direct.post("/v1/videos", json=VIDEO)).json()
        path = f"/v1/videos/{job['id']}"
        for member in (a, b):
            member.sim.faults.add("delay", path="/v1/videos", by=0.2, count=1)
        found: list[int] = []

        async def ask() -> None:
            found.append((await pool.http.get(path)).status_code)

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(5) as first:

                async def leave() -> None:
                    await until(lambda: b.asked("GET", path))
                    nursery.start_soon(ask)
                    await trio.sleep(0.05)
                    first.cancel()

                nursery.start_soon(leave)
                await pool.http.get(path)
        assert found == [200]

    run_pool(test, VIDEOS, VIDEOS)


def test_submissions_that_fail_own_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, worker: Member) -> None:
        refused = await pool.http.post("/v1/videos", json={"size": "64x64"})
        assert refused.status_code == 400
        assert refused.headers["x-worker-id"] == worker.id
        assert "detail" in refused.json()
        worker.sim.faults.add("status", path="/v1/videos", status=200, body="no json", count=1)
        odd = await pool.http.post("/v1/videos", json=VIDEO)
        assert (odd.status_code, odd.text) == (200, "no json")
        worker.sim.faults.add(
            "status", path="/v1/videos", status=200, body={"id": "x", "status": ["?"]}, count=1
        )
        odd = await pool.http.post("/v1/videos", json=VIDEO)
        assert odd.json() == {"id": "x", "status": ["?"]}
        assert len(pool.running.parts.jobs.assets) == 1

    run_pool(test, VIDEOS)


def test_finished_jobs_make_room_for_running_ones(run_pool: RunPool) -> None:
    async def test(pool: Deployment, slow: Member, quick: Member) -> None:
        assets = pool.running.parts.jobs.assets
        slow.sim.faults.add("slow", factor=100_000)
        running = [await submit(pool, model="video/b")]
        done = await submit(pool, model="video/other")
        await finished(pool, done["id"])  # which is how the router learns of it
        running += [await submit(pool, model="video/b") for _ in range(2)]
        assert len(assets) == 3
        assert assets.owner(done["id"], AssetKind.VIDEO) is None
        for job in running:
            assert assets.owner(job["id"], AssetKind.VIDEO) is not None
        assert (await pool.http.get(f"/v1/videos/{done['id']}")).status_code == 200  # asked around

    run_pool(test, VIDEOS, {"model_path": "video/other"}, max_assets=3)


def test_a_worker_that_is_removed_during_the_search_leaves_no_doubt(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        gate = trio.Event()
        path = "/v1/videos/nobodys"
        script = await pool.script(**{path: when(gate, answer(500))})
        await pool.register(script.url)
        found: list[httpx.Response] = []

        async def ask() -> None:
            found.append(await pool.http.get(path))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: f"GET {path}" in script.asked)
            await pool.http.delete(f"/workers/{script.url}")
            gate.set()
        is_ours(found[0], 404, "unknown_asset")

    run_pool(test, VIDEOS)


def test_an_able_worker_is_found_among_all(run_pool: RunPool) -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        assert {(await submit(pool))["worker"] for _ in range(4)} == {members[0].id, members[3].id}
        assert (await submit(pool, "/v1/meshes"))["worker"] == members[2].id

    same = {"model_path": BOTH["model_path"], "task_types": ("T2V",)}
    run_pool(test, BOTH, IMAGES, MESHES, same)


PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "identity": bytes,
}


@pytest.mark.parametrize("encoding", PACK)
def test_jobs_are_learnt_from_packed_answers(run_pool: RunPool, encoding: str) -> None:
    async def test(pool: Deployment) -> None:
        def packed(**content: Any) -> bytes:
            body = PACK[encoding](json.dumps({"id": "video_1", **content}).encode())
            head = f"HTTP/1.1 200 OK\r\ncontent-encoding: {encoding}\r\n"
            return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

        script = await pool.script(
            **{
                "/v1/models": answer(200, {"data": [{"id": "m", "task_type": "T2V"}]}),
                "/v1/videos": packed(status="queued"),
                "/v1/videos/video_1": packed(status="completed"),
            }
        )
        worker = await pool.register(script.url)
        headers = {"accept-encoding": "gzip, deflate, br"}
        made = await pool.http.post("/v1/videos", json=VIDEO, headers=headers)
        assert (made.json()["id"], made.headers["content-encoding"]) == ("video_1", encoding)
        assert worker.jobs == 1
        (head,) = [head for head in script.heads if b"POST /v1/videos" in head]
        assert b"accept-encoding: gzip, deflate\r\n" in head.lower()
        got = await pool.http.get("/v1/videos/video_1", headers=headers)
        assert got.json()["status"] == "completed"
        assert worker.jobs == 0

    run_pool(test)
