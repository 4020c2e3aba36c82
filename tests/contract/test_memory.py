"""Sleep and wake."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contract.harness import IMAGE, ROLLOUT, Worker, long_request, push, together


@pytest.fixture
def asleep(image: Worker) -> Iterator[Worker]:
    """An image worker that is put to sleep, and woken and given its weights back afterwards."""
    told = image.http.post("/release_memory_occupation")
    assert told.status_code == 200
    assert (told.json()["success"], told.json()["sleeping"]) == (True, True)
    yield image
    told = image.http.post("/resume_memory_occupation")
    assert told.status_code == 200
    assert (told.json()["success"], told.json()["sleeping"]) == (True, False)
    assert image.load(image.weights).status_code == 200


def test_both_may_be_repeated_and_ignore_what_they_are_sent(worker: Worker) -> None:
    for path, sleeping, again in (
        ("/release_memory_occupation", True, "already sleeping"),
        ("/resume_memory_occupation", False, "already awake"),
    ):
        first = worker.http.post(path, content=b"garbage")
        assert first.status_code == 200
        assert set(first.json()) == {"success", "sleeping", "message"}
        second = worker.http.post(path, json={"tags": ["weights"]})
        assert second.status_code == 200
        assert second.json() == {"success": True, "sleeping": sleeping, "message": again}


def test_sleep_does_not_show(image: Worker) -> None:
    paths = ("/health", "/server_info", "/model_info", "/stats", "/v1/list_loras")

    def told() -> list[object]:
        return [image.http.get(path).json() for path in paths]

    awake = told()
    image.http.post("/release_memory_occupation").raise_for_status()
    try:
        assert told() == awake
        assert image.http.get("/v1/models").status_code == 200
    finally:
        image.http.post("/resume_memory_occupation").raise_for_status()


def test_generations_fail(asleep: Worker) -> None:
    answer = asleep.http.post("/v1/images/generations", json=IMAGE)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    rollout = asleep.http.post("/rollout/generate", json=ROLLOUT)
    assert rollout.status_code == 500
    assert rollout.headers["content-type"] == "application/json"
    assert "Server is sleeping" in rollout.json()["detail"]


def test_an_update_from_disk_is_refused(asleep: Worker) -> None:
    answer = asleep.load(asleep.other_weights)
    assert answer.status_code == 500
    assert answer.json()["success"] is False
    assert "sleeping" in answer.json()["message"]


def test_an_update_from_tensors_is_not(asleep: Worker) -> None:
    made = push(asleep)
    if made is None:
        pytest.skip("REAL_PYTHON names no Python that could make a tensor")
    before = asleep.checksums("transformer")
    assert asleep.http.post("/update_weights_from_tensor", json=made.body).status_code == 200
    assert asleep.checksums("transformer") != before


def test_what_was_made_before_is_still_served(image: Worker) -> None:
    url = image.image()["data"][0]["url"]
    image.http.post("/release_memory_occupation").raise_for_status()
    try:
        assert image.http.get(url).status_code == 200
    finally:
        image.http.post("/resume_memory_occupation").raise_for_status()


def test_weights_outlive_sleep(image: Worker) -> None:
    sums, picture = image.checksums(), image.picture()
    image.http.post("/release_memory_occupation").raise_for_status()
    try:
        assert image.checksums() == sums
    finally:
        image.http.post("/resume_memory_occupation").raise_for_status()
    assert image.checksums() == sums
    assert image.picture() == picture


def test_sleep_waits_behind_the_generation_before_it(image: Worker) -> None:
    generation, release, resume = together(
        image,
        ("POST", "/v1/images/generations", long_request(image)),
        ("POST", "/release_memory_occupation", None),
        ("POST", "/resume_memory_occupation", None),
    )
    assert generation.answer.status_code == 200
    assert release.answer.json()["sleeping"] is True
    assert resume.answer.json()["sleeping"] is False
    assert release.seconds > generation.seconds - 0.1
