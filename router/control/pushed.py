"""Learns from a streamed update of tensors, as it passes, whether it pushes a LoRA, and which
version it wants to be."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Self

from attrs import define, field

# The fields may stand behind gigabytes of tensors. A quote within a JSON string is escaped, so that
# no string can look like a field.
_NAME = b'"weight_update_mode"'
_LORA = re.compile(rb'"weight_update_mode"[ \t\r\n]*+:[ \t\r\n]*+"lora_merge"')
_VERSION = b'"weight_version"'
_NUMBER_OR_LABEL = re.compile(
    rb'"weight_version"[ \t\r\n]*+:[ \t\r\n]*+(-?\d{1,20}(?=[ \t\r\n,}])|"[^"\\]{1,200}")'
)
_SEAM = 512  # bytes of one piece that may belong to a field which ends in the next piece


def version_in(piece: bytes) -> int | str | None:
    """The number or label in the last field `weight_version` of a piece of JSON, if any."""
    found, at = None, piece.find(_VERSION)
    while at >= 0:
        if match := _NUMBER_OR_LABEL.match(piece, at):
            with suppress(ValueError):
                found = json.loads(match[1])
        at = piece.find(_VERSION, at + 1)
    return found


@define(eq=False)
class LoraWatch:
    """The pieces of `source`. The last one follows only after `settle` has been told whether the
    update pushes a LoRA, and what `version_in` finds: a worker does not act on an incomplete body.

    An error of `settle` ends the body before it is complete.
    """

    _source: AsyncIterable[bytes]
    _settle: Callable[[bool, int | str | None], Awaitable[None]]
    _lora: bool = field(init=False, default=False)
    _version: int | str | None = field(init=False, default=None)
    _seam: bytes = field(init=False, default=b"")
    _held: bytes | None = field(init=False, default=None)
    _pieces: AsyncIterator[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._pieces = aiter(self._source)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while True:
            before = self._held
            try:
                self._held = await anext(self._pieces)
            except StopAsyncIteration:
                self._held = None
                if before is None:
                    raise
                await self._settle(self._lora, self._version)
                return before
            self._look(self._held)
            if before is not None:
                return before

    def _look(self, piece: bytes) -> None:
        seen = self._seam + piece
        at = seen.find(_NAME)
        while at >= 0 and not self._lora:
            self._lora = _LORA.match(seen, at) is not None
            at = seen.find(_NAME, at + 1)
        version = version_in(seen)
        self._version = self._version if version is None else version
        self._seam = seen[-_SEAM:]
