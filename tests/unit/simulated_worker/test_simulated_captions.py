"""The caption of a picture, read off its pixels."""

from __future__ import annotations

import re

import pytest

from simulated_worker import lettering
from simulated_worker.pictures import Drawing, Recipe, raw_frame
from simulated_worker.scenery import Colour

GLYPHS = {
    tuple(zip(*lettering.rows(letter, 1), strict=True)): letter
    for letter in map(chr, range(33, 128))
}
BLANK = (0,) * lettering.HEIGHT


def read(recipe: Recipe) -> list[str]:
    """The lines of a caption, which is in the lower half of the picture."""
    frame, size = raw_frame(recipe), 3 * recipe.width
    rows = [frame[at : at + size] for at in range(len(frame) // 2 // size * size, len(frame), size)]
    lines = []
    for ink in Drawing(recipe, recipe.width, recipe.height).inks[1:]:
        inked = [
            [row[at : at + 3] == bytes(ink) for at in range(0, size, 3)]
            if bytes(ink) in row
            else []
            for row in rows
        ]
        if used := [y for y, row in enumerate(inked) if any(row)]:
            lines += lines_of(inked, used[0], used[-1])
    return lines


def lines_of(inked: list[list[bool]], first: int, last: int) -> list[str]:
    """The lines of one ink between two rows."""
    left = min(row.index(True) for row in inked[first : last + 1] if any(row))
    runs = re.findall("1+", "0".join("".join("01"[p] for p in row) for row in inked[first:last]))
    scale = min(map(len, runs))
    height, pitch = lettering.HEIGHT * scale, (lettering.HEIGHT + 2) * scale
    for top in range(first, first - height, -scale):  # the first line may begin with blank rows
        found = [
            text_of([row[left::scale] for row in inked[y : y + height : scale]])
            for y in range(top, last + 1, pitch)
        ]
        if None not in found:
            return [line for line in found if line is not None]
    raise AssertionError("not legible")


def text_of(points: list[list[bool]]) -> str | None:
    """What is written in nine rows of points; None if it is not in letters of the font."""
    width = max(map(len, points))
    padded = [row + [False] * (width - len(row)) for row in points]
    columns = [tuple(map(int, column)) for column in zip(*padded, strict=True)]
    while columns and columns[-1] == BLANK:
        columns.pop()
    columns.append(BLANK)
    text, at = "", 0
    while at < len(columns):
        if columns[at : at + 4] == [BLANK] * 4:
            text, at = text + " ", at + 4
            continue
        fits = (n for n in range(6, 1, -1) if tuple(columns[at : at + n]) in GLYPHS)
        size = next(fits, 0)
        if not size:
            return None
        text, at = text + GLYPHS[tuple(columns[at : at + size])], at + size
    return text


LONG = "a very long prompt about nothing at all, which goes on, " * 40


@pytest.mark.parametrize(
    ("prompt", "size", "shown"),
    [
        ("a red kite over the sea", (256, 256), "a red kite|over the sea"),
        ("a red kite over the sea", (1024, 1024), "a red kite over the sea"),
        ("a red kite over the sea", (832, 480), "a red kite over the sea"),
        ("caf\xe9\n \u6d77", (512, 832), "cafe \x7f"),
        ("", (512, 512), ""),
        ("x" * 50, (256, 256), "x" * 25 + "|" + "x" * 25),
    ],
)
def test_the_caption_is_legible(prompt: str, size: tuple[int, int], shown: str) -> None:
    recipe = Recipe("0123456789abcdef", "", prompt, 12, *size, 28)
    facts = f"seed 12  {size[0]}x{size[1]}  28 steps  weights 01234567"
    assert "|".join(read(recipe)) == (f"{shown}|{facts}" if shown else facts)


def test_a_long_prompt_is_cut_and_the_facts_are_not() -> None:
    *title, last, facts, more = read(Recipe("w", "loras", LONG, 12, 256, 256, 28, "input"))
    assert " ".join([*title, last]).startswith("a very long prompt about nothing at all")
    assert last.endswith("...")
    assert facts == "seed 12  256x256  28 steps  weights w"
    assert re.fullmatch(r"lora loras  input [0-9a-f]{8}", more)


@pytest.mark.parametrize("size", [(128, 128), (128, 4000), (4000, 128)])
def test_the_caption_leaves_room_for_a_picture(size: tuple[int, int]) -> None:
    recipe = Recipe("w" * 32, "l" * 32, LONG, 10**400, *size, 28, "i")
    frame = raw_frame(recipe)
    assert len(frame) == 3 * size[0] * size[1]
    third = frame[: size[1] // 3 * 3 * size[0]]
    assert len(set(zip(third[::3], third[1::3], third[2::3], strict=True))) > 20


def test_the_inks_stand_out_whatever_the_weights() -> None:
    for version in range(200):
        ground, *inks = Drawing(Recipe(str(version), "", "", 1, 16, 16, 1), 16, 16).inks
        assert min(contrast(ground, ink) for ink in inks) > 7


def contrast(dark: Colour, light: Colour) -> float:
    """The ratio that the Web Content Accessibility Guidelines want to be 4.5, better 7."""

    def luminance(colour: Colour) -> float:
        parts = [part / 255 for part in colour]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    return (luminance(light) + 0.05) / (luminance(dark) + 0.05)
