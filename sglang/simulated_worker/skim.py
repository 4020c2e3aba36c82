"""JSON with huge strings in it, read as it arrives: what is long is hashed, not held."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from attrs import define, field

from .messages import NotJson, from_json

LONGEST = 4096
"""Strings of more bytes than this become `sha256:<digest>:<bytes>`."""
_MOST_REST = 64 * 1024 * 1024
_SPECIAL = re.compile(rb'["\\]')


class SkimError(ValueError):
    """Not JSON, or too much of it besides its long strings."""


@define(eq=False)
class Skimmer:
    """`feed` it the pieces, then ask for the `value`."""

    _rest: bytearray = field(factory=bytearray)
    _string: bytearray = field(factory=bytearray)
    _size: int = 0
    _digest: Any = None
    _inside: bool = False
    _escaped: bool = False

    def feed(self, data: bytes) -> None:
        """Raises `SkimError`."""
        at = 0
        while at < len(data):
            at = self._in_string(data, at) if self._inside else self._between(data, at)
        if len(self._rest) > _MOST_REST:
            raise SkimError("too much JSON")

    def value(self) -> Any:
        """The value with the long strings replaced. Raises `SkimError`."""
        if self._inside:
            raise SkimError("a string without end")
        try:
            return from_json(bytes(self._rest))
        except NotJson as error:
            raise SkimError(str(error)) from None

    def _between(self, data: bytes, at: int) -> int:
        quote = data.find(b'"', at)
        if quote < 0:
            self._rest += data[at:]
            return len(data)
        self._rest += data[at : quote + 1]
        self._inside = True
        self._string.clear()
        self._size, self._digest = 0, None
        return quote + 1

    def _in_string(self, data: bytes, at: int) -> int:
        if self._escaped:
            self._escaped = False
            self._take(data[at : at + 1])
            return at + 1
        found = _SPECIAL.search(data, at)
        if found is None:
            self._take(data[at:])
            return len(data)
        self._take(data[at : found.start()])
        if found[0] == b"\\":
            self._take(b"\\")
            self._escaped = True
        else:
            if self._digest is not None:
                self._string += f"sha256:{self._digest.hexdigest()}:{self._size}".encode()
            self._rest += self._string + b'"'
            self._inside = False
        return found.end()

    def _take(self, data: bytes) -> None:
        self._size += len(data)
        if self._digest is not None:
            self._digest.update(data)
            return
        self._string += data
        if len(self._string) > LONGEST:
            self._digest = hashlib.sha256(self._string)
            self._string.clear()
