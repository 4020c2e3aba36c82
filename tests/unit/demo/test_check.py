"""What the demo takes for a picture, and how it shows what it waits for."""

from __future__ import annotations

import struct
import zlib

import pytest

from router.demo.check import StepFailed, _png_size
from router.terminal.screen import Screen


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 3, height: int = 2) -> bytes:
    rows = b"".join(b"\0" + b"abc" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


IDAT = chunk(b"IDAT", zlib.compress((b"\0" + b"abc" * 3) * 2))


def test_the_size_of_a_picture() -> None:
    assert _png_size(png(3, 2)) == (3, 2)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        png()[:-1],
        png()[:-6],
        png()[:-12],
        png()[:40],
        png()[:50],
        png().replace(b"IDAT", b"IDAX"),
        png()[:60] + b"\0" + png()[61:],
        png().replace(IDAT, chunk(b"IDAT", b"no zlib")),
    ],
    ids=range(11),
)
def test_anything_else_is_no_picture(data: bytes) -> None:
    with pytest.raises(StepFailed):
        _png_size(data)


def test_without_a_terminal_progress_is_few_lines(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    with screen.progress() as show:
        for second in range(5):
            show(f"waiting: {second // 3} of 2 ready ({second} s)")
    screen.say("[not markup]")
    assert capsys.readouterr().out == (
        "waiting: 0 of 2 ready\nwaiting: 1 of 2 ready\n[not markup]\n"
    )
