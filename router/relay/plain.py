"""A TCP stream that asks the event loop for nothing where the kernel is ready at once."""

from __future__ import annotations

import socket

import trio

_READ = 64 * 1024


class PlainStream(trio.abc.Stream):
    """A connected TCP socket, which it owns. One task at a time may send, and one receive.

    Unlike trio's own, sending is no checkpoint where the kernel takes all at once: whoever sends
    in a loop waits for something else in that loop. Receiving always is one.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        rest = data
        while rest:
            try:
                sent = self.socket.send(rest)
            except (BlockingIOError, InterruptedError):
                await self.wait_send_all_might_not_block()
                continue
            except OSError as error:
                raise self._failed(error) from error
            if sent == len(rest):
                return
            rest = memoryview(rest)[sent:]

    async def wait_send_all_might_not_block(self) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        self._check()
        try:
            await trio.lowlevel.wait_writable(self.socket)
        except OSError as error:
            raise self._failed(error) from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        while True:
            self._check()
            try:
                # First of all: what is asked for has hardly ever come already.
                await trio.lowlevel.wait_readable(self.socket)
                return self.socket.recv(max_bytes or _READ)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close at once; a task that waits for the socket gets ClosedResourceError."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def _check(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("the socket was closed")

    def _failed(self, error: OSError) -> Exception:
        if self.socket.fileno() == -1:
            return trio.ClosedResourceError("the socket was closed")
        return trio.BrokenResourceError(str(error))
