"""The worker's side of a WebSocket session: wsproto over a connection of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import trio
from attrs import define, field, frozen
from wsproto import ConnectionType, WSConnection
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .connection import Broken, Connection, Invalid

_FAREWELL = 2.0  # seconds for the closing handshake
_READ = 64 * 1024

# Close codes that report an observation and must never be sent (RFC 6455 section 7.4.1).
NO_STATUS, ABNORMAL, TLS_FAILED = 1005, 1006, 1015
NORMAL, GOING_AWAY, TOO_BIG, INTERNAL_ERROR, RESTARTING = 1000, 1001, 1009, 1011, 1012


@frozen
class Close:
    """How a side ended the session."""

    code: int
    reason: str | None = None

    def to_worker(self) -> Close:
        """The close to send to the worker after a client's close."""
        if self.code in (ABNORMAL, TLS_FAILED):
            return Close(GOING_AWAY)
        return Close(NORMAL) if self.code == NO_STATUS else self

    def to_client(self) -> Close:
        """The close to send to the client after a worker's close."""
        if self.code in (ABNORMAL, TLS_FAILED):
            return Close(INTERNAL_ERROR, "the worker broke off")
        return Close(NORMAL) if self.code == NO_STATUS else self


class Refused(Exception):
    """The worker refused the handshake; the client gets the worker's answer."""

    def __init__(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.headers = headers
        self.body = body


@define(eq=False)
class WorkerSocket:
    """The worker's side of a session. `largest` bounds a message, in bytes."""

    connection: Connection
    largest: int
    _ws: WSConnection = field(init=False, factory=lambda: WSConnection(ConnectionType.CLIENT))
    _lock: trio.Lock = field(init=False, factory=trio.Lock)
    _events: Iterator[Event] = field(init=False, factory=lambda: iter(()))
    _parts: list[str | bytes] = field(init=False, factory=list)
    _size: int = field(init=False, default=0)

    async def open(self, request: Request) -> AcceptConnection:
        """Shake hands. Raises Refused with the worker's answer, or Broken."""
        await self._send(request)
        event = await self._next()
        while isinstance(event, RejectConnection) and event.status_code < 200:
            event = await self._next()  # skips 103 and other informational answers
        if isinstance(event, AcceptConnection):
            return event
        if not isinstance(event, RejectConnection):
            raise Broken("it closed the connection without an answer")
        body = bytearray()
        while event.has_body:
            more = await self._next()
            if not isinstance(more, RejectData):
                raise Broken("it closed the connection within its refusal")
            body += more.data
            if more.body_finished or len(body) > self.largest:
                break
        raise Refused(event.status_code, event.headers, bytes(body))

    async def receive(self) -> str | bytes | Close:
        """The next whole message, or how the session ended."""
        while True:
            event = await self._next()
            if isinstance(event, Ping):
                await self._send(event.response())
            elif isinstance(event, Message):
                self._size += len(event.data)
                if self._size > self.largest:
                    return Close(TOO_BIG, f"a message is larger than {self.largest} bytes")
                self._parts.append(event.data)
                if event.message_finished:
                    whole = "" if isinstance(event, TextMessage) else b""
                    message = whole.join(self._parts)  # type: ignore[arg-type]
                    self._parts, self._size = [], 0
                    return message
            elif isinstance(event, CloseConnection):
                if self._ws.state is ConnectionState.REMOTE_CLOSING:
                    await self._send(event.response())
                elif self._ws.state is ConnectionState.OPEN:  # no close frame came
                    return Close(INTERNAL_ERROR, f"the worker broke the protocol: {event.reason}")
                return Close(int(event.code), event.reason)
            elif event is None:
                return Close(ABNORMAL)

    async def send(self, message: str | bytes) -> None:
        """Send one message; returns when the worker has room for more. Raises Broken."""
        if isinstance(message, str):
            await self._send(TextMessage(message))
        else:
            await self._send(BytesMessage(message))

    async def close(self, close: Close) -> None:
        """Send a close frame and wait for the worker's, both within a short time."""
        if self.connection.sending:
            return  # after half a frame a close would pass for the rest of a message
        with trio.move_on_after(_FAREWELL, shield=True):
            try:
                await self._send(CloseConnection(code=close.code, reason=close.reason))
                while self._ws.state is not ConnectionState.CLOSED:
                    if await self._next() is None:
                        return
            except Broken:
                pass  # the connection is gone already, as wanted

    async def _send(self, event: Event) -> None:
        async with self._lock:
            try:
                data = self._ws.send(event)
            except LocalProtocolError as error:
                raise Broken(f"the session is over: {error}") from error
            await self.connection.send(data)

    async def _next(self) -> Event | None:
        """The next event; None at the end of the connection."""
        while True:
            for event in self._events:
                return event
            try:
                data = await self.connection.stream.receive_some(_READ)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            try:
                self._ws.receive_data(bytes(data) or None)
                self._events = iter(list(self._ws.events()))
            except (RemoteProtocolError, ValueError) as error:  # wsproto decodes headers unasked
                raise Invalid(f"what it sent is no valid WebSocket: {error}") from error
            if not data:
                for event in self._events:
                    return event
                return None
