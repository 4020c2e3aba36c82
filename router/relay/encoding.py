"""Content encodings of answers that the router reads while they pass unchanged to the client."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from . import headers as heads

_GZIP = (b"gzip", b"x-gzip")
_READABLE = (*_GZIP, b"deflate", b"identity")
_EITHER = 32 + zlib.MAX_WBITS  # zlib reads from the header whether the body is gzip or zlib
_BARE = -zlib.MAX_WBITS


def readable_only(headers: Sequence[tuple[bytes, bytes]]) -> Sequence[tuple[bytes, bytes]]:
    """The request headers without the encodings that the router cannot read."""
    if heads.value(headers, b"accept-encoding") is None:
        return headers
    kept: heads.Headers = []
    accepts = False
    for name, content in headers:
        if name.lower() == b"accept-encoding":
            words = [word.strip() for word in content.split(b",")]
            some = [w for w in words if w.partition(b";")[0].strip().lower() in _READABLE]
            if not some:
                continue
            accepts, content = True, b", ".join(some)
        kept.append((name, content))
    return kept if accepts else [*kept, (b"accept-encoding", b"identity")]


# Decodes the next piece. Returns b"" once the limit is reached or the input is invalid.
Decoder: TypeAlias = Callable[[bytes], bytes]


def decoder(encoding: bytes | None, limit: int) -> Decoder | None:
    """A decoder for this Content-Encoding that returns at most `limit` bytes in all; None if the
    encoding is unknown."""
    word = (encoding or b"identity").strip().lower()
    if word == b"identity":
        return _as_it_is
    return _Inflate(limit) if word in _READABLE else None


def _as_it_is(piece: bytes) -> bytes:
    return piece


class _Inflate:
    def __init__(self, limit: int) -> None:
        self._left = limit
        self._begun = b""
        self._stream: zlib._Decompress | None = None

    def __call__(self, piece: bytes) -> bytes:
        if self._stream is None:
            self._begun += piece
            if len(self._begun) < 2:
                return b""
            piece, self._stream = self._begun, zlib.decompressobj(_form_of(self._begun))
        if self._left <= 0:
            return b""
        try:
            found = self._stream.decompress(piece, self._left)
        except zlib.error:
            self._left = 0
            return b""
        self._left -= len(found)
        return found


def _form_of(begun: bytes) -> int:
    """The zlib window bits for a body that begins like this. Some senders send bare deflate,
    without a zlib header."""
    is_gzip = begun[:2] == b"\x1f\x8b"
    is_zlib = begun[0] & 15 == 8 and (begun[0] * 256 + begun[1]) % 31 == 0
    return _EITHER if is_gzip or is_zlib else _BARE
