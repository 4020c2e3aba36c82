"""Labels, runs and transactions have at most 200 characters: longer ones are refused at once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from router.errors import StartError
from router.service.start import run_of
from router.settings import RouterSettings
from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, run_deployed

LONG, BOUND = "x" * 201, "x" * 200
UPDATE = {"model_path": "demo/step-1"}
TENSOR = {"serialized_named_tensors": ["x"]}


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/weights", {"run": LONG}, "run"),
        ("/weights", {"weight_version": 3, "label": LONG}, "label"),
        ("/weights/begin", {"label": LONG}, "label"),
        ("/weights/begin", {"weight_version": LONG}, "weight_version"),
        ("/weights/commit", {"txn": LONG}, "txn"),
        ("/weights/abort", {"txn": LONG}, "txn"),
        ("/weights/commit", {"txn": "x", "label": LONG}, "label"),
        ("/update_weights_from_disk", {**UPDATE, "weight_version": LONG}, "weight_version"),
        ("/update_weights_from_disk", {**UPDATE, "label": LONG}, "label"),
        ("/update_weights_from_tensor", {**TENSOR, "weight_version": LONG}, "weight_version"),
    ],
)
def test_a_text_of_more_than_200_characters_is_refused(
    run_pool: RunPool, path: str, body: dict[str, Any], name: str
) -> None:
    async def test(pool: Deployment, member: Member) -> None:
        said = is_ours(await pool.http.post(path, json=body), 400, "invalid_field")
        assert said["error"] == f"{name} must have at most 200 characters"
        assert member.asked("POST", path) == []
        (shown,) = (await pool.http.get("/weights")).json()["models"]
        assert (shown["weight_version"], shown["run"], shown["pending"]) == (0, None, [])
        bounded = {key: BOUND if value is LONG else value for key, value in body.items()}
        taken = await pool.http.post(path, json=bounded)
        assert "characters" not in taken.text

    run_pool(test, IMAGES)


@pytest.mark.parametrize("size", [201, 300, 3000])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("first", [True, False])
def test_the_label_of_a_streamed_update(size: int, escaped: bool, first: bool) -> None:
    async def test(pool: Deployment) -> None:
        path = "/update_weights_from_tensor"
        script = await pool.script()
        await pool.register(script.url)
        label = "\U0001f600" * size
        tensors = {"serialized_named_tensors": ["A" * (2 << 20)]}
        named = {"weight_version": label}
        body = json.dumps({**named, **tensors} if first else {**tensors, **named},
                          ensure_ascii=escaped).encode()  # fmt: skip
        said = await pool.http.post(path, content=body)
        if first:
            assert f"POST {path}" not in script.asked
        told = is_ours(said, 400, "invalid_field")
        assert "weight_version must have at most 200 characters" in told["error"]
        (shown,) = (await pool.http.get("/weights")).json()["models"]
        assert shown["weight_version"] == 0

    run_deployed(test)


def test_the_longest_label_can_be_asked_for(run_pool: RunPool) -> None:
    async def test(pool: Deployment, _: Member) -> None:
        labelled = {**UPDATE, "weight_version": BOUND}
        done = await pool.http.post("/update_weights_from_disk", json=labelled)
        assert done.json()["weight_version"] == 1
        path = "/v1/images/generations"
        body = {"prompt": "a", "size": "64x64", "num_inference_steps": 1}
        made = await pool.http.post(path, json=body, headers={"X-Exact-Weight-Version": BOUND})
        assert made.headers["x-weight-version"] == "1"
        wrong = await pool.http.post(path, json=body, headers={"X-Exact-Weight-Version": LONG})
        assert "at most 200" in is_ours(wrong, 400, "invalid_header")["error"]

    run_pool(test, IMAGES)


def test_the_run_of_the_environment_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_D_ROUTER_RUN_ID", BOUND)
    assert run_of(RouterSettings()) == BOUND
    monkeypatch.setenv("SGLANG_D_ROUTER_RUN_ID", LONG)
    with pytest.raises(StartError, match="at most 200 characters"):
        run_of(RouterSettings())
