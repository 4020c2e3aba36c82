"""`/rollout/generate`: samples for a trainer, as msgpack of safetensors."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from simulated_worker.msgpack import decode
from tests.contract.harness import ROLLOUT, Worker, long_request, steps, together

WIDTHS = {"torch.bfloat16": ("BF16", 2), "torch.float32": ("F32", 4)}
SAMPLE = (
    *("request_id", "prompt", "seed", "generated_output", "rollout_log_probs"),
    *("rollout_debug_tensors", "denoising_env", "dit_trajectory"),
    *("inference_time_s", "peak_memory_mb"),
)


def body(worker: Worker, **changes: Any) -> dict[str, Any]:
    frames = {"num_frames": 5} if worker.kind == "video" else {}
    return {**ROLLOUT, **frames, **changes}


def samples(worker: Worker, **changes: Any) -> list[dict[str, Any]]:
    answer = worker.http.post("/rollout/generate", json=body(worker, **changes))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/msgpack"
    assert answer.headers["content-length"] == str(len(answer.content))
    return decode(answer.content)  # type: ignore[no-any-return]


def shape(tensor: dict[str, Any]) -> tuple[str, list[int]]:
    """Its type and shape, once its bytes were found to agree with them."""
    assert set(tensor) == {"__tensor__", "data", "shape", "dtype"}
    name, width = WIDTHS[tensor["dtype"]]
    data = tensor["data"]
    length = int.from_bytes(data[:8], "little")
    (header,) = (v for k, v in json.loads(data[8 : 8 + length]).items() if k != "__metadata__")
    assert (header["dtype"], header["shape"]) == (name, tensor["shape"])
    assert len(data) == 8 + length + width * math.prod(tensor["shape"])
    return tensor["dtype"], tensor["shape"]


def test_a_sample(worker: Worker) -> None:
    (sample,) = samples(worker)
    assert tuple(sample) == SAMPLE
    assert (sample["prompt"], sample["seed"]) == ("a cat", 7)
    assert sample["inference_time_s"] > 0
    assert (sample["denoising_env"], sample["dit_trajectory"]) == (None, None)
    assert shape(sample["rollout_log_probs"]) == ("torch.float32", [2])
    output, latents = {
        "image": (("torch.bfloat16", [3, 64, 64]), [16, 16]),
        "video": (("torch.float32", [3, 5, 64, 64]), [16, 2, 8, 8]),
    }[worker.kind]
    assert shape(sample["generated_output"]) == output
    debug = sample["rollout_debug_tensors"]
    assert {name: shape(tensor) for name, tensor in debug.items()} == {
        "rollout_variance_noises": ("torch.float32", [2, *latents]),
        "rollout_prev_sample_means": ("torch.float32", [2, *latents]),
        "rollout_noise_std_devs": ("torch.float32", [2, 1]),
        "rollout_model_outputs": ("torch.float32", [2, *latents]),
    }


def test_what_else_may_be_asked_for(worker: Worker) -> None:
    more = {"rollout_return_denoising_env": True, "rollout_return_dit_trajectory": True}
    (sample,) = samples(worker, **more)
    assert set(sample["denoising_env"]) == {
        *("image_kwargs", "pos_cond_kwargs", "neg_cond_kwargs", "guidance")
    }
    assert "encoder_hidden_states" in sample["denoising_env"]["pos_cond_kwargs"]
    trajectory = sample["dit_trajectory"]
    latents = shape(sample["rollout_debug_tensors"]["rollout_model_outputs"])[1][1:]
    assert shape(trajectory["latents"]) == ("torch.float32", [3, *latents])
    assert shape(trajectory["timesteps"]) == shape(trajectory["sigmas"]) == ("torch.float32", [3])


def test_less_may_be_asked_for(worker: Worker) -> None:
    (lean,) = samples(worker, rollout_debug_mode=False)
    assert lean["rollout_debug_tensors"] is None
    assert lean["rollout_log_probs"] is not None
    (plain,) = samples(worker, rollout=False)
    assert (plain["rollout_log_probs"], plain["rollout_debug_tensors"]) == (None, None)
    assert plain["generated_output"] is not None


def test_one_request_is_one_group(worker: Worker) -> None:
    group = samples(worker, num_outputs_per_prompt=3)
    assert len(group) == 3
    assert len({sample["request_id"] for sample in group}) == 1
    assert [sample["seed"] for sample in group] == [7, 7, 7]  # that of the request
    assert len({sample["generated_output"]["data"] for sample in group}) == 3


def test_the_same_request_gives_the_same_samples(worker: Worker) -> None:
    outputs = [samples(worker, seed=seed)[0]["generated_output"]["data"] for seed in (7, 7, 8)]
    assert outputs[0] == outputs[1] != outputs[2]


def test_without_a_seed_it_runs_whole_and_then_fails(image: Worker) -> None:
    request = {**long_request(image), **ROLLOUT, "num_inference_steps": steps(image)}
    del request["seed"], request["size"]
    (failed,) = together(image, ("POST", "/rollout/generate", request))
    assert (failed.answer.status_code, failed.answer.text) == (500, "Internal Server Error")
    assert failed.seconds > 0.4 * image.while_


def test_ode_has_no_full_log_probabilities(worker: Worker) -> None:
    ode = {"rollout_sde_type": "ode"}
    answer = worker.http.post("/rollout/generate", json=body(worker, **ode))
    assert answer.status_code == 500
    assert "set rollout_log_prob_no_const to True" in answer.json()["detail"]
    (sample,) = samples(worker, **ode, rollout_log_prob_no_const=True)
    assert shape(sample["rollout_log_probs"]) == ("torch.float32", [2])


def test_a_missing_prompt_is_422(worker: Worker) -> None:
    answer = worker.http.post("/rollout/generate", json={})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "prompt"]


@pytest.mark.parametrize("changes", [{"rollout_sde_type": "x"}, {"width": 0}])
def test_wrong_parameters_are_400(worker: Worker, changes: dict[str, Any]) -> None:
    answer = worker.http.post("/rollout/generate", json=body(worker, **changes))
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Invalid sampling params: ")
