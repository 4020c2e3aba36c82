"""Layers that a LoRA call wraps, for as long as the worker's process lives: what wraps them, what
that does to later weights, and the way out behind a router. Each test has a worker of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.contract.behind import router_before
from tests.contract.conftest import Start, router_that_launches
from tests.contract.harness import Worker, eventually, push

DISK, TENSOR, SET = "/update_weights_from_disk", "/update_weights_from_tensor", "/v1/set_lora"
MERGE, UNMERGE = "/v1/merge_lora_weights", "/v1/unmerge_lora_weights"
MISSING = {"lora_nickname": "x", "lora_path": "/nonexistent/x"}


def ready(worker: Worker) -> bool:
    try:
        return worker.http.get("/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def fresh(start: Start) -> Worker:
    worker, _ = start("image", 0)
    eventually(lambda: ready(worker))
    return worker


def loads(worker: Worker) -> list[tuple[dict[str, str], bytes]]:
    """What the other weights give, and then the first ones."""
    made = []
    for path in (worker.other_weights, worker.weights):
        answer = worker.load(path)
        assert (answer.status_code, answer.json()["success"]) == (200, True)
        made.append((worker.checksums(), worker.picture()))
    return made


def test_what_wraps_layers(fresh: Worker) -> None:
    before = loads(fresh)
    early: list[tuple[str, str, Any, int]] = [
        ("POST", SET, {}, 422),
        ("POST", SET, {"lora_nickname": "x", "target": "nope"}, 500),
        ("GET", SET, None, 405),
        ("POST", "/v1/set_loras", MISSING, 404),
        ("POST", "/v1/merge_lora_weights", {}, 200),  # of nothing
        ("POST", "/v1/unmerge_lora_weights", {}, 200),
    ]
    for method, path, body, status in early:
        assert fresh.http.request(method, path, json=body).status_code == status
        assert loads(fresh) == before

    assert fresh.http.post(SET, json=MISSING).status_code == 500
    assert fresh.picture() == before[1][1]
    (other, picture), back = loads(fresh)
    assert other["transformer"] not in [sums["transformer"] for sums, _ in before]
    assert picture not in [made for _, made in before]  # neither the old one nor the new one
    assert back[1] == before[1][1]
    if made := push(fresh):
        sums = fresh.checksums()
        assert fresh.http.post(TENSOR, json=made.body).status_code == 200
        assert fresh.checksums() == sums


def test_a_worker_forgets_what_was_pushed(fresh: Worker) -> None:
    """And takes what it was told last for what acts."""
    pushed, plain = push(fresh, lora=True), fresh.picture()
    if pushed is None:
        pytest.skip("REAL_PYTHON names no Python that could make a tensor")

    def post(path: str, **body: Any) -> bytes:
        """The picture after the call."""
        answer = fresh.http.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return fresh.picture()

    merged = post(TENSOR, **pushed.body)
    assert merged != plain
    assert fresh.http.get("/v1/list_loras").json()["active"] == {}
    assert post(UNMERGE) == merged
    assert post(MERGE, strength=1.0) == merged
    assert post(UNMERGE) == plain

    style = {"lora_nickname": "a", "lora_path": fresh.lora}
    styled = post(SET, **style)
    assert post(TENSOR, **pushed.body) == post(SET, **style) == merged != styled
    assert post(UNMERGE) == plain
    assert post(SET, **style) == styled
    half = post(MERGE, strength=0.5)
    assert half == post(SET, **style) != styled
    assert post(UNMERGE) == plain

    # A merge and an unmerge bring it to its senses, however the LoRA came.
    dynamic = post(SET, **style, merge_mode="dynamic")
    for path, body in ((MERGE, {"strength": 0.5}), (TENSOR, pushed.body)):
        assert post(path, **body) != dynamic
        post(MERGE)
        assert post(UNMERGE) == plain
        assert post(SET, **style, merge_mode="dynamic") == dynamic
    assert post(UNMERGE) == plain


@pytest.mark.parametrize("merged", [False, True])
def test_the_way_out(merged: bool, start: Start, tmp_path: Path) -> None:
    """Of a `set_lora` that fails; tensors that are merged as a LoRA need it as well."""
    worker, process = start("image", 0)
    eventually(lambda: ready(worker))
    pushed = push(worker, lora=True) if merged else None
    if merged and pushed is None:
        pytest.skip("REAL_PYTHON names no Python that could make a tensor")
    (other, _), first = loads(worker)
    with router_before([worker], tmp_path) as router:

        def row() -> dict[str, Any]:
            return router.get("/workers").json()["workers"][0]  # type: ignore[no-any-return]

        eventually(lambda: row()["routable"])
        if pushed is None:
            (refused,) = router.post(SET, json=MISSING).json()["results"]
            assert refused["status_code"] == 500
        else:
            answer = router.post(TENSOR, json=pushed.body)
            assert answer.json()["success"] is True, answer.text
            assert worker.picture() != first[1]
        sums = worker.checksums()
        assert sums["transformer"] != first[0]["transformer"]

        body = {"model_path": worker.other_weights}
        for query in ({}, {"unwrap": "true"}):
            answer = router.post(DISK, params=query, json=body)
            assert (answer.status_code, answer.json()["code"]) == (409, "lora_active")
        assert answer.json()["workers"] == [row()["worker_id"]]
        if merged:
            assert router.post(UNMERGE, json={}).json()["success"] is True
            assert worker.picture() == first[1]
        process.stop()
        eventually(lambda: row()["health"] != "healthy")
        start("image", 0, worker.address[1])
        eventually(lambda: row()["routable"])
        assert (worker.checksums(), worker.picture()) == first
        answer = router.post(DISK, json=body)
        assert answer.json()["success"] is True, answer.text
        assert worker.checksums() == other


@pytest.mark.parametrize("merged", [False, True])
def test_the_way_out_of_a_launched_worker(merged: bool, tmp_path: Path) -> None:
    """The router starts it again by itself."""
    with router_that_launches(tmp_path) as (router, of_url):

        def row() -> dict[str, Any]:
            return router.get("/workers").json()["workers"][0]  # type: ignore[no-any-return]

        eventually(lambda: row()["routable"])
        worker = of_url(row()["url"])
        pushed = push(worker, lora=True) if merged else None
        (other, picture), first = loads(worker)
        path, wrapping = (TENSOR, pushed.body) if pushed else (SET, MISSING)
        assert router.post(path, json=wrapping).json()["success"] is merged
        body = {"model_path": worker.other_weights}
        refused = router.post(DISK, json=body)
        assert (refused.status_code, refused.json()["code"]) == (409, "lora_active")
        assert refused.json()["launched"] == [row()["worker_id"]]
        assert worker.checksums()["transformer"] != first[0]["transformer"]

        answer = router.post(DISK, params={"unwrap": "true"}, json=body)
        assert answer.json()["success"] is True, answer.text
        assert row()["routable"]
        assert (worker.checksums(), worker.picture()) == (other, picture)
