"""Bytes that have once ended a router, or misled it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tests.fuzz.exchanges import ANSWERS, REQUESTS, TOKEN
from tests.fuzz.mutations import Case, End, Second, Side

_IMAGE = REQUESTS[0][0]
_OWN = next(each[0] for each in REQUESTS if each[0].startswith(b"GET /health"))
_JOB = next(each[0] for each in REQUESTS if each[0].startswith(b"POST /v1/videos"))
_SESSION = re.sub(
    rb"Sec-WebSocket-(Protocol|Extensions): .*\r\n",
    b"",
    next(each[0] for each in REQUESTS if b"Upgrade: websocket" in each[0]),
)
_MADE, _TAKEN = ANSWERS[0][0], next(each[0] for each in ANSWERS if b'"queued"' in each[0])
_ACCEPTED = next(each[0] for each in ANSWERS if b" 101 " in each[0])


def _with(message: bytes, *fields: bytes) -> bytes:
    return message.replace(
        b"\r\n\r\n", b"\r\n" + b"".join(f + b"\r\n" for f in fields) + b"\r\n", 1
    )


def _renamed(answer: bytes, name: bytes) -> bytes:
    body = answer.partition(b"\r\n\r\n")[2].replace(TOKEN, name, 1)
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


# What a client says, and what a worker answers.
_EXCHANGES: dict[str, tuple[list[bytes], list[bytes]]] = {
    f"{name.decode()}: {value!r}": ([_with(_SESSION, name + b": " + value)], [_ACCEPTED])
    for name, value in (
        (b"Connection", b"\xff"),
        (b"Connection", b"caf\xc3\xa9, Upgrade"),
        (b"Sec-WebSocket-Protocol", b"\xff"),
        (b"Sec-WebSocket-Protocol", b",,,"),
        (b"Sec-WebSocket-Extensions", b"\xff"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; \xff"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits=x"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; server_max_window_bits"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; server_max_window_bits=99"),
        (b"Sec-WebSocket-Extensions", b"permessage-deflate; client_max_window_bits=\xb2"),
    )
}
_EXCHANGES |= {
    "an empty label": ([_OWN.replace(b"Host: router", b"Host: a..b")], [_MADE]),
    "a long label": ([_OWN.replace(b"Host: router", b"Host: " + b"a" * 70)], [_MADE]),
    "bytes before the WebSocket is accepted": ([_SESSION + b"\x81\x01a"], [_ACCEPTED]),
    "bytes behind a refused handshake": (
        [_SESSION.replace(b"Version: 13", b"Version: 12") + b"\x81\x01a", b"b"],
        [_ACCEPTED],
    ),
    "a refused HEAD": (
        [_IMAGE.partition(b"X-Client")[0].replace(b"POST", b"HEAD")
         + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"],
        [_MADE],
    ),
    "a job id that is no text": ([_JOB], [_renamed(_TAKEN, rb"\ud800")]),
    "an image id that is no text": ([_IMAGE], [_renamed(_MADE, rb"\ud800")]),
    "an odd cookie": ([_IMAGE], [_with(_MADE, b"Set-Cookie: a=\xff")]),
    "odd bytes in a 101": ([_SESSION], [_with(_ACCEPTED, b"X-\xff: \xff")]),
    "an odd subprotocol": ([_SESSION], [_with(_ACCEPTED, b"Sec-WebSocket-Protocol: \xff")]),
    "a 103 before a 101": ([_SESSION], [b"HTTP/1.1 103 Early Hints\r\n\r\n" + _ACCEPTED]),
}  # fmt: skip


def pinned() -> Iterator[Case]:
    """Each exchange, and answers with a second one behind them."""
    for number, (said, answered) in enumerate(_EXCHANGES.values()):
        yield _case(number, said, answered, Second.NONE)
    # The second of each pair has the connection that the first one leaves.
    for number, second in enumerate([_MADE, b"HTTP/1.1 204 No Content\r\n\r\n"] * 4, 500):
        beside = number % 4 < 2
        answered = [_MADE + second] if beside else [_MADE, second]
        yield _case(number, [_IMAGE], answered, Second.BESIDE if beside else Second.AFTER)


def _case(number: int, said: list[bytes], answered: list[bytes], second: Second) -> Case:
    token = b"tk%016x" % (number + 1)
    worker = _side(answered, b"an" + token[2:], End.WAIT, second)
    return Case(token, _side(said, token, End.FIN), worker, sound=True)


def _side(pieces: list[bytes], token: bytes, end: End, second: Second = Second.NONE) -> Side:
    pieces = [piece.replace(TOKEN, token) for piece in pieces]
    return Side(pieces, [0] + [1] * (len(pieces) - 1), end, second)
