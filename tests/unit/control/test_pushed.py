"""What a streamed update of tensors tells about itself on its way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from router.control.pushed import LoraWatch, TopFields, version_in, version_of
from router.errors import Conflict

FIELD = b'"weight_update_mode" : "lora_merge"'


async def passed(body: bytes, size: int) -> list[tuple[bool, int | str | None]]:
    """What `settle` is told of a body that comes in pieces of this size."""
    told: list[tuple[bool, int | str | None]] = []
    sent = bytearray()

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            await trio.lowlevel.checkpoint()
            yield body[at : at + size]

    async def settle(lora: bool, fields: Mapping[str, Any]) -> None:
        await trio.lowlevel.checkpoint()
        told.append((lora, version_of(fields)))
        assert len(sent) < len(body)  # no worker has all of it

    async for piece in LoraWatch(source(), settle):
        sent += piece
    assert sent == body
    return told


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize(
    ("body", "lora"),
    [
        (b'{"a": "x", ' + FIELD + b"}", True),
        (b"{" + FIELD + b', "a": "' + b"x" * 500 + b'"}', True),
        (b'{"weight_update_mode": null, "a": "lora_merge"}', False),
        (b'{"a": "\\"weight_update_mode\\": \\"lora_merge\\""}', False),
        (b'{"a": "x"}', False),
        (b'{"weight\\u005fupdate_mode": "lora\\u005fmerge"}', True),
        (
            b'{"\\u0077eight_update_mode"' + b" " * 3000 + b": " + b"\n" * 3000 + b'"lora_merge"}',
            True,
        ),
        (b'{"a": {' + FIELD + b"}, " + b'"b": [{' + FIELD + b"}]}", False),
        (b"{" + FIELD + b', "weight_update_mode": "x"}', False),
        (b'{"weight_update_mode": {"a": 1}, ' + FIELD + b"}", True),
        (b'{"a\\"\\\\": "x\\\\", ' + FIELD + b"}", True),
    ],
)
def test_it_is_known_before_the_last_piece(body: bytes, lora: bool, size: int) -> None:
    assert trio.run(passed, body, size) == [(lora, None)]


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b'{"weight_version": 40, "a": "' + b"x" * 700 + b'"}', 40),
        (b'{"a": "' + b"x" * 700 + b'", "weight_version":\n40\n}', 40),
        (b'{"a": "x", "weight_version": "40"}', "40"),
        (b'{"a": "x", "weight_version": -4}', -4),
        ('{"a": "x", "weight_version": "sch\u00f6n"}'.encode(), "sch\u00f6n"),
        (b'{"a": "x", "weight_version": "' + b"x" * 200 + b'"}', "x" * 200),
        (b'{"a": "x", "weight_version": "' + b"x" * 201 + b'"}', "x" * 201),
        (b'{"a": "x", "weight_version": "\xff"}', None),
        (b'{"a": "x", "weight_version": 007}', None),
        (b'{"a": "x", "weight_version": 4.5}', None),
        (b'{"a": "x", "weight_version": null}', None),
        (b'{"a": "\\"weight_version\\": 40"}', None),
        (b'{"a": ["weight_version"], "b": 40}', None),
    ],
)
def test_the_version_is_known_before_the_last_piece(
    body: bytes, version: int | str | None, size: int
) -> None:
    assert trio.run(passed, body, size) == [(False, version)]
    assert version_in(body) == version


names = st.sampled_from(
    ["weight_update_mode", "weight_version", "full", "a", 'b"', "c\\", "\u00e9"]
)
scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=20)
values = scalars | st.recursive(
    scalars, lambda some: st.lists(some) | st.dictionaries(names, some), max_leaves=8
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(names, values)),
    st.sets(st.integers(0, 200)),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_it_reads_what_a_worker_reads(
    pairs: list[tuple[str, Any]], cuts: set[int], ascii_only: bool, indent: int | None
) -> None:
    """Wherever the pieces end, and if a name comes twice."""

    def text(value: object) -> str:
        return json.dumps(value, ensure_ascii=ascii_only, indent=indent)

    body = f"{{{', '.join(f'{text(name)}: {text(value)}' for name, value in pairs)}}}".encode()
    found = TopFields()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(body)], strict=True):
        found.feed(body[start:end])
    for name in ("weight_update_mode", "weight_version", "full"):
        meant = json.loads(body).get(name)
        told = found.fields.get(name)
        assert told == (None if isinstance(meant, dict | list) else meant)


def test_an_error_keeps_the_last_piece_back() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b"):
                await trio.lowlevel.checkpoint()
                yield piece

        async def refuse(*_: object) -> None:
            await trio.lowlevel.checkpoint()
            raise Conflict("no")

        watch = LoraWatch(source(), refuse)
        assert await anext(watch) == b"a"
        with pytest.raises(Conflict):
            await anext(watch)

    trio.run(main)
