"""The part of a request body that waits for its worker in a file, not in memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import IO, TypeAlias

from attrs import define, field

from .. import threads
from ..errors import PoolUnavailable, RouterError, describe

_SLICE = 1024 * 1024
Call: TypeAlias = Callable[[], bytes]


class SpoolFailed(RouterError):
    """The temporary file of a request cannot be written or read."""

    default_status = 503
    default_code = "spool_failed"


class SpoolFull(PoolUnavailable):
    """The temporary files of all requests together have reached their limit."""

    default_code = "queue_full"


@define
class Room:
    """The limit for the temporary files of all requests, in bytes, and how much is taken."""

    size: int
    taken: int = 0


@define(eq=False)
class Spool:
    """Bytes in an unnamed temporary file. All file calls but `close` run in threads.

    The creator of a spool must close it.
    """

    room: Room
    size: int = 0
    _claimed: int = field(init=False, default=0)
    _file: IO[bytes] | None = field(init=False, default=None)
    _pending: bytearray = field(init=False, factory=bytearray)

    async def add(self, piece: bytes) -> None:
        """Append. Raises SpoolFull or SpoolFailed."""
        if self.room.taken + len(piece) > self.room.size:
            raise SpoolFull(
                f"The pool is busy: bodies in temporary files hold {self.room.taken} bytes already",
                headers=[("Retry-After", "5")],
            )
        self.room.taken += len(piece)
        self._claimed += len(piece)
        self._pending += piece
        self.size += len(piece)
        if len(self._pending) >= _SLICE:
            await self.flush()

    async def flush(self) -> None:
        """Write what was added. Raises SpoolFailed."""
        if self._pending:
            await self._in_thread(self._write)
            self._pending.clear()

    async def read(self, at: int) -> bytes:
        """A slice of the flushed bytes from `at` on, never empty. Raises SpoolFailed."""
        return await self._in_thread(lambda: self._read(at))

    def close(self) -> None:
        """Drop everything. May be called again."""
        self.room.taken -= self._claimed
        self._claimed = 0
        if self._file is not None:
            self._file.close()

    def _write(self) -> bytes:
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - `close` is ours
        data = bytes(self._pending)
        while data:
            data = data[self._file.write(data) :]
        return b""

    def _read(self, at: int) -> bytes:
        assert self._file is not None
        piece = os.pread(self._file.fileno(), _SLICE, at)
        if not piece:
            raise OSError("it is shorter than what was written")
        return piece

    async def _in_thread(self, call: Call) -> bytes:
        try:
            return await threads.run(call)
        except OSError as error:
            raise SpoolFailed(
                f"The temporary file of the request failed: {describe(error)}",
                details={"retry_safe": True},
            ) from error
