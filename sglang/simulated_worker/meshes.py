"""Meshes without a model: a knotted ring as binary glTF or as OBJ, a pure function of a recipe."""

from __future__ import annotations

import json
import math
import random
import struct

from .pictures import Recipe

_ALONG, _AROUND = 96, 16


def render_mesh(recipe: Recipe, kind: str) -> bytes:
    """`glb` or `obj`."""
    points = _points(recipe)
    faces = _faces()
    if kind == "obj":
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in points]
        lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces]
        return ("\n".join(lines) + "\n").encode()
    return _glb(points, faces, recipe)


def _points(recipe: Recipe) -> list[tuple[float, float, float]]:
    dice = random.Random(recipe.digest())
    turns, waves = dice.choice((2, 3)), dice.choice((3, 5, 7))
    thick, swing = dice.uniform(0.12, 0.25), dice.uniform(0.1, 0.35)
    points = []
    for i in range(_ALONG):
        along = math.tau * i / _ALONG
        wide = 1 + swing * math.cos(waves * along)
        for j in range(_AROUND):
            around = math.tau * j / _AROUND + turns * along
            out = wide + thick * math.cos(around)
            points.append(
                (
                    round(out * math.cos(along), 5),
                    round(out * math.sin(along), 5),
                    round(swing * math.sin(waves * along) + thick * math.sin(around), 5),
                )
            )
    return points


def _faces() -> list[tuple[int, int, int]]:
    faces = []
    for i in range(_ALONG):
        for j in range(_AROUND):
            here, beside = i * _AROUND, (i + 1) % _ALONG * _AROUND
            after = (j + 1) % _AROUND
            faces.append((here + j, beside + j, beside + after))
            faces.append((here + j, beside + after, here + after))
    return faces


def _glb(
    points: list[tuple[float, float, float]],
    faces: list[tuple[int, int, int]],
    recipe: Recipe,
) -> bytes:
    places = b"".join(struct.pack("<3f", *point) for point in points)
    corners = b"".join(struct.pack("<3H", *face) for face in faces)
    sides = list(zip(*points, strict=True))
    scene = {
        "asset": {"version": "2.0", "generator": "simulated_worker"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0, "extras": {"weights": recipe.weights, "lora": recipe.lora}}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 0}, "indices": 1}]}],
        "accessors": [
            {
                "bufferView": 0,
                "componentType": 5126,
                "count": len(points),
                "type": "VEC3",
                "min": [min(side) for side in sides],
                "max": [max(side) for side in sides],
            },
            {"bufferView": 1, "componentType": 5123, "count": 3 * len(faces), "type": "SCALAR"},
        ],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(places), "target": 34962},
            {"buffer": 0, "byteOffset": len(places), "byteLength": len(corners), "target": 34963},
        ],
        "buffers": [{"byteLength": len(places) + len(corners)}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    data = places + corners
    data += b"\0" * (-len(data) % 4)
    size = 12 + 8 + len(text) + 8 + len(data)
    return b"".join(
        (
            struct.pack("<4sII", b"glTF", 2, size),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(data), b"BIN\0"),
            data,
        )
    )
