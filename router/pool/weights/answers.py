"""What a worker's answer to a weight change means."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from ... import text
from .recipe import DISK, TENSOR

_LONGEST = 2000  # characters of a worker's own words

# A disk update that says so has begun to load: what is there now is not what was there before.
_TOUCHED = re.compile(r"roll(ed|ing)?[ -]?back|failed to update module", re.IGNORECASE)
# What differs between workers that refuse for the same reason.
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


class Meaning(StrEnum):
    """What became of the worker's weights."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    UNKNOWN = "unknown"
    # A refusal that leaves them unchanged if every other worker gives the same.
    REFUSED = "refused"


def succeeded(status: int, body: Any) -> bool:
    """2xx, and the worker does not say otherwise."""
    said = body.get("success") if isinstance(body, dict) else None
    return 200 <= status < 300 and said is not False


def meaning(path: str, status: int, body: Any, *, sent: bool = True) -> Meaning:
    """What an answer to a call of this path means. `sent`: the worker may have got the call."""
    if not sent:
        return Meaning.UNCHANGED
    if succeeded(status, body):
        return Meaning.APPLIED
    if path == TENSOR:
        return Meaning.UNKNOWN
    if status in (400, 422, 404, 405):
        if path == DISK and _TOUCHED.search(words(body)):
            return Meaning.UNKNOWN
        return Meaning.UNCHANGED
    if path != DISK and isinstance(body, dict) and "detail" in body:
        return Meaning.REFUSED
    return Meaning.UNKNOWN


def alike(status: int, body: Any) -> tuple[int, str]:
    """Equal for refusals that say the same."""
    return status, _NUMBERS.sub("#", words(body))


def words(body: Any) -> str:
    """What a worker says, for people."""
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if isinstance(body.get(name), str):
                return text.one_line(body[name], _LONGEST)
        detail = body.get("detail")
        if isinstance(detail, list):  # how a worker tells what is wrong with a request's form
            found = [part["msg"] for part in detail if isinstance(part, dict) and "msg" in part]
            if found:
                return text.one_line("; ".join(map(text.words, found)), _LONGEST)
    return text.words(body, _LONGEST)
