"""One case: what a client sends and what a worker answers, spoilt at random.

Whatever is drawn is drawn from one `random.Random`, which may be one of hypothesis.
"""

from __future__ import annotations

import random
import re
from enum import StrEnum

from attrs import define

from tests.fuzz.exchanges import ANSWERS, CHANGES, CONTROL, KEPT, RELAYED, REQUESTS, TOKEN

_SPECIAL = [b"\r", b"\n", b"\0", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"=", b"%"]
_SPECIAL += [b"\xff", b"\x80", b"\xc3", b"\xe2\x80\xa8", b'"', b"\\ud800", b"[" * 40, b"{", b"0"]
_SPECIAL += [b"\x7f", b"\x81", b"\x08", b"HTTP/1.1", b"HTTP/2.0", b"..", b"//", b"%2f", b"?", b"#"]
_NUMBERS = [b"0", b"-1", b"+1", b"1e9", b"0x10", b"00007", b"65536", b"9" * 19, b"9" * 5000, b"1_0"]
_NUMBERS += [b"999", b"1.5", b"NaN", b"\xb2", b""]
_ODD = [byte for byte in _SPECIAL if not re.search(rb"[\r\n]", byte)] + [b"\xe9t\xe9", b"x" * 300]
_ODD += [b"\xff", b"\x80", b"\xe9"] * 2
_ESCAPES = [
    b"\\ud800",
    b"\\udfff",
    b"\\u0000",
    b"\\n",
    b"\\u2028",
    b"\\u0085",
    b"\xff",
    b"\xc3\xa9",
]
_ESCAPES += [
    b"\\ud800",
    b"\\udfff",
    b"\\udc80",
    b"/",
    b"..",
    b"%2f",
    b"?",
    b"#",
    b"x" * 300,
    b"",
    b"\\ud83d\\ude00",
]
_VALUES = [b"[]", b"{}", b"null", b"NaN", b"1e999", b"-1", b"9" * 400, b"true", b'""', b"[" * 60]
_STRING = re.compile(rb'"((?:[^"\\\\]|\\\\.)*)"')
_LENGTH = re.compile(rb"(?i)content-length: *[0-9]+")
_FIELDS = [
    b"Content-Length: 5",
    b"Content-Length: 0",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Connection: close, x-client-id, upgrade",
    b"Connection: keep-alive",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: more",
    b"Host: a b",
    b"Host: " + b"a" * 70 + b".b..c",
    b"Content-Type: multipart/form-data; boundary=",
    b"Content-Encoding: deflate",
    b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=x",
    b"Sec-WebSocket-Protocol: ,,,",
    b"X-Router-Hops: \xff, a",
    b"Retry-After: Fri, 31 Dec 9999 23:59:59 GMT",
    b"Retry-After: 1e400",
    b"Location: http://[::1",
    b"Range: bytes=9-",
    b"X-Min-Weight-Version: 1",
    b"Traceparent: 00-\xe9",
    b" folded: line",
    b": nameless",
    b"X-Huge: " + b"h" * 70_000,
]


class End(StrEnum):
    """What comes after the last byte."""

    WAIT = "wait"  # nothing, until the other side ends it
    FIN = "fin"
    RST = "rst"


class Second(StrEnum):
    """Where a second answer comes, of which nobody has asked."""

    NONE = "none"
    BESIDE = "beside"  # it begins in one piece with the end of the first
    AFTER = "after"


@define
class Side:
    """What one side says: pieces, the pause before each (0: none; 1: the event loop turns; 2:
    milliseconds; 3: until something came), and the end."""

    pieces: list[bytes]
    pauses: list[int]
    end: End
    second: Second = Second.NONE

    def __str__(self) -> str:
        pieces = ", ".join(
            f"{p!r} after {n}" for p, n in zip(self.pieces, self.pauses, strict=True)
        )
        return f"[{pieces}] then {self.end.value}"


@define(eq=False)
class Case:
    """A client's side and a worker's, which meet by the token."""

    token: bytes
    client: Side
    worker: Side
    changes: bool = False  # workers, weights or memory
    sound: bool = False  # the client does nothing wrong

    @property
    def method(self) -> bytes | None:
        """That of the one sound request that the client sends, if it is so."""
        said = b"".join(self.client.pieces)
        if not self.sound or said.count(b" HTTP/1.") > 1 or b"Upgrade: websocket" in said:
            return None
        return said.partition(b" ")[0]

    @property
    def answered(self) -> bytes:
        """What the worker's answer has in the token's place."""
        return b"an" + self.token[2:]

    def __str__(self) -> str:
        return f"client {self.client}\nworker {self.worker}"


# Jobs and WebSockets have more to be read than the others.
_JOBS = tuple(each for each in REQUESTS if each[0].startswith((b"POST /v1/v", b"POST /v1/m")))
_SESSIONS = tuple(each for each in REQUESTS if b"Upgrade: websocket" in each[0])
_GROUPS = [REQUESTS] * 6 + [_JOBS, _SESSIONS]
# What is said in a request, and in the answers that fit it.
_FITTING = [
    (b"Upgrade: websocket", b" 101 "),
    (b"POST /v1/videos", b'"object": "video"'),
    (b"POST /v1/meshes", b'"object": "video"'),
    (b"/v1/images", b'"created"'),
]


def make_case(rng: random.Random, *, changes: bool = False) -> Case:
    """A case as chance has it."""
    token = b"tk%016x" % rng.getrandbits(64)
    if rng.random() < _DOUBLED:
        client = _side(rng, rng.choice(RELAYED), (), [End.WAIT, End.FIN], spoil=False)
        return _case(token, client, _doubled(rng, rng.choice(KEPT)), sound=True)
    requests = CHANGES if changes and rng.random() < 0.6 else rng.choice(_GROUPS)
    request, answer = rng.choice(requests), rng.choice(ANSWERS)
    for asked, told in _FITTING:
        if asked in request[0] and rng.random() < 0.7:
            answer = rng.choice([each for each in ANSWERS if told in each[0]])
    # Mostly one side only: what is refused at once goes no further.
    spoilt = rng.choice(["client", "worker", "worker", "both"])
    ends = [End.WAIT, End.FIN, End.FIN, End.RST]
    client = _side(rng, request, rng.choice(REQUESTS), ends, spoil=spoilt != "worker")
    ends = [End.WAIT] * 4 + [End.FIN, End.RST]
    worker = _side(rng, answer, rng.choice(ANSWERS), ends, spoil=spoilt != "client")
    changes = requests is CHANGES
    return _case(token, client, worker, changes=changes, sound=spoilt == "worker")


def _case(token: bytes, client: Side, worker: Side, *, changes: bool = False, sound: bool) -> Case:
    case = Case(token, client, worker, changes=changes, sound=sound)
    client.pieces = [piece.replace(TOKEN, token) for piece in client.pieces]
    worker.pieces = [piece.replace(TOKEN, case.answered) for piece in worker.pieces]
    return case


def control_answer(rng: random.Random, path: bytes) -> Side:
    """What a worker that is out of its mind answers to a question of the router's own."""
    sound = CONTROL.get(path.partition(b"?")[0], CONTROL[b""])
    if rng.random() < _DOUBLED:
        return _doubled(rng, sound)
    return _side(rng, (sound,), rng.choice(ANSWERS), [End.WAIT] * 4 + [End.FIN, End.RST])


_DOUBLED = 0.08  # the share of answers with a second one behind them


def _doubled(rng: random.Random, first: bytes) -> Side:
    """An answer after which the connection is kept, and a second one at once or a little later."""
    second = rng.choice(KEPT)
    head, edge, body = first.partition(b"\r\n\r\n")
    match rng.randrange(4):
        case 0:
            return Side([first, second], [0, rng.choice([1, 1, 2])], End.WAIT, Second.AFTER)
        case 1 if body:  # the first one's body is read alone, as its length is known
            pieces = [head + edge, body + second]
        case 2:
            cut = rng.randrange(1, len(second))
            pieces = [first + second[:cut], second[cut:]]
        case _:
            pieces = [first + second]
    pauses = [0] + [rng.choice([1, 2]) for _ in pieces[1:]]
    return Side(pieces, pauses, End.WAIT, Second.BESIDE)


def _side(
    rng: random.Random,
    pieces: tuple[bytes, ...],
    donor: tuple[bytes, ...],
    ends: list[End],
    *,
    spoil: bool = True,
) -> Side:
    spoilt = list(pieces)
    session = b"\r\nUpgrade: websocket" in spoilt[0]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 2, 3, 5]) if spoil else 0):
        # Of a WebSocket rather the frames: with a spoilt handshake there are none.
        first = session and len(spoilt) > 1 and rng.random() < 0.4
        at = rng.randrange(first, len(spoilt))
        if session and at == 0 and rng.random() < 0.6:
            spoilt[at] = _field(rng, spoilt[at], b"")
        else:
            spoilt[at] = mutate(rng, spoilt[at], b"".join(donor))
    end = rng.choice(ends)
    if spoil and rng.random() < (0.05 if session else 0.15):  # cut off
        keep = rng.randrange(sum(map(len, spoilt)) + 1)
        spoilt = [b"".join(spoilt)[:keep]]
    if rng.random() < (0.05 if session else 0.15):  # dripped
        whole = b"".join(spoilt)
        cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(rng.randrange(1, 8)))
        spoilt = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        pauses = [rng.choice([0, 1, 1, 2]) for _ in spoilt]
    else:
        pauses = [0] + [rng.choice([1, 2, *[3] * 8]) for _ in spoilt[1:]]
    return Side(spoilt, pauses, end)


def mutate(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    """Spoil some bytes once."""
    spoilt = rng.choice(_WAYS)(rng, data, donor)
    # Lest what is spoilt within a body be only too short or too long.
    return _whole(*spoilt.partition(b"\r\n\r\n")) if rng.random() < 0.5 else spoilt


def _whole(head: bytes, edge: bytes, body: bytes) -> bytes:
    """A message whose length is as its head says."""
    return _LENGTH.sub(b"Content-Length: %d" % len(body), head, count=1) + edge + body


def _span(rng: random.Random, data: bytes, most: int = 40) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.randrange(1, most))


def _flip(rng: random.Random, data: bytes, _: bytes) -> bytes:
    if not data:
        return data
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _insert(rng: random.Random, data: bytes, _: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice(_SPECIAL) + data[at:]


def _replace(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _span(rng, data, 6)
    return data[:start] + rng.choice(_SPECIAL) + data[end:]


def _delete(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:start] + data[end:]


def _double(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.randrange(1, 4) + data[end:]


def _swap(rng: random.Random, data: bytes, _: bytes) -> bytes:
    a, b, c = sorted(rng.randrange(len(data) + 1) for _ in range(3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _number(rng: random.Random, data: bytes, _: bytes) -> bytes:
    found = [m.span() for m in re.finditer(rb"[0-9]+", data) if not _in_token(data, m.start())]
    if not found:
        return data
    start, end = rng.choice(found)
    near = int(data[start : min(end, start + 9)]) + rng.choice([-1, 1])
    return data[:start] + rng.choice([b"%d" % near, *_NUMBERS]) + data[end:]


def _in_token(data: bytes, at: int) -> bool:
    return TOKEN in data[max(0, at - len(TOKEN)) : at + len(TOKEN)]


def _lines(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """Lines of a head: one taken out, doubled, moved, or one more."""
    head, edge, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at, to = rng.randrange(len(lines)), rng.randrange(len(lines) + 1)
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(to, lines[at])
        case 2:
            lines.insert(to, lines.pop(at))
        case _:
            lines.insert(max(1, to), rng.choice(_FIELDS))
    return b"\r\n".join(lines) + edge + rest


def _field(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """Within the value of a field."""
    head, edge, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = rng.randrange(len(lines))
    name, colon, value = lines[at].partition(b": ")
    if not colon:
        return data
    match rng.randrange(4):
        case 0:
            value = value[: (cut := rng.randrange(len(value) + 1))] + rng.choice(_ODD) + value[cut:]
        case 1:
            value = rng.choice([*_ODD, *_NUMBERS])
        case 2:
            value += rng.choice([b"=", b"; ", b", "]) + rng.choice([*_ODD, *_NUMBERS, value])
        case _:
            elements = re.split(rb"[,;=] *", value)
            value = value.replace(rng.choice(elements), rng.choice([*_ODD, *elements]), 1)
    lines[at] = name + colon + value
    return b"\r\n".join(lines) + edge + rest


def _json(rng: random.Random, data: bytes, _: bytes) -> bytes:
    """A string of a body, or a value."""
    head, edge, body = data.partition(b"\r\n\r\n")
    found = [match.span(1) for match in _STRING.finditer(body)]
    if not found:
        return data
    start, end = rng.choice(found)
    match rng.randrange(3):
        case 0:
            start = end = rng.randrange(start, end + 1)
            said = rng.choice(_ESCAPES)
        case 1:
            said = rng.choice(_ESCAPES)
        case _:
            start, end = start - 1, end + 1
            said = rng.choice(_VALUES)
    return _whole(head, edge, body[:start] + said + body[end:])


def _huge(rng: random.Random, data: bytes, _: bytes) -> bytes:
    start, end = _span(rng, data)
    return data[:end] + data[start:end] * rng.choice([100, 1000, 3000]) + data[end:]


def _splice(rng: random.Random, data: bytes, donor: bytes) -> bytes:
    match rng.randrange(3):
        case 0:
            return data[: rng.randrange(len(data) + 1)] + donor[rng.randrange(len(donor)) :]
        case 1:
            at = rng.randrange(len(data) + 1)
            return data[:at] + donor + data[at:]
        case _:
            return data + donor


_WAYS = [_flip, _flip, _insert, _insert, _replace, _delete, _double, _swap, _number, _number]
_WAYS += [_lines, _lines, _lines, _huge, _splice, _splice, *[_field] * 5, *[_json] * 8]
