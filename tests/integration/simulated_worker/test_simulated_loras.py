"""LoRA adapters and pushed tensors: what they change, and what they keep from changing."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from simulated_worker import SimulatedWorker

Run = Callable[..., None]
SMALL: dict[str, Any] = {"prompt": "c", "size": "16x16", "num_inference_steps": 2, "seed": 1}


async def picture(client: httpx.AsyncClient) -> bytes:
    answer = await client.post("/v1/images/generations", json=SMALL)
    return (await client.get(answer.json()["data"][0]["url"])).content


async def transformer(client: httpx.AsyncClient) -> str:
    answer = await client.post("/get_weights_checksum", json={})
    return str(answer.json()["transformer"])


def payload(**tensors: str) -> str:
    return base64.b64encode(json.dumps(tensors).encode()).decode()


def test_an_adapter_acts_until_it_is_unmerged(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        plain = await picture(client)
        body = {"lora_nickname": "a", "lora_path": "m/lora-a", "strength": 0.5}
        answer = await client.post("/v1/set_lora", json=body)
        assert answer.json() == {
            "status": "ok",
            "message": "Successfully set LoRA adapter(s): a (target: all, strength: 0.50)",
        }
        half = await picture(client)
        await client.post("/v1/merge_lora_weights", json={"strength": 1.0})
        full = await picture(client)
        listed = (await client.get("/v1/list_loras")).json()
        assert listed == {
            "loaded_adapters": [{"nickname": "a", "path": "m/lora-a"}],
            "active": {
                "transformer": [
                    {
                        "nickname": "a",
                        "nicknames": ["a"],
                        "path": "m/lora-a",
                        "merged": True,
                        "mode": "merged",
                        "strength": 1.0,
                        "strengths": [1.0],
                    }
                ]
            },
        }
        await client.post("/v1/unmerge_lora_weights")
        assert await picture(client) == plain
        assert len({plain, half, full}) == 3

    run_worker(test)


def test_several_adapters_at_once(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = {"lora_nickname": ["a", "b"], "lora_path": ["x/a", None], "strength": [0.5, 0.25]}
        missing = await client.post("/v1/set_lora", json=body)
        assert missing.status_code == 500
        assert missing.json()["detail"] == (
            "Failed to set LoRA adapter: Adapter b not found in the pipeline. "
            "Please provide lora_path to load it."
        )
        assert (await client.get("/v1/list_loras")).json() == {"loaded_adapters": [], "active": {}}
        body["lora_path"] = ["x/a", "x/b"]
        answer = await client.post("/v1/set_lora", json=body)
        assert answer.json()["message"].endswith("a, b (target: all, strength: 0.50, 0.25)")

    run_worker(test)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({}, 422, "Field required"),
        ({"lora_nickname": 5}, 422, "Input should be a valid string"),
        ({"lora_nickname": "a", "lora_path": "/nonexistent"}, 500, "Weight path does not exist"),
        ({"lora_nickname": "a", "lora_path": "x", "target": "foo"}, 500, "Invalid target(s)"),
    ],
)
def test_refused_adapters(run_worker: Run, body: dict[str, Any], status: int, said: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/set_lora", json=body)
        assert answer.status_code == status
        assert said in answer.text
        empty = await client.post("/v1/set_lora")
        assert empty.status_code == 422

    run_worker(test)


@pytest.mark.parametrize(("target", "wraps"), [("all", True), ("foo", False)])
def test_refused_adapters_leave_wrapped_layers(run_worker: Run, target: str, wraps: bool) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = {"lora_nickname": "a", "lora_path": "/nonexistent", "target": target}
        assert (await client.post("/v1/set_lora", json=body)).status_code == 500
        before = worker.scheduler.weights.modules["transformer"].identity
        answer = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert answer.status_code == 200
        update = [entry for entry in worker.log.work if entry.kind == "update_weights_from_disk"]
        assert update[0].facts["skipped"] == (["transformer"] if wraps else [])
        assert (worker.scheduler.weights.modules["transformer"].kept == before) is wraps

    run_worker(test, model_path="m/0")


def test_wrapped_layers_are_skipped_by_later_updates(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        await client.post("/v1/set_lora", json={"lora_nickname": "a", "lora_path": "x/a"})
        before = (await client.post("/get_weights_checksum", json={})).json()
        answer = await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert answer.status_code == 200
        after = (await client.post("/get_weights_checksum", json={})).json()
        assert after.keys() == before.keys()
        assert not set(after.values()) & set(before.values())
        mixed = after["transformer"]  # new, but for the wrapped layers
        await client.post("/update_weights_from_disk", json={"model_path": "m/0"})
        assert await transformer(client) == before["transformer"]
        await client.post("/update_weights_from_disk", json={"model_path": "m/1"})
        assert await transformer(client) == mixed
        pushed = {"serialized_named_tensors": [payload(w1="d1")]}
        assert (await client.post("/update_weights_from_tensor", json=pushed)).status_code == 200
        assert await transformer(client) == mixed
        update = [entry for entry in worker.log.work if entry.kind == "update_weights_from_disk"]
        assert update[0].facts["skipped"] == ["transformer"]

    run_worker(test, model_path="m/0")


def test_pushed_tensors_change_the_transformer_and_can_be_checked(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before, plain = await transformer(client), await picture(client)
        body: dict[str, Any] = {"serialized_named_tensors": [payload(w1="d1", w2="d2")]}
        answer = await client.post("/update_weights_from_tensor", json=body)
        assert answer.json() == {
            "success": True,
            "message": "Updated 1 modules from tensor (transformer).",
        }
        assert await transformer(client) != before
        assert await picture(client) != plain
        expected = {"w1": "d1", "w2": "zz", "w3": "d3"}
        check = {"target_module": "transformer", "expected_named_tensors_sha256": expected}
        wrong = await client.post("/update_weights_from_tensor_checker", json=check)
        assert wrong.status_code == 400
        assert wrong.json()["message"] == (
            "Module 'transformer' update weight check failed: missing 1 tensor(s): w3; "
            "checksum mismatch for 1 tensor(s): w2"
        )
        check["expected_named_tensors_sha256"] = {"w1": "d1", "w2": "d2"}
        right = await client.post("/update_weights_from_tensor_checker", json=check)
        assert right.json()["success"] is True
        await client.post("/update_weights_from_disk", json={"model_path": "m/0"})
        assert await transformer(client) == before

    run_worker(test, model_path="m/0")


def test_tensors_in_buckets_end_alike_in_any_order(run_worker: Run) -> None:
    buckets = [payload(a="1"), payload(b="2")]
    sums: list[str] = []

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        for bucket in buckets:
            body = {"serialized_named_tensors": [bucket], "load_format": "flattened_bucket"}
            await client.post("/update_weights_from_tensor", json=body)
        sums.append(await transformer(client))
        buckets.reverse()

    run_worker(test)
    run_worker(test)
    assert sums[0] == sums[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "serialized_named_tensors is required"),
        (
            {"serialized_named_tensors": ["aa"]},
            "Failed to deserialize serialized_named_tensors: Non-base64 digit found",
        ),
        (
            {"serialized_named_tensors": ["aaaa", "bbbb"]},
            "serialized_named_tensors size must be 1 or world_size (1), got 2",
        ),
        (
            {"serialized_named_tensors": ["aaaa"], "payload_gpu_uuids": []},
            "payload_gpu_uuids needs one entry per payload, got 0 for 1 payloads",
        ),
    ],
)
def test_refused_tensors(run_worker: Run, body: dict[str, Any], message: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        before = await transformer(client)
        answer = await client.post("/update_weights_from_tensor", json=body)
        assert answer.status_code == 400
        assert answer.json() == {"success": False, "message": message}
        assert await transformer(client) == before

    run_worker(test)


def test_huge_tensors_are_hashed_and_not_held(run_worker: Run) -> None:
    piece = b"QUJD" * 65536
    count = 40

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        async def body() -> AsyncIterator[bytes]:
            yield b'{"load_format": null, "serialized_named_tensors": ["'
            for _ in range(count):
                yield piece
            yield b'"]}'

        before = await transformer(client)
        answer = await client.post("/update_weights_from_tensor", content=body())
        assert answer.status_code == 200
        whole = hashlib.sha256(b"".join([*[piece] * count])).hexdigest()
        tensors = worker.scheduler.weights.modules["transformer"].tensors
        assert tensors == {"*": f"sha256:{whole}:{count * len(piece)}"}
        assert await transformer(client) != before

    run_worker(test)


def test_an_adapter_may_come_as_tensors(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        plain = await picture(client)
        body = {
            "serialized_named_tensors": [payload(x="1")],
            "weight_update_mode": "lora_merge",
        }
        answer = await client.post("/update_weights_from_tensor", json=body)
        assert answer.json()["message"].startswith("Updated 1 LoRA layers in transformer")
        assert await picture(client) != plain

    run_worker(test)
