"""TLS on clients' connections: a socket that behaves as the plain one that it replaces."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import trio
from attrs import define

_RECORD = 16 * 1024  # plain bytes in the largest record of TLS


@define(eq=False)
class Tls:
    """What new connections use; replacing `context` concerns no other connection."""

    context: ssl.SSLContext

    def wrap(self, accepted: socket.socket) -> TlsSocket:
        """The server's end of TLS on this socket, which does not block. Raises OSError."""
        self.context.sslsocket_class = TlsSocket
        wrapped = self.context.wrap_socket(
            accepted, server_side=True, do_handshake_on_connect=False
        )
        assert isinstance(wrapped, TlsSocket)
        return wrapped


class TlsSocket(ssl.SSLSocket):
    """A socket that does not block, and says so as a plain one does (BlockingIOError).

    What TLS has taken from the kernel is never held back: the kernel alone says when to read.
    """

    plain = False  # TLS is over, or has never begun
    _failure: OSError | None = None

    async def shake_hands(self) -> None:
        """Raises OSError (ssl.SSLError is one); the other side has been told why."""
        while True:
            try:
                self.do_handshake()
                return
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self)

    def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
        """Whole records, so the last may exceed `buflen`; with flags, what the kernel has."""
        if self.plain or flags:
            return socket.socket.recv(self, buflen, flags)
        if self._failure is not None:
            raise self._failure
        data = bytearray()
        try:
            while len(data) < buflen:
                piece = super().recv(_RECORD)
                if not piece:
                    self._come_back(data)
                    break
                data += piece
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if not data:
                raise BlockingIOError from None
        except OSError as error:
            if not data:
                raise
            self._failure = error
            self._come_back(data)
        return bytes(data)

    def _come_back(self, data: bytearray) -> None:
        """Have the kernel call for another read, which sees the end, if data came before it."""
        if data:
            with suppress(OSError):
                socket.socket.shutdown(self, socket.SHUT_RD)

    def send(self, data: Any, flags: int = 0) -> int:
        return self.sendmsg([data])

    def sendmsg(self, parts: Sequence[bytes | memoryview], *_: Any) -> int:  # type: ignore[override]
        if self.plain:
            return socket.socket.sendmsg(self, parts)
        sent = 0
        try:
            for record in _records(parts):
                sent += super().send(record)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not sent:
                raise BlockingIOError from None
        return sent

    def shutdown(self, how: int) -> None:
        """Say goodbye, so that the other side knows the end from a cut-off. Input is discarded."""
        if not self.plain:
            self.plain = True
            with suppress(OSError, ValueError):
                self.unwrap()
        socket.socket.shutdown(self, how)


def _records(parts: Sequence[bytes | memoryview]) -> Iterator[bytes]:
    """The bytes in pieces of a full record, except the last: a piece that must be sent again then
    begins and ends where it did, as OpenSSL demands."""
    held: list[bytes | memoryview] = []
    size = 0
    for part in parts:
        view = memoryview(part)
        while len(view):
            piece = view[: _RECORD - size]
            held.append(piece)
            size += len(piece)
            view = view[len(piece) :]
            if size == _RECORD:
                yield b"".join(held)
                held, size = [], 0
    if held:
        yield b"".join(held)
