"""A TCP stream that does not use the event loop when the kernel is ready at once."""

from __future__ import annotations

import socket

import trio

_READ = 64 * 1024


class PlainStream:
    """Owns a connected TCP socket. One task at a time may send, and one may receive.

    It has the methods of a trio stream but not the base class, because checks against an abstract
    class cost time. Sending does not yield when the kernel takes everything at once, so a loop that
    sends must also wait for something else. A cancelled task sends nothing. Receiving always
    yields.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.socket = sock

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = self.send_now(data)
        while rest:
            self._check()
            try:
                await trio.lowlevel.wait_writable(self.socket)
            except OSError as error:
                raise self._failed(error) from error
            rest = self.send_now(rest)

    def send_now(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Send what the kernel takes at once; returns the rest.

        Raises trio.BrokenResourceError or trio.ClosedResourceError.
        """
        try:
            return memoryview(data)[self.socket.send(data) :]
        except (BlockingIOError, InterruptedError):
            return memoryview(data)
        except OSError as error:
            raise self._failed(error) from error

    async def receive_some(self, max_bytes: int = _READ) -> bytes:
        """Raises trio.BrokenResourceError or trio.ClosedResourceError."""
        while True:
            self._check()
            try:
                # Wait first: the data has hardly ever arrived already.
                await trio.lowlevel.wait_readable(self.socket)
                return self.socket.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                continue
            except OSError as error:
                raise self._failed(error) from error

    def close(self) -> None:
        """Close at once; a task that waits for the socket gets ClosedResourceError."""
        if self.socket.fileno() != -1:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    def _check(self) -> None:
        if self.socket.fileno() == -1:
            raise trio.ClosedResourceError("the socket was closed")

    def _failed(self, error: OSError) -> Exception:
        if self.socket.fileno() == -1:
            return trio.ClosedResourceError("the socket was closed")
        return trio.BrokenResourceError(str(error))
