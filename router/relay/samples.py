"""Walks the msgpack of a rollout answer as it passes: its samples, without the array around them.

Nothing is decoded but the heads of values and the `seed` of each sample, and large values are never
held.
"""

from __future__ import annotations

from attrs import define, field

from .connection import Invalid

_DEEPEST = 64
_SEED = b"\xa4seed"
# Bytes of the length field behind the first byte.
_LENGTH = {
    **{0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4},  # bin, ext
    **{0xD9: 1, 0xDA: 2, 0xDB: 4, 0xDC: 2, 0xDD: 4, 0xDE: 2, 0xDF: 4},  # str, array, map
}
# Bytes of the value behind the first byte, if that alone says it: nil, bool, float, int, fixext.
_FIXED = {
    **{0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8},
    **{0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8, 0xD4: 2, 0xD5: 3, 0xD6: 5, 0xD7: 9, 0xD8: 17},
}
_INTEGER = range(0xCC, 0xD4)


def integer(value: int) -> bytes:
    """A whole number of at most 64 bits in its shortest form, as workers write it."""
    if -32 <= value < 128:
        return bytes([value & 0xFF])
    if value > 0:
        size = next(s for s in (1, 2, 4, 8) if value < 1 << 8 * s)
        return bytes([0xCC + size.bit_length() - 1]) + value.to_bytes(size, "big")
    size = next(s for s in (1, 2, 4, 8) if value >= -1 << 8 * s - 1)
    return bytes([0xD0 + size.bit_length() - 1]) + value.to_bytes(size, "big", signed=True)


def array(count: int) -> bytes:
    """The head of an array of fewer than 2**32 values, in its shortest form."""
    if count < 16:
        return bytes([0x90 + count])
    size = 2 if count < 1 << 16 else 4
    return bytes([0xDC + size // 4]) + count.to_bytes(size, "big")


@define(eq=False)
class Samples:
    """The samples of one answer: exactly `count`, each a map whose `seed` is `seed`.

    They pass unchanged, but for their `seed`, which becomes `shown`.
    """

    count: int
    seed: int
    shown: int
    # For each open array or map, the outermost first: the values still to come in it.
    _open: list[int] = field(init=False, factory=list)
    _held: bytes = field(init=False, default=b"")  # the beginning of a head
    _skip: int = field(init=False, default=0)  # bytes of the present value still to come
    _begun: bool = field(init=False, default=False)
    _awaits_seed: bool = field(init=False, default=False)  # the next value is the seed
    _seeds: int = field(init=False, default=0)  # in the samples so far

    def over(self) -> None:
        """The answer has ended. Raises Invalid unless all samples are complete."""
        if not self._begun or self._open or self._skip or self._held:
            raise self._odd("it ends within a value")
        if self._seeds != self.count:
            raise self._odd("a sample has no seed")

    def take(self, piece: bytes) -> bytes:
        """What to pass on of the next piece of the answer. Raises Invalid."""
        if len(piece) <= self._skip:
            self._skip -= len(piece)
            return piece
        data, at, kept = self._held + piece, self._skip, 0
        self._skip = 0
        out: list[bytes] = []
        while at < len(data):
            head = self._head(data, at)
            if head is None:
                break
            size, payload, inside = head
            if not self._begun:
                self._begin(data, at, inside)
                kept = at + size
            elif not self._open:
                raise self._odd("bytes follow its end")
            elif self._awaits_seed:
                self._check_seed(data[at : at + size + payload])
                out += (data[kept:at], integer(self.shown))
                kept = at + size + payload
            self._awaits_seed = not self._awaits_seed and self._is_seed(data, at)
            at += size
            self._entered(inside)
            if len(data) - at < payload:
                self._skip = payload - (len(data) - at)
                at = len(data)
            else:
                at += payload
        self._held = data[at:]
        out.append(data[kept:at])
        return b"".join(out)

    def _head(self, data: bytes, at: int) -> tuple[int, int, int | None] | None:
        """Of the value at `at`: the bytes of its head, the bytes that follow, and for an array or
        map the number of values inside. None if more is needed to know."""
        first = data[at]
        size, payload, inside = 1, 0, None
        if first < 0x80 or first >= 0xE0:
            pass
        elif first < 0xC0:
            low = first & 0x0F
            if first >= 0xA0:
                payload = first & 0x1F
            else:
                inside = low if first >= 0x90 else 2 * low
        elif first in _FIXED:
            size += _FIXED[first]
        elif first in _LENGTH:
            size += _LENGTH[first]
            length = int.from_bytes(data[at + 1 : at + size], "big")
            if first >= 0xDC:
                inside = length if first < 0xDE else 2 * length
            else:
                payload = length + (first in (0xC7, 0xC8, 0xC9))
        else:
            raise self._odd("it is no msgpack")
        # The key `seed` is looked at whole.
        whole = size + (payload if payload == len(_SEED) - 1 else 0)
        return (size, payload, inside) if len(data) - at >= whole else None

    def _begin(self, data: bytes, at: int, inside: int | None) -> None:
        is_array = data[at] & 0xF0 == 0x90 or data[at] in (0xDC, 0xDD)
        if not is_array or inside != self.count:
            raise self._odd(f"it is no list of {self.count} samples")
        self._begun = True

    def _entered(self, inside: int | None) -> None:
        """A value has begun; one without values inside is over."""
        if self._open:
            self._open[-1] -= 1
        if inside:
            if len(self._open) == _DEEPEST:
                raise self._odd("its values are nested too deep")
            self._open.append(inside)
        while self._open and not self._open[-1]:
            self._open.pop()
            if len(self._open) == 1 and self._seeds != self.count - self._open[0]:
                raise self._odd("a sample has no seed")

    def _is_seed(self, data: bytes, at: int) -> bool:
        """Whether the value at `at` is the key `seed` of a sample."""
        if len(self._open) == 1 and not (0x80 <= data[at] < 0x90 or data[at] in (0xDE, 0xDF)):
            raise self._odd("a sample is no map")
        is_key = len(self._open) == 2 and self._open[-1] % 2 == 0
        return is_key and data[at : at + len(_SEED)] == _SEED

    def _check_seed(self, value: bytes) -> None:
        if value != integer(self.seed):
            raise self._odd("a sample does not repeat the seed of its request")
        self._seeds += 1

    @staticmethod
    def _odd(why: str) -> Invalid:
        return Invalid(f"its answer cannot be joined with others: {why}")
