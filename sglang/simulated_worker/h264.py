"""H.264 without compression: macroblocks are stored (I_PCM) or left as they were (P_Skip).

A stream of the constrained baseline profile, which every browser and player decodes. A stored
macroblock takes 384 bytes, so only small pictures of which little moves make small files.
"""

from __future__ import annotations

import re

from attrs import frozen

SIDE = 16
"""Pixels along a macroblock."""
_LEVEL = 40
_FRAME_NUMBER_BITS = 16
_KEY, _CHANGE, _SEQUENCE, _PICTURE = b"\x65", b"\x61", b"\x67", b"\x68"


@frozen
class Stream:
    """The access units of pictures of one size: an even number of pixels each way."""

    width: int
    height: int

    def configuration(self) -> bytes:
        """The parameter sets as an MP4 file keeps them (`avcC`)."""
        sequence = _unit(_SEQUENCE, _to_bytes(self._sequence()))
        # id, sequence, CAVLC, order, slice groups, references, weights, quantisers, deblocking
        picture = _unit(_PICTURE, _to_bytes("11" + "00" + "1" + "11" + "000" + "111" + "100" + "1"))
        return (
            bytes([1, *sequence[1:4], 0xFF, 0xE1])
            + len(sequence).to_bytes(2, "big")
            + sequence
            + b"\1"
            + len(picture).to_bytes(2, "big")
            + picture
        )

    def key(self, macroblocks: list[bytes]) -> bytes:
        """A picture that needs no other."""
        # first macroblock, slice type I, parameters, frame 0, IDR 0, marking, quantiser, filter off
        head = "1" + _ue(7) + "1" + "0" * _FRAME_NUMBER_BITS + "1" + "00" + "1" + _ue(1)
        return _sample(_KEY, head, macroblocks, None)

    def change(self, number: int, macroblocks: list[bytes], before: list[bytes]) -> bytes:
        """The `number`-th picture after a key: only macroblocks that differ from `before`."""
        # first macroblock, slice type P, parameters, frame, default references, and as above
        frame = f"{number % (1 << _FRAME_NUMBER_BITS):0{_FRAME_NUMBER_BITS}b}"
        head = "1" + _ue(5) + "1" + frame + "00" + "0" + "1" + _ue(1)
        return _sample(_CHANGE, head, macroblocks, before)

    def macroblocks(self, planes: list[list[bytes]]) -> list[bytes]:
        """A picture cut up: per macroblock 256 bytes of luma and 64 of each chroma.

        `planes` are rows of Y, Cb and Cr for each pixel; of the chroma every second one is used.
        """
        luma = _tiles(planes[0], SIDE)
        blue, red = (_tiles([row[::2] for row in plane[::2]], SIDE // 2) for plane in planes[1:])
        return [b"".join(parts) for parts in zip(luma, blue, red, strict=True)]

    def _sequence(self) -> str:
        wide, high = -(-self.width // SIDE), -(-self.height // SIDE)
        aside, below = (SIDE * wide - self.width) // 2, (SIDE * high - self.height) // 2
        crop = "1" + _ue(0) + _ue(aside) + _ue(0) + _ue(below)
        return (
            f"{66:08b}{0xC0:08b}{_LEVEL:08b}"
            + (_ue(0) + _ue(_FRAME_NUMBER_BITS - 4) + _ue(2))  # id, frame numbers, no reordering
            + (_ue(1) + "0" + _ue(wide - 1) + _ue(high - 1))  # one reference, no gaps, size
            + ("11" + crop + "0")  # frames only, direct inference, cropping, no VUI
            + "1"
        )


def _tiles(rows: list[bytes], side: int) -> list[bytes]:
    """Squares of a plane from left to right and from top to bottom; its last pixels fill up."""
    wide, high = -len(rows[0]) % side, -len(rows) % side
    if wide:
        rows = [row + row[-1:] * wide for row in rows]
    rows = rows + rows[-1:] * high
    return [
        b"".join([row[x : x + side] for row in rows[y : y + side]])
        for y in range(0, len(rows), side)
        for x in range(0, len(rows[0]), side)
    ]


def _sample(kind: bytes, head: str, macroblocks: list[bytes], before: list[bytes] | None) -> bytes:
    """A slice with its length before it."""
    bits, skipped, parts = head, 0, []
    for index, macroblock in enumerate(macroblocks):
        if before is None:
            bits += _ue(25)
        elif macroblock == before[index]:
            skipped += 1
            continue
        else:
            bits += _ue(skipped) + _ue(30)
            skipped = 0
        parts += [_to_bytes(bits), macroblock]
        bits = ""
    if skipped:
        bits += _ue(skipped)
    unit = _unit(kind, b"".join(parts) + _to_bytes(bits + "1"))
    return len(unit).to_bytes(4, "big") + unit


def _unit(kind: bytes, payload: bytes) -> bytes:
    """Two zero bytes are kept apart from what would look like the start of another unit."""
    return kind + re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", payload)


def _ue(value: int) -> str:
    """An unsigned number in Exp-Golomb code."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


def _to_bytes(bits: str) -> bytes:
    """Filled up with zeros."""
    size = -(-len(bits) // 8)
    return int(bits.ljust(8 * size, "0"), 2).to_bytes(size, "big")
