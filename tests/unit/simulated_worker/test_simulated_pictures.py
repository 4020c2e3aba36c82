"""Pictures, movies and meshes: pure functions of their recipes, in valid containers."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from simulated_worker.meshes import render_mesh
from simulated_worker.movies import MOST_PICTURES, render_movie
from simulated_worker.pictures import (
    PNG_SIGNATURE,
    Recipe,
    expected_image,
    made_by,
    raw_frame,
    render,
    render_frames,
)

RECIPE = Recipe("w", "", "a cat", 1, 40, 24, 4)


def chunks(png: bytes) -> list[tuple[bytes, bytes]]:
    """The chunks of a PNG, whose checksums are checked."""
    assert png.startswith(PNG_SIGNATURE)
    found, at = [], len(PNG_SIGNATURE)
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        body = png[at + 4 : at + 8 + length]
        assert struct.unpack(">I", png[at + 8 + length : at + 12 + length])[0] == zlib.crc32(body)
        found.append((body[:4], body[4:]))
        at += 12 + length
    return found


def pixels(png: bytes) -> bytes:
    """The pixels of a picture whose rows are stored as changes from the row above."""
    parts = dict(chunks(png))
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    data = zlib.decompress(parts[b"IDAT"])
    above, rows = bytes(3 * width), []
    for y in range(height):
        line = data[y * (3 * width + 1) :][: 3 * width + 1]
        assert line[0] == 2
        above = bytes((a + b) & 255 for a, b in zip(line[1:], above, strict=True))
        rows.append(above)
    return b"".join(rows)


def test_the_filter_is_undone_to_the_raw_pixels() -> None:
    assert pixels(render(RECIPE)) == raw_frame(RECIPE)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": "v"},
        {"lora": "l"},
        {"prompt": "a dog"},
        {"seed": 2},
        {"steps": 5},
        {"inputs": "i"},
    ],
)
def test_everything_in_a_recipe_changes_the_pixels(change: dict[str, Any]) -> None:
    assert raw_frame(RECIPE) == raw_frame(Recipe("w", "", "a cat", 1, 40, 24, 4))
    assert raw_frame(evolve(RECIPE, **change)) != raw_frame(RECIPE)


def test_a_picture_is_not_flat() -> None:
    assert len(set(raw_frame(Recipe("w", "", "x", 1, 64, 64, 4)))) > 60


def test_a_picture_tells_its_making() -> None:
    told = made_by(expected_image("some weights", "x", 9, width=8, height=8, steps=3, lora="l"))
    assert told == {
        "Software": "simulated_worker",
        "weights": "some weights",
        "lora": "l",
        "seed": "9",
        "steps": "3",
    }


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), prompt=st.text(max_size=5))
def test_any_size_is_a_valid_png(width: int, height: int, prompt: str) -> None:
    png = render(Recipe("w", "", prompt, 1, width, height, 1))
    kinds = [kind for kind, _ in chunks(png)]
    assert kinds[0] == b"IHDR"
    assert kinds[-2:] == [b"IDAT", b"IEND"]
    assert len(pixels(png)) == 3 * width * height


def test_frames_differ_in_their_colours_only() -> None:
    frames = [dict(chunks(frame)) for frame in render_frames(RECIPE, 4)]
    assert len({frame[b"IDAT"] for frame in frames}) == 1
    assert len({frame[b"PLTE"] for frame in frames}) == 4
    assert all(len(frame[b"PLTE"]) == 768 for frame in frames)


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes of one level."""
    found, at = {}, 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        assert size >= 8
        found[kind] = data[at + 8 : at + size]
        at += size
    assert at == len(data)
    return found


@pytest.mark.parametrize("count", [1, 5, MOST_PICTURES + 7])
def test_a_movie_points_at_its_frames(count: int) -> None:
    movie = render_movie(RECIPE, count, 8)
    assert movie == render_movie(RECIPE, count, 8)
    trak = boxes(boxes(boxes(movie)[b"moov"])[b"trak"])
    tables = boxes(boxes(boxes(trak[b"mdia"])[b"minf"])[b"stbl"])
    sizes = struct.unpack(f">{count}I", tables[b"stsz"][12:])
    starts = struct.unpack(f">{count}I", tables[b"stco"][8:])
    shown = [movie[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    assert shown[: min(count, MOST_PICTURES)] == render_frames(RECIPE, min(count, MOST_PICTURES))
    assert len(set(shown)) == min(count, MOST_PICTURES)
    timescale, duration = struct.unpack(">II", boxes(trak[b"mdia"])[b"mdhd"][12:20])
    assert (timescale, duration) == (8, count)


def test_a_mesh_is_a_closed_surface() -> None:
    glb = render_mesh(RECIPE, "glb")
    length = struct.unpack("<I", glb[12:16])[0]
    scene = json.loads(glb[20 : 20 + length])
    buffer = glb[28 + length :]
    assert len(buffer) >= scene["buffers"][0]["byteLength"]
    view = scene["bufferViews"][1]
    corners = struct.unpack_from(f"<{view['byteLength'] // 2}H", buffer, view["byteOffset"])
    assert max(corners) < scene["accessors"][0]["count"]
    edges: dict[frozenset[int], int] = {}
    for at in range(0, len(corners), 3):
        a, b, c = corners[at : at + 3]
        for edge in (frozenset((a, b)), frozenset((b, c)), frozenset((c, a))):
            edges[edge] = edges.get(edge, 0) + 1
    assert set(edges.values()) == {2}
    assert render_mesh(RECIPE, "obj").startswith(b"v ")
    assert glb != render_mesh(evolve(RECIPE, weights="v"), "glb")
