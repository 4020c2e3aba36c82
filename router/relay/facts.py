"""Reads the fields that routing needs off the beginning of a request body, as it arrives.

A malformed body gives no fields: only the worker judges it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Sequence
from typing import Any, TypeAlias

from attrs import define, field

from ..pool.cost import FIELDS
from ..text import one_line
from . import headers as heads
from . import versions

# The fields that routing reads, by their names in JSON objects and forms. Values in forms are text.
WANTED = FIELDS | {"model", versions.FIELD}

# A JSON body is read until the model is known, because the model decides the worker. Other
# fields are used if they have arrived by then: they may stand behind megabytes, or be absent.
MODEL = frozenset({"model"})

_PROMPT, _LONGEST_PROMPT = frozenset({"prompt"}), 200

# A scan gives up after this many tokens and brackets, so that no body can make it long.
_MOST_MARKS = 20_000
_MOST_MARKS_ON = 200_000  # for a body that cannot be routed without its model
_LONGEST_NAME = 200
_MOST_KEPT = 64 * 1024  # bytes a sliding scan keeps: a name, a value or the headers of a part

_OPEN, _QUOTE, _COLON, _COMMA = b'{":,'
_SPACE = re.compile(rb"[ \t\r\n]*+")
_NUMBER_OR_WORD = re.compile(rb"[^,\]} \t\r\n]*+")
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")
_PARAMETER = re.compile(rb';\s*([^\s=;"]+)\s*=\s*(?:"((?:[^"\\]|\\.)*+)"|([^\s;"]*))', re.DOTALL)

# A scan yields when it needs more of the body, and returns when it can learn no more. It never
# looks at the same byte many times.
_Scan: TypeAlias = Generator[None, None, None]


@define(eq=False)
class FieldReader:
    """Reads wanted fields off the body while it arrives. `seen` holds the names found so far."""

    _scan: _Scan
    fields: dict[str, Any]
    seen: set[str]
    _awaited: frozenset[str] = WANTED
    _over: bool = field(init=False, default=False)

    def done(self) -> bool:
        """Scan what has arrived since the last call. True once waiting for more is of no use."""
        if not self._over:
            try:
                next(self._scan)
            except (StopIteration, _NotReadable):
                self._over = True
        return self._over or self._awaited <= self.seen


class _NotReadable(Exception):
    pass


def is_form(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the headers announce a multipart form."""
    return _content_type(headers)[0] == b"multipart/form-data"


def boundary_of(headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The boundary of a multipart form; empty for any other body."""
    if not is_form(headers):
        return b""
    return _parameters(_content_type(headers)[1]).get(b"boundary", b"")


def is_json(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    """Whether the body may be JSON: many clients send no type, or a common wrong one."""
    kind = _content_type(headers)[0]
    return kind.endswith((b"/json", b"+json")) or kind in (
        b"",
        b"text/plain",
        b"application/x-www-form-urlencoded",  # curl's default
    )


def reader(
    headers: Sequence[tuple[bytes, bytes]],
    held: bytearray,
    *,
    on: bool = False,
    awaited: frozenset[str] = MODEL,
) -> FieldReader | None:
    """A reader for a body with these headers; None if the router cannot read such a body.

    In a form the reader wants everything before the first file: fields are small. In a JSON object
    it takes the fields that have arrived once the `awaited` are known. `on`: it reads both until
    the model is known, past files too, and drops what it has read from `held`.
    """
    window = _Window(held, slides=on)
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    if is_form(headers):
        boundary = boundary_of(headers)
        if not boundary:
            return None
        scan = _form(window, boundary, fields, seen, on)
        return FieldReader(scan, fields, seen, MODEL if on else WANTED)
    if not is_json(headers):
        return None
    return FieldReader(_JsonObject(window, fields, seen).scan(), fields, seen, awaited)


def from_json(content: bytes | bytearray, wanted: frozenset[str] = WANTED) -> dict[str, Any]:
    """The wanted fields of a whole JSON object; none if `content` is not one."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: found[name] for name in wanted & found.keys() if _may_be(name, found[name])}


def leading_fields(held: bytearray, wanted: frozenset[str]) -> dict[str, Any]:
    """The members of these names that are complete in the beginning of a JSON object."""
    if held.endswith(b"}") and (whole := from_json(held, wanted)):
        return whole  # a small object is complete here; this takes a tenth of the time
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    FieldReader(_JsonObject(_Window(held), fields, seen, wanted).scan(), fields, seen).done()
    return fields


def prompt_in(headers: Sequence[tuple[bytes, bytes]], held: bytearray) -> str | None:
    """The beginning of the prompt for the log, if the beginning of the body has it whole."""
    fields: dict[str, Any] = {}
    seen: set[str] = set()
    if boundary := boundary_of(headers):
        scan = _form(_Window(held), boundary, fields, seen, False, _PROMPT)
        FieldReader(scan, fields, seen, _PROMPT).done()
    elif is_json(headers):
        fields = leading_fields(held, _PROMPT)
    prompt = fields.get("prompt")
    return one_line(prompt, _LONGEST_PROMPT) if isinstance(prompt, str) and prompt else None


def _may_be(name: str, value: object) -> bool:
    """Whether a field of this name is kept: a scalar, or the one object that routing reads."""
    if isinstance(value, dict):
        return name == versions.FIELD
    return value is None or isinstance(value, str | int | float)


@define(eq=False)
class _Window:
    """The bytes that a scan looks at. If the window `slides`, bytes already read are dropped."""

    held: bytearray
    slides: bool = False
    at: int = 0  # read up to here
    kept: int | None = None  # bytes from here on are still needed

    def more(self) -> _Scan:
        """Wait until there is more."""
        if self.slides:
            self.bound()
            cut = self.at if self.kept is None else self.kept
            del self.held[:cut]
            self.at -= cut
            self.kept = None if self.kept is None else 0
        yield

    def bound(self) -> None:
        if self.slides and self.kept is not None and self.at - self.kept > _MOST_KEPT:
            raise _NotReadable

    def taken(self, skip: int = 0) -> bytearray:
        """The kept bytes without the first `skip`; ends the keeping."""
        assert self.kept is not None
        self.bound()
        begin, self.kept = self.kept + skip, None
        return self.held[begin : self.at]


# JSON.


@define(eq=False)
class _JsonObject:
    """Scans the beginning of a JSON object for the wanted ones among its own members. Of several
    members with one name the first counts."""

    _window: _Window
    _fields: dict[str, Any]
    _seen: set[str]
    _wanted: frozenset[str] = WANTED
    _marks: int = field(init=False)

    @_marks.default
    def _budget(self) -> int:
        return _MOST_MARKS_ON if self._window.slides else _MOST_MARKS

    def scan(self) -> _Scan:
        window = self._window
        separator = _OPEN
        while (yield from self._next_mark()) == separator:
            separator = _COMMA
            window.at += 1
            if (yield from self._next_mark()) != _QUOTE:
                return
            window.kept = window.at
            yield from self._string()
            raw = window.taken()
            name = _decoded(raw) if len(raw) - 1 < _LONGEST_NAME else None
            if (yield from self._next_mark()) != _COLON:
                return
            window.at += 1
            nested = (yield from self._next_mark()) in b"[{"
            wanted = isinstance(name, str) and name in self._wanted and name not in self._seen
            nested = nested and name != versions.FIELD
            if wanted and not nested:
                window.kept = window.at
            yield from self._value()
            if isinstance(name, str) and wanted:
                self._seen.add(name)
                value = () if nested else _decoded(window.taken())
                if _may_be(name, value):
                    self._fields[name] = value
                if self._seen == self._wanted:
                    return

    def _next_mark(self) -> Generator[None, None, int]:
        """Go to the next byte that is not white space, and return it."""
        self._spend()
        window = self._window
        while True:
            window.at = _end(_SPACE, window.held, window.at)
            if window.at < len(window.held):
                return window.held[window.at]
            yield from window.more()

    def _value(self) -> _Scan:
        """Go past the value that begins here."""
        window = self._window
        if window.held[window.at] == _QUOTE:
            yield from self._string()
        elif window.held[window.at] in b"[{":
            yield from self._container()
        else:
            while True:
                window.at = _end(_NUMBER_OR_WORD, window.held, window.at)
                if window.at < len(window.held):
                    return
                yield from window.more()

    def _string(self) -> _Scan:
        """Go past the string that begins here."""
        window = self._window
        window.at += 1
        while True:
            window.at = _end(_IN_STRING, window.held, window.at)
            if window.at < len(window.held) and window.held[window.at] == _QUOTE:
                window.at += 1
                return
            yield from window.more()  # at the end, or before half an escape

    def _container(self) -> _Scan:
        """Go past the array or object that begins here."""
        window, depth = self._window, 1
        window.at += 1
        while True:
            held = window.held
            quote = held.find(b'"', window.at)
            end = quote if quote >= 0 else len(held)
            closing = held.count(b"]", window.at, end) + held.count(b"}", window.at, end)
            if closing < depth:  # then it cannot end here, in any bracket order
                depth -= closing
                depth += held.count(b"[", window.at, end) + held.count(b"{", window.at, end)
            else:
                while found := _BRACKET.search(held, window.at, end):
                    self._spend()
                    window.at = found.end()
                    depth += 1 if found[0] in b"[{" else -1
                    if not depth:
                        return
            window.at = end
            if quote < 0:
                yield from window.more()
            else:
                self._spend()
                yield from self._string()

    def _spend(self) -> None:
        self._marks -= 1
        if not self._marks:
            raise _NotReadable


def _decoded(raw: bytearray) -> object:
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _NotReadable from error
    return value


def _end(pattern: re.Pattern[bytes], held: bytearray, at: int) -> int:
    """The end of the match of a pattern that always matches."""
    found = pattern.match(held, at)
    assert found is not None
    return found.end()


# Multipart forms (RFC 7578).


def _form(
    window: _Window,
    boundary: bytes,
    fields: dict[str, Any],
    seen: set[str],
    past_files: bool,
    among: frozenset[str] = WANTED,
) -> _Scan:
    """Read the wanted fields up to the first file, or past files."""
    delimiter = b"--" + boundary
    yield from _delimited(window, delimiter)
    while seen != among:
        window.at += len(delimiter)
        if window.held[window.at : window.at + 2] == b"--":
            return
        window.kept = window.at
        yield from _find(window, b"\r\n\r\n")
        parameters = _disposition(bytes(window.taken()))
        is_file = b"filename" in parameters or b"filename*" in parameters
        if is_file and not past_files:
            return
        # A line break before a delimiter is part of it, even the line break that ends the headers.
        window.at += 2
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        wanted = not is_file and name in among and name not in seen
        if wanted:
            window.kept = window.at
        yield from _delimited(window, b"\r\n" + delimiter)
        if wanted:
            seen.add(name)
            fields[name] = window.taken(2).decode("utf-8", "replace")
        window.at += 2


def _delimited(window: _Window, delimiter: bytes) -> _Scan:
    """Go to the next delimiter. A longer boundary that begins with this one is content."""
    while True:
        yield from _find(window, delimiter)
        while len(window.held) < (end := window.at + len(delimiter)) + 2:
            yield from window.more()
        if window.held.startswith((b"\r\n", b"--"), end):
            return
        window.at += 1


def _find(window: _Window, wanted: bytes) -> _Scan:
    """Go to the next occurrence of `wanted`."""
    while (found := window.held.find(wanted, window.at)) < 0:
        window.at = max(window.at, len(window.held) - len(wanted) + 1)
        yield from window.more()
    window.at = found


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
    """The parameters of a header, by their lower-case names."""
    found: dict[bytes, bytes] = {}
    at = content.find(b";")
    while at >= 0 and (match := _PARAMETER.match(content, at)):
        quoted, token = match[2], match[3]
        value = re.sub(rb"\\(.)", rb"\1", quoted) if quoted is not None else token
        found.setdefault(match[1].lower(), value)
        at = content.find(b";", match.end())
    return found
