"""What must not be taken for something else: smuggled requests, split answers."""

from __future__ import annotations

import pytest

from tests.integration.relay.harness import exchange
from tests.integration.relay.wire import LAST_CHUNK, chunked, request, response


def test_content_length_beside_chunks_does_not_reach_the_worker() -> None:
    data = request("POST", "/x", "Content-Length: 3", "Transfer-Encoding: chunked")
    seen, got = exchange(data + chunked(b"smuggled?") + LAST_CHUNK, response())
    assert got.status == 200
    assert (seen["content-length"], seen["transfer-encoding"]) == (b"9", None)
    assert seen.body == b"smuggled?"
    kind = "Content-Type: application/octet-stream"
    data = request("POST", "/x", "Content-Length: 3", "Transfer-Encoding: chunked", kind)
    seen, got = exchange(data + chunked(b"smuggled?") + LAST_CHUNK, response())
    assert (seen["content-length"], seen["transfer-encoding"]) == (None, b"chunked")
    assert seen.body == b"smuggled?"


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 3\r\nContent-Length: 4",
        "Content-Length: 3, 4",
        "Content-Length: +3",
        "Content-Length: 0x3",
        "Content-Length: -1",
        "Content-Length:",
        "Content-Length : 3",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "X-A: b\rX-B: c",
        "X-A: b\x00c",
        "X A: b",
        ": nameless",
        "Host: other",
    ],
)
def test_ambiguous_requests_reach_no_worker(head: str) -> None:
    seen, got = exchange(request("POST", "/x", head) + b"3\r\nabc\r\n0\r\n\r\n", response())
    assert seen.first == b""
    assert got.status in (400, 501)
    assert got.complete


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"X-Folded: a\r\n b\r\n\tc", (b"x-folded", b"a b c")),
        (b"X-Line: a\nX-Other: b", (b"x-other", b"b")),
    ],
)
def test_lenient_heads_reach_the_worker_in_strict_form(
    sent: bytes, expected: tuple[bytes, bytes]
) -> None:
    data = b"GET /x HTTP/1.1\r\nHost: x\r\n" + sent + b"\r\n\r\n"
    seen, got = exchange(data, response())
    assert got.status == 200
    assert expected in seen.headers


def test_same_lengths_twice_are_one() -> None:
    data = request("POST", "/x", "Content-Length: 3", "Content-Length: 3") + b"abc"
    seen, _ = exchange(data, response())
    assert (seen["content-length"], seen.body) == (b"3", b"abc")


def test_trailers_and_chunk_extensions_end_here() -> None:
    data = request("POST", "/x", "Transfer-Encoding: chunked", "Content-Type: x/y")
    data += b"3;name=value\r\nabc\r\n0\r\nX-Trailer: 1\r\n\r\n"
    seen, _ = exchange(data, response())
    assert seen.body == b"abc"

    answer = response(200, "Transfer-Encoding: chunked", "Trailer: X-Sum")
    answer += b"3;name=value\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"
    _, got = exchange(request("GET"), answer)
    assert (got.body, got.complete) == (b"abc", True)


def test_an_answer_cannot_be_split() -> None:
    split = b"HTTP/1.1 200 OK\r\nX-A: b\nX-B: c\r\n folded\r\nContent-Length: 2\r\n\r\nok"
    _, got = exchange(request("GET"), split)
    assert (got["x-a"], got["x-b"], got.body) == (b"b", b"c folded", b"ok")
