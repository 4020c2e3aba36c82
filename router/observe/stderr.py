"""Writes to standard error without waiting for its reader.

A pipe that nobody reads, a terminal held by Ctrl-S and a hanging disk can block a write(2) without
limit. While the event loop runs, a thread of trio writes. Text that cannot be written in time is
dropped and counted.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from threading import Lock
from typing import TextIO

import trio
from attrs import define, field

from .. import threads

MOST_BYTES = 1024 * 1024
"""How many bytes may wait to be written; beyond that, lines are dropped."""

_CHUNK = 64 * 1024
_AGAIN = 1.0  # seconds until a write that found no thread is tried again
_LAST_WORDS = 1.0  # seconds for the rest at the end, and for a write outside of the loop


@define(eq=False)
class Output:
    """A text stream in front of a file descriptor.

    Outside of `aside` a write waits for the descriptor, for a second at most. A stream without a
    descriptor is written to directly. `notice` words the line that replaces dropped ones.
    """

    notice: Callable[[int], str]
    _stream: TextIO | None = field(factory=lambda: sys.stderr)  # None: closed since the start
    _fd: int | None = field(init=False)
    _lock: Lock = field(init=False, factory=Lock)  # trio's threads log as well
    _waiting: bytearray = field(init=False, factory=bytearray)
    _dropped: int = field(init=False, default=0)  # lines since the last accepted one
    _token: trio.lowlevel.TrioToken | None = field(init=False, default=None)  # while in `aside`
    _wake: trio.Event | None = field(init=False, default=None)  # None while text waits

    def __attrs_post_init__(self) -> None:
        try:
            self._fd = None if self._stream is None else self._stream.fileno()
        except (OSError, ValueError):  # in memory, or closed
            self._fd = None

    @property
    def encoding(self) -> str:
        """The stream's encoding."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        """The descriptor. Raises OSError if there is none."""
        if self._fd is None:
            raise io.UnsupportedOperation("fileno")
        return self._fd

    def flush(self) -> None:
        """Does nothing: text is always written as soon as possible."""

    def write(self, text: str) -> int:
        """Write, or queue the text for the thread. A failure raises nothing."""
        if self._fd is None:
            if self._stream is not None:
                self._stream.write(text)
        elif self._token is None:
            self._write_now(self._encode(text), self._fd)
        else:
            self._enqueue(text, self._token)
        return len(text)

    @asynccontextmanager
    async def aside(self) -> AsyncIterator[None]:
        """Within this block a thread writes. At the end, waiting text has a second to be written.

        If a second is not enough, the descriptor is redirected to the null device, so that no later
        output of this process can block it.
        """
        if self._fd is None:
            yield
            return
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            nursery.start_soon(self._write_aside, self._fd)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True), trio.move_on_after(_LAST_WORDS):
                    while self._waiting:  # noqa: ASYNC110 - its end needs no better
                        await trio.sleep(0.01)
                self._token = None
                if self._waiting:
                    _lead_nowhere(self._fd)
                nursery.cancel_scope.cancel()

    def _enqueue(self, text: str, token: trio.lowlevel.TrioToken) -> None:
        with self._lock:
            if len(self._waiting) >= MOST_BYTES:
                self._dropped += text.count("\n")
                return
            self._tell_of_the_dropped()
            self._waiting += self._encode(text)
            wake, self._wake = self._wake, None
        if wake is not None:
            token.run_sync_soon(wake.set)

    async def _write_aside(self, fd: int) -> None:
        limiter = trio.CapacityLimiter(1)  # of its own: hanging look-ups may occupy all others
        while True:
            with self._lock:
                chunk = bytes(self._waiting[:_CHUNK])
                wake = self._wake = None if chunk else trio.Event()
            if wake is not None:
                await wake.wait()
                continue
            # Abandoned at the end if it hangs.
            write = partial(_write, fd, chunk)
            try:
                written = await threads.run(write, abandon_on_cancel=True, limiter=limiter)
            except OSError:  # no thread can be started now
                await trio.sleep(_AGAIN)
                continue
            with self._lock:
                del self._waiting[: len(chunk) if written is None else written]
                if written is None:
                    self._dropped += chunk.count(b"\n")
                elif not self._waiting:
                    self._tell_of_the_dropped()

    def _tell_of_the_dropped(self) -> None:
        if self._dropped:
            self._waiting += self._encode(self.notice(self._dropped))
            self._dropped = 0

    def _write_now(self, data: bytes, fd: int) -> None:
        while data:
            # A writable pipe takes this much without waiting.
            size = len(data) if sys.platform == "win32" else select.PIPE_BUF
            written = _write(fd, data[:size]) if _is_writable(fd) else None
            if written is None:
                self._dropped += data.count(b"\n")
                return
            data = data[written:]

    def _encode(self, text: str) -> bytes:
        return text.encode(self.encoding, "backslashreplace")


def _write(fd: int, data: bytes) -> int | None:
    """The number of bytes written; None if the descriptor takes no more."""
    try:
        return os.write(fd, data)
    except BlockingIOError:  # another process that shares it made it non-blocking
        _is_writable(fd)
        return 0
    except OSError:  # no process reads any more, or the disk is full
        return None


def _is_writable(fd: int) -> bool:
    """Wait until the descriptor can be written to; False after a second."""
    if sys.platform == "win32":
        return True
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return bool(poll.poll(_LAST_WORDS * 1000))


def _lead_nowhere(fd: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, fd)
    os.close(nowhere)
