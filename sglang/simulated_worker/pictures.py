"""Pictures made without a model: a pure function from what a request asked for to a PNG.

Every picture follows from its `Recipe` alone, so two workers with equal weights answer equal bytes,
and a test can say from the bytes which weights made a picture: `expected_image` makes what a worker
would have made, `made_by` reads what the picture says about itself.

The drawing is smooth "plasma": waves along x, each shifted from row to row, summed and mapped to
colours. All per-pixel work is done on whole rows as big integers or by `bytes.translate`, which
takes some 50 ms for 1024x1024; call it from a thread.
"""

from __future__ import annotations

import hashlib
import math
import random
import struct
import zlib

from attrs import frozen

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_PERIOD = 4096


@frozen
class Recipe:
    """All that a picture depends on. `weights` and `lora` are identities from `weights.py`."""

    weights: str
    lora: str
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    inputs: str = ""
    """Digest of the uploaded pictures; empty where there are none."""

    def digest(self) -> bytes:
        text = "\0".join(
            (
                self.weights,
                self.lora,
                self.prompt,
                str(self.seed),
                f"{self.width}x{self.height}",
                str(self.steps),
                self.inputs,
            )
        )
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def expected_image(
    weights: str,
    prompt: str,
    seed: int,
    *,
    width: int = 1024,
    height: int = 1024,
    steps: int = 28,
    lora: str = "",
    inputs: str = "",
) -> bytes:
    """The PNG that a worker with these weights answers.

    `weights` is `weights.identity_of(model_path, task_type)` or the `weights` of a log entry,
    `lora` the `lora` of one. The i-th of several outputs has the seed `seed + i`.
    """
    return render(Recipe(weights, lora, prompt, seed, width, height, steps, inputs))


def made_by(png: bytes) -> dict[str, str]:
    """What a picture tells of its making: `weights`, `lora`, `seed`, `steps` (PNG tEXt chunks)."""
    told: dict[str, str] = {}
    at = len(PNG_SIGNATURE)
    while at + 8 <= len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"tEXt":
            key, _, value = png[at + 8 : at + 8 + length].partition(b"\0")
            told[key.decode("latin-1")] = value.decode("latin-1")
        at += 12 + length
    return told


def render(recipe: Recipe) -> bytes:
    """The picture as a truecolour PNG."""
    drawing = _Drawing(recipe)
    width, height = recipe.width, recipe.height
    row_bytes = 3 * width
    squeeze = zlib.compressobj(1)
    high = int.from_bytes(b"\x80" * row_bytes, "little")
    low = int.from_bytes(b"\x7f" * row_bytes, "little")
    above = 0
    parts = []
    row = bytearray(row_bytes)
    for y in range(height):
        row[0::3], row[1::3], row[2::3] = drawing.row(y)
        here = int.from_bytes(row, "little")
        # PNG filter 2 ("up"): each byte less the one above it, all bytes of the row at once
        change = ((here | high) - (above & low)) ^ ((here ^ above ^ high) & high)
        parts.append(squeeze.compress(b"\x02" + change.to_bytes(row_bytes, "little")))
        above = here
    parts.append(squeeze.flush())
    told = {
        "Software": "simulated_worker",
        "weights": recipe.weights,
        "lora": recipe.lora,
        "seed": str(recipe.seed),
        "steps": str(recipe.steps),
    }
    return b"".join(
        (
            PNG_SIGNATURE,
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
            *(chunk(b"tEXt", f"{k}\0{v}".encode("latin-1")) for k, v in told.items()),
            chunk(b"IDAT", b"".join(parts)),
            chunk(b"IEND", b""),
        )
    )


def raw_frame(recipe: Recipe) -> bytes:
    """The picture as bare pixels: 3 bytes each, row by row."""
    drawing = _Drawing(recipe)
    rows = bytearray(3 * recipe.width * recipe.height)
    lines = [drawing.row(y) for y in range(recipe.height)]
    rows[0::3], rows[1::3], rows[2::3] = (b"".join(side) for side in zip(*lines, strict=True))
    return bytes(rows)


def render_frames(recipe: Recipe, count: int) -> list[bytes]:
    """`count` palette PNGs of one drawing whose colours go round once: a loop without a seam."""
    drawing = _Drawing(recipe)
    width, height = recipe.width, recipe.height
    squeeze = zlib.compressobj(1)
    parts = [squeeze.compress(b"\x00" + drawing.field(y)) for y in range(height)]
    parts.append(squeeze.flush())
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0))
    pixels = chunk(b"IDAT", b"".join(parts))
    colours = b"".join(bytes(rgb) for rgb in zip(*drawing.colours, strict=True))
    frames = []
    for index in range(count):
        turn = 3 * (256 * index // count)
        palette = chunk(b"PLTE", colours[turn:] + colours[:turn])
        frames.append(PNG_SIGNATURE + header + palette + pixels + chunk(b"IEND", b""))
    return frames


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class _Drawing:
    """Rows of a picture; everything random about it comes from the recipe's digest."""

    def __init__(self, recipe: Recipe) -> None:
        dice = random.Random(recipe.digest())
        self._width = recipe.width
        scale = max(recipe.width, recipe.height, 16)
        self._waves = [self._wave(dice, scale, top) for top in (100, 70, 50)]
        self._glow = self._wave(dice, scale, 200)
        self._mask = int.from_bytes(b"\x7f" * recipe.width, "little")
        self.colours = _gradient(dice)

    def _wave(self, dice: random.Random, scale: int, top: int) -> tuple[bytes, list[int]]:
        """A wave of bytes in 0..`top` that repeats, and its shift for each row."""
        period = max(8, min(_MAX_PERIOD, int(scale * dice.uniform(0.7, 1.6))))
        second = dice.choice((2, 3))
        lift, turn = dice.uniform(0.2, 0.45), dice.uniform(0, math.tau)
        norm = top / (2 * (1 + lift))
        one = bytes(
            int(
                norm
                * (
                    1
                    + lift
                    + math.sin(math.tau * x / period)
                    + lift * math.sin(second * math.tau * x / period + turn)
                )
            )
            for x in range(period)
        )
        sway, pace = scale * dice.uniform(0.08, 0.3), dice.uniform(0.6, 1.8) * math.tau / scale
        lean, phase = dice.uniform(-0.9, 0.9), dice.uniform(0, math.tau)
        shifts = [
            int(lean * y + sway * math.sin(pace * y + phase)) % period for y in range(scale + 1)
        ]
        return one * (self._width // period + 2), shifts

    def _slice(self, wave: tuple[bytes, list[int]], y: int) -> bytes:
        line, shifts = wave
        start = shifts[y]
        return line[start : start + self._width]

    def field(self, y: int) -> bytes:
        """The heights of row y, 0..220: the sum of three waves, which cannot overflow a byte."""
        total = sum(int.from_bytes(self._slice(wave, y), "little") for wave in self._waves)
        return total.to_bytes(self._width, "little")

    def row(self, y: int) -> tuple[bytes, bytes, bytes]:
        """Red, green and blue of row y: the colours of the heights, mixed with a soft light."""
        heights = self.field(y)
        glow = self._half(self._slice(self._glow, y))
        red, green, blue = (
            (self._half(heights.translate(table)) + glow).to_bytes(self._width, "little")
            for table in self.colours
        )
        return red, green, blue

    def _half(self, line: bytes) -> int:
        return (int.from_bytes(line, "little") >> 1) & self._mask


def _gradient(dice: random.Random) -> tuple[bytes, bytes, bytes]:
    """Three tables of 256: a gradient through five colours and back to the first."""
    hue, spread = dice.random(), dice.uniform(0.12, 0.3)
    stops = [
        _rgb(hue + spread * dice.uniform(-1, 1), dice.uniform(0.35, 0.8), dice.uniform(0.3, 0.8))
        for _ in range(5)
    ]
    stops.append(stops[0])
    tables: list[bytes] = []
    for channel in range(3):
        table = bytearray()
        for index in range(256):
            place, part = divmod(index * 5 / 256, 1)
            soft = part * part * (3 - 2 * part)
            a, b = stops[int(place)][channel], stops[int(place) + 1][channel]
            table.append(int(a + (b - a) * soft))
        tables.append(bytes(table))
    return tables[0], tables[1], tables[2]


def _rgb(hue: float, saturation: float, lightness: float) -> tuple[int, int, int]:
    reach = saturation * min(lightness, 1 - lightness)

    def part(offset: float) -> int:
        k = (offset + hue * 12) % 12
        return int(255 * (lightness - reach * max(-1.0, min(k - 3, 9 - k, 1.0))))

    return part(0), part(8), part(4)
