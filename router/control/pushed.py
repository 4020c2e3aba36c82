"""Learns from a streamed update of tensors, as it passes, whether it pushes a LoRA."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Self

from attrs import define, field

# The field may stand behind gigabytes of tensors. A quote within a JSON string is escaped, so that
# no string can look like the field.
_NAME = b'"weight_update_mode"'
_LORA = re.compile(rb'"weight_update_mode"[ \t\r\n]*+:[ \t\r\n]*+"lora_merge"')
_SEAM = 256  # bytes of one piece that may belong to a field which ends in the next piece


@define(eq=False)
class LoraWatch:
    """The pieces of `source`. The last one follows only after `settle` has been told whether the
    update pushes a LoRA: a worker does not act on an incomplete body.

    An error of `settle` ends the body before it is complete.
    """

    _source: AsyncIterable[bytes]
    _settle: Callable[[bool], Awaitable[None]]
    _lora: bool = field(init=False, default=False)
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
                await self._settle(self._lora)
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
        self._seam = seen[-_SEAM:]
