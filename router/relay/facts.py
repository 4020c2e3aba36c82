"""Reading the fields that routing wants off the beginning of a request body, as it arrives.

A body that is not what it says it is gives no fields: judging it is the worker's business.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import TypeAlias, TypeGuard

from attrs import define, field

from ..pool.cost import FIELDS
from . import headers as heads

Scalar: TypeAlias = str | int | float | bool | None

# The fields that routing reads, by their names in JSON objects and in forms alike. In a form
# every value is text.
WANTED = FIELDS | {"model"}

# What a JSON body is read on for: a worker is chosen by it. The others, which are of use where
# they stand beside it, may stand behind megabytes, or nowhere.
_AWAITED_IN_JSON = frozenset({"model"})

# A scan gives up after so many tokens and brackets: it must stay short whatever is sent.
_MOST_MARKS = 20_000
_LONGEST_NAME = 200

_OPEN, _QUOTE, _COLON, _COMMA = b'{":,'
_SPACE = re.compile(rb"[ \t\r\n]*+")
_NUMBER_OR_WORD = re.compile(rb"[^,\]} \t\r\n]*+")
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_MARK = re.compile(rb'["\[\]{}]')
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*))', re.DOTALL)

# A scan yields where it needs more of the body than there is, and ends where no more can be
# learned. It looks at `held` anew after each yield, but never at the same byte many times.
_Scan: TypeAlias = Generator[None, None, int]


@define(eq=False)
class FieldReader:
    """Reads wanted fields off the body while it arrives: `seen` are the names that have come."""

    _scan: Generator[None, None, object]
    fields: dict[str, Scalar]
    seen: set[str]
    _awaited: frozenset[str] = WANTED
    _over: bool = field(init=False, default=False)

    def done(self) -> bool:
        """Look at what has come since the last call; True once the rest is not worth a wait."""
        if not self._over:
            try:
                next(self._scan)
            except (StopIteration, _NotReadable):
                self._over = True
        return self._over or self._awaited <= self.seen


class _NotReadable(Exception):
    pass


def is_form(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the body is announced to be a multipart form."""
    return _content_type(headers)[0] == b"multipart/form-data"


def is_json(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the body may be JSON: clients name no type, or a wrong one that is common."""
    kind = _content_type(headers)[0]
    return kind.endswith((b"/json", b"+json")) or kind in (
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",  # what curl says
    )


def reader(headers: Sequence[tuple[bytes, bytes]], held: bytearray) -> FieldReader | None:
    """A reader for a body of these headers; None where there is nothing to read.

    Of a form it wants all that stands before the first file: fields are small. Of a JSON object
    it takes what has come when the model is known.
    """
    fields: dict[str, Scalar] = {}
    seen: set[str] = set()
    if is_form(headers):
        boundary = _parameters(_content_type(headers)[1]).get(b"boundary")
        scan = _form(held, boundary, fields, seen) if boundary else None
        return FieldReader(scan, fields, seen) if scan else None
    if not is_json(headers):
        return None
    scan = _JsonObject(held, fields, seen).scan()
    return FieldReader(scan, fields, seen, _AWAITED_IN_JSON)


def from_json(content: bytes | bytearray, wanted: frozenset[str] = WANTED) -> dict[str, Scalar]:
    """The wanted fields of a whole JSON object; none if it is no such thing."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in wanted & found.keys() if is_scalar(found[name])}


def leading_fields(held: bytearray, wanted: frozenset[str]) -> dict[str, Scalar]:
    """The members of these names that stand whole in the beginning of a JSON object."""
    if held.endswith(b"}") and (whole := from_json(held, wanted)):
        return whole  # a small object is all here, and this takes a tenth of the time
    fields: dict[str, Scalar] = {}
    seen: set[str] = set()
    FieldReader(_JsonObject(held, fields, seen, wanted).scan(), fields, seen).done()
    return fields


def is_scalar(value: object) -> TypeGuard[Scalar]:
    return value is None or isinstance(value, str | int | float)


# JSON.


@define(eq=False)
class _JsonObject:
    """Scans the beginning of a JSON object for the wanted ones of its own members."""

    _held: bytearray
    _fields: dict[str, Scalar]
    _seen: set[str]
    _wanted: frozenset[str] = WANTED
    _marks: int = field(init=False, default=_MOST_MARKS)

    def scan(self) -> Generator[None, None, None]:
        mark, at = yield from self._next_mark(0)
        separator = _OPEN
        while mark == separator:
            mark, start = yield from self._next_mark(at + 1)
            if mark != _QUOTE:
                return
            end = yield from self._string(start + 1)
            name = self._decoded(start, end) if end - start < _LONGEST_NAME else None
            mark, at = yield from self._next_mark(end)
            if mark != _COLON:
                return
            _, start = yield from self._next_mark(at + 1)
            end = yield from self._value(start)
            if isinstance(name, str) and name in self._wanted:
                self._seen.add(name)
                value = self._decoded(start, end)
                if is_scalar(value):
                    self._fields[name] = value
                if self._seen == self._wanted:
                    return
            mark, at = yield from self._next_mark(end)
            separator = _COMMA

    def _next_mark(self, at: int) -> Generator[None, None, tuple[int, int]]:
        """The next byte that is no white space, and where it stands."""
        self._spend()
        while True:
            at = _end(_SPACE, self._held, at)
            if at < len(self._held):
                return self._held[at], at
            yield

    def _value(self, at: int) -> _Scan:
        """Where the value that begins at `at` ends."""
        if self._held[at] == _QUOTE:
            return (yield from self._string(at + 1))
        if self._held[at] in b"[{":
            return (yield from self._container(at))
        while True:
            at = _end(_NUMBER_OR_WORD, self._held, at)
            if at < len(self._held):
                return at
            yield

    def _string(self, at: int) -> _Scan:
        """Where the string ends whose inside begins at `at`."""
        while True:
            at = _end(_IN_STRING, self._held, at)
            if at < len(self._held) and self._held[at] == _QUOTE:
                return at + 1
            yield  # at the end, or before a backslash whose character has not come

    def _container(self, at: int) -> _Scan:
        depth = 0
        while True:
            self._spend()
            while (found := _MARK.search(self._held, at)) is None:
                at = len(self._held)
                yield
            at = found.end()
            mark = self._held[at - 1]
            if mark == _QUOTE:
                at = yield from self._string(at)
            else:
                depth += 1 if mark in b"[{" else -1
            if depth == 0:
                return at

    def _spend(self) -> None:
        self._marks -= 1
        if not self._marks:
            raise _NotReadable

    def _decoded(self, start: int, end: int) -> object:
        """The value between two places; of a nested one only that it is one."""
        if self._held[start] in b"[{":
            return ()
        try:
            value: object = json.loads(self._held[start:end])
        except ValueError as error:
            raise _NotReadable from error
        return value


def _end(pattern: re.Pattern[bytes], held: bytearray, at: int) -> int:
    """Where a pattern that always matches ends."""
    found = pattern.match(held, at)
    assert found is not None
    return found.end()


# Multipart forms (RFC 7578).


def _form(
    held: bytearray, boundary: bytes, fields: dict[str, Scalar], seen: set[str]
) -> Generator[None, None, None]:
    """The wanted ones of the fields that come before the first file."""
    delimiter = b"--" + boundary
    at = yield from _find(held, delimiter, 0)
    while seen != WANTED:
        headers = yield from _find(held, b"\r\n", at + len(delimiter))
        after = at + len(delimiter)
        if held[after : after + 2] == b"--":
            return
        content = (yield from _find(held, b"\r\n\r\n", headers)) + 4
        parameters = _disposition(bytes(held[headers:content]))
        if b"filename" in parameters or b"filename*" in parameters:
            return
        # The line break before a delimiter belongs to it; that after the headers may be it.
        end = yield from _find(held, b"\r\n" + delimiter, content - 2)
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        if name in WANTED and name not in seen:
            seen.add(name)
            fields[name] = held[content:end].decode("utf-8", "replace")
        at = end + 2


def _find(held: bytearray, wanted: bytes, at: int) -> _Scan:
    while (found := held.find(wanted, at)) < 0:
        at = max(at, len(held) - len(wanted) + 1)
        yield
    return found


def _disposition(part_headers: bytes) -> dict[bytes, bytes]:
    for line in part_headers.split(b"\r\n"):
        name, _, content = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameters(content)
    return {}


def _content_type(headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The media type in lower case, and the whole header."""
    content = heads.value(headers, b"content-type") or b""
    return content.partition(b";")[0].strip().lower(), content


def _parameters(content: bytes) -> dict[bytes, bytes]:
    """The parameters of a header by their lower-case names."""
    found: dict[bytes, bytes] = {}
    at = content.find(b";")
    while at >= 0 and (match := _PARAMETER.match(content, at)):
        quoted, token = match[2], match[3]
        value = re.sub(rb"\\(.)", rb"\1", quoted) if quoted is not None else token
        found.setdefault(match[1].lower(), value)
        at = content.find(b";", match.end())
    return found
