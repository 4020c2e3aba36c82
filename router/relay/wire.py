"""Writes and reads the heads of nearly all exchanges with workers, without h11.

h11 has checked the client's request and will check the client's answer; here one pattern matches a
whole head. Heads that are not plain go through h11 (`relay.connection`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

_TOKEN = rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]++"
# Blanks and tabs may stand inside, but no NUL or other white space (RFC 9110 section 5.5).
_VALUE = rb"[^\x00\s]*+(?:[ \t]++[^\x00\s]++)*+"
_FIELD = rb"%b:[ \t]*+%b[ \t]*+\r\n" % (_TOKEN, _VALUE)

_REQUEST = re.compile(rb"%b [\x21-\x7e]++ HTTP/1\.1\r\n(?:%b)++\r\n" % (_TOKEN, _FIELD))
_ANSWER = re.compile(
    rb"HTTP/1\.1 ([2-9][0-9]{2})(?: [^\x00\n\r\f\v]*+)?\r\n((?:%b)*+)\r\n" % _FIELD
)
_PAIR = re.compile(rb"(%b):[ \t]*+(%b)[ \t]*+\r\n" % (_TOKEN, _VALUE))
_LENGTH = re.compile(rb"[0-9]{1,18}\Z")


class NotAllowed(Exception):
    """HTTP does not allow the request."""


@frozen
class Head:
    """The head of a worker's answer, header names spelled as received.

    `length`: of the body, None unless Content-Length frames it. `keeps`: the worker keeps the
    connection open after the answer.
    """

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    length: int | None
    keeps: bool


def request(method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The bytes of a request's head. Raises NotAllowed."""
    lines = [b"%b: %b\r\n" % header for header in headers]
    head = b"%b %b HTTP/1.1\r\n%b\r\n" % (method.encode(), target, b"".join(lines))
    # The number of lines is right: nothing was smuggled into a name or value.
    if not _REQUEST.fullmatch(head) or head.count(b"\r\n") != len(headers) + 2:
        raise NotAllowed("a line of its head is not valid")
    return head


def answer(data: bytes) -> tuple[Head, int] | None:
    """The head that an answer begins with, and where the body begins.

    None if the head is incomplete or not plain. A plain head is HTTP/1.1, not informational, and
    its body ends by Content-Length, by 204 or by 304.
    """
    found = _ANSWER.match(data)
    if found is None:
        return None
    headers: list[tuple[bytes, bytes]] = _PAIR.findall(found[2])
    length: int | None = None
    keeps = True
    for name, value in headers:
        match name.lower():
            case b"content-length":
                if length is not None or not _LENGTH.match(value):
                    return None
                length = int(value)
            case b"transfer-encoding":
                return None
            case b"connection":
                keeps = keeps and b"close" not in tokens(value)
    status = int(found[1])
    if status in (204, 304):
        length = 0
    elif length is None:
        return None
    return Head(status, headers, length, keeps), found.end()


def tokens(value: bytes) -> list[bytes]:
    """The words of a list-valued header, in lower case."""
    return [token.strip().lower() for token in value.split(b",")]
