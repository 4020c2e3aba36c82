"""Multipart forms, read as they arrive: fields are kept, files only counted and hashed."""

from __future__ import annotations

import hashlib
import re
from typing import Any
from urllib.parse import parse_qsl

from attrs import define, field, frozen

from .exchange import Exchange
from .messages import detail

_MOST_FIELD_BYTES = 1024 * 1024
_MOST_HEAD_BYTES = 16 * 1024


@frozen
class Upload:
    """A file of a form: what came, not what was in it."""

    name: str
    filename: str
    content_type: str
    size: int
    sha256: str


@define(eq=False)
class Form:
    """The last value of each field, all values of each field, and the uploads in order."""

    fields: dict[str, str] = field(factory=dict)
    many: dict[str, list[str]] = field(factory=dict)
    files: list[Upload] = field(factory=list)

    def add(self, name: str, value: str) -> None:
        self.fields[name] = value
        self.many.setdefault(name, []).append(value)

    def file(self, *names: str) -> Upload | None:
        """The first upload under one of these names."""
        return next((upload for upload in self.files if upload.name in names), None)


async def read_form(exchange: Exchange) -> Form:
    """The body as a form, empty if it is none. Raises a 400 `Refusal` if it is malformed."""
    kind = exchange.header(b"content-type")
    form = Form()
    if kind.lower().startswith("application/x-www-form-urlencoded"):
        text = (await exchange.body()).decode("utf-8", "replace")
        for name, value in parse_qsl(text, keep_blank_values=True):
            form.add(name, value)
        return form
    if not kind.lower().startswith("multipart/form-data"):
        await exchange.drop_body()
        return form
    match = re.search(r'boundary="?([^";]+)"?', kind)
    if match is None:
        raise detail(400, "Missing boundary in multipart.")
    parser = _Parser(match[1].encode("latin-1"), form)
    async for piece in exchange.pieces():
        parser.feed(piece)
    parser.close()
    return form


@define(eq=False)
class _Part:
    name: str
    filename: str | None
    content_type: str
    text: bytearray = field(factory=bytearray)
    size: int = 0
    digest: Any = field(factory=hashlib.sha256)

    def feed(self, data: bytes) -> None:
        self.size += len(data)
        if self.filename is not None:
            self.digest.update(data)
        elif self.size > _MOST_FIELD_BYTES:
            raise detail(400, f"Part exceeded maximum size of {_MOST_FIELD_BYTES // 1024}KB.")
        else:
            self.text += data

    def end(self, form: Form) -> None:
        if self.filename is None:
            form.add(self.name, self.text.decode("utf-8", "replace"))
        else:
            form.files.append(
                Upload(
                    self.name,
                    self.filename,
                    self.content_type,
                    self.size,
                    self.digest.hexdigest(),
                )
            )


class _Parser:
    """Splits a stream at its boundary; holds back only what may be the start of one."""

    def __init__(self, boundary: bytes, form: Form) -> None:
        self._mark = b"\r\n--" + boundary
        self._form = form
        self._held = b"\r\n"
        self._part: _Part | None = None
        self._inside = False
        self._over = False

    def feed(self, data: bytes) -> None:
        self._held += data
        while not self._over and (self._body() if self._inside else self._head()):
            pass
        if self._over:
            self._held = b""

    def close(self) -> None:
        if not self._over:
            raise detail(400, "There was an error parsing the body")

    def _body(self) -> bool:
        """Consumes body bytes up to the next boundary; True if there is more to do."""
        at = self._held.find(self._mark)
        if at < 0:
            keep = len(self._mark) - 1
            self._take(self._held[:-keep])
            self._held = self._held[-keep:]
            return False
        self._take(self._held[:at])
        if self._part is not None:
            self._part.end(self._form)
            self._part = None
        self._held = self._held[at:]
        self._inside = False
        return True

    def _head(self) -> bool:
        """Consumes a boundary and the head of a part; True if there is more to do."""
        if not self._held.startswith(self._mark[: len(self._held)]):
            raise detail(400, "There was an error parsing the body")
        rest = self._held[len(self._mark) :]
        if rest.startswith(b"--"):
            self._over = True
            return False
        end = rest.find(b"\r\n\r\n")
        if end < 0:
            if len(rest) > _MOST_HEAD_BYTES:
                raise detail(400, "There was an error parsing the body")
            return False
        self._part = self._begin(rest[:end].decode("utf-8", "replace"))
        self._held = rest[end + 4 :]
        self._inside = True
        return True

    def _take(self, data: bytes) -> None:
        if self._part is not None and data:
            self._part.feed(data)

    def _begin(self, head: str) -> _Part:
        headers = {}
        for line in head.split("\r\n"):
            key, _, value = line.partition(":")
            headers[key.strip().lower()] = value.strip()
        what = headers.get("content-disposition", "")
        name = re.search(r'\bname="((?:[^"\\]|\\.)*)"', what)
        filename = re.search(r'\bfilename="((?:[^"\\]|\\.)*)"', what)
        if name is None:
            raise detail(400, 'The Content-Disposition header field "name" must be provided.')
        return _Part(
            name[1],
            filename[1] if filename else None,
            headers.get("content-type", ""),
        )
