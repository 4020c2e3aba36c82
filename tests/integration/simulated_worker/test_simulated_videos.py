"""Videos: jobs that outlive their request, lists by the second, files that players know."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker

Run = Callable[..., None]
WAN = "Wan2.1-T2V-1.3B"
SMALL: dict[str, Any] = {
    "prompt": "a cat",
    "size": "64x48",
    "num_frames": 12,
    "fps": 8,
    "num_inference_steps": 4,
    "seed": 7,
}


async def finished(client: httpx.AsyncClient, id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = (await client.get(f"/v1/videos/{id}")).json()
        if job["status"] in ("completed", "failed"):
            return job
        await trio.sleep(0.005)


async def boxes(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        found.append(data[at + 4 : at + 8])
        at += int.from_bytes(data[at : at + 4], "big")
    assert at == len(data)
    return found


def test_a_job_runs_to_its_file(run_worker: Run, tmp_path: Path) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        job = (await client.post("/v1/videos", json={**SMALL, "model": "any name"})).json()
        assert (job["status"], job["progress"], job["model"]) == ("queued", 0, "any name")
        assert (job["size"], job["seconds"], job["url"], job["error"]) == ("64x48", "2", None, None)
        early = await client.get(f"/v1/videos/{job['id']}/content")
        assert early.json() == {"detail": "Generation is still in-progress"}
        done = await finished(client, job["id"])
        assert (done["status"], done["progress"]) == ("completed", 100)
        assert done["file_paths"] == [done["file_path"]]
        content = await client.get(f"/v1/videos/{job['id']}/content")
        assert content.headers["content-type"] == "video/mp4"
        assert await boxes(content.content) == [b"ftyp", b"moov", b"mdat"]
        part = await client.get(f"/v1/videos/{job['id']}/content", headers={"range": "bytes=4-7"})
        assert (part.status_code, part.content) == (206, b"ftyp")
        (tmp_path / "v.mp4").write_bytes(content.content)

    run_worker(test, model_path=WAN, time_scale=1, speed=0.05)
    if ffprobe := shutil.which("ffprobe"):
        shown = "stream=codec_name,width,height,nb_read_frames,r_frame_rate"
        told = subprocess.run(
            [
                *(ffprobe, "-v", "error", "-count_frames", "-show_entries", shown),
                *("-of", "csv=p=0", str(tmp_path / "v.mp4")),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert (told.stdout.strip(), told.stderr) == ("h264,64,48,8/1,12", "")


def test_progress_grows_and_jobs_wait_for_each_other(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ids = [(await client.post("/v1/videos", json=SMALL)).json()["id"] for _ in range(2)]
        seen: list[int] = []
        while (job := (await client.get(f"/v1/videos/{ids[0]}")).json())["status"] != "completed":
            seen.append(job["progress"])
            other = (await client.get(f"/v1/videos/{ids[1]}")).json()
            if job["status"] == "in_progress" and other["status"] != "queued":
                assert (await client.get(f"/v1/videos/{ids[0]}")).json()["status"] == "completed"
        assert seen == sorted(seen)
        assert max(seen) > 10
        await finished(client, ids[1])
        first, second = worker.log.generations()
        assert first.end is not None
        assert second.start is not None
        assert first.end <= second.start

    run_worker(test, model_path=WAN, speed=0.002)


def test_deleting_a_running_job_does_not_stop_it(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        id = (await client.post("/v1/videos", json=SMALL)).json()["id"]
        deleted = await client.delete(f"/v1/videos/{id}")
        assert (deleted.status_code, deleted.json()["status"]) == (200, "deleted")
        for method, path in (
            ("DELETE", f"/v1/videos/{id}"),
            ("GET", f"/v1/videos/{id}"),
            ("GET", f"/v1/videos/{id}/content"),
        ):
            again = await client.request(method, path)
            assert (again.status_code, again.json()) == (404, {"detail": "Video not found"})
        await client.get("/stats")
        assert [entry.outcome for entry in worker.log.generations()] == ["done"]

    run_worker(test, model_path=WAN, speed=0.05)


def test_lists(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        ids = [(await client.post("/v1/videos", json=SMALL)).json()["id"] for _ in range(3)]
        for index, id in enumerate(ids):
            job = worker.state.videos.get(id)
            assert job is not None
            job.created_at = 1000 + (index > 0)
        newest = (await client.get("/v1/videos")).json()
        assert [job["id"] for job in newest["data"]] == [ids[1], ids[2], ids[0]]
        page = (await client.get("/v1/videos?limit=1&order=asc")).json()
        assert (page["first_id"], page["last_id"], page["has_more"]) == (ids[0], ids[0], True)
        rest = (await client.get(f"/v1/videos?order=asc&after={ids[0]}")).json()
        assert [job["id"] for job in rest["data"]] == ids[1:]
        assert not rest["has_more"]
        empty = (await client.get("/v1/videos?after=unknown")).json()
        assert empty == {
            "data": [],
            "object": "list",
            "first_id": None,
            "last_id": None,
            "has_more": False,
        }

    run_worker(test, model_path=WAN)


@pytest.mark.parametrize(
    ("query", "kind", "message"),
    [
        ("limit=0", "greater_than_equal", "Input should be greater than or equal to 1"),
        ("limit=101", "less_than_equal", "Input should be less than or equal to 100"),
        ("order=up", "literal_error", "Input should be 'asc' or 'desc'"),
        ("limit=x", "int_parsing", "Input should be a valid integer, unable to parse string"),
    ],
)
def test_lists_refuse(run_worker: Run, query: str, kind: str, message: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.get(f"/v1/videos?{query}")
        assert answer.status_code == 422
        (error,) = answer.json()["detail"]
        assert error["type"] == kind
        assert error["msg"].startswith(message)

    run_worker(test, model_path=WAN)


def test_a_failed_job_is_200_and_keeps_no_file(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("fail_next_generation", message="out of memory")
        id = (await client.post("/v1/videos", json=SMALL)).json()["id"]
        job = await finished(client, id)
        assert job["status"] == "failed"
        assert job["error"] == {
            "message": "Model generation failed. Error from scheduler: out of memory"
        }
        content = await client.get(f"/v1/videos/{id}/content")
        assert content.json() == {"detail": "Video variant None not found"}

    run_worker(test, model_path=WAN)


def test_several_outputs(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        id = (await client.post("/v1/videos", json={**SMALL, "n": 2})).json()["id"]
        job = await finished(client, id)
        assert (job["num_outputs"], len(job["file_paths"])) == (2, 2)
        files = [await client.get(f"/v1/videos/{id}/content?variant={i}") for i in (0, 1, 2)]
        assert [file.status_code for file in files] == [200, 200, 404]
        assert files[0].content != files[1].content

    run_worker(test, model_path=WAN)


def test_refusals_are_400_where_images_say_422(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        for content in (b"{}", b"{bad", b""):
            answer = await client.post("/v1/videos", content=content)
            assert answer.status_code == 400
            assert answer.json()["detail"].startswith(
                "Invalid request body: 1 validation error for VideoGenerationsRequest\nprompt\n"
                "  Field required [type=missing, input_value={}, input_type=dict]\n"
            )
        wrong = await client.post("/v1/videos", json={**SMALL, "num_frames": "zz"})
        assert "input_value='zz', input_type=str" in wrong.json()["detail"]
        negative = await client.post("/v1/videos", json={**SMALL, "num_frames": -1})
        assert negative.json() == {"detail": "num_frames must be positive"}

    run_worker(test, model_path=WAN)


def test_forms_and_uploads(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        form = {"prompt": "p", "size": "16x16", "num_frames": "4", "model": "m"}
        plain = await client.post("/v1/videos", files={"x": (None, "1")}, data=form)
        assert (plain.status_code, plain.json()["model"]) == (200, "m")
        bad = {**form, "num_frames": "zz"}
        assert (
            await client.post("/v1/videos", files={"x": (None, "1")}, data=bad)
        ).status_code == 422
        upload = {"input_reference": ("a.png", b"1" * 3_000_000, "image/png")}
        refused = await client.post("/v1/videos", files=upload, data=form)
        assert refused.json() == {"detail": "input_reference is not supported for T2V models."}

    run_worker(test, model_path=WAN)


def test_an_image_model_makes_no_videos(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/videos", json=SMALL)
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith("This pipeline does not support VIDEO output")

    run_worker(test)


def test_finished_files_are_served_asleep_and_without_a_backend(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        id = (await client.post("/v1/videos", json=SMALL)).json()["id"]
        await finished(client, id)
        await client.post("/release_memory_occupation")
        asleep = (await client.post("/v1/videos", json=SMALL)).json()
        job = await finished(client, asleep["id"])
        assert job["error"]["message"].endswith("Call resume_memory_occupation first.")
        worker.faults.add("kill_scheduler")
        assert (await client.get(f"/v1/videos/{id}/content")).status_code == 200
        assert (await client.post("/v1/videos", json=SMALL)).status_code == 503

    run_worker(test, model_path=WAN)
