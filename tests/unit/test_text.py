"""Text from outside: nothing of it makes what reads it raise."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import text

ANY_TEXT = st.text(st.characters(codec=None, categories=None))
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("value", ["a", "video_gen-1.x", "a b", "ünïcode", "x" * 256])
def test_ids(value: str) -> None:
    assert text.is_id(value)


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "a/b", "\ud800", "a\n", "a\x00", "\x7f", "x" * 257, None, 7, ["a"]],
)
def test_what_cannot_be_an_id(value: Any) -> None:
    assert not text.is_id(value)


@given(ANY_TEXT)
def test_text_becomes_anything(given: str) -> None:
    assert text.segment(given).isascii()
    assert "/" not in text.segment(given)
    assert text.header(given).isascii()
    line = text.one_line(given)
    line.encode()
    assert line.splitlines() in ([], [line])
    text.block(given).encode()
    assert all(part.startswith("    ") for part in text.block(given).split("\n"))
    text.words(given).encode()
    text.moment(given.encode(errors="replace"))


@pytest.mark.parametrize(
    ("date", "read"),
    [
        (b"Sun, 06 Nov 1994 08:49:37 GMT", "1994-11-06T08:49:37+00:00"),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", "1994-11-06T08:49:37+00:00"),
        (b"Sun Nov  6 08:49:37 1994", "1994-11-06T08:49:37+00:00"),
        (b"Fri, 31 Dec 9999 23:59:59 -2359", "9999-12-31T23:59:59-23:59"),
        (b"Sun, 06 Nov 99999 08:49:37 GMT", None),
        (b"Sun, 06 Nov 1994 08:49:37 +99999999999999999999", None),
        (b"soon", None),
        (b" ", None),
        (b"", None),
        (None, None),
    ],
)
def test_dates(date: bytes | None, read: str | None) -> None:
    found = text.moment(date)
    assert (found and found.isoformat()) == read


@given(ANY_JSON)
def test_every_value_becomes_json(value: Any) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(text.to_json(value), parse_constant=refuse)
    text.words(value).encode()


def test_depth_and_length_are_bounded() -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert json.loads(text.to_json({"deep": deep, "huge": 10**5000, "odd": math.nan}))
    assert len(text.words(deep)) < 400
    assert len(text.words("x" * 10**6)) < 400
    assert text.from_json(b"[" * 100_000) is None
    assert text.from_json(b"1" * 100_000) is None
    assert text.from_json(b"\xff\xfe{") is None


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("/workers/http://user:pa/ss@host:1", "/workers/http://***@host:1"),
        (
            "No worker is called 'http://u:p@h', see b@c",
            "No worker is called 'http://***@h', see b@c",
        ),
        ("/workers/http%3A%2F%2Fuser%3Apw%40host", "/workers/http%3A%2F%2F***%40host"),
        ("/workers/user:pw@host", "/workers/***@host"),
        ("/v1/models/@cf/flux", "/v1/models/@cf/flux"),
        ("http://host:1/a", "http://host:1/a"),
    ],
)
def test_passwords_in_urls_are_masked(given: str, shown: str) -> None:
    assert text.masked(given) == shown
    assert len(text.masked("//" * 50_000 + "@" + "a" * 50_000)) < 60_000  # in no time


def test_errors_of_h11_lose_the_bytes_that_they_are_about() -> None:
    for data in (b"key sk-1", b"it's \"sk-1\" \\'", bytearray(b"sk-1\nsk-1")):
        assert text.without_bytes(f"illegal header line: {data!r}") == "illegal header line"
