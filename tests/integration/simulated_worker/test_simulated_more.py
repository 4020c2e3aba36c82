"""Rollouts, meshes, actions, vertex, metrics."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker
from simulated_worker.msgpack import decode, encode

Run = Callable[..., None]


def values_of(tensor: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """The header entry and the value bytes of a serialized tensor."""
    data = tensor["data"]
    (length,) = struct.unpack("<Q", data[:8])
    entry: dict[str, Any] = json.loads(data[8 : 8 + length])["t"]
    return entry, data[8 + length :]


def test_a_rollout_is_one_entry_for_each_sample(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = {
            "prompt": "x",
            "width": 64,
            "height": 64,
            "num_inference_steps": 2,
            "num_outputs_per_prompt": 2,
            "seed": 4,
            "rollout_return_dit_trajectory": True,
            "rollout_return_denoising_env": True,
        }
        answer = await client.post("/rollout/generate", json=body)
        assert answer.headers["content-type"] == "application/msgpack"
        assert int(answer.headers["content-length"]) == len(answer.content)
        first, second = decode(answer.content)
        assert list(first) == [
            "request_id",
            "prompt",
            "seed",
            "generated_output",
            "rollout_log_probs",
            "rollout_debug_tensors",
            "denoising_env",
            "dit_trajectory",
            "inference_time_s",
            "peak_memory_mb",
        ]
        assert first["request_id"] == second["request_id"]
        assert (first["seed"], second["seed"]) == (4, 4)
        output = first["generated_output"]
        assert (output["shape"], output["dtype"]) == ([3, 64, 64], "torch.bfloat16")
        entry, data = values_of(output)
        assert entry == {"dtype": "BF16", "shape": [3, 64, 64], "data_offsets": [0, 24576]}
        assert len(data) == 24576
        assert data != values_of(second["generated_output"])[1]
        noises = first["rollout_debug_tensors"]["rollout_variance_noises"]
        assert noises["shape"] == [2, 16, 16]
        assert first["dit_trajectory"]["latents"]["shape"] == [3, 16, 16]
        again = await client.post("/rollout/generate", json=body)
        assert decode(again.content)[0]["generated_output"] == output

    run_worker(test)


def test_a_large_rollout_is_made_while_it_is_sent(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = {"prompt": "x", "seed": 1, "simulate_bytes": 30_000_000, "rollout": False}
        async with client.stream("POST", "/rollout/generate", json=body) as answer:
            length = int(answer.headers["content-length"])
            got = 0
            async for piece in answer.aiter_raw():
                got += len(piece)
        assert got == length
        assert 30_000_000 < length < 30_001_000

    run_worker(test)


def test_a_rollout_without_seed_fails_after_its_work(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        failed = await client.post("/rollout/generate", json={"prompt": "x", "width": 64})
        assert (failed.status_code, failed.text) == (500, "Internal Server Error")
        assert [entry.outcome for entry in worker.log.generations()] == ["done"]
        wrong = await client.post("/rollout/generate", json={"prompt": "x", "width": -4})
        assert wrong.json() == {"detail": "Invalid sampling params: 400: width must be positive"}
        await client.post("/release_memory_occupation")
        asleep = await client.post("/rollout/generate", json={"prompt": "x", "seed": 1})
        assert asleep.status_code == 500
        assert asleep.json()["detail"].startswith("Server is sleeping.")

    run_worker(test)


@pytest.mark.parametrize(("kind", "media"), [("glb", "model/gltf-binary"), ("obj", "text/plain")])
def test_a_mesh_job(run_worker: Run, kind: str, media: str) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        upload = {"image": ("a.png", b"pixels", "image/png")}
        form = {"output_format": kind, "seed": "3"}
        job = (await client.post("/v1/meshes", files=upload, data=form)).json()
        assert (job["object"], job["status"], job["format"]) == ("mesh", "queued", kind)
        early = await client.get(f"/v1/meshes/{job['id']}/content")
        assert early.json() == {"detail": "Mesh output is not available"}
        while job["status"] != "completed":
            await trio.sleep(0.005)
            job = (await client.get(f"/v1/meshes/{job['id']}")).json()
        content = await client.get(f"/v1/meshes/{job['id']}/content")
        assert content.headers["content-type"].startswith(media)
        assert job["file_size_bytes"] == len(content.content)
        if kind == "glb":
            magic, version, size = struct.unpack("<4sII", content.content[:12])
            assert (magic, version, size) == (b"glTF", 2, len(content.content))
        assert (await client.get("/v1/meshes")).json()["first_id"] == job["id"]
        deleted = await client.delete(f"/v1/meshes/{job['id']}")
        assert deleted.json()["status"] == "deleted"
        gone = await client.get(f"/v1/meshes/{job['id']}")
        assert gone.json() == {"detail": "Mesh not found"}

    run_worker(test, model_path="tencent/Hunyuan3D-2", time_scale=0.1)


def test_a_mesh_needs_a_picture(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        for content in (b"", b'{"prompt": "x"}'):
            answer = await client.post("/v1/meshes", content=content)
            assert answer.status_code == 422
            assert answer.json() == {"detail": "An input image is required for mesh generation"}
        good = await client.post("/v1/meshes", json={"input_image": "data:image/png;base64,AA"})
        assert good.status_code == 200

    run_worker(test, model_path="tencent/Hunyuan3D-2")


def test_vertex_tells_errors_per_item(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("fail_next_generation", message="no luck")
        body = {
            "instances": [{"prompt": "x"}, {"text": "y"}],
            "parameters": {"width": 16, "height": 16},
        }
        answer = await client.post("/vertex_generate", json=body)
        assert answer.status_code == 200
        bad, good = answer.json()["predictions"]
        assert bad == {"error": "no luck"}
        assert base64.b64decode(good["output"]).startswith(b"\x89PNG")
        empty = await client.post("/vertex_generate", json={"instances": []})
        assert empty.json() == {"predictions": []}
        assert (await client.post("/vertex_generate", json={})).status_code == 422

    run_worker(test)


def test_actions_answer_json_or_msgpack(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/actions/generations", json={"input": {}})
        told = answer.json()
        assert told["object"] == "action.generation"
        action = told["data"][0]["action"]
        assert action["shape"] == [len(action["values"]), len(action["values"][0])]
        packed = await client.post(
            "/v1/actions/generations",
            content=encode({"input": {}}),
            headers={"content-type": "application/msgpack"},
        )
        assert packed.headers["content-type"] == "application/msgpack"
        values = decode(packed.content)["data"][0]["action"]["values"]
        assert values[b"shape"] == action["shape"]
        wrong = await client.post(
            "/v1/actions/generations", json={"runtime": {"response_format": "zz"}}
        )
        assert wrong.status_code == 400

    run_worker(test, model_path="pi0/policy")


def test_other_models_have_no_actions(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        assert (await client.post("/v1/actions/generations", json={})).status_code == 404

    run_worker(test)


def test_metrics_only_if_enabled(run_worker: Run) -> None:
    async def off(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        assert (await client.get("/metrics")).status_code == 404

    async def on(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(generate, client)
            while len(worker.scheduler.queue) < 2:
                await trio.sleep(0.001)
            text = (await client.get("/metrics")).text
        assert 'sglang:diffusion_num_running_reqs{role="monolithic",replica="0"} 1.0' in text
        assert 'sglang:diffusion_num_queue_reqs{role="monolithic",replica="0"} 2.0' in text

    async def generate(client: httpx.AsyncClient) -> None:
        await client.post("/v1/images/generations", json={"prompt": "x", "size": "64x64"})

    run_worker(off)
    run_worker(on, enable_metrics=True, speed=0.005)
