"""Text from outside on its way to bytes, URLs, log lines and JSON.

Workers and clients choose their own words: lone surrogates, control characters, megabytes, numbers
that JSON has no word for. Nothing here raises, whatever it is given.
"""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeGuard
from urllib.parse import quote

LONGEST_ID = 256
LONGEST_NAME = 1024
LONGEST_LABEL = 200
"""Characters of what a trainer calls a version, a run or a transaction."""
_LONGEST_WORDS = 300
_DEEPEST = 50  # levels of what JSON cannot say as it is

# What ends a line, moves a cursor or cannot be encoded.
_UNFIT = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_UNFIT_IN_BLOCK = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BYTES = re.compile(r"[: ]*(?:bytearray\()?\bb(['\"])(?:\\.|(?!\1).)*\1\)?", re.DOTALL)
_UNFIT_IN_HEADER = re.compile("[^\t\x20-\x7e]")


def is_id(value: object) -> TypeGuard[str]:
    """Whether this can be the id of a job or an image: it can stand in a URL as one segment."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= LONGEST_ID
        and value.isprintable()
        and "/" not in value
        and value not in (".", "..")
    )


def is_name(value: object) -> TypeGuard[str]:
    """Whether this can be the name of a model, a task or a version."""
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and not _UNFIT.search(value)


def segment(text: str) -> str:
    """The text as one segment of a URL's path, or as a value of its query."""
    return quote(text, safe="", errors="replace")


def header(text: str) -> bytes:
    """The text as the value of a header: printable ASCII, `?` in place of the rest."""
    return _UNFIT_IN_HEADER.sub("?", text).encode("ascii")


def one_line(text: str, most: int | None = None) -> str:
    """The text as a part of one line of a log, of `most` characters; the rest is escaped."""
    if most is not None and len(text) > most:
        text = f"{text[:most]}..."
    return _UNFIT.sub(_escaped, text)


def block(text: str) -> str:
    """Lines for a log (a traceback), all indented: none of them looks like a line of its own."""
    lines = _UNFIT_IN_BLOCK.sub(_escaped, text.replace("\r\n", "\n")).split("\n")
    return "\n".join(f"    {line}" for line in lines)


def words(value: object, most: int = _LONGEST_WORDS) -> str:
    """What a worker said, be it text or any other JSON value, as a part of one line."""
    if not isinstance(value, str):
        try:
            value = str(value)
        except (ValueError, RecursionError):  # thousands of digits, or of levels
            value = f"a value of type {type(value).__name__}"
    return one_line(value, most)


def without_bytes(error: str) -> str:
    """An error of h11 without the bytes that it is about: they may be a key or a prompt."""
    return _BYTES.sub("", error)


def masked(text: str) -> str:
    """The text with `***` in place of the user and password of each URL in it."""
    if "@" not in text and "%40" not in text:
        return text
    return " ".join(map(_masked_word, text.split(" ")))


def _masked_word(word: str) -> str:
    end = max(word.rfind("@"), word.rfind("%40"))
    if end < 0:
        return word
    lower = word[:end].lower()
    begins = [place + len(mark) for mark in ("//", "%2f%2f") if (place := lower.find(mark)) >= 0]
    begin = min(begins, default=lower.rfind("/") + 1)
    if not begins and ":" not in lower[begin:] and "%3a" not in lower[begin:]:
        return word  # a name such as `@cf/model`
    return f"{word[:begin]}***{word[end:]}"


def moment(date: bytes | None) -> datetime | None:
    """What an HTTP date says; None if it is none."""
    try:
        read = parsedate_to_datetime((date or b"").decode("latin-1"))
        # A date without a zone is meant as UTC (RFC 9110 section 5.6.7).
        return read if read.tzinfo else read.replace(tzinfo=UTC)
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def from_json(data: bytes | bytearray | str) -> Any:
    """The value that JSON text stands for; None if it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def to_json(value: object, separators: tuple[str, str] | None = None) -> str:
    """JSON text, in ASCII. What JSON has no word for is left out or described."""
    try:
        return json.dumps(value, allow_nan=False, separators=separators)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(_sayable(value, 0), separators=separators)


def _sayable(value: object, depth: int) -> object:
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if abs(value) < 2**1024 else None
        case float():
            return value if math.isfinite(value) else None
        case dict() | list() | tuple() if depth == _DEEPEST:
            return "..."
        case dict():
            return {words(k): _sayable(v, depth + 1) for k, v in value.items()}
        case list() | tuple():
            return [_sayable(v, depth + 1) for v in value]
        case _:
            return words(value)


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
