"""What a worker tells about itself."""

from __future__ import annotations

import pytest

from tests.contract.harness import Worker, long_request, together

TASK = {"image": "T2I", "video": "T2V"}
PIPELINE = {"image": "FluxPipeline", "video": "WanPipeline"}


@pytest.mark.parametrize("path", ["/liveness", "/health", "/health_generate"])
def test_health(worker: Worker, path: str) -> None:
    answer = worker.http.get(path)
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


def test_model_card(worker: Worker) -> None:
    listed = worker.http.get("/v1/models").json()
    assert listed["object"] == "list"
    (card,) = listed["data"]
    created = card.pop("created")
    assert isinstance(created, int)
    assert created > 1_600_000_000
    assert card == {
        "id": worker.name,
        "object": "model",
        "owned_by": "sglang",
        "root": worker.name,
        "parent": None,
        "max_model_len": None,
        "num_gpus": 1,
        "task_type": TASK[worker.kind],
        "supported_task_types": [TASK[worker.kind]],
        "dit_precision": "bf16",
        "vae_precision": "bf16" if worker.kind == "image" else "fp32",
        "pipeline_name": PIPELINE[worker.kind],
        "pipeline_class": PIPELINE[worker.kind],
    }
    single = worker.http.get(f"/v1/models/{worker.name}")
    assert single.status_code == 200
    assert {**single.json(), "created": 0} == {**card, "created": 0}


@pytest.mark.parametrize("name", ["nope", "some/other"])
def test_unknown_model_card(worker: Worker, name: str) -> None:
    answer = worker.http.get(f"/v1/models/{name}")
    assert answer.status_code == 404
    assert answer.json() == {
        "error": {
            "message": f"The model '{name}' does not exist",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_server_info(worker: Worker) -> None:
    assert worker.http.get("/server_info").json() == {
        "model_path": worker.weights,
        "served_model_name": worker.name,
        "tp_size": 1,
        "dp_size": 1,
        "version": "0.5.23",
    }


def test_model_info(worker: Worker) -> None:
    assert worker.http.get("/model_info").json() == {
        "model_path": worker.weights,
        "is_generation": True,
        "model_type": "diffusion",
        "architectures": [PIPELINE[worker.kind]],
        "has_image_understanding": False,
        "has_audio_understanding": False,
        "task_type": TASK[worker.kind],
        "supported_task_types": [TASK[worker.kind]],
        "output_types": [worker.kind.upper()],
        "is_image_gen": worker.kind == "image",
    }


def test_short_model_list(worker: Worker) -> None:
    assert worker.http.get("/models").json() == {
        "model_path": worker.weights,
        "num_gpus": 1,
        "task_type": TASK[worker.kind],
        "supported_task_types": [TASK[worker.kind]],
        "dit_precision": "bf16",
        "vae_precision": "bf16" if worker.kind == "image" else "fp32",
        "vae_decode_precision": None if worker.kind == "image" else "bf16",
        "pipeline_name": PIPELINE[worker.kind],
        "pipeline_class": PIPELINE[worker.kind],
    }


def test_stats(worker: Worker) -> None:
    told = worker.http.get("/stats").json()
    assert told["status"] == "ok"
    assert told["model_path"] == worker.weights


def test_there_are_no_metrics_unless_asked_for(worker: Worker) -> None:
    assert worker.http.get("/metrics").status_code == 404


def test_no_adapters(worker: Worker) -> None:
    assert worker.http.get("/v1/list_loras").json() == {"loaded_adapters": [], "active": {}}


def test_generations_run_one_at_a_time_and_control_calls_wait_behind_them(image: Worker) -> None:
    generation = ("POST", "/v1/images/generations", long_request(image))
    gap = 0.02
    first, second, loras, stats, health = together(
        image,
        *(generation, generation),
        *(("GET", path, None) for path in ("/v1/list_loras", "/stats", "/health")),
        gap=gap,
    )
    work = sum(float(timed.answer.json()["inference_time_s"]) for timed in (first, second))
    assert second.seconds > 0.95 * work
    assert min(loras.seconds, stats.seconds) > second.seconds - 0.1 * work
    assert health.seconds < first.seconds
