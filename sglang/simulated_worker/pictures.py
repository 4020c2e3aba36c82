"""Pictures made without a model: a pure function from what a request asked for to a PNG.

Every picture follows from its `Recipe` alone, so two workers with equal weights answer equal bytes,
and a test can say from the bytes which weights made a picture: `expected_image` makes what a worker
would have made, `made_by` reads what the picture says about itself. A person reads it off the
picture: a landscape (`scenery.py`), whose colours the weights choose and whose shapes prompt and
seed choose, above a caption with prompt, seed, size, steps and the first digits of the weights.

A picture of 1024x1024 takes some 40 ms; call it from a thread.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator

from attrs import frozen

from . import lettering
from .scenery import Colour, Dice, Look, Scene, mix
from .weights import digest

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_WHITE = (255, 255, 255)
_SHOWN_DIGITS = 8
_LEAST_SIDE = 128
"""Smaller pictures have no caption."""
_LONGEST_PROMPT = 2000
_MOST_FACT_LINES = 5


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

    @property
    def size(self) -> str:
        return f"{self.width}x{self.height}"

    def digest(self) -> bytes:
        text = "\0".join(
            (
                self.weights,
                self.lora,
                self.prompt,
                str(self.seed),
                self.size,
                str(self.steps),
                self.inputs,
            )
        )
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def facts(self) -> list[str]:
        """What a caption says below the prompt."""
        identities = {
            "weights": self.weights,
            "lora": self.lora,
            "input": self.inputs and digest(self.inputs),
        }
        return [
            f"seed {self.seed}",
            self.size,
            f"{self.steps} steps",
            *(f"{name} {told[:_SHOWN_DIGITS]}" for name, told in identities.items() if told),
        ]


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
    squeeze = zlib.compressobj(1)
    # unfiltered: the sky is runs of one colour, and what is below repeats the row above, shifted
    parts = [squeeze.compress(b"\0" + row) for row in _drawn(recipe).rows()]
    parts.append(squeeze.flush())
    told = {
        "Software": "simulated_worker",
        "weights": recipe.weights,
        "lora": recipe.lora,
        "seed": str(recipe.seed),
        "steps": str(recipe.steps),
    }
    header = struct.pack(">IIBBBBB", recipe.width, recipe.height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            PNG_SIGNATURE,
            chunk(b"IHDR", header),
            *(chunk(b"tEXt", f"{k}\0{v}".encode("latin-1")) for k, v in told.items()),
            chunk(b"IDAT", b"".join(parts)),
            chunk(b"IEND", b""),
        )
    )


def raw_frame(recipe: Recipe) -> bytes:
    """The picture as bare pixels: 3 bytes each, row by row."""
    return b"".join(_drawn(recipe).rows())


def _drawn(recipe: Recipe) -> Drawing:
    """In the size that the recipe says."""
    return Drawing(recipe, recipe.width, recipe.height)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Drawing:
    """The picture of a recipe in any size, in colours of any `kind`."""

    def __init__(
        self,
        recipe: Recipe,
        width: int,
        height: int,
        kind: Callable[[Colour], Colour] = lambda rgb: rgb,
    ) -> None:
        dice = Dice(recipe.weights, recipe.lora)
        look = Look.of(dice, kind)
        caption = _caption(recipe, width, height)
        self._ground = height - sum(times for times, _ in caption)
        self._scene = Scene(
            look,
            dice.between(60, 256),
            Dice(recipe.prompt, str(recipe.seed), recipe.inputs),
            Dice(recipe.digest().hex()),
            width,
            self._ground,
        )
        self.inks = (look.near, mix(look.sun, kind(_WHITE), 160), mix(look.mist, look.sun, 120))
        """Of the caption: its ground, the prompt, the facts."""
        self._tables = [bytes(ink[c] for ink in self.inks) + bytes(253) for c in range(3)]
        self._caption = caption

    def planes(self, sway: int = 0) -> list[list[bytes]]:
        """The rows of each of the three channels."""
        pixels, stride = self._scene.columns(sway), 3 * self._ground
        return [
            [pixels[3 * y + channel :: stride] for y in range(self._ground)]
            + [row for times, ink in self._caption for row in [ink.translate(table)] * times]
            for channel, table in enumerate(self._tables)
        ]

    def rows(self) -> Iterator[bytes]:
        """The rows, three bytes for each pixel."""
        for planes in zip(*self.planes(), strict=True):
            row = bytearray(3 * len(planes[0]))
            row[0::3], row[1::3], row[2::3] = planes
            yield bytes(row)


def _caption(recipe: Recipe, width: int, height: int) -> list[tuple[int, bytes]]:
    """The rows of the caption: how often each comes, and its points: 1 and 2 for two inks.

    The prompt is as large as a fifth of the picture allows; at the smallest size it is cut to what
    leaves half of the picture. Empty for a picture that is too small.
    """
    if min(width, height) < _LEAST_SIDE:
        return []
    scale = max(1, (min(width, height) + 160) // 320)
    margin = 8 * scale
    room = width - 2 * margin
    facts = lettering.wrap(_unbroken(recipe.facts()), room // scale)[:_MOST_FACT_LINES]
    prompt = lettering.plain(recipe.prompt[:_LONGEST_PROMPT])
    for big in range(2 * scale, scale - 1, -1):
        title = lettering.wrap(prompt, room // big)
        if len(title) * _line(big) <= height // 5:
            break
    title = _balanced(title, prompt, room // big)
    most = (height // 2 - 2 * margin - 2 * scale - len(facts) * _line(scale)) // _line(big)
    if len(title) > max(1, most):
        title = title[: max(1, most)]
        title[-1] = title[-1][:-3] + "..."
    rows: list[tuple[int, bytes]] = [(margin, bytes(width))]
    for lines, size, ink in ((title, big, 1), (facts, scale, 2)):
        for line in lines:
            for points in lettering.rows(line, size):
                row = bytes(margin) + points.replace(b"\1", bytes([ink]))
                rows.append((size, row[:width].ljust(width, b"\0")))
            rows.append((2 * size, bytes(width)))
        rows.append((2 * scale, bytes(width)))
    return [*rows, (margin - 4 * scale, bytes(width))]


def _balanced(lines: list[str], text: str, room: int) -> list[str]:
    """As many lines, of nearly the same length: no single word is left for the last one."""
    for share in range(15, 7, -1):
        narrower = lettering.wrap(text, room * share // 16)
        if len(narrower) > len(lines):
            break
        lines = narrower
    return lines


def _line(scale: int) -> int:
    return (lettering.HEIGHT + 2) * scale


def _unbroken(facts: list[str]) -> str:
    """Lines break between facts, not within one."""
    return "  ".join(fact.replace(" ", "\xa0") for fact in facts)
