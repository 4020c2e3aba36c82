"""msgpack as a worker speaks it; large binaries may be made while they are sent."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgpack  # type: ignore[import-untyped]
from attrs import frozen


class MsgpackError(ValueError):
    """Bytes that are no msgpack, or a value that it cannot say."""


@frozen
class Blob:
    """Binary of a known size that is made in pieces when it is sent."""

    size: int
    pieces: Callable[[], Iterable[bytes]]


@frozen
class Encoded:
    """An encoded value: `size` bytes in all."""

    size: int
    parts: tuple[bytes | Blob, ...]

    def pieces(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, Blob):
                yield from part.pieces()
            else:
                yield part


def encode(value: Any) -> bytes:
    """Raises `MsgpackError`."""
    return b"".join(plan(value).pieces())


def plan(value: Any) -> Encoded:
    """As `encode`, with the `Blob`s in it left to be made. Raises `MsgpackError`."""
    packer = msgpack.Packer(autoreset=False, unicode_errors="surrogatepass")
    parts: list[bytes | Blob] = []

    def flush() -> None:
        parts.append(packer.bytes())
        packer.reset()

    def put(item: Any) -> None:
        if isinstance(item, Blob):
            flush()
            parts.extend((struct.pack(">BI", 0xC6, item.size), item))
        elif isinstance(item, dict):
            packer.pack_map_header(len(item))
            for key, inner in item.items():
                put(key)
                put(inner)
        elif isinstance(item, list | tuple):
            packer.pack_array_header(len(item))
            for inner in item:
                put(inner)
        else:
            packer.pack(item)

    try:
        put(value)
    except (TypeError, ValueError, OverflowError, RecursionError, struct.error) as error:
        raise MsgpackError(f"cannot be said in msgpack: {error}") from None
    flush()
    return Encoded(sum(_size(part) for part in parts), tuple(filter(_size, parts)))


def decode(data: bytes) -> Any:
    """Raises `MsgpackError`, also for bytes after the value."""
    try:
        return msgpack.unpackb(data, strict_map_key=False)
    except (TypeError, ValueError, msgpack.OutOfData) as error:
        raise MsgpackError(f"not msgpack: {error}") from None


def _size(part: bytes | Blob) -> int:
    return part.size if isinstance(part, Blob) else len(part)
