"""LoRA adapters. A worker is never again what it was before its first one, so the tests of the
successes are one story, in order."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.harness import Worker, push


@pytest.mark.parametrize("sent", [{"json": {}}, {}])
def test_a_nickname_is_needed(worker: Worker, sent: dict[str, Any]) -> None:
    answer = worker.http.post("/v1/set_lora", **sent)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "lora_nickname"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"lora_nickname": "x"}, "Adapter x not found"),
        ({"lora_nickname": "x", "lora_path": "/nonexistent/x"}, "does not exist"),
        ({"lora_nickname": "x", "target": "nope"}, "Invalid target(s): ['nope']"),
    ],
)
def test_failures_are_500_with_a_detail(lora: Worker, body: dict[str, Any], said: str) -> None:
    answer = lora.http.post("/v1/set_lora", json=body)
    assert answer.status_code == 500
    assert set(answer.json()) == {"detail"}
    assert answer.json()["detail"].startswith("Failed to set LoRA adapter")
    assert said in answer.json()["detail"]


def test_the_life_of_an_adapter(lora: Worker) -> None:
    def post(path: str, **body: Any) -> str:
        answer = lora.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        assert set(answer.json()) == {"status", "message"}
        assert answer.json()["status"] == "ok"
        return str(answer.json()["message"])

    def active() -> Any:
        return lora.http.get("/v1/list_loras").json()["active"]

    plain, sums = lora.picture(), lora.checksums()
    said = post("/v1/set_lora", lora_nickname="a", lora_path=lora.lora)
    assert said == "Successfully set LoRA adapter(s): a (target: all, strength: 1.00)"
    styled = lora.picture()
    assert styled != plain
    assert lora.http.get("/v1/list_loras").json() == {
        "loaded_adapters": [{"nickname": "a", "path": lora.lora}],
        "active": {
            "transformer": [
                {
                    "nickname": "a",
                    "nicknames": ["a"],
                    "path": lora.lora,
                    "merged": True,
                    "mode": "merged",
                    "strength": 1.0,
                    "strengths": [1.0],
                }
            ]
        },
    }
    changed = lora.checksums()
    assert [name for name in sums if changed[name] != sums[name]] == ["transformer"]

    post("/v1/set_lora", lora_nickname="a", lora_path=lora.lora)  # again: nothing new
    assert lora.picture() == styled
    post("/v1/set_lora", lora_nickname="a")  # known by now
    assert lora.picture() == styled

    said = post("/v1/unmerge_lora_weights", target="all")
    assert said == "Successfully unmerged LoRA weights (target: all)"
    assert active() == {}
    assert lora.picture() == plain
    assert lora.checksums()["transformer"] != sums["transformer"]  # its layers stay wrapped

    said = post("/v1/merge_lora_weights", target="transformer", strength=0.5)
    assert said == "Successfully merged LoRA weights (target: transformer, strength: 0.5)"
    assert active()["transformer"][0]["strength"] == 0.5
    assert lora.picture() not in (plain, styled)
    post("/v1/unmerge_lora_weights")
    assert lora.picture() == plain

    # A later update reaches only what is not wrapped: 200, and weights that are neither the one nor
    # the other.
    wrapped = lora.checksums()
    assert lora.load(lora.other_weights).status_code == 200
    assert lora.checksums()["transformer"] != wrapped["transformer"]
    assert lora.load(lora.weights).status_code == 200
    assert lora.checksums() == wrapped
    assert lora.picture() == plain
    if made := push(lora):  # a tensor of a wrapped layer
        assert lora.http.post("/update_weights_from_tensor", json=made.body).status_code == 200
        assert lora.checksums() == wrapped
