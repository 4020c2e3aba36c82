"""Pictures and meshes: pure functions of their recipes, in valid containers."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from simulated_worker.meshes import render_mesh
from simulated_worker.pictures import (
    PNG_SIGNATURE,
    Recipe,
    expected_image,
    made_by,
    raw_frame,
    render,
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
    """The pixels of a picture whose rows are not filtered."""
    parts = dict(chunks(png))
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    data = zlib.decompress(parts[b"IDAT"])
    size = 3 * width + 1
    assert data[::size] == bytes(height)
    return b"".join(data[at + 1 : at + size] for at in range(0, len(data), size))


def test_a_png_holds_the_raw_pixels() -> None:
    assert pixels(render(RECIPE)) == raw_frame(RECIPE)


def test_the_pixels_are_the_same_on_every_platform_and_python() -> None:
    frame = raw_frame(Recipe("w", "l", "caf\xe9 \u6d77", 7, 160, 144, 28, "i"))
    digest = hashlib.sha256(frame).hexdigest()
    assert digest == "268b04738c28ec29a5ef0c0ceb8f4ef2120d44a30eeb2e978118aceecb614918"


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


def test_other_weights_give_other_colours_to_the_same_request() -> None:
    tops = {raw_frame(evolve(RECIPE, weights=str(version)))[:3] for version in range(50)}
    assert len(tops) > 40
    reds, _, blues = zip(*tops, strict=True)
    assert max(reds) - min(reds) > 60
    assert max(blues) - min(blues) > 60


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
