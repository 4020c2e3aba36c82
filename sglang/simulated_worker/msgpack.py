"""msgpack, as much of it as a worker speaks; large binaries may be made while they are sent."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

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
    parts: list[bytes | Blob] = []
    text = bytearray()
    size = 0

    def flush() -> None:
        nonlocal size
        if text:
            parts.append(bytes(text))
            size += len(text)
            text.clear()

    def put(item: Any) -> None:
        nonlocal size
        if isinstance(item, Blob):
            text.extend(_head(item.size, None, 0, b"\xc4\xc5\xc6"))
            flush()
            parts.append(item)
            size += item.size
        elif isinstance(item, dict):
            text.extend(_head(len(item), 0x80, 15, b"\0\xde\xdf"))
            for key, inner in item.items():
                put(key)
                put(inner)
        elif isinstance(item, list | tuple):
            text.extend(_head(len(item), 0x90, 15, b"\0\xdc\xdd"))
            for inner in item:
                put(inner)
        else:
            text.extend(_scalar(item))

    put(value)
    flush()
    return Encoded(size, tuple(parts))


def decode(data: bytes) -> Any:
    """Raises `MsgpackError`, also for bytes after the value."""
    try:
        value, end = _decode(data, 0, 0)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise MsgpackError(f"not msgpack: {error}") from None
    if end != len(data):
        raise MsgpackError("bytes after the value")
    return value


def _head(size: int, fix: int | None, most: int, codes: bytes) -> bytes:
    if fix is not None and size <= most:
        return bytes([fix | size])
    if size < 1 << 8 and codes[0]:
        return bytes([codes[0], size])
    if size < 1 << 16:
        return struct.pack(">BH", codes[1], size)
    if size < 1 << 32:
        return struct.pack(">BI", codes[2], size)
    raise MsgpackError("too large for msgpack")


def _scalar(item: Any) -> bytes:
    if item is None:
        return b"\xc0"
    if isinstance(item, bool):
        return b"\xc3" if item else b"\xc2"
    if isinstance(item, int):
        return _integer(item)
    if isinstance(item, float):
        return struct.pack(">Bd", 0xCB, item)
    if isinstance(item, str):
        data = item.encode("utf-8", "surrogatepass")
        return _head(len(data), 0xA0, 31, b"\xd9\xda\xdb") + data
    if isinstance(item, bytes):
        return _head(len(item), None, 0, b"\xc4\xc5\xc6") + item
    raise MsgpackError(f"cannot say a {type(item).__name__}")


def _integer(item: int) -> bytes:
    if -32 <= item < 128:
        return struct.pack("B", item & 0xFF)
    sizes = ("BHIQ", 0xCC) if item >= 0 else ("bhiq", 0xD0)
    for step, code in enumerate(sizes[0]):
        try:
            return struct.pack(f">B{code}", sizes[1] + step, item)
        except struct.error:
            continue
    raise MsgpackError("integer out of range")


_FIXED = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_SIZED = {
    0xC4: (">B", "bin"),
    0xC5: (">H", "bin"),
    0xC6: (">I", "bin"),
    0xD9: (">B", "str"),
    0xDA: (">H", "str"),
    0xDB: (">I", "str"),
    0xDC: (">H", "list"),
    0xDD: (">I", "list"),
    0xDE: (">H", "map"),
    0xDF: (">I", "map"),
}
_DEEPEST = 100


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise MsgpackError("too deep")
    code = data[at]
    at += 1
    if code < 0x80:
        return code, at
    if code >= 0xE0:
        return code - 256, at
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code], at
    if code in _FIXED:
        form = _FIXED[code]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if code in _SIZED:
        form, kind = _SIZED[code]
        size = struct.unpack_from(form, data, at)[0]
        return _sized(data, at + struct.calcsize(form), kind, size, depth)
    if code < 0x90:
        return _sized(data, at, "map", code & 15, depth)
    if code < 0xA0:
        return _sized(data, at, "list", code & 15, depth)
    if code < 0xC0:
        return _sized(data, at, "str", code & 31, depth)
    raise MsgpackError(f"code {code:#x}")


def _sized(data: bytes, at: int, kind: str, size: int, depth: int) -> tuple[Any, int]:
    if kind in ("bin", "str"):
        piece = data[at : at + size]
        if len(piece) < size:
            raise MsgpackError("cut short")
        return (piece if kind == "bin" else piece.decode()), at + size
    if size > len(data) - at:
        raise MsgpackError("cut short")
    if kind == "list":
        items = []
        for _ in range(size):
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        return items, at
    pairs = {}
    for _ in range(size):
        key, at = _decode(data, at, depth + 1)
        pairs[key], at = _decode(data, at, depth + 1)
    return pairs, at
