"""Merging lists of models and jobs."""

from __future__ import annotations

from typing import Any

import pytest

from router.errors import BadRequest
from router.pool.catalog import Page, is_over, merge_models, page_of_jobs, place_of


def test_each_model_once_in_order_of_appearance() -> None:
    a, b = {"id": "a", "num_gpus": 1}, {"id": "b"}
    assert merge_models([[b, a], [{"id": "a", "num_gpus": 8}], []]) == [b, a]


def test_cards_without_an_id_are_kept_and_nonsense_is_not() -> None:
    odd: dict[str, Any] = {"id": None, "root": "x"}
    empty = {"id": ""}
    assert merge_models([[odd, 7, "a"], [odd, empty, None]]) == [odd, empty]


@pytest.mark.parametrize(
    ("query", "page"),
    [
        ({}, Page(None, 20, True)),
        ({"limit": "1", "order": "asc", "after": "x"}, Page("x", 1, False)),
        ({"limit": "100", "order": "desc", "after": ""}, Page(None, 100, True)),
        ({"limit": "0020"}, Page(None, 20, True)),
    ],
)
def test_pages(query: dict[str, str], page: Page) -> None:
    assert Page.of(query) == page


@pytest.mark.parametrize(
    "query",
    [
        *({"limit": limit} for limit in ("0", "101", "-1", "+5", "ten", "", "1.0", "²", "٣", "5 ")),
        {"limit": "9" * 5000},
        {"limit": "0" * 5000 + "5"},
        {"order": "up"},
        {"order": ""},
        {"order": "ASC"},
    ],
    ids=lambda query: str(query)[:30],
)
def test_pages_that_are_none(query: dict[str, str]) -> None:
    with pytest.raises(BadRequest) as refused:
        Page.of(query)
    assert refused.value.code == "invalid_field"


def ids(page: tuple[list[dict[str, Any]], bool]) -> tuple[str, bool]:
    return "".join(job["id"] for job in page[0]), page[1]


def test_a_page_of_jobs() -> None:
    jobs = [(place_of(order, {}), {"id": name}) for order, name in enumerate("abcde", 1)]
    jobs.reverse()  # whatever order they come in
    third = place_of(3, {})
    assert ids(page_of_jobs(jobs, Page(None, 2), None)) == ("ed", True)
    assert ids(page_of_jobs(jobs, Page(None, 5), None)) == ("edcba", False)
    assert ids(page_of_jobs(jobs, Page(None, 1), third)) == ("b", True)
    assert ids(page_of_jobs(jobs, Page(None, 2), third)) == ("ba", False)
    assert ids(page_of_jobs(jobs, Page(None, 9, False), third)) == ("de", False)
    assert ids(page_of_jobs(jobs, Page(None, 9), place_of(1, {}))) == ("", False)


def test_jobs_without_a_place_come_first_by_time_and_id() -> None:
    told: list[dict[str, Any]] = [
        {"id": "b", "created_at": 7},
        {"id": "a", "created_at": 7.0},
        {"id": "y", "created_at": "soon"},
        {"id": "x"},
        {"id": "z", "created_at": float("nan")},
        {"id": "huge", "created_at": 10**400},
    ]
    jobs = [(place_of(0, job), job) for job in told]
    jobs.append((place_of(1, {}), {"id": "!"}))
    page = Page(None, 9, descending=False)
    assert [job["id"] for job in page_of_jobs(jobs, page, None)[0]] == [
        "huge",
        "x",
        "y",
        "z",
        "a",
        "b",
        "!",
    ]


@pytest.mark.parametrize("status", ["completed", "failed", "deleted"])
def test_jobs_that_are_over(status: str) -> None:
    assert is_over({"status": status})


@pytest.mark.parametrize("status", ["queued", "in_progress", None, ["completed"], {}])
def test_jobs_that_are_not(status: Any) -> None:
    assert not is_over({"status": status})
