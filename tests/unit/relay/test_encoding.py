"""Answers in an encoding are read as they pass, as far as it is worth."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from router.relay.encoding import decoder, readable_only

BODY = b'{"id": "video_1", "status": "queued"}' * 200


def bare(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


@pytest.mark.parametrize(
    ("encoding", "packed"),
    [
        (None, BODY),
        (b"identity", BODY),
        (b"gzip", gzip.compress(BODY, mtime=0)),
        (b" X-GZip ", gzip.compress(BODY, mtime=0)),
        (b"deflate", zlib.compress(BODY)),
        (b"deflate", bare(BODY)),
    ],
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_what_is_readable(encoding: bytes | None, packed: bytes, size: int) -> None:
    decode = decoder(encoding, 100_000)
    assert decode is not None
    pieces = [packed[at : at + size] for at in range(0, len(packed), size)]
    assert b"".join(map(decode, pieces)) == BODY
    assert decode(b"") == b""


def test_a_bomb_gives_no_more_than_the_limit() -> None:
    decode = decoder(b"gzip", 1000)
    assert decode is not None
    bomb = gzip.compress(bytes(10_000_000))
    assert sum(len(decode(bomb[at : at + 100])) for at in range(0, len(bomb), 100)) == 1000


def test_what_makes_no_sense_says_nothing() -> None:
    assert decoder(b"br", 1000) is None
    assert decoder(b"gzip, gzip", 1000) is None
    rng = random.Random(1)
    for _ in range(200):
        decode = decoder(b"gzip", 1000)
        assert decode is not None
        broken = bytearray(gzip.compress(BODY))
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        assert len(decode(bytes(broken)) + decode(rng.randbytes(50))) <= 1000


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], []),
        ([b"gzip, deflate"], [b"gzip, deflate"]),
        ([b"gzip, deflate, br, zstd"], [b"gzip, deflate"]),
        ([b"br;q=1, GZIP ;q=0.5,*"], [b"GZIP ;q=0.5"]),
        ([b"br", b"gzip"], [b"gzip"]),
        ([b"br"], [b"identity"]),
        ([b""], [b"identity"]),
        ([b"*", b"zstd"], [b"identity"]),
    ],
)
def test_the_worker_is_asked_for_what_is_readable(given: list[bytes], asked: list[bytes]) -> None:
    headers = [(b"x-a", b"br"), *((b"Accept-Encoding", value) for value in given)]
    kept = readable_only(headers)
    assert kept[0] == headers[0]
    assert [value for name, value in kept if name.lower() == b"accept-encoding"] == asked
