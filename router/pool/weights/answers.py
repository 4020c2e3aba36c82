"""The meaning of a worker's answer to a weight change."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

from ... import text
from .recipe import COLLECTIVES, DISK, SET_LORA, TENSOR

_LONGEST = 2000  # characters kept of a worker's own words

# A disk update with such an error has begun to load: the weights before it are lost.
_TOUCHED = re.compile(r"roll(ed|ing)?[ -]?back|failed to update module", re.IGNORECASE)
# Refused before a worker wraps any layer.
_NOT_WRAPPED = (401, 403, 404, 405, 422)
_INVALID_TARGET = re.compile(r"invalid target", re.IGNORECASE)
# Parts that differ between workers that refuse for the same reason.
_NUMBERS = re.compile(r"0x[0-9a-f]+|\d+")


class Meaning(StrEnum):
    """The effect on the worker's weights."""

    APPLIED = "applied"
    UNCHANGED = "unchanged"
    UNKNOWN = "unknown"
    # A refusal. The weights are unchanged if every other worker gives the same refusal.
    REFUSED = "refused"


def succeeded(status: int, body: Any) -> bool:
    """Whether the status is 2xx and the body does not deny success."""
    said = body.get("success") if isinstance(body, dict) else None
    return 200 <= status < 300 and said is not False


def meaning(path: str, status: int, body: Any, *, sent: bool = True) -> Meaning:
    """The meaning of an answer to a call of this path. `sent`: the worker may have got the call."""
    if not sent:
        return Meaning.UNCHANGED
    if succeeded(status, body):
        return Meaning.APPLIED
    if path == TENSOR or (path in COLLECTIVES and status not in (404, 405, 422)):
        return Meaning.UNKNOWN
    if status in (400, 422, 404, 405):
        if path == DISK and _TOUCHED.search(words(body)):
            return Meaning.UNKNOWN
        return Meaning.UNCHANGED
    if path != DISK and isinstance(body, dict) and "detail" in body:
        return Meaning.REFUSED
    return Meaning.UNKNOWN


def wraps(path: str, status: int, body: Any) -> bool:
    """Whether a refusal has left wrapped layers, or may have: a worker wraps its layers before it
    looks for the adapter, but after it has looked at the form of the call and at the target."""
    early = status in _NOT_WRAPPED or _INVALID_TARGET.search(words(body)) is not None
    return path == SET_LORA and not early


def alike(status: int, body: Any) -> tuple[int, str]:
    """A key that is equal for refusals that say the same."""
    return status, _NUMBERS.sub("#", words(body))


def words(body: Any) -> str:
    """The worker's message, for people."""
    if isinstance(body, dict):
        for name in ("message", "detail", "error"):
            if isinstance(body.get(name), str):
                return text.one_line(body[name], _LONGEST)
        detail = body.get("detail")
        if isinstance(detail, list):  # the list of mistakes in a request's form
            found = [part["msg"] for part in detail if isinstance(part, dict) and "msg" in part]
            if found:
                return text.one_line("; ".join(map(text.words, found)), _LONGEST)
    return text.words(body, _LONGEST)
