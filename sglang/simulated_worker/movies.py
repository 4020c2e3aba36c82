"""MP4 files without an encoder: a track of stored PNG frames, written straight into boxes.

The sample entry is `mp4v` with the object type of PNG (0x6D, ISO/IEC 14496-1). ffprobe and ffmpeg
read it; browsers do not play it. Frames repeat: a file of 96 frames keeps at most 24 pictures.
"""

from __future__ import annotations

import struct

from .pictures import Recipe, render_frames

MOST_PICTURES = 24
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def render_movie(recipe: Recipe, frames: int, fps: int) -> bytes:
    """An MP4 of `frames` frames at `fps` frames a second; a pure function of its arguments."""
    pictures = render_frames(recipe, min(frames, MOST_PICTURES))
    kind = _box(b"ftyp", b"isom\0\0\2\0isomiso2mp41")
    media = _box(b"mdat", b"".join(pictures))
    starts, at = [], len(kind) + 8
    for picture in pictures:
        starts.append(at)
        at += len(picture)
    order = [index % len(pictures) for index in range(frames)]
    return (
        kind
        + media
        + _movie(recipe, fps, [len(pictures[i]) for i in order], [starts[i] for i in order])
    )


def _movie(recipe: Recipe, fps: int, sizes: list[int], starts: list[int]) -> bytes:
    count = len(sizes)
    size = struct.pack(">II", recipe.width << 16, recipe.height << 16)
    mvhd = struct.pack(">IIIIIH10x", 0, 0, fps, count, 0x10000, 0x100) + _MATRIX
    mvhd += bytes(24) + struct.pack(">I", 2)
    tkhd = struct.pack(">IIIII8xHHHH", 0, 0, 1, 0, count, 0, 0, 0, 0) + _MATRIX + size
    mdhd = struct.pack(">IIIIHH", 0, 0, fps, count, 0x55C4, 0)
    hdlr = struct.pack(">I4s12x", 0, b"vide") + b"VideoHandler\0"
    dref = _full(b"dref", struct.pack(">I", 1) + _box(b"url ", struct.pack(">I", 1)))
    tables = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1) + _sample_entry(recipe.width, recipe.height)),
        _full(b"stts", struct.pack(">III", 1, count, 1)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full(b"stsz", struct.pack(f">II{count}I", 0, count, *sizes)),
        _full(b"stco", struct.pack(f">I{count}I", count, *starts)),
    )
    minf = _box(
        b"minf",
        _box(b"vmhd", struct.pack(">I8x", 1)),
        _box(b"dinf", dref),
        tables,
    )
    mdia = _box(b"mdia", _full(b"mdhd", mdhd), _full(b"hdlr", hdlr), minf)
    trak = _box(b"trak", _box(b"tkhd", struct.pack(">I", 3) + tkhd), mdia)
    return _box(b"moov", _full(b"mvhd", mvhd), trak)


def _sample_entry(width: int, height: int) -> bytes:
    head = struct.pack(">6xHHH12xHHIIIH", 1, 0, 0, width, height, 0x480000, 0x480000, 0, 1)
    name = b"\x0fstored pictures".ljust(32, b"\0")
    decoder = _descriptor(4, struct.pack(">BB3xII", 0x6D, 0x11, 0, 0))
    stream = _descriptor(3, struct.pack(">HB", 1, 0) + decoder + _descriptor(6, b"\2"))
    return _box(b"mp4v", head + name + struct.pack(">Hh", 24, -1) + _full(b"esds", stream))


def _descriptor(tag: int, data: bytes) -> bytes:
    return struct.pack(">BB", tag, len(data)) + data


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def _full(kind: bytes, data: bytes) -> bytes:
    return _box(kind, bytes(4), data)
