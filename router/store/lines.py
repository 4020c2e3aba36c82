"""The lines of journals and snapshots: JSON objects, each with a checksum of its own.

Format 1. A file begins with a line that says what it is. A line of a journal holds one batch of
changes, or with `more` a part of one; a line of a snapshot holds rows of one table; the last line
of a snapshot says how many rows there were.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from .changes import Op

FORMAT = 1

# Reads a row of the format of its key as one of the next: table, key and value become others, or
# None if there is no use for it any more. The value of a deletion is None.
Migration = Callable[[str, str, Any], tuple[str, str, Any] | None]
MIGRATIONS: dict[int, Migration] = {}

_TAIL = len(b',"crc":"00000000"}\n')
_LONGEST = 256 * 1024 * 1024


class BadLine(Exception):
    """A line is not what was written."""


class Unreadable(Exception):
    """A file is of a format that this program does not know. The message is a sentence."""


def sealed(content: Mapping[str, Any]) -> bytes:
    """The line of an object, which must not be empty."""
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def opened(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises BadLine."""
    body, tail = memoryview(line)[:-_TAIL], line[-_TAIL:]
    if not line.endswith(b"\n"):
        raise BadLine("it has no end")
    if tail != b',"crc":"%08x"}\n' % zlib.crc32(body):
        raise BadLine("its checksum is wrong")
    content = json.loads(bytes(body) + b"}")
    assert isinstance(content, dict)
    return content


def header(holds: str, number: int, made: str) -> bytes:
    """The first line of a file. `holds`: journal or snapshot; `made`: when, for people."""
    return sealed({"format": FORMAT, "holds": holds, "number": number, "made": made})


def read_header(line: bytes, holds: str, number: int) -> int:
    """The format of a file by its first line. Raises BadLine, or Unreadable."""
    # The checksum of another format may be another: its number counts first.
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    form = content.get("format") if isinstance(content, dict) else None
    if isinstance(form, int) and form > FORMAT:
        raise Unreadable(f"it has format {form}, and this version knows up to {FORMAT}")
    content = opened(line)
    if (content.get("holds"), content.get("number")) != (holds, number):
        raise BadLine(f"it is no beginning of {holds} {number}")
    if not isinstance(form, int) or any(old not in MIGRATIONS for old in range(form, FORMAT)):
        raise Unreadable(f"it has format {form}, which this version cannot read any more")
    return form


def migrated(op: Op, form: int) -> Op | None:
    """An op of an older format as one of today's; None if it is void."""
    for old in range(form, FORMAT):
        if op[0] == "clear":
            renamed = MIGRATIONS[old](op[1], "", None)
            if renamed is None:
                return None
            op = ["clear", renamed[0]]
            continue
        _, table, key, *value = op
        row = MIGRATIONS[old](table, key, value[0] if value else None)
        if row is None:
            return None
        op = ["put", *row] if value else ["del", row[0], row[1]]
    return op


def lines_of(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """The lines of a file from where it stands, each with its place."""
    place = file.tell()
    while line := file.readline(_LONGEST):
        yield place, line
        place += len(line)
