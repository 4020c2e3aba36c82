"""Merges the lists of several workers: models and jobs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from ..errors import BadRequest
from ..text import to_json

MOST, DEFAULT = 100, 20  # jobs on a page

_TERMINAL = ("completed", "failed", "cancelled", "deleted")


def is_over(job: Mapping[str, Any]) -> bool:
    """Whether the `status` of a job is final."""
    return job.get("status") in _TERMINAL


def merge_models(lists: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """The model cards of several workers, each model once, in order of appearance."""
    merged: dict[str, dict[str, Any]] = {}
    for cards in lists:
        for card in cards:
            if isinstance(card, dict):
                name = card.get("id")
                key = name if isinstance(name, str) and name else to_json(card)
                merged.setdefault(key, card)
    return list(merged.values())


@frozen
class Page:
    """The part of a list that a request wants."""

    after: str | None = None
    limit: int = DEFAULT
    descending: bool = True

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Page:
        """The page from `after`, `limit` (1 to 100) and `order` (asc, desc). Raises BadRequest."""
        limit_text = query.get("limit", str(DEFAULT))
        # At most 4 digits: Python refuses to read thousands of digits.
        limit = int(limit_text) if re.fullmatch("[0-9]{1,4}", limit_text) else 0
        if not 1 <= limit <= MOST:
            raise BadRequest(
                f"limit must be a whole number from 1 to {MOST}, not {limit_text!r}",
                code="invalid_field",
            )
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest(f"order must be asc or desc, not {order!r}", code="invalid_field")
        return cls(query.get("after") or None, limit, order == "desc")


Place = tuple[int, float, str]


def place_of(order: int, job: Mapping[str, Any]) -> Place:
    """The sort key of a job. Known jobs sort by their order in the asset map. Jobs that the asset
    map has no room for come before them, by the creation times that their workers tell."""
    if order:
        return (1, order, "")
    return (0, *told_place(job))


def told_place(job: Mapping[str, Any]) -> tuple[float, str]:
    """The sort key of a job from the creation time that its worker tells, to the second."""
    created = job.get("created_at")
    if not isinstance(created, int | float) or not 0 <= created < 2**63:
        created = 0
    return (float(created), str(job.get("id")))


def page_of_jobs(
    jobs: Iterable[tuple[Place, dict[str, Any]]], page: Page, after: Place | None
) -> tuple[list[dict[str, Any]], bool]:
    """The wanted page of jobs that come with their places, and whether more jobs follow. `after` is
    the place of the cursor, None for the first page."""
    wanted = [
        job
        for job in jobs
        if after is None or (job[0] < after if page.descending else job[0] > after)
    ]
    wanted.sort(key=lambda job: job[0], reverse=page.descending)
    return [job for _, job in wanted[: page.limit]], len(wanted) > page.limit
