"""Weights change only through their endpoints; sleep is invisible until work is asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker
from simulated_worker.pictures import expected_image
from simulated_worker.weights import identity_of

Run = Callable[..., None]
SMALL: dict[str, Any] = {"prompt": "c", "size": "16x16", "num_inference_steps": 2, "seed": 1}


async def picture(client: httpx.AsyncClient) -> bytes:
    answer = await client.post("/v1/images/generations", json=SMALL)
    return (await client.get(answer.json()["data"][0]["url"])).content


async def checksums(client: httpx.AsyncClient) -> dict[str, str]:
    answer = await client.post("/get_weights_checksum", json={})
    assert answer.status_code == 200
    sums: dict[str, str] = answer.json()
    return sums


def made_with(path: str) -> bytes:
    return expected_image(identity_of(path, "T2I"), "c", 1, width=16, height=16, steps=2)


def test_an_update_changes_pictures_and_checksums_and_nothing_else(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before = await checksums(client)
        info = (await client.get("/model_info")).content
        assert await picture(client) == made_with("m/0")
        answer = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert answer.json() == {
            "success": True,
            "message": "Updated 4 modules (transformer, text_encoder, vae, text_encoder_2).",
        }
        assert await picture(client) == made_with("m/1")
        after = await checksums(client)
        assert all(before[name] != after[name] for name in before)
        assert all(len(value) == 64 for value in after.values())
        assert (await client.get("/model_info")).content == info
        await client.post("/update_weights_from_disk", json={"model_path": "m/0"})
        assert await checksums(client) == before

    run_worker(test, model_path="m/0")


def test_one_module_at_a_time(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before = await checksums(client)
        body = {"model_path": "m/1", "target_modules": ["vae"]}
        answer = await client.post("/update_weights_from_disk", json=body)
        assert answer.json()["message"] == "Updated 1 modules (vae)."
        after = await checksums(client)
        assert [name for name in before if before[name] != after[name]] == ["vae"]
        assert await picture(client) not in (made_with("m/0"), made_with("m/1"))

    run_worker(test, model_path="m/0")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "model_path is required"),
        ({"model_path": "/nonexistent/x"}, "Failed to download model: Could not find model at"),
        ({"model_path": "bad/x"}, "Failed to download model: Could not find model at bad/x"),
        ({"model_path": "EMPTY"}, "Cannot update weights: missing weight files for modules: ["),
        ({"model_path": "m", "target_modules": ["zz"]}, "Module(s) requested for update not"),
        ({"model_path": "m", "target_modules": []}, "No matching modules found for update."),
        ({"model_path": "m/corrupt"}, "Failed to update module 'transformer': "),
    ],
)
def test_refused_updates_change_nothing(
    run_worker: Run, tmp_path: Path, body: dict[str, Any], message: str
) -> None:
    if body.get("model_path") == "EMPTY":
        body = {"model_path": str(tmp_path)}

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before = await checksums(client)
        answer = await client.post("/update_weights_from_disk", json=body)
        assert answer.status_code == 400
        assert answer.json()["success"] is False
        assert answer.json()["message"].startswith(message)
        assert await checksums(client) == before

    run_worker(test)


def test_a_directory_is_known_by_its_files(run_worker: Run, tmp_path: Path) -> None:
    for name, content in (("a", b"1" * 100), ("b", b"1" * 100), ("c", b"2" * 100)):
        for module in ("transformer", "text_encoder", "vae", "text_encoder_2"):
            (tmp_path / name / module).mkdir(parents=True)
            (tmp_path / name / module / "model.safetensors").write_bytes(content)

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        sums = []
        for name in "abc":
            body = {"model_path": str(tmp_path / name)}
            assert (await client.post("/update_weights_from_disk", json=body)).status_code == 200
            sums.append(await checksums(client))
        assert sums[0] == sums[1] != sums[2]

    run_worker(test)


@pytest.mark.parametrize("content", [b"{bad", b"[1]", b""])
def test_malformed_bodies_are_a_plain_500(run_worker: Run, content: bytes) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        for path in ("/update_weights_from_disk", "/get_weights_checksum"):
            answer = await client.post(path, content=content)
            assert (answer.status_code, answer.text) == (500, "Internal Server Error")

    run_worker(test)


def test_unknown_modules_have_no_checksum(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        names = {"module_names": ["zz", "vae"]}
        answer = (await client.post("/get_weights_checksum", json=names)).json()
        assert answer == {"zz": "not_found", "vae": (await checksums(client))["vae"]}

    run_worker(test)


def test_an_update_waits_for_what_runs_and_holds_up_what_follows(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(picture, client)
            while not worker.scheduler.running:
                await trio.sleep(0.001)
            nursery.start_soon(update, client)
            while not worker.scheduler.queue:
                await trio.sleep(0.001)
            nursery.start_soon(picture, client)
        old, change, new = worker.log.work
        assert [old.kind, change.kind, new.kind] == ["image", "update_weights_from_disk", "image"]
        assert old.end is not None
        assert new.start is not None
        assert change.start is not None
        assert change.end is not None
        assert old.end <= change.start < change.end <= new.start
        assert old.weights != change.weights == new.weights
        assert (change.facts["model_path"], change.model_path) == ("m/1", "m/1")

    async def update(client: httpx.AsyncClient) -> None:
        await client.post("/update_weights_from_disk", json={"model_path": "m/1"})

    run_worker(test, speed=0.001, load_seconds=1.0)


def test_sleep_and_wake(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        released = "released GPU memory (moved active modules to CPU)"
        resumed = "resumed GPU memory (restored modules to original devices)"
        for message in (released, "already sleeping"):
            answer = await client.post("/release_memory_occupation")
            assert answer.json() == {"success": True, "sleeping": True, "message": message}
        for path in ("/health", "/v1/models", "/server_info", "/model_info"):
            assert (await client.get(path)).status_code == 200
        image = await client.post("/v1/images/generations", json=SMALL)
        assert (image.status_code, image.text) == (500, "Internal Server Error")
        update = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert update.status_code == 500
        assert update.json() == {
            "success": False,
            "message": "Cannot update weights while the server is sleeping. "
            "Call resume_memory_occupation first.",
        }
        for message in (resumed, "already awake"):
            answer = await client.post("/resume_memory_occupation", json={"tags": None})
            assert answer.json() == {"success": True, "sleeping": False, "message": message}
        assert await picture(client) == made_with("m/0")

    run_worker(test, model_path="m/0")


@pytest.mark.parametrize(
    ("effect", "changed"),
    [("none", False), ("partial", True), ("applied", True), ("rollback", False)],
)
def test_a_failed_update_has_the_effect_that_was_asked_for(
    run_worker: Run, effect: str, changed: bool
) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before = await checksums(client)
        worker.faults.add("fail_next_update", status=500, message="no luck", effect=effect)
        answer = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert (answer.status_code, answer.json()) == (
            500,
            {"success": False, "message": "no luck"},
        )
        assert (await checksums(client) != before) is changed
        answer = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert answer.status_code == 200
        assert await picture(client) == made_with("m/1")

    run_worker(test, model_path="m/0")
