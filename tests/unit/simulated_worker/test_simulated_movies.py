"""Movies: MP4 files of H.264, decoded here back to the pictures that went in."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from attrs import define, evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from simulated_worker.h264 import Stream
from simulated_worker.movies import LONGEST_SIDE, MOST_PICTURES, render_movie, render_pictures
from simulated_worker.pictures import Recipe

RECIPE = Recipe("w", "", "a cat", 1, 40, 24, 4)
Planes = list[list[bytes]]


@define
class Bits:
    """Reads the payload of a unit."""

    data: bytes
    at: int = 0

    def u(self, count: int) -> int:
        start, end = self.at // 8, (self.at + count + 7) // 8
        window = int.from_bytes(self.data[start:end], "big")
        self.at += count
        return window >> (8 * end - self.at) & ((1 << count) - 1)

    def ue(self) -> int:
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def raw(self, count: int) -> bytes:
        """Bytes that begin at the next whole one; what is skipped is zeros."""
        assert self.u(-self.at % 8) == 0
        self.at += 8 * count
        return self.data[self.at // 8 - count : self.at // 8]

    @property
    def more(self) -> bool:
        """Whether anything comes before the stop bit and its zeros."""
        rest = int.from_bytes(self.data, "big") & ((1 << 8 * len(self.data) - self.at) - 1)
        return rest & (rest - 1) != 0


def payload(unit: bytes) -> Bits:
    """What a unit carries. Nothing in it looks like the start of another one."""
    for code in (b"\0\0\0", b"\0\0\1", b"\0\0\2"):
        assert code not in unit
    assert not unit.endswith(b"\0")
    return Bits(unit[1:].replace(b"\0\0\3", b"\0\0"))


@define
class Decoder:
    """Decodes stored and skipped macroblocks; it knows nothing else."""

    wide: int
    high: int
    size: tuple[int, int]
    number_bits: int
    macroblocks: list[bytes]
    number: int = 0

    @classmethod
    def of(cls, configuration: bytes) -> Decoder:
        assert configuration[0] == 1
        assert configuration[4:6] == b"\xff\xe1"  # lengths of 4 bytes, one sequence
        size = int.from_bytes(configuration[6:8], "big")
        sequence, picture = configuration[8 : 8 + size], configuration[8 + size :]
        assert configuration[1:4] == sequence[1:4]
        assert sequence[0] == 0x67
        bits = payload(sequence)
        assert (bits.u(8), bits.u(8)) == (66, 0xC0)  # constrained baseline
        assert bits.u(8) == 40
        assert bits.ue() == 0
        number_bits = bits.ue() + 4
        assert (bits.ue(), bits.ue(), bits.u(1)) == (2, 1, 0)
        wide, high = bits.ue() + 1, bits.ue() + 1
        assert (bits.u(2), bits.u(1)) == (3, 1)
        left, right, above, below = (bits.ue() for _ in range(4))
        assert (left, above, bits.u(1), bits.more) == (0, 0, 0, False)
        assert picture[0] == 1
        assert len(picture) == 3 + int.from_bytes(picture[1:3], "big")
        bits = payload(picture[3:])
        assert picture[3] == 0x68
        assert [bits.ue(), bits.ue(), bits.u(2), bits.ue()] == [0, 0, 0, 0]
        assert [bits.ue(), bits.ue(), bits.u(3), bits.ue(), bits.ue(), bits.ue()] == [0] * 6
        assert (bits.u(3), bits.more) == (0b100, False)  # the deblocking filter can be off
        return cls(wide, high, (16 * wide - 2 * right, 16 * high - 2 * below), number_bits, [])

    def decode(self, sample: bytes) -> Planes:
        assert int.from_bytes(sample[:4], "big") == len(sample) - 4
        bits, key = payload(sample[4:]), sample[4] == 0x65
        assert key or sample[4] == 0x61
        assert (bits.ue(), bits.ue(), bits.ue()) == (0, 7 if key else 5, 0)
        self.number = 0 if key else self.number + 1
        assert bits.u(self.number_bits) == self.number
        assert (bits.ue(), bits.u(2)) == (0, 0) if key else bits.u(3) == 0
        assert (bits.ue(), bits.ue()) == (0, 1)  # quantiser, no deblocking filter
        if key:
            self.macroblocks = [self._stored(bits, 25) for _ in range(self.wide * self.high)]
        else:
            at = 0
            while bits.more:
                at += bits.ue()
                if bits.more:
                    self.macroblocks[at] = self._stored(bits, 30)
                    at += 1
            assert at == self.wide * self.high
        assert not bits.more
        return self._planes()

    def _stored(self, bits: Bits, kind: int) -> bytes:
        assert bits.ue() == kind
        return bits.raw(384)

    def _planes(self) -> Planes:
        """The rows of luma and of each chroma, without what is cropped."""
        planes: Planes = []
        for start, side, part in ((0, 16, 1), (256, 8, 2), (320, 8, 2)):
            rows = []
            for y in range(self.size[1] // part):
                first, line = y // side * self.wide, start + y % side * side
                across = self.macroblocks[first : first + self.wide]
                row = b"".join(macroblock[line : line + side] for macroblock in across)
                rows.append(row[: self.size[0] // part])
            planes.append(rows)
        return planes


def thinned(planes: Planes) -> Planes:
    """With one chroma for each four pixels."""
    return [planes[0], *([row[::2] for row in plane[::2]] for plane in planes[1:])]


def boxes(data: bytes) -> dict[bytes, bytes]:
    """The boxes of one level, in their order."""
    found, at = {}, 0
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        assert size >= 8
        found[kind] = data[at + 8 : at + size]
        at += size
    assert at == len(data)
    return found


def numbers(table: bytes, start: int) -> list[int]:
    return [number for (number,) in struct.iter_unpack(">I", table[start:])]


@pytest.mark.parametrize(
    ("frames", "fps", "keys"),
    [(1, 24, [1]), (5, 8, [1]), (16, 8, [1]), (37, 8, [1, 17, 33]), (3, 1, [1, 3])],
)
def test_a_movie_shows_its_pictures(frames: int, fps: int, keys: list[int]) -> None:
    movie = render_movie(RECIPE, frames, fps)
    assert movie == render_movie(RECIPE, frames, fps)
    assert list(boxes(movie)) == [b"ftyp", b"moov", b"mdat"]
    trak = boxes(boxes(boxes(movie)[b"moov"])[b"trak"])
    timescale, duration = struct.unpack(">II", boxes(trak[b"mdia"])[b"mdhd"][12:20])
    assert (timescale, duration) == (fps, frames)
    assert struct.unpack(">II", trak[b"tkhd"][-8:]) == (40 << 16, 24 << 16)
    tables = boxes(boxes(boxes(trak[b"mdia"])[b"minf"])[b"stbl"])
    assert tables[b"stts"][4:] == struct.pack(">III", 1, frames, 1)
    assert numbers(tables[b"stss"], 8) == keys
    entry = boxes(tables[b"stsd"][8:])[b"avc1"]
    assert struct.unpack(">HH", entry[24:28]) == (40, 24)
    decoder = Decoder.of(boxes(entry[78:])[b"avcC"])
    assert decoder.size == (40, 24)
    sizes, starts = numbers(tables[b"stsz"], 12), numbers(tables[b"stco"], 8)
    shown = [
        decoder.decode(movie[start : start + size])
        for start, size in zip(starts, sizes, strict=True)
    ]
    assert len(shown) == frames
    loop = min(frames, 2 * fps)
    count = min(frames, MOST_PICTURES)
    pictures = [thinned(planes) for planes in render_pictures(RECIPE, count)]
    assert shown == [pictures[index % loop * count // loop] for index in range(frames)]


def test_the_pictures_of_a_movie_move_and_come_back() -> None:
    pictures = render_pictures(evolve(RECIPE, width=320, height=160), MOST_PICTURES)
    changes = [
        sum(a != b for a, b in zip(now[0], after[0], strict=True))
        for now, after in pairwise([*pictures, pictures[0]])
    ]
    assert min(changes) > 20
    captions = {tuple(picture[0][-20:]) for picture in pictures}
    assert len(captions) == 1


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ((832, 480), (320, 184)),
        ((480, 832), (184, 320)),
        ((33, 17), (32, 16)),
        ((1, 1), (2, 2)),
        ((8192, 8), (320, 2)),
    ],
)
def test_the_size_is_even_and_bounded(asked: tuple[int, int], got: tuple[int, int]) -> None:
    assert max(got) <= LONGEST_SIDE
    movie = render_movie(evolve(RECIPE, width=asked[0], height=asked[1]), 2, 1)
    entry = movie[movie.index(b"avc1", 40) + 4 :]
    assert struct.unpack(">HH", entry[24:28]) == got
    size = struct.unpack(">I", entry[78:82])[0]
    assert Decoder.of(entry[86 : 78 + size]).size == got


def test_a_frame_that_repeats_takes_a_few_bytes() -> None:
    stream = Stream(320, 184)
    picture = [bytes(384)] * (20 * 12)
    assert len(stream.change(1, picture, picture)) < 16


FILLS = st.sampled_from([b"\0", b"\x80", b"\0\1", b"\0\0\0\3", b"\0\0\2", bytes(range(251))])


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 30),
    height=st.integers(1, 30),
    fills=st.lists(st.tuples(FILLS, FILLS, FILLS), min_size=2, max_size=4),
)
def test_any_pixels_come_back(
    width: int, height: int, fills: list[tuple[bytes, bytes, bytes]]
) -> None:
    stream = Stream(2 * width, 2 * height)
    size = 4 * width * height
    pictures: list[Planes] = []
    for planes in fills:
        flat = [(fill * size)[:size] for fill in planes]
        pictures.append(
            [[pixels[at : at + 2 * width] for at in range(0, size, 2 * width)] for pixels in flat]
        )
    decoder = Decoder.of(stream.configuration())
    before = stream.macroblocks(pictures[0])
    assert decoder.decode(stream.key(before)) == thinned(pictures[0])
    for number, picture in enumerate(pictures[1:], 1):
        now = stream.macroblocks(picture)
        assert decoder.decode(stream.change(number, now, before)) == thinned(picture)
        before = now
