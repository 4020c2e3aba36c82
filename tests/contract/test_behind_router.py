"""Two image workers and a video worker behind the router: what the contract is for.

The steps of a user, in one test each. Where the environment names real workers it takes them and
the file ROUTER_PYZ, else simulated ones and the router's source.
"""

from __future__ import annotations

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.behind import FLUX, WAN, Pool
from tests.contract.harness import IMAGE, PATIENCE, VIDEO, Process, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_models_and_health(pool: Pool) -> None:
    listed = pool.http.get("/v1/models").json()["data"]
    assert sorted(card["id"] for card in listed) == [FLUX, WAN]
    assert pool.http.get(f"/v1/models/{WAN}").json()["supported_task_types"] == ["T2V"]
    assert pool.http.get("/v1/models/nope").json()["error"]["code"] == "model_not_found"
    health = pool.http.get("/health").json()
    assert (health["healthy_workers"], health["total_workers"]) == (3, 3)


def test_an_image_is_byte_for_byte_that_of_the_worker(pool: Pool) -> None:
    one, two = (worker.picture() for worker in pool.flux)
    assert one == two  # equal seed, equal weights
    assert pool.picture() == one
    assert pool.picture(model=FLUX) == one


def test_an_image_by_its_url(pool: Pool) -> None:
    """Served by its worker, whichever that is."""
    makers = set()
    for seed in range(6):
        body = {**IMAGE, "seed": seed, "output_format": "png"}
        answer = pool.post("/v1/images/generations", **body)
        makers.add(answer.headers["x-worker-id"])
        url = answer.json()["data"][0]["url"]
        file = pool.http.get(url)
        assert file.status_code == 200
        assert file.content == pool.flux[0].picture(seed=seed)
        part = pool.http.get(url, headers={"Range": "bytes=0-7"})
        assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    assert len(makers) == 2


def test_many_at_once_are_shared_out(pool: Pool) -> None:
    with ThreadPoolExecutor(8) as threads:
        seeds = range(8)
        made = list(threads.map(lambda seed: pool.picture(seed=seed), seeds))
    assert made == [pool.flux[0].picture(seed=seed) for seed in seeds]


def test_a_video_from_its_submission_to_its_file(pool: Pool) -> None:
    told = pool.post("/v1/videos", **VIDEO).json()

    def done() -> dict[str, Any] | None:
        job = pool.http.get(f"/v1/videos/{told['id']}").raise_for_status().json()
        assert job["status"] != "failed", job
        return job if job["status"] == "completed" else None

    eventually(done)
    path = f"/v1/videos/{told['id']}/content"
    file = pool.http.get(path)
    assert file.headers["content-type"] == "video/mp4"
    assert file.content == pool.wan.http.get(path).content
    assert told["id"] in {job["id"] for job in pool.http.get("/v1/videos").json()["data"]}
    assert pool.http.delete(f"/v1/videos/{told['id']}").json()["status"] == "deleted"
    assert pool.http.get(f"/v1/videos/{told['id']}").status_code == 404


def test_a_form_as_well(pool: Pool) -> None:
    form = {name: str(value) for name, value in VIDEO.items()}
    answer = pool.http.post("/v1/videos", data=form, files={"unused": ("", b"")})
    assert answer.status_code == 200
    eventually(
        lambda: pool.http.get(f"/v1/videos/{answer.json()['id']}").json()["status"] == "completed"
    )


def test_a_rollout_passes_unchanged(pool: Pool) -> None:
    body = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 7}
    answer = pool.post("/rollout/generate", model=FLUX, **body)
    assert answer.headers["content-type"] == "application/msgpack"
    direct = pool.flux[0].http.post("/rollout/generate", json=body)
    marker = b"rollout_log_probs"  # before it: ids; after it: what the weights and the seed give
    end = b"inference_time_s"
    assert (
        answer.content.partition(marker)[2].partition(end)[0]
        == (direct.content.partition(marker)[2].partition(end)[0])
    )


def test_errors_of_a_worker_pass_untouched(pool: Pool) -> None:
    for body in ({"size": "64x64"}, {**IMAGE, "n": "two"}, {**IMAGE, "size": "large"}):
        through = pool.http.post("/v1/images/generations", json=body)
        direct = pool.flux[0].http.post("/v1/images/generations", json=body)
        assert (through.status_code, through.content) == (direct.status_code, direct.content)
        assert through.headers["content-type"] == direct.headers["content-type"]


def test_the_text_500_again_and_again(pool: Pool) -> None:
    """Each ends the connection it came on (test_http), which must not be used for the next."""
    body = {"prompt": "a cat", "width": 64, "height": 64, "num_inference_steps": 1}
    for _ in range(20):
        answer = pool.http.post("/rollout/generate", json={**body, "model": FLUX})
        assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_other_weights_and_back(pool: Pool) -> None:
    first = pool.flux[0]
    before, picture = first.checksums(), pool.picture()
    pool.change("/update_weights_from_disk", model_path=first.other_weights)
    sums = pool.post(f"/get_weights_checksum?model={FLUX}").json()
    assert sums["consistent"] is True
    changed = [worker.checksums() for worker in pool.flux]
    assert changed[0] == changed[1]
    assert changed[0]["transformer"] != before["transformer"]
    assert all(row["body"] == changed[0] for row in sums["results"])
    assert pool.picture() != picture

    pool.change("/update_weights_from_disk", model_path=first.weights)
    assert [worker.checksums() for worker in pool.flux] == [before, before]
    assert pool.picture() == picture


def test_weights_that_are_refused_change_nothing(pool: Pool) -> None:
    picture = pool.picture()
    path = f"/update_weights_from_disk?model={FLUX}"
    answer = pool.http.post(path, json={"model_path": "/nonexistent/model"})
    assert answer.status_code >= 400
    assert {row["status_code"] for row in answer.json()["results"]} == {400}
    eventually(pool.all_routable)
    assert pool.picture() == picture


def test_without_a_model_it_is_not_clear_whose_weights(pool: Pool) -> None:
    answer = pool.http.post("/update_weights_from_disk", json={"model_path": "any"})
    assert answer.status_code == 400
    assert answer.json()["code"] == "ambiguous_target"
    assert pool.flux[0].picture() == pool.flux[1].picture() == pool.picture()


def test_sleep_and_wake(pool: Pool) -> None:
    picture = pool.picture()
    video = pool.post("/v1/videos", **VIDEO).json()["id"]
    eventually(lambda: pool.http.get(f"/v1/videos/{video}").json()["status"] == "completed")

    pool.post(f"/release_memory_occupation?workers={pool.ids(*pool.workers)}")
    assert pool.http.get("/health").json()["sleeping_workers"] == 3
    refused = pool.http.post("/v1/images/generations", json=IMAGE)
    assert (refused.status_code, refused.json()["code"]) == (503, "pool_asleep")
    assert pool.http.get(f"/v1/videos/{video}/content").content[4:8] == b"ftyp"
    again = pool.post(f"/release_memory_occupation?workers={pool.ids(*pool.workers)}").json()
    assert again["message"] == "All workers are already sleeping"

    pool.post(f"/resume_memory_occupation?workers={pool.ids(*pool.workers)}")
    eventually(pool.all_routable)
    assert pool.http.get("/health").json()["sleeping_workers"] == 0
    assert pool.picture() == picture


def test_the_walkthrough(pool: Pool, tmp_path: Path) -> None:
    """With other weights, and back to the first ones."""
    picture, first = pool.picture(), pool.flux[0]
    for number, weights in enumerate((first.other_weights, first.weights)):
        folder = tmp_path / str(number)
        folder.mkdir()
        options = ["--router", str(pool.http.base_url), "--worker", first.url, "--weights", weights]
        said = run(folder, sys.executable, EXAMPLES / "walkthrough.py", *options)
        assert "refit: 2 workers, 0 left out\nall have the same weights: True\n" in said
        assert "sleep: 2 workers gave their GPU memory back\n" in said
        assert "wake: 2 workers are back\n" in said
        before, after = (folder / name for name in ("kite.png", "kite_after.png"))
        assert before.read_bytes() != after.read_bytes()
        assert (folder / "kite.mp4").read_bytes()[4:8] == b"ftyp"
        assert (pool.picture() == picture) is (weights == first.weights)
    eventually(pool.all_routable)


@pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="curl or bash is missing"
)
def test_the_example_with_curl(pool: Pool, tmp_path: Path) -> None:
    picture, first = pool.picture(), pool.flux[0]
    env = {"ROUTER": str(pool.http.base_url), "WORKER": first.url, "WEIGHTS": first.weights}
    assigned = [f"{name}={value}" for name, value in env.items()]
    said = run(tmp_path, "env", *assigned, "bash", EXAMPLES / "curl.sh")
    assert "consistent: True" in said
    assert (tmp_path / "kite.png").stat().st_size
    assert (tmp_path / "kite.mp4").read_bytes()[4:8] == b"ftyp"
    eventually(pool.all_routable)
    assert pool.picture() == picture


def test_the_example_in_python(pool: Pool, tmp_path: Path) -> None:
    router = str(pool.http.base_url)
    command = [EXAMPLES / "generate_image.py", "a cat", "--router", router, "--size", "64x64"]
    run(tmp_path, sys.executable, *command, "--output", "cat.png")
    assert (tmp_path / "cat.png").stat().st_size


def run(folder: Path, *command: str | Path) -> str:
    """What an example says. Fails where that does."""
    process = Process.start(folder / "example.log", *command)
    try:
        status = process.running.wait(PATIENCE)
    finally:
        process.stop()
    said = process.log.read_text(encoding="utf-8")
    assert status == 0, said
    return said


def test_a_worker_leaves_and_returns(pool: Pool) -> None:
    leaving = pool.flux[1]
    assert pool.http.delete(f"/workers/{pool.ids(leaving)}?drain=true").status_code == 200
    assert pool.picture() == pool.flux[0].picture()
    pool.http.post(f"/workers?url={leaving.url}").raise_for_status()
    eventually(pool.all_routable)
