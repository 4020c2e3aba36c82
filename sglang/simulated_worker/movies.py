"""MP4 files that browsers play: stored H.264 pictures (`h264.py`), written straight into boxes.

Stored pictures are large, so the file is made small by other means: at most 320 pixels along, six
pictures a second, and after two seconds the same again. The frames are as many and as fast as the
request says.
"""

from __future__ import annotations

import itertools
import struct

from .h264 import Stream
from .pictures import Drawing, Recipe
from .scenery import Colour, sine

LONGEST_SIDE = 320
LOOP_SECONDS = 2
MOST_PICTURES = 12
"""In a loop; the frames between them repeat one."""
_SWAY = 40_000
_MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def movie_size(recipe: Recipe) -> tuple[int, int]:
    """Even, and at most `LONGEST_SIDE` along."""
    longest = max(recipe.width, recipe.height)
    bound = min(longest, LONGEST_SIDE)
    width, height = (side * bound // longest // 2 * 2 for side in (recipe.width, recipe.height))
    return max(2, width), max(2, height)


def render_movie(recipe: Recipe, frames: int, fps: int) -> bytes:
    """An MP4 of `frames` frames at `fps` frames a second; a pure function of its arguments."""
    stream = Stream(*movie_size(recipe))
    pictures = render_pictures(recipe, min(MOST_PICTURES, frames))
    cut = [stream.macroblocks(planes) for planes in pictures]
    length = min(frames, LOOP_SECONDS * fps)
    shown = [cut[index * len(cut) // length] for index in range(length)]
    samples = [stream.key(shown[0])]
    samples += [stream.change(i, shown[i], shown[i - 1]) for i in range(1, length)]
    kind = _box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    # the samples follow the boxes that say where they are, so that a player can begin at once
    start = len(kind) + len(_movie(stream, fps, frames, samples, 0)) + 8
    return kind + _movie(stream, fps, frames, samples, start) + _box(b"mdat", *samples)


def render_pictures(recipe: Recipe, count: int) -> list[list[list[bytes]]]:
    """The rows of Y, Cb and Cr of `count` pictures that sway to and fro once."""
    drawing = Drawing(recipe, *movie_size(recipe), _yuv)
    return [drawing.planes(_SWAY * sine(512 * index // count) >> 12) for index in range(count)]


def _yuv(rgb: Colour) -> Colour:
    """Y, Cb and Cr of ITU-R BT.601."""
    red, green, blue = rgb
    return (
        16 + (66 * red + 129 * green + 25 * blue + 128 >> 8),
        128 + (-38 * red - 74 * green + 112 * blue + 128 >> 8),
        128 + (112 * red - 94 * green - 18 * blue + 128 >> 8),
    )


def _movie(stream: Stream, fps: int, count: int, samples: list[bytes], start: int) -> bytes:
    """All about the `count` frames, which are the samples from `start` on, over and over."""
    order = [index % len(samples) for index in range(count)]
    sizes = [len(sample) for sample in samples]
    places = list(itertools.accumulate(sizes, initial=start))
    keys = range(1, count + 1, len(samples))
    size = struct.pack(">II", stream.width << 16, stream.height << 16)
    mvhd = struct.pack(">IIIIIH10x", 0, 0, fps, count, 0x10000, 0x100) + _MATRIX
    mvhd += bytes(24) + struct.pack(">I", 2)
    tkhd = struct.pack(">IIIII8xHHHH", 0, 0, 1, 0, count, 0, 0, 0, 0) + _MATRIX + size
    mdhd = struct.pack(">IIIIHH", 0, 0, fps, count, 0x55C4, 0)
    hdlr = struct.pack(">I4s12x", 0, b"vide") + b"VideoHandler\0"
    dref = _full(b"dref", struct.pack(">I", 1) + _box(b"url ", struct.pack(">I", 1)))
    tables = _box(
        b"stbl",
        _full(b"stsd", struct.pack(">I", 1) + _sample_entry(stream)),
        _full(b"stts", struct.pack(">III", 1, count, 1)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, 1, 1)),
        _full(b"stss", struct.pack(f">I{len(keys)}I", len(keys), *keys)),
        _full(b"stsz", struct.pack(f">II{count}I", 0, count, *(sizes[i] for i in order))),
        _full(b"stco", struct.pack(f">I{count}I", count, *(places[i] for i in order))),
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


def _sample_entry(stream: Stream) -> bytes:
    size = (stream.width, stream.height)
    head = struct.pack(">6xHHH12xHHIIIH", 1, 0, 0, *size, 0x480000, 0x480000, 0, 1)
    name = b"\x0fstored pictures".ljust(32, b"\0")
    return _box(
        b"avc1",
        head + name + struct.pack(">Hh", 24, -1) + _box(b"avcC", stream.configuration()),
    )


def _box(kind: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), kind) + data


def _full(kind: bytes, data: bytes) -> bytes:
    return _box(kind, bytes(4), data)
