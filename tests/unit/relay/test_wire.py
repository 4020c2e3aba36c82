"""Heads of the plain kind: written and read as h11 does it, or left to h11."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.relay import wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


def by_h11(data: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
    """Status, headers and what follows; None if h11 says that it is no answer, or not a whole
    one."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "")]))
    parser.send(h11.EndOfMessage())
    parser.receive_data(data)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Response):
        return None
    return event.status_code, event.headers.raw_items(), parser.trailing_data[0]


def test_what_is_read_of_a_plain_head() -> None:
    data = (
        b"HTTP/1.1 404 Not Found\r\nServer:uvicorn\r\nX-Empty:  \r\nX-B: \t a  b\xe9; c \t\r\n"
        b'content-LENGTH: 11\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n\r\n{"a": 1}\r\n'
    )
    assert wire.answer(data) == (
        wire.Head(
            404,
            [
                (b"Server", b"uvicorn"),
                (b"X-Empty", b""),
                (b"X-B", b"a  b\xe9; c"),
                (b"content-LENGTH", b"11"),
                (b"Set-Cookie", b"a=1"),
                (b"Set-Cookie", b"b=2"),
            ],
            length=11,
            keeps=True,
        ),
        data.index(b"{"),
    )


@pytest.mark.parametrize(
    ("value", "keeps"),
    [(b"close", False), (b"X-A, Close", False), (b"keep-alive", True), (b"closed", True)],
)
def test_whether_the_worker_keeps_the_connection(value: bytes, keeps: bool) -> None:
    found = wire.answer(OK.replace(b"\r\n", b"\r\nConnection: %b\r\n" % value, 1))
    assert found is not None
    assert found[0].keeps is keeps


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("header", [b"", b"Content-Length: 5\r\n"])
def test_an_answer_without_a_body_has_none(status: int, header: bytes) -> None:
    found = wire.answer(b"HTTP/1.1 %d \r\n%b\r\n" % (status, header))
    assert found is not None
    assert found[0].length == 0


@pytest.mark.parametrize(
    "data",
    [
        *(OK[:end] for end in range(len(OK))),
        OK.replace(b"1.1", b"1.0"),
        OK.replace(b"200", b"100"),
        OK.replace(b"200", b"2000"),
        OK.replace(b"\r\n", b"\n"),
        b"\r\n" + OK,
        OK.replace(b"2\r\n", b"2\r\n\tfolded\r\n"),
        OK.replace(b"2\r\n", b"2\r\n : a\r\n"),
        OK.replace(b"2\r\n", b"2\r\nX : a\r\n"),
        OK.replace(b"2\r\n", b"2\r\nX: a\x00\r\n"),
        OK.replace(b"2\r\n", b"2\r\nX: a\rb\r\n"),
        OK.replace(b"2\r\n", b"2\r\nContent-Length: 2\r\n"),
        OK.replace(b"2\r\n", b"2\r\ntransfer-Encoding: chunked\r\n"),
        OK.replace(b" 2", b" 2, 2"),
        OK.replace(b" 2", b" -2"),
        OK.replace(b" 2", b" 0x2"),
        OK.replace(b" 2", b" " + b"2" * 19),
        OK.replace(b" 2", b" \xb2"),
        OK.replace(b" 2", b""),
        OK.replace(b"Content-Length", b"X"),
    ],
)
def test_what_is_not_plain_is_left_to_h11(data: bytes) -> None:
    assert wire.answer(data) is None


PIECES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.1 404", b"HTTP/1.1 600 \xff", b"HTTP/1.", b"X-A: 1", b"X-A:",
     b"x-B : 2", b"Content-Length: 3", b"Content-Length:3 ", b"Content-Length: +3", b"abc",
     b"\r\n", b"\r\n", b"\r\n", b"\r\n\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\x00", b"\x0b",
     b"Connection: close", b"Transfer-Encoding: chunked"]
)  # fmt: skip
ANSWERS = st.lists(PIECES | st.binary(max_size=3), max_size=12).map(b"".join)


@given(ANSWERS | ANSWERS.map(lambda rest: OK[:-2] + rest) | ANSWERS.map(lambda rest: OK + rest))
@example(OK + b"ok")
def test_nothing_is_read_in_another_way_than_h11_reads_it(data: bytes) -> None:
    found = wire.answer(data)
    if found is not None:
        head, begin = found
        assert by_h11(data) == (head.status, list(head.headers), data[begin:])


TOKENS = st.text("abcXYZ019-_!~", min_size=1, max_size=8).map(str.encode)
VALUES = st.binary(max_size=12)


@given(
    st.text("ABCxyz-!\x00 \r\n", min_size=1, max_size=6),
    st.binary(min_size=1, max_size=12) | st.just(b"/v1/x?a=%20"),
    st.lists(st.tuples(TOKENS | VALUES, VALUES), max_size=4),
)
@example("GET", b"/", [])
@example("GET", b"/a b", [])
@example("GET", b"/", [(b"x", b"a\r\nx-evil: 1")])
@example("GET", b"/", [(b"x: 1\r\ny", b"a")])
@example("GET", b"/\r\nx: y\r\n\r\n", [])
def test_requests_are_written_as_h11_writes_them(
    method: str, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    headers = [(b"host", b"w:1"), *(h for h in headers if h[0].lower() != b"host")]
    expected: bytes | None
    try:
        request = h11.Request(method=method, target=target, headers=headers)
        expected = h11.Connection(h11.CLIENT).send(request)
    except h11.LocalProtocolError:
        expected = None
    try:
        written = wire.request(method, target, headers)
    except wire.NotAllowed:
        written = None
    if expected is not None:
        assert written == expected
    elif written is not None:
        # Blanks around a value, or a colon in a name: h11 refuses to write them, but they begin
        # no line of their own.
        assert written.count(b"\n") == written.count(b"\r") == len(headers) + 2
        assert any(b":" in name or value != value.strip(b" \t") for name, value in headers)
