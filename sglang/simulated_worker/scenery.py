"""Landscapes drawn column by column: a sky, a sun, and ridges that fade into mist.

The weights choose the colours, prompt and seed the shapes. All arithmetic is on integers, so that
every platform and every Python draws the same bytes. Heights are in 1/256 of a pixel, shares in
1/256 of the whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import isqrt

from attrs import frozen

Colour = tuple[int, int, int]

_RIDGES = 5
_ROUND = 1 << 22
"""The length of a ridge, which closes on itself."""
_VIEW = _ROUND * 2 // 3
_MOST_KNOTS = 512
_WORD = (1 << 64) - 1


class Dice:
    """Numbers that follow from texts alone."""

    def __init__(self, *texts: str) -> None:
        text = "\0".join(texts).encode("utf-8", "surrogatepass")
        self._state = int.from_bytes(hashlib.sha256(text).digest()[:8], "big")

    def between(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        # Knuth's linear congruential generator, of which the upper half is good
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & _WORD
        return low + ((self._state >> 32) * (high - low + 1) >> 32)


@frozen
class Look:
    """The colours of a picture, as three bytes of any kind that can be mixed."""

    top: Colour
    horizon: Colour
    sun: Colour
    mist: Colour
    near: Colour

    @classmethod
    def of(cls, dice: Dice, kind: Callable[[Colour], Colour] = lambda rgb: rgb) -> Look:
        """Drawn in red, green and blue, each then made a colour of `kind`."""
        # no green in the sky: cool above, anything from teal past red to yellow below
        hue, glow, light = dice.between(175, 340), dice.between(205, 410), dice.between(0, 255)
        haze = glow + dice.between(-45, 10)
        return cls(
            top=kind(_hsl(hue, dice.between(110, 190), 44 + light // 3)),
            horizon=kind(_hsl(glow, dice.between(180, 240), 178 + light // 6)),
            sun=kind(_hsl(glow + dice.between(-10, 20), 240, 236)),
            mist=kind(_hsl(haze, dice.between(100, 180), 148 + light // 4)),
            near=kind(_hsl(hue + dice.between(-20, 30), dice.between(90, 150), 25)),
        )


def mix(a: Colour, b: Colour, share: int) -> Colour:
    """`share` of `b`, the rest of `a`."""
    return (
        a[0] + ((b[0] - a[0]) * share >> 8),
        a[1] + ((b[1] - a[1]) * share >> 8),
        a[2] + ((b[2] - a[2]) * share >> 8),
    )


class Scene:
    """A landscape of some size. `look` decides on colours, `layout` on shapes, `nudge` on both a
    little: pictures of other requests differ, however small they are."""

    def __init__(
        self, look: Look, rough: int, layout: Dice, nudge: Dice, width: int, height: int
    ) -> None:
        """`rough`: 0 for hills, 256 for peaks."""
        self._width, self._height = width, height
        long = max(width, height * 4 // 3)
        self._step = _VIEW // long
        knots = 16
        while knots < min(long // 3, _MOST_KNOTS):
            knots *= 2
        self._bits = _ROUND.bit_length() - knots.bit_length()
        sky = _sky(look, height)
        radius = height * layout.between(17, 27)
        self._sun = (width * layout.between(48, 208), height * layout.between(58, 122))
        self._discs = [
            (radius * wide // 8, _lit(sky, look.sun, share)) for wide, share in ((19, 28), (13, 56))
        ]
        disc = mix(look.sun, look.horizon, 70)
        self._discs.append((radius, _ramp(look.sun, disc, height, height)))
        self._sky = sky
        self._ridges: list[tuple[list[int], bytes, int]] = []
        for index in range(_RIDGES):
            base = height * (121 + 30 * index)
            tall = height * (34 - 4 * index) * layout.between(200, 330) >> 8
            crest = Dice(str(layout.between(0, _WORD)))
            heights = _crest(crest, max(0, rough - 50 * index), knots)
            share = 256 * (index + 1) * (index + 3) // (_RIDGES * (_RIDGES + 2))
            colour = mix(look.mist, look.near, share)
            foot = mix(colour, look.mist, (140, 120, 90, 48, 0)[index])
            body = _ramp(colour, foot, height * 2 // 5 + 1, height)
            shift = layout.between(0, _ROUND - 1) + nudge.between(-_ROUND // 99, _ROUND // 99)
            self._ridges.append(([base - high * tall // 4096 for high in heights], body, shift))

    def columns(self, sway: int = 0) -> bytes:
        """The pixels, column after column. `sway` moves near ridges more than far ones."""
        sun, reach = self._sun[0], self._discs[0][0]
        edges = [self._edges(index, sway) for index in range(_RIDGES)]
        edges.reverse()
        bodies = [body for _, body, _ in reversed(self._ridges)]
        pieces: list[bytes] = []
        for x, tops in enumerate(zip(*edges, strict=True)):
            skyline = self._height << 8
            cuts = []
            for edge, body in zip(tops, bodies, strict=True):
                if edge < skyline:  # else it is behind a nearer one
                    skyline = edge
                    cuts.append((edge, body, (edge + 255) >> 8))
            aside = (x << 8) - sun
            if -reach < aside < reach:
                cuts += [cut for cut in self._crossed(aside) if cut[0] < skyline][::-1]
            self._paint(cuts, pieces)
        return b"".join(pieces)

    def _edges(self, index: int, sway: int) -> list[int]:
        """Where the ridge begins in each column."""
        line, _, shift = self._ridges[index]
        last, whole, fine = len(line) - 2, self._bits, self._bits - 8
        start = shift + sway * (index + 1)
        return [
            (line[at >> whole & last] << 8)
            + (line[(at >> whole & last) + 1] - line[at >> whole & last]) * (at >> fine & 255)
            >> 8
            for at in range(start, start + self._width * self._step, self._step)
        ]

    def _crossed(self, aside: int) -> list[tuple[int, bytes, int]]:
        """What begins where in the sky of a column so far from the middle of the sun."""
        into, out, behind = [], [], self._sky
        for radius, disc in self._discs:
            if -radius < aside < radius:
                half = isqrt(radius * radius - aside * aside)
                into.append((self._sun[1] - half, disc, 0))
                out.append((self._sun[1] + half, behind, 0))
                behind = disc
        return into + out[::-1]

    def _paint(self, cuts: list[tuple[int, bytes, int]], pieces: list[bytes]) -> None:
        """One column. A cut: the height of an edge, the colours below it, and their first row; the
        lowest first."""
        at, colours, origin = 0, self._sky, 0
        for edge, below, start in reversed(cuts):
            end, share = edge >> 8, edge & 255
            if end > at:
                pieces.append(colours[3 * (at - origin) : 3 * (end - origin)])
                at = end
            if share and end == at:  # the pixel that the edge goes through has some of both
                i, j = 3 * (at - origin), 3 * (at - start) if at > start else 0
                r, g, b = below[j : j + 3]
                pieces.append(
                    bytes(
                        (
                            r + ((colours[i] - r) * share >> 8),
                            g + ((colours[i + 1] - g) * share >> 8),
                            b + ((colours[i + 2] - b) * share >> 8),
                        )
                    )
                )
                at += 1
            colours, origin = below, start
        pieces.append(colours[3 * (at - origin) : 3 * (self._height - origin)])


def _crest(dice: Dice, rough: int, knots: int) -> list[int]:
    """Heights of a closed ridge, about -4096 to 4096, the first once more at the end.

    Fewer knots give the same ridge in less detail.
    """
    waves = [(k, dice.between(1200, 2600) // k, dice.between(0, _TURN - 1)) for k in (1, 2, 3, 5)]
    peaks = [dice.between(-2600, 2600) for _ in range(8)]
    swing = 2200
    while len(peaks) < knots:
        after = peaks[1:] + peaks[:1]
        peaks = [
            height
            for a, b in zip(peaks, after, strict=True)
            for height in (a, (a + b) // 2 + dice.between(-swing, swing))
        ]
        swing = swing * 132 >> 8
    stride = _TURN // knots
    hills = [0] * knots
    for k, high, phase in waves:
        step = k * stride
        hills = [
            hill + (high * _SINES[(place * step + phase) % _TURN] >> 12)
            for place, hill in enumerate(hills)
        ]
    line = [hill + ((peak - hill) * rough >> 8) for hill, peak in zip(hills, peaks, strict=True)]
    return [*line, line[0]]


def sine(turn: int) -> int:
    """-4096 to 4096; `turn` is in 1/512 of a round. Bhaskara's, good to two parts in 1000."""
    place = turn % 256
    bump = place * (256 - place)
    value = 16384 * bump // (5 * 16384 - bump)
    return value if turn % 512 < 256 else -value


_TURN = 512
_SINES = [sine(turn) for turn in range(_TURN)]


def _sky(look: Look, height: int) -> bytes:
    shares = [min(256, 65536 * y // (height * 150)) for y in range(height)]
    return _blend(look.top, look.horizon, [s * s * (768 - 2 * s) >> 16 for s in shares])


def _ramp(a: Colour, b: Colour, steps: int, total: int) -> bytes:
    """`total` pixels: from `a` to `b` in `steps` of them, and `b` from there on."""
    shares = [256 * i // steps for i in range(min(steps, total))]
    return _blend(a, b, shares + [256] * (total - len(shares)))


def _blend(a: Colour, b: Colour, shares: list[int]) -> bytes:
    """A pixel for each share."""
    pixels = bytearray(3 * len(shares))
    for channel in range(3):
        start, change = a[channel], b[channel] - a[channel]
        pixels[channel::3] = bytes([start + (change * share >> 8) for share in shares])
    return bytes(pixels)


def _lit(pixels: bytes, light: Colour, share: int) -> bytes:
    """The pixels with some light on them."""
    shone = bytearray(pixels)
    for channel in range(3):
        table = bytes([value + ((light[channel] - value) * share >> 8) for value in range(256)])
        shone[channel::3] = pixels[channel::3].translate(table)
    return bytes(shone)


def _hsl(hue: int, saturation: int, lightness: int) -> Colour:
    """Red, green and blue; `hue` goes round in 360 steps."""
    reach = saturation * min(lightness, 255 - lightness) // 255
    parts = [abs((hue + offset) % 360 - 180) - 120 for offset in (0, 240, 120)]
    red, green, blue = (lightness + reach * max(-60, min(part, 60)) // 60 for part in parts)
    return red, green, blue
