"""Weights: from disk, from tensors, and their checksums."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.contract.harness import Push, Worker, long_request, push, together

MODULES = {
    "image": {"transformer", "text_encoder", "vae", "text_encoder_2"},
    "video": {"transformer", "text_encoder", "vae"},
}
ENDPOINTS = [
    *("/update_weights_from_disk", "/update_weights_from_tensor"),
    *("/update_weights_from_tensor_checker", "/get_weights_checksum"),
]


@pytest.fixture
def restored(image: Worker) -> Iterator[Worker]:
    """An image worker that gets its first weights back."""
    yield image
    assert image.load(image.weights).status_code == 200


@pytest.fixture
def pushed(restored: Worker) -> Push:
    made = push(restored)
    if made is None:
        pytest.skip("REAL_PYTHON names no Python that could make a tensor")
    return made


def refused(answer: httpx.Response, status: int = 400) -> str:
    """The message of a refusal."""
    assert answer.status_code == status, answer.text
    told = answer.json()
    assert set(told) == {"success", "message"}
    assert told["success"] is False
    return str(told["message"])


def test_checksums(worker: Worker) -> None:
    sums = worker.checksums()
    assert set(sums) == MODULES[worker.kind]
    assert all(re.fullmatch(r"[0-9a-f]{64}", value) for value in sums.values())
    assert len(set(sums.values())) == len(sums)
    assert worker.checksums() == sums
    assert worker.checksums("vae", "nope") == {"vae": sums["vae"], "nope": "not_found"}


def test_other_weights(restored: Worker) -> None:
    worker, told = restored, restored.http.get("/model_info").json()
    before, picture = worker.checksums(), worker.picture()
    answer = worker.load(worker.other_weights)
    assert answer.status_code == 200
    assert answer.json()["success"] is True
    assert set(re.findall(r"[\w']+", answer.json()["message"])) > MODULES["image"]
    after = worker.checksums()
    assert list(after) == list(before)
    assert after["transformer"] != before["transformer"]
    assert worker.picture() != picture
    assert worker.http.get("/model_info").json() == told  # tells nothing of it

    assert worker.load(worker.weights, flush_cache=False).status_code == 200
    assert worker.checksums() == before
    assert worker.picture() == picture


def test_weights_of_one_module(restored: Worker) -> None:
    before = restored.checksums()
    answer = restored.load(restored.other_weights, target_modules=["transformer"])
    assert answer.json() == {"success": True, "message": "Updated 1 modules (transformer)."}
    after = restored.checksums()
    assert [name for name in before if after[name] != before[name]] == ["transformer"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_path": None}, "model_path is required"),
        ({"model_path": "/nonexistent/model"}, "Could not find model at /nonexistent/model"),
        ({"target_modules": ["nope"]}, "not found in pipeline: ['nope']"),
        ({"target_modules": []}, "No matching modules found for update"),
    ],
)
def test_refusals_change_nothing(image: Worker, changes: dict[str, Any], said: str) -> None:
    before = image.checksums()
    body = {"model_path": image.other_weights, **changes}
    assert said in refused(image.http.post("/update_weights_from_disk", json=body))
    assert image.checksums() == before


def test_a_folder_without_the_modules_is_refused(image: Worker, tmp_path: Any) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    said = refused(image.load(str(tmp_path)))
    assert "missing weight files for modules: [" in said
    assert set(re.findall(r"'(\w+)'", said)) == MODULES["image"]


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("content", [b"{bad", b"", b"[1]"])
def test_what_is_no_json_object_is_the_text_500(worker: Worker, path: str, content: bytes) -> None:
    answer = worker.http.post(path, content=content)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


def test_the_content_type_does_not_matter(image: Worker) -> None:
    answer = image.http.post("/get_weights_checksum", content=b'{"module_names": ["vae"]}')
    assert list(answer.json()) == ["vae"]


def test_an_update_waits_behind_the_generation_before_it(restored: Worker) -> None:
    generation, update, after = together(
        restored,
        ("POST", "/v1/images/generations", long_request(restored)),
        ("POST", "/update_weights_from_disk", {"model_path": restored.other_weights}),
        ("POST", "/v1/images/generations", {**long_request(restored), "num_inference_steps": 2}),
    )
    assert generation.answer.status_code == update.answer.status_code == 200
    assert update.seconds > generation.seconds - 0.1
    assert after.seconds > update.seconds - 0.1


def test_pushed_tensors(restored: Worker, pushed: Push) -> None:
    before, picture = restored.checksums(), restored.picture()
    answer = restored.http.post("/update_weights_from_tensor", json=pushed.body)
    assert answer.status_code == 200
    assert answer.json() == {
        "success": True,
        "message": "Updated 1 modules from tensor (transformer).",
    }
    after = restored.checksums()
    assert [name for name in before if after[name] != before[name]] == ["transformer"]
    assert restored.picture() != picture

    def check(sha256: dict[str, str], module: str = "transformer") -> httpx.Response:
        asked = {"target_module": module, "expected_named_tensors_sha256": sha256}
        return restored.http.post("/update_weights_from_tensor_checker", json=asked)

    assert check(pushed.sha256).json()["success"] is True
    wrong = dict.fromkeys(pushed.sha256, "f" * 64)
    assert "checksum mismatch for 1 tensor(s)" in refused(check(wrong))
    assert "missing 1 tensor(s): nope" in refused(check({"nope": "0" * 64}))
    assert "'nope' is not initialized" in refused(check(pushed.sha256, "nope"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "serialized_named_tensors is required"),
        ({"serialized_named_tensors": ["!!!"]}, "Failed to deserialize"),
        ({"serialized_named_tensors": ["AAAA"]}, "Failed to deserialize"),
        ({"serialized_named_tensors": "AAAA"}, "serialized_named_tensors"),
        ({"serialized_named_tensors": ["AAAA"] * 2}, "must be 1 or world_size (1), got 2"),
    ],
)
def test_refused_tensors(image: Worker, body: dict[str, Any], said: str) -> None:
    before = image.checksums()
    assert said in refused(image.http.post("/update_weights_from_tensor", json=body))
    assert image.checksums() == before


def test_tensors_that_are_no_lora_are_not_merged(image: Worker, pushed: Push) -> None:
    before = image.checksums()
    path = "/update_weights_from_tensor"
    lora = push(image, lora=True)
    assert lora is not None
    for targets in (["vae"], ["transformer", "vae"], ["nope"]):
        refused(image.http.post(path, json={**lora.body, "target_modules": targets}))
    if image.real:  # the simulation does not look at the names
        body = {**lora.body, **pushed.body}
        assert "No LoRA A/B tensor pairs" in refused(image.http.post(path, json=body))
    assert image.checksums() == before  # no layer is wrapped


UNKNOWN = [
    *("/update_weights_from_distributed", "/update_weights_from_ipc", "/pull_weights"),
    *("/init_weights_update_group", "/destroy_weights_update_group"),
    *("/begin_weight_update", "/end_weight_update"),
    *("/load_lora_adapter", "/unload_lora_adapter", "/flush_cache"),
    *("/pause_generation", "/continue_generation", "/abort_request"),
]


@pytest.mark.parametrize("path", UNKNOWN)
def test_calls_that_no_worker_knows(image: Worker, path: str) -> None:
    answer = image.http.post(path, json={"group_name": "g"})
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "target_module is required"),
        ({"target_module": "transformer"}, "expected_named_tensors_sha256 is required"),
    ],
)
def test_refused_checks(image: Worker, body: dict[str, Any], said: str) -> None:
    answer = image.http.post("/update_weights_from_tensor_checker", json=body)
    assert refused(answer) == said
