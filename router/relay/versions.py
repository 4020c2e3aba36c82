"""Reads which weight versions a request accepts: its headers, and a field of rollouts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import BadRequest
from ..pool.versions import Asked
from ..text import LONGEST_LABEL

# By lower-case name; workers never see them.
HEADERS = {
    b"x-min-weight-version": "X-Min-Weight-Version",
    b"x-exact-weight-version": "X-Exact-Weight-Version",
    b"x-max-weight-lag": "X-Max-Weight-Lag",
}
FIELD = "weight_version"

_MOST_DIGITS = 18  # far beyond any issued version
_NUMBER_LIKE = re.compile(r"[-+0-9.,\s]*\Z")  # such as -1, 1.5 or `1, 2`: meant as a number


def in_headers(found: Mapping[bytes, bytes]) -> Asked:
    """What these headers ask for. Raises BadRequest."""
    oldest, exact, lag = map(found.get, HEADERS)
    return Asked(
        () if oldest is None else (_from_header(oldest, "X-Min-Weight-Version"),),
        () if exact is None else (_from_header(exact, "X-Exact-Weight-Version"),),
        None if lag is None else _lag(lag),
    )


def with_field(asked: Asked | None, field: object) -> Asked | None:
    """What the field `weight_version` of a rollout asks for, in addition. Only an object is meant
    for the router. Raises BadRequest."""
    if not isinstance(field, dict):
        return asked
    unknown = sorted(set(field) - {"min_version", "exact_version"})
    if unknown:
        raise BadRequest(
            f"{FIELD} takes min_version and exact_version, not"
            f" {', '.join(unknown)[:LONGEST_LABEL]}",
            code="unsupported_fields",
            details={"supported_fields": ["exact_version", "min_version"]},
        )
    oldest, exact = (
        () if field.get(name) is None else (_from_field(field[name], f"{FIELD}.{name}"),)
        for name in ("min_version", "exact_version")
    )
    asked = asked or Asked()
    return asked._replace(oldest=asked.oldest + oldest, exact=asked.exact + exact)


def _from_header(content: bytes, header: str) -> int | str:
    try:
        version = _version(content.decode())
    except UnicodeDecodeError:
        version = None
    if version is None:
        shown = content[:40].decode("latin-1")
        raise BadRequest(
            f"{header} must be a whole number or a label of at most {LONGEST_LABEL} characters, not"
            f" {shown!r}",
            code="invalid_header",
        )
    return version


def _from_field(value: object, name: str) -> int | str:
    version = _version(str(value)) if type(value) in (int, str) else None
    if version is None:
        raise BadRequest(
            f"{name} must be a whole number or a label of at most {LONGEST_LABEL} characters",
            code="invalid_field",
        )
    return version


def _version(text: str) -> int | str | None:
    """A number if it is written in digits, else a label; None if it is neither."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return int(text) if len(text) <= _MOST_DIGITS else None
    return None if _NUMBER_LIKE.match(text) or len(text) > LONGEST_LABEL else text


def _lag(content: bytes) -> int:
    number = content.strip()
    if not number.isdigit() or len(number) > _MOST_DIGITS:
        shown = content[:40].decode("latin-1")
        raise BadRequest(
            f"X-Max-Weight-Lag must be a whole number from 0, not {shown!r}", code="invalid_header"
        )
    return int(number)
