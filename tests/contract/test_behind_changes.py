"""Versions of weights behind the router, held against checksums and pixels of the workers.

Each test leaves the image workers with the weights of their start.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from attrs import frozen

from tests.contract.behind import FLUX, Pool
from tests.contract.harness import Worker, eventually, push

DISK = "/update_weights_from_disk"


@frozen
class Start:
    """What the weights of the start give, and the version that they had before the test."""

    sums: dict[str, str]
    picture: bytes
    version: int


@pytest.fixture
def start(pool: Pool) -> Iterator[Start]:
    made = Start(pool.sums(), pool.picture(), pool.version())
    yield made
    pool.change(DISK, model_path=pool.flux[0].weights)
    eventually(pool.all_routable)
    assert pool.sums() == made.sums
    assert pool.picture() == made.picture


def memory(pool: Pool, what: str, *workers: Worker) -> None:
    pool.post(f"/{what}_memory_occupation?workers={pool.ids(*workers)}")


def at_current_version(pool: Pool, version: int) -> None:
    """Both are routable and of that version, and so is what they make."""
    eventually(pool.all_routable)
    listed = pool.http.get("/workers").json()["workers"]
    told = [w["weight_version"] for w in listed if FLUX in w["models"]]
    assert told == [version, version]
    one, two = (worker.picture() for worker in pool.flux)
    assert one == two == pool.picture()
    assert pool.version() == version


def test_each_change_has_a_version(pool: Pool, start: Start) -> None:
    first = pool.flux[0]
    told = pool.change(DISK, model_path=first.other_weights)
    assert (told["weight_version"], told["deferred"]) == (start.version + 1, [])
    at_current_version(pool, start.version + 1)
    other = pool.sums()
    assert other["transformer"] != start.sums["transformer"]
    assert pool.picture() != start.picture

    told = pool.change(DISK, model_path=first.weights)
    assert told["weight_version"] == start.version + 2
    at_current_version(pool, start.version + 2)
    assert pool.sums() == start.sums


def test_a_refused_change_has_none(pool: Pool, start: Start) -> None:
    body = {"model_path": "/nonexistent/model"}
    answer = pool.http.post(f"{DISK}?model={FLUX}", json=body)
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    at_current_version(pool, start.version)
    assert pool.sums() == start.sums
    assert pool.picture() == start.picture


def test_a_change_of_one_module(pool: Pool, start: Start) -> None:
    other = pool.flux[0].other_weights
    pool.change(DISK, model_path=other, target_modules=["transformer"])
    at_current_version(pool, start.version + 1)
    changed = pool.sums()
    assert [name for name in changed if changed[name] != start.sums[name]] == ["transformer"]


def test_pushed_tensors(pool: Pool, start: Start) -> None:
    made = push(pool.flux[0])
    if made is None:
        pytest.skip("REAL_PYTHON names no Python that could make a tensor")
    told = pool.change("/update_weights_from_tensor", **made.body)
    assert told["weight_version"] == start.version + 1
    at_current_version(pool, start.version + 1)
    changed = pool.sums()
    assert [name for name in changed if changed[name] != start.sums[name]] == ["transformer"]
    asked = {"target_module": "transformer", "expected_named_tensors_sha256": made.sha256}
    checked = pool.post(f"/update_weights_from_tensor_checker?model={FLUX}", **asked).json()
    assert checked["success"] is True


def test_weights_outlive_sleep(pool: Pool, start: Start) -> None:
    memory(pool, "release", *pool.flux)
    assert pool.sums() == start.sums
    memory(pool, "resume", *pool.flux)
    at_current_version(pool, start.version)
    assert pool.picture() == start.picture


def test_a_change_while_all_sleep_comes_with_the_wake(pool: Pool, start: Start) -> None:
    memory(pool, "release", *pool.flux)
    told = pool.post(f"{DISK}?model={FLUX}", model_path=pool.flux[0].other_weights).json()
    assert told["results"] == []
    assert len(told["deferred"]) == 2
    assert pool.sums() == start.sums
    memory(pool, "resume", *pool.flux)
    at_current_version(pool, start.version + 1)
    assert pool.sums()["transformer"] != start.sums["transformer"]
    assert pool.picture() != start.picture


def test_a_mistyped_one_while_all_sleep_changes_nothing(pool: Pool, start: Start) -> None:
    memory(pool, "release", *pool.flux)
    pool.post(f"{DISK}?model={FLUX}", model_path="/nonexistent/model")
    memory(pool, "resume", *pool.flux)
    at_current_version(pool, start.version)
    assert pool.sums() == start.sums
    assert pool.picture() == start.picture


def test_a_sleeper_gets_what_it_missed(pool: Pool, start: Start) -> None:
    awake, asleep = pool.flux
    memory(pool, "release", asleep)
    told = pool.post(f"{DISK}?model={FLUX}", model_path=awake.other_weights).json()
    assert [row["worker_url"] for row in told["results"]] == [awake.url]
    assert [row["worker_url"] for row in told["deferred"]] == [asleep.url]
    assert awake.checksums() != asleep.checksums() == start.sums
    assert pool.version() == told["weight_version"] == start.version + 1
    memory(pool, "resume", asleep)
    at_current_version(pool, start.version + 1)
    assert pool.sums() == awake.checksums()


def test_who_was_away_gets_what_it_missed(pool: Pool, start: Start) -> None:
    here, away = pool.flux
    pool.http.delete(f"/workers/{pool.ids(away)}?drain=true").raise_for_status()
    pool.post(f"{DISK}?model={FLUX}", model_path=here.other_weights)
    assert away.checksums() == start.sums
    pool.http.post(f"/workers?url={away.url}").raise_for_status()
    at_current_version(pool, start.version + 1)
    assert pool.sums() == here.checksums() != start.sums


def test_several_calls_are_one_version(pool: Pool, start: Start) -> None:
    other = pool.flux[0].other_weights
    txn = pool.post("/weights/begin", model=FLUX).json()["txn"]
    for module in ("transformer", "vae"):
        body = {"model_path": other, "target_modules": [module]}
        told = pool.post(f"{DISK}?txn={txn}", **body).json()
        assert {row["status_code"] for row in told["results"]} == {200}
    told = pool.post("/weights/commit", txn=txn, label="both").json()
    assert told["weight_version"] == start.version + 1
    at_current_version(pool, start.version + 1)
    assert pool.picture() != start.picture
    ledgers = pool.http.get("/weights", params={"verify": "true"}).json()["models"]
    (ledger,) = [one for one in ledgers if one["model"] == FLUX]
    assert (ledger["weight_version"], ledger["label"]) == (start.version + 1, "both")
    assert ledger["consistent"] is True


def test_refused_tensors_leave_what_was(pool: Pool, start: Start) -> None:
    """Nobody can say what they left, so that the workers get their version anew."""
    pool.change(DISK, model_path=pool.flux[0].weights)
    path = f"/update_weights_from_tensor?model={FLUX}"
    answer = pool.http.post(path, json={"serialized_named_tensors": ["AAAA"]})
    assert (answer.status_code, answer.json()["success"]) == (400, False)
    at_current_version(pool, start.version + 1)
    assert pool.sums() == start.sums
    assert pool.picture() == start.picture
