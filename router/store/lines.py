"""The lines of journals and snapshots: JSON objects, each with its own checksum.

Format 2: the first line of a file says which file it is. A journal's line holds one batch of
changes, or a part of one if it has `more`. A snapshot's line holds rows of one table; the
snapshot's last line has the number of rows. Batch numbers have no gaps. Each line repeats the
checksum of the line before it (`after`). The first line of a journal repeats the checksum of the
previous journal's last line. So a line that is lost, doubled or moved breaks the chain.

Format 1 numbers batches, but its lines do not repeat checksums.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from attrs import frozen

from .changes import Op

FORMAT = 2
_CHAINED = 2  # the first format whose lines name their predecessor

# Converts a row of one format to the next: takes and returns table, key and value; None drops the
# row. A deletion has the value None.
Migration = Callable[[str, str, Any], tuple[str, str, Any] | None]
MIGRATIONS: dict[int, Migration] = {1: lambda table, key, value: (table, key, value)}

_TAIL = len(b',"crc":"00000000"}\n')
_LONGEST = 256 * 1024 * 1024


class BadLine(Exception):
    """A line is damaged; `number` counts lines from 1."""

    def __init__(self, message: str, number: int = 1) -> None:
        super().__init__(message)
        self.number = number


class Unreadable(Exception):
    """A file has a format that this program cannot read. The message is a sentence."""


def sealed(content: Mapping[str, Any]) -> bytes:
    """The line for an object, which must not be empty."""
    body = json.dumps(content, separators=(",", ":")).encode()[:-1]
    return b'%b,"crc":"%08x"}\n' % (body, zlib.crc32(body))


def opened(line: bytes) -> dict[str, Any]:
    """The object of a line. Raises BadLine."""
    body, tail = memoryview(line)[:-_TAIL], line[-_TAIL:]
    if not line.endswith(b"\n"):
        raise BadLine("the line is cut short")
    if tail != b',"crc":"%08x"}\n' % zlib.crc32(body):
        raise BadLine("wrong checksum")
    try:
        content = json.loads(bytes(body) + b"}")
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise BadLine("not a JSON object")
    return content


def checksum(line: bytes) -> str:
    """The checksum of a good line, which the next one repeats."""
    return line[-11:-3].decode("ascii")


def header(holds: str, number: int, made: str, **more: Any) -> bytes:
    """The first line of a file. `holds`: journal or snapshot; `made`: its time, for people."""
    return sealed({"format": FORMAT, "holds": holds, "number": number, "made": made, **more})


@frozen
class Header:
    """The content of a file's first line."""

    format: int
    # Journals only: the number of the last batch and the checksum of the last line before the
    # journal; the checksum is empty if there is no such line. None in format 1.
    seq: int | None
    after: str | None


def read_header(line: bytes, holds: str, number: int) -> Header:
    """Parse the first line of a file. Raises BadLine, or Unreadable."""
    # Another format may use another checksum, so the format is checked first.
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    form = content.get("format") if isinstance(content, dict) else None
    if isinstance(form, int) and form > FORMAT:
        raise Unreadable(
            f"format {form} is newer than {FORMAT}, the newest format that this version reads"
        )
    content = opened(line)
    if (content.get("holds"), content.get("number")) != (holds, number):
        raise BadLine(f"not the first line of {holds} {number}")
    if not isinstance(form, int) or any(old not in MIGRATIONS for old in range(form, FORMAT)):
        raise Unreadable(f"this version no longer reads format {form}")
    return Header(form, content.get("seq"), content.get("after"))


def lines_after(
    file: BinaryIO, first: bytes, head: Header
) -> Iterator[tuple[int, bytes, dict[str, Any] | None]]:
    """The lines of a file after its first: number, line and content. The content is None for a last
    line that is cut off. Raises BadLine at the first damaged line."""
    before = checksum(first)
    for number, line in enumerate(lines_of(file), 2):
        try:
            if not line.endswith(b"\n") and len(line) < _LONGEST:
                yield number, line, None
                return
            content = opened(line)
            if head.format >= _CHAINED and content.get("after") != before:
                raise BadLine("does not continue the previous line: a line was lost or added")
        except BadLine as error:
            raise BadLine(str(error), number) from error
        yield number, line, content
        before = checksum(line)


def migrated(op: Op, form: int) -> Op | None:
    """Convert an op of an older format to the current one; None drops the op."""
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


def lines_of(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file from its current position."""
    return iter(lambda: file.readline(_LONGEST), b"")
