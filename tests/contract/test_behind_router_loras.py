"""LoRAs behind the router. Layers stay wrapped, so no later file uses these image workers."""

from __future__ import annotations

import pytest

from tests.contract.behind import FLUX, Pool
from tests.contract.harness import eventually, push

STYLE = {"lora_nickname": "style"}


@pytest.fixture
def wrapped(pool: Pool) -> Pool:
    """Its image workers have had a LoRA, which does not act now."""
    pool.change("/v1/set_lora", **STYLE, lora_path=pool.flux[0].lora)
    pool.change("/v1/unmerge_lora_weights", target="all")
    return pool


def test_a_lora(pool: Pool) -> None:
    plain = pool.picture()
    pool.change("/v1/set_lora", **STYLE, lora_path=pool.flux[0].lora)
    styled = pool.picture()
    assert styled != plain
    assert [worker.picture() for worker in pool.flux] == [styled, styled]
    listed = pool.http.get(f"/v1/list_loras?model={FLUX}").json()
    assert listed["consistent"] is True
    pool.change("/v1/unmerge_lora_weights", target="all")
    assert pool.picture() == plain
    assert [worker.picture() for worker in pool.flux] == [plain, plain]
    pool.change("/v1/merge_lora_weights", target="all", strength=1.0)
    assert pool.picture() == styled
    pool.change("/v1/unmerge_lora_weights", target="all")


def test_a_lora_that_is_set_again(wrapped: Pool) -> None:
    """The workers would skip it (test_wrapped), and the router keeps them from that."""
    pool, first = wrapped, wrapped.flux[0]
    plain = pool.picture()
    pool.change("/v1/set_lora", **STYLE)
    styled = pool.picture()
    between = [("/v1/merge_lora_weights", {"strength": 0.5})]
    if made := push(first, lora=True):
        between.append(("/update_weights_from_tensor", made.body))
    for path, body in between:
        pool.change(path, **body)
        assert pool.picture() not in (plain, styled)
        pool.change("/v1/set_lora", **STYLE)
        assert [worker.picture() for worker in pool.flux] == [styled, styled]

    sleeper = pool.flux[1]
    pool.change("/v1/merge_lora_weights", strength=0.5)
    pool.post(f"/release_memory_occupation?workers={pool.ids(sleeper)}")
    pool.post(f"/v1/set_lora?model={FLUX}", **STYLE)
    pool.post(f"/resume_memory_occupation?workers={pool.ids(sleeper)}")
    eventually(pool.all_routable)
    assert [worker.picture() for worker in pool.flux] == [styled, styled]
    pool.change("/v1/unmerge_lora_weights", target="all")
    assert pool.picture() == plain


def test_after_a_lora_no_other_weights(wrapped: Pool) -> None:
    """The workers would answer 200, and have weights that are neither the one nor the other
    (test_loras)."""
    pool, first = wrapped, wrapped.flux[0]
    sums, version = pool.sums(), pool.version()
    picture = pool.picture()
    for path in (first.other_weights, first.weights):
        body = {"model_path": path}
        answer = pool.http.post(f"/update_weights_from_disk?model={FLUX}", json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, "lora_active")
    if made := push(first):
        answer = pool.http.post(f"/update_weights_from_tensor?model={FLUX}", json=made.body)
        assert (answer.status_code, answer.json()["code"]) == (409, "lora_active")
    eventually(pool.all_routable)
    assert (pool.sums(), pool.version(), pool.picture()) == (sums, version, picture)


def test_a_sleeper_keeps_its_lora(wrapped: Pool) -> None:
    pool = wrapped
    version, plain = pool.version(), pool.picture()
    told = pool.change("/v1/merge_lora_weights", target="all", strength=1.0)
    assert told["weight_version"] == version + 1
    styled = pool.picture()
    assert styled != plain
    sleeper = pool.flux[1]
    pool.post(f"/release_memory_occupation?workers={pool.ids(sleeper)}")
    pool.post(f"/v1/unmerge_lora_weights?model={FLUX}", target="all")
    assert pool.picture() == plain
    pool.post(f"/resume_memory_occupation?workers={pool.ids(sleeper)}")
    eventually(pool.all_routable)
    assert pool.version() == version + 2
    assert [worker.picture() for worker in pool.flux] == [plain, plain]
