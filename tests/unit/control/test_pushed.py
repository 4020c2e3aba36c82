"""What a streamed update of tensors tells about itself on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from router.control.pushed import LoraWatch, version_in
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

    async def settle(lora: bool, version: int | str | None) -> None:
        await trio.lowlevel.checkpoint()
        told.append((lora, version))
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
        (b'{"a": "x", "weight_version": "' + b"x" * 201 + b'"}', None),
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
