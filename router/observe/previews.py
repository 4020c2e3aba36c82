"""The newest images that passed, for the live page: a few of them, in memory only.

Passing answers are kept as they are. An image is taken out of its answer only when somebody looks.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any
from weakref import WeakSet

from attrs import define, field

from .. import wall

SHOWN = 12
_KEPT = 2 * SHOWN  # a viewer may yet ask for one that was among the newest
_LARGEST = 8 * 1024 * 1024  # bytes of one answer
_MOST_BYTES = 4 * _LARGEST  # of all that are kept
_AT_ONCE = 4  # answers that are watched at the same time
_LEADING = 16 * 1024

_ENCODED = re.compile(rb'"b64_json"\s*:\s*"([A-Za-z0-9+/]+=*)')
_TYPES = (
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "image/png"),
    (re.compile(rb"\xff\xd8\xff"), "image/jpeg"),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), "image/webp"),
)


@define(eq=False)
class Glimpse:
    """One answer that may have an image, while it passes and as long as it is kept."""

    previews: Previews = field(repr=False)
    worker_id: str
    weight_version: int | None
    path: str
    number: int = 0
    at: float = 0.0  # seconds since 1970
    size: int = 0
    _pieces: list[bytes] = field(init=False, factory=list, repr=False)
    _image: tuple[bytes, str] | None = field(init=False, default=None, repr=False)

    def saw(self, piece: bytes) -> None:
        """A piece of the answer has passed."""
        self.size += len(piece)
        if self.size <= _LARGEST:
            self._pieces.append(piece)
        else:
            self._pieces.clear()

    def over(self) -> None:
        """The whole answer has passed."""
        self.previews.keep(self)

    @property
    def promising(self) -> bool:
        """Whether the answer seems to have an image."""
        begun = b""
        for piece in self._pieces:
            begun += piece
            if len(begun) >= _LEADING:
                break
        return type_of(begun) is not None or _ENCODED.search(begun) is not None

    def image(self) -> tuple[bytes, str] | None:
        """The first image of the answer, and its type. Takes a moment the first time."""
        pieces = self._pieces  # two threads may do this at once
        if self._image is None and pieces:
            data = b"".join(pieces)
            encoded = None if type_of(data) else _ENCODED.search(data)
            if encoded is not None:
                try:
                    data = base64.b64decode(encoded[1], validate=True)
                except binascii.Error:
                    data = b""
            kind = type_of(data)
            if kind is not None:
                self._image, self._pieces = (data, kind), []
        return self._image

    def row(self) -> dict[str, Any]:
        return {
            "id": self.number,
            "at": round(self.at, 1),
            "worker_id": self.worker_id,
            "weight_version": self.weight_version,
        }


def type_of(data: bytes) -> str | None:
    """The type of an image that browsers show; None for anything else."""
    return next((kind for begins, kind in _TYPES if begins.match(data)), None)


@define(eq=False)
class Previews:
    """The newest images, the newest first. Without `enabled` no answer is watched."""

    enabled: bool = False
    newest: int = field(init=False, default=0)  # the number of the last one
    _kept: deque[Glimpse] = field(init=False, factory=deque)
    _open: WeakSet[Glimpse] = field(init=False, factory=WeakSet)

    def __iter__(self) -> Iterator[Glimpse]:
        return islice(tuple(self._kept), SHOWN)

    def begin(self, worker_id: str, weight_version: int | None, path: str) -> Glimpse | None:
        """Watch an answer; None if enough are watched."""
        if len(self._open) >= _AT_ONCE:
            return None
        version = weight_version if weight_version is None or weight_version >= 0 else None
        glimpse = Glimpse(self, worker_id, version, path)
        self._open.add(glimpse)
        return glimpse

    def keep(self, glimpse: Glimpse) -> None:
        """The whole answer has passed: keep it if it has an image."""
        self._open.discard(glimpse)
        if not glimpse.promising:
            return
        # The file of an image may be read again and again.
        is_file = glimpse.path.endswith("/content")
        for known in tuple(self._kept):
            if is_file and known.path == glimpse.path:
                self._kept.remove(known)
        self.newest += 1
        glimpse.number, glimpse.at = self.newest, wall.seconds()
        self._kept.appendleft(glimpse)
        while len(self._kept) > _KEPT or sum(one.size for one in self._kept) > _MOST_BYTES:
            self._kept.pop()

    def find(self, number: str) -> Glimpse | None:
        """The kept one of this number."""
        return next((one for one in self._kept if str(one.number) == number), None)
