"""What a streamed update of tensors tells about itself on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from router.control.pushed import LoraWatch
from router.errors import Conflict

FIELD = b'"weight_update_mode" : "lora_merge"'


async def passed(body: bytes, size: int) -> list[bool]:
    """What `settle` is told of a body that comes in pieces of this size."""
    told: list[bool] = []
    sent = bytearray()

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            await trio.lowlevel.checkpoint()
            yield body[at : at + size]

    async def settle(lora: bool) -> None:
        await trio.lowlevel.checkpoint()
        told.append(lora)
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
    assert trio.run(passed, body, size) == [lora]


def test_an_error_keeps_the_last_piece_back() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b"):
                await trio.lowlevel.checkpoint()
                yield piece

        async def refuse(_: bool) -> None:
            await trio.lowlevel.checkpoint()
            raise Conflict("no")

        watch = LoraWatch(source(), refuse)
        assert await anext(watch) == b"a"
        with pytest.raises(Conflict):
            await anext(watch)

    trio.run(main)
