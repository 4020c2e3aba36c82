"""Merging what several workers list: models and jobs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from attrs import frozen

from ..errors import BadRequest

MOST, DEFAULT = 100, 20  # jobs on a page

TERMINAL = frozenset({"completed", "failed", "cancelled", "deleted"})


def merge_models(lists: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    """The model cards of several workers, each model once, in order of appearance."""
    merged: dict[str, dict[str, Any]] = {}
    for cards in lists:
        for card in cards:
            if isinstance(card, dict):
                name = card.get("id")
                key = name if isinstance(name, str) and name else json.dumps(card, sort_keys=True)
                merged.setdefault(key, card)
    return list(merged.values())


@frozen
class Page:
    """Which part of a list is wanted."""

    after: str | None = None
    limit: int = DEFAULT
    descending: bool = True

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Page:
        """From `after`, `limit` (1 to 100) and `order` (asc, desc). Raises BadRequest."""
        limit_text = query.get("limit", str(DEFAULT))
        limit = int(limit_text) if limit_text.isascii() and limit_text.isdigit() else 0
        if not 1 <= limit <= MOST:
            raise BadRequest(
                f"limit must be a whole number from 1 to {MOST}, not {limit_text!r}",
                code="invalid_field",
            )
        order = query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise BadRequest(f"order must be asc or desc, not {order!r}", code="invalid_field")
        return cls(query.get("after") or None, limit, order == "desc")


def page_of_jobs(
    jobs: Sequence[tuple[int, dict[str, Any]]], page: Page, after: int | None
) -> tuple[list[dict[str, Any]], bool]:
    """The wanted page of jobs that are given with their place in the order of creation, and
    whether more follow. `after` is the place of the cursor, None for the first page."""
    ordered = sorted(jobs, key=lambda job: job[0], reverse=page.descending)
    if after is not None:
        ordered = [
            job for job in ordered if (job[0] < after if page.descending else job[0] > after)
        ]
    return [job for _, job in ordered[: page.limit]], len(ordered) > page.limit
