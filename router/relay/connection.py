"""One connection to one worker: writes requests and reads answers, in order and in pieces."""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Sequence

import h11
import trio
from attrs import define, field

from .. import text
from ..errors import describe
from ..net.trust import Trust
from . import wire
from .plain import PlainStream
from .wire import Head

_MAX_HEAD = 64 * 1024
_READ_SIZE = 64 * 1024
_BIG_READ = 1024 * 1024


class Broken(Exception):
    """The connection ended or misbehaved. The message says how, for logs and people."""

    code = "worker_disconnected"


class Invalid(Broken):
    """The worker sent something that HTTP does not allow as an answer."""

    code = "worker_invalid_answer"


@define(eq=False)
class Connection:
    """One connection to one worker, for one exchange at a time."""

    stream: PlainStream | trio.SSLStream[trio.SocketStream]
    socket: socket.socket | trio.socket.SocketType
    host_header: bytes
    trust: Trust = field(factory=Trust, repr=False)
    address: str = ""  # of the worker
    reused: bool = False
    idle_since: float = 0.0
    _method: str = field(init=False, default="GET")
    # Bytes of the request's body still to be written; None if the body is chunked.
    _owed: int | None = field(init=False, default=None)
    _ended: bool = field(init=False, default=False)  # `end` has framed the whole request
    sending: bool = field(init=False, default=False)  # True after a cut-off send, too
    # Reads answers that are not plain. It knows nothing of our request but the method.
    _h11: h11.Connection | None = field(init=False, default=None, repr=False)
    # Bytes of the answer's body still to come; None unless Content-Length frames it.
    _left: int | None = field(init=False, default=None)
    # Bytes of the body that arrived with the head.
    _early: bytes = field(init=False, default=b"", repr=False)
    _keep: bool = field(init=False, default=False)

    def request(self, method: str, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
        """The bytes of the request's head. Raises wire.NotAllowed."""
        self._method, self._owed = method, 0
        for name, value in headers:
            match name.lower():
                case b"transfer-encoding":
                    self._owed = None
                case b"content-length":
                    self._owed = int(value)
        return wire.request(method, target, headers)

    def body(self, piece: bytes) -> bytes:
        """The bytes of a piece of the request's body, framed as the head announced. `piece` must
        not be empty: an empty chunk ends the body."""
        if self._owed is None:
            return b"%x\r\n%b\r\n" % (len(piece), piece)
        self._owed -= len(piece)
        assert self._owed >= 0
        return piece

    def end(self) -> bytes:
        """The bytes that end the request."""
        assert not self._owed
        self._ended = True
        return b"0\r\n\r\n" if self._owed is None else b""

    async def send(self, data: bytes | memoryview, *, patience: float = math.inf) -> None:
        """Write. Raises Broken, or trio.TooSlowError if it takes longer than `patience` seconds."""
        self.sending = True  # stays True if a cancellation cuts the send short
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if isinstance(self.stream, PlainStream):
                data = self.stream.send_now(data)
            if data:  # no cancel scope for a send that need not wait
                with trio.fail_after(patience):
                    await self.stream.send_all(data)
            self.sending = False
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken(
                f"the connection broke while the request was sent ({describe(error)})"
            ) from error

    async def head(self, *, bodiless: bool) -> Head:
        """The head of the answer, after any informational ones. Raises Broken.

        `bodiless`: the request was a HEAD, so no body follows whatever the answer announces.
        """
        data = await self._receive(_READ_SIZE)
        plain = wire.answer(data)
        if plain is not None:
            head, begin = plain
            early, closed = data[begin:], False
        else:
            head = await self._unusual_head(data)
            early, closed = self._parser.trailing_data
        # After a failure uvicorn closes without announcing it: the next request would meet the end.
        self._keep = head.keeps and head.status < 500
        length = 0 if bodiless or head.status in (204, 304) else head.length
        if length is not None:
            self._left = length
            # Bytes beyond the body answer no request of ours.
            self._keep = self._keep and len(early) <= length and not closed
            self._early = early if length else b""
        return head

    async def _unusual_head(self, data: bytes) -> Head:
        self._h11 = _parser_of_answer(self._method)
        self._feed(data)
        while not isinstance(event := await self._next(), h11.Response):
            # h11 allows only 1xx before a response.
            if isinstance(event, h11.InformationalResponse) and event.status_code == 101:
                raise Invalid("it switched protocols though nobody asked it to")
        if not event.http_version.startswith(b"1."):
            raise Invalid(f"it answered in HTTP/{event.http_version.decode()}")
        return Head(
            event.status_code,
            event.headers.raw_items(),
            _content_length(event),
            _keeps_alive(event),
        )

    @property
    def at_end(self) -> bool:
        """Whether the whole body of the answer was taken."""
        return self._left == 0

    @property
    def ahead(self) -> bool:
        """Whether `piece` can return without waiting."""
        return self.at_end or bool(self._early)

    async def piece(self) -> bytes:
        """The next piece of the answer's body as it arrives; b"" only at its end.

        Raises Broken if the body is cut off.
        """
        if self._left is None:
            return await self._framed_piece()
        # Content-Length frames the body: read past the parser, which copies pieces twice.
        if self._early:
            piece, self._early = bytes(self._early[: self._left]), b""
        elif self._left:
            piece = await self._receive(min(self._left, _BIG_READ))
            if not piece:
                raise Broken(f"it closed the connection {self._left} bytes before the answer's end")
        else:
            return b""
        self._left -= len(piece)
        return piece

    async def _framed_piece(self) -> bytes:
        """All that has arrived of a body that is chunked or ends with the connection."""
        pieces: list[bytes] = []
        event = await self._next()
        while isinstance(event, h11.Data):
            pieces.append(bytes(event.data))
            event = self._parse()
            if event is h11.NEED_DATA:
                break
        if isinstance(event, h11.EndOfMessage):
            self._left = 0
            parser = self._parser
            whole = parser.their_state is h11.DONE and not any(parser.trailing_data)
            self._keep = self._keep and whole
        elif not pieces:
            raise Broken("it closed the connection within the answer")
        return b"".join(pieces)

    def settle(self, now: float) -> bool:
        """Make the connection ready for another exchange. False if it cannot be used again."""
        if not (self._keep and self.at_end and self._ended and not self.sending):
            return False
        self._h11 = None
        self._ended = self._keep = False
        self._left, self._early = None, b""
        self.idle_since = now
        self.reused = True
        return True

    def quiet(self) -> bool:
        """Whether nothing arrived while the connection was idle: no end of file, no stray bytes."""
        decrypted = self.stream.pending() if isinstance(self.stream, trio.SSLStream) else 0
        return not decrypted and not _readable(self.socket.fileno())

    def close(self) -> None:
        """Close at once, even during an exchange."""
        if isinstance(self.stream, PlainStream):
            self.stream.close()
        else:
            self.socket.close()

    @property
    def _parser(self) -> h11.Connection:
        assert self._h11 is not None
        return self._h11

    async def _next(self) -> object:
        while True:
            event = self._parse()
            if event is not h11.NEED_DATA:
                return event
            self._feed(await self._receive(_READ_SIZE))

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        if not data and parser.their_state is not h11.SEND_BODY:
            begun = bool(parser.trailing_data[0])
            where = "within the head of its answer" if begun else "without an answer"
            raise Broken(f"it closed the connection {where}")
        parser.receive_data(data)

    def _parse(self) -> object:
        parser = self._parser
        try:
            return parser.next_event()
        except h11.RemoteProtocolError as error:
            if parser.trailing_data[1]:
                raise Broken("it closed the connection within its answer") from error
            why = text.without_bytes(str(error))
            raise Invalid(f"its answer is not valid HTTP: {why}") from error

    async def _receive(self, size: int) -> bytes:
        try:
            return bytes(await self.stream.receive_some(size))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Broken(f"the connection broke within the answer ({describe(error)})") from error


def _parser_of_answer(method: str) -> h11.Connection:
    parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "")]))
    parser.send(h11.EndOfMessage())
    return parser


def _readable(fileno: int) -> bool:
    """Whether a read would not block (data, end of file or an error)."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        return bool(poll.poll(0))
    return bool(select.select([fileno], [], [], 0)[0])  # Windows


def _keeps_alive(response: h11.Response) -> bool:
    words = {
        word
        for name, content in response.headers
        if name == b"connection"
        for word in wire.tokens(content)
    }
    return b"close" not in words and (response.http_version >= b"1.1" or b"keep-alive" in words)


def _content_length(response: h11.Response) -> int | None:
    """The body's length if Content-Length frames it (transfer coding wins, RFC 9112 section 6)."""
    length = None
    for name, content in response.headers:
        if name == b"transfer-encoding":
            return None
        if name == b"content-length":
            length = int(content)
    return length
