"""Whatever is sent, a worker answers and lives on."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulated_worker import SimulatedWorker

Run = Callable[..., None]

NAMES = st.sampled_from(
    [
        *("prompt", "size", "width", "height", "n", "seed", "num_inference_steps", "task_type"),
        *("num_frames", "fps", "seconds", "model_path", "target_modules", "module_names"),
        *("serialized_named_tensors", "payload_gpu_uuids", "lora_alpha", "weight_update_mode"),
        *("target_module", "expected_named_tensors_sha256", "lora_nickname", "lora_path"),
        *("target", "strength", "merge_mode", "instances", "parameters", "input", "runtime"),
        *("rollout_return_step_indices", "extra_sampling_params", "input_image", "extra_body"),
        *("response_format", "request_id", "num_outputs_per_prompt", "output_format"),
    ]
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-2, 40)
    | st.just(10**30)
    | st.floats()
    | st.sampled_from(["16x16", "x", "", "lora_merge", "AAAA", "\ud800", "transformer", "T2V"])
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=5
)
BODIES = st.dictionaries(NAMES, VALUES, max_size=6) | VALUES
PATHS = [
    "/v1/images/generations",
    "/v1/videos",
    "/v1/meshes",
    "/rollout/generate",
    "/v1/actions/generations",
    "/vertex_generate",
    "/update_weights_from_disk",
    "/update_weights_from_tensor",
    "/update_weights_from_tensor_checker",
    "/get_weights_checksum",
    "/v1/set_lora",
    "/v1/merge_lora_weights",
    "/v1/unmerge_lora_weights",
]


@pytest.mark.parametrize("path", PATHS)
def test_any_json_gets_an_answer(run_worker: Run, path: str) -> None:
    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bodies=st.lists(BODIES, min_size=20, max_size=20))
    def check(bodies: list[Any]) -> None:
        async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
            for body in bodies:
                if isinstance(body, dict):
                    small = {"prompt": "p", "size": "16x16", "num_inference_steps": 1}
                    body = {**small, "num_frames": 2, "width": 16, "height": 16, **body}
                answer = await client.post(
                    path, content=json.dumps(body), headers={"content-type": "application/json"}
                )
                assert answer.status_code in (200, 400, 422, 500)

        tasks = ("T2I", "TI2I", "T2V", "I2M", "VLA_ACTION")
        run_worker(test, task_types=tasks, time_scale=0.0)

    check()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"1" * 5000, b"\xff\xfe", b'"\\ud800"', b"NaN", b'{"prompt": "\\ud800"}'],
)
def test_strange_bodies_get_an_answer(run_worker: Run, path: str, content: bytes) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.post(
            path, content=content, headers={"content-type": "application/json"}
        )
        assert answer.status_code in (200, 400, 422, 500)
        assert (await client.get("/health")).status_code == 200

    run_worker(test, task_types=("T2I", "T2V", "I2M", "VLA_ACTION"), time_scale=0.0)
