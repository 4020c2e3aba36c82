"""Learns from a streamed update of tensors, as it passes, whether it pushes a LoRA, whether its
tensors replace all weights, and which version it wants to be."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Self

from attrs import define, field

from ..pool.weights.recipe import TENSOR, pushes_lora
from ..text import LONGEST_LABEL

_WANTED = ("weight_update_mode", "weight_version", "full")
# Bytes kept of a name or a value: more than a label may have, with each character escaped.
_MOST = 12 * (LONGEST_LABEL + 1) + 2
_MARK = re.compile(rb'["{}\[\]:,]')
_DEEP_MARK = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)


@define(eq=False)
class TopFields:
    """The wanted fields of a JSON object that comes in pieces, as its reader will see them: only
    names of the object itself count, with escapes decoded, and the last of several.

    `fields` lacks values that are longer than any that counts, except texts, of which it has the
    beginning. Fields may stand behind gigabytes,
    of which nothing is kept.
    """

    fields: dict[str, Any] = field(init=False, factory=dict)
    _depth: int = field(init=False, default=0)
    _string: bool = field(init=False, default=False)  # within one
    _escape: bool = field(init=False, default=False)  # a piece has ended with a backslash
    _kept: bytearray = field(init=False, factory=bytearray)  # of the name or value
    _name: object = field(init=False, default=None)

    def feed(self, piece: bytes) -> None:
        """The next piece of the object."""
        at, end = 0, len(piece)
        while at < end:
            start = at
            if self._string:
                at = self._string_end(piece, at)
                self._keep(piece, start, at)
                continue
            match = (_MARK if self._depth == 1 else _DEEP_MARK).search(piece, at)
            at = end if match is None else match.start()
            self._keep(piece, start, at)
            if match is not None:
                self._mark(piece, at)
                at += 1

    def _string_end(self, piece: bytes, at: int) -> int:
        """Where the string that lasts at this place, or the piece, ends."""
        if self._escape:
            self._escape = False
            return at + 1
        end = piece.find(b'"', at) % (len(piece) + 1)  # the end of the piece, if there is none
        if piece.find(b"\\", at, end) >= 0:
            match = _IN_STRING.match(piece, at)
            assert match is not None
            end = match.end()
        if end == len(piece):
            return end
        self._escape = piece[end : end + 1] == b"\\"
        self._string = self._escape
        return end + 1

    def _mark(self, piece: bytes, at: int) -> None:
        match piece[at : at + 1]:
            case b'"':
                self._string = True
                self._keep(piece, at, at + 1)
            case b"{" | b"[":
                self._keep(piece, at, at + 1)  # no name, and no value that counts
                self._depth += 1
                if self._depth == 1:
                    self._kept.clear()
            case b"}" | b"]":
                if self._depth == 1:
                    self._end()
                self._depth -= 1
            case b":" if self._depth == 1:
                self._name = self._taken()
            case b"," if self._depth == 1:
                self._end()

    def _end(self) -> None:
        value = self._taken()
        if isinstance(self._name, str) and self._name in _WANTED:
            self.fields[self._name] = value
        self._name = None

    def _keep(self, piece: bytes, start: int, end: int) -> None:
        if self._depth == 1 and (room := _MOST - len(self._kept)) > 0:
            kept = piece[start : min(end, start + room)]
            self._kept += kept if self._kept else kept.lstrip(b" \t\r\n")

    def _taken(self) -> object:
        """The text that was kept, as JSON; None if it is none, or too long and no string."""
        text = bytes(self._kept)
        self._kept.clear()
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            cut = len(text) == _MOST and text.startswith(b'"')
            return text.decode(errors="replace") if cut else None


def version_of(fields: Mapping[str, Any]) -> int | str | None:
    """The number or label in the field `weight_version`, if any."""
    said = fields.get("weight_version")
    if type(said) is str:
        return said or None
    return said if type(said) is int else None


def version_in(beginning: bytes) -> int | str | None:
    """The number or label that the beginning of a body gives the version, if any."""
    found = TopFields()
    found.feed(beginning)
    return version_of(found.fields)


@define(eq=False)
class LoraWatch:
    """The pieces of `source`. The last one follows only after `settle` has been told whether the
    update pushes a LoRA, and what `TopFields` finds: a worker does not act on an incomplete body.

    An error of `settle` ends the body before it is complete.
    """

    _source: AsyncIterable[bytes]
    _settle: Callable[[bool, Mapping[str, Any]], Awaitable[None]]
    _found: TopFields = field(init=False, factory=TopFields)
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
                fields = self._found.fields
                await self._settle(pushes_lora(TENSOR, fields), fields)
                return before
            self._found.feed(self._held)
            if before is not None:
                return before
