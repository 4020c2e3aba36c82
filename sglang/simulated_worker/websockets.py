"""A WebSocket session on a worker's connection, as uvicorn carries it: no extensions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
import wsproto
from attrs import define, field
from wsproto.connection import ConnectionState
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from .exchange import Exchange
from .messages import PIECE, http_date
from .record import now

LARGEST_MESSAGE = 16 * 1024 * 1024
Session = Callable[["WebSocket"], Awaitable[None]]


class WebSocketClosed(Exception):
    """The client closed the session or is gone."""


@define(eq=False)
class WebSocket:
    """`receive` and `send` raise `WebSocketClosed` once the client is gone."""

    exchange: Exchange
    _protocol: wsproto.WSConnection = field(
        factory=lambda: wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    )
    _messages: list[bytes | str] = field(factory=list)
    _parts: list[bytes | str] = field(factory=list)
    _size: int = 0
    _lock: trio.Lock = field(factory=trio.Lock)

    async def accept(self) -> None:
        headers = [(name, value) for name, value in self.exchange.headers]
        try:
            self._protocol.initiate_upgrade_connection(headers, self.exchange.target)
        except RemoteProtocolError:
            raise WebSocketClosed from None
        for _ in self._protocol.events():
            pass
        extra = [(b"date", http_date()), (b"server", b"uvicorn")]
        await self._write(self._protocol.send(AcceptConnection(extra_headers=extra)))
        self.exchange.entry.status = 101
        if early := self.exchange.connection.trailing_data:
            self._protocol.receive_data(early)
            await self._take_events()

    async def receive(self) -> bytes | str:
        """The next message."""
        stream = self.exchange.connection.stream
        while not self._messages:
            try:
                data = await stream.receive_some(PIECE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._gone()
            try:
                self._protocol.receive_data(data)
                await self._take_events()
            except RemoteProtocolError:
                await self.close(1002)
                raise WebSocketClosed from None
        return self._messages.pop(0)

    async def send(self, message: bytes | str) -> None:
        event = BytesMessage(message) if isinstance(message, bytes) else TextMessage(message)
        try:
            await self._write(self._protocol.send(event))
        except LocalProtocolError:
            raise WebSocketClosed from None
        self.exchange.entry.sent_bytes += len(message)

    async def close(self, code: int, reason: str | None = None) -> None:
        """Does nothing if the session is closed already."""
        if self._protocol.state is not ConnectionState.OPEN:
            return
        try:
            await self._write(self._protocol.send(CloseConnection(code, reason)))
        except WebSocketClosed:
            return
        with trio.move_on_after(1):
            stream = self.exchange.connection.stream
            while True:
                try:
                    data = await stream.receive_some(PIECE)
                    self._protocol.receive_data(data or None)
                except (trio.BrokenResourceError, trio.ClosedResourceError, RemoteProtocolError):
                    return
                if not data or any(isinstance(e, CloseConnection) for e in self._protocol.events()):
                    return

    async def _take_events(self) -> None:
        for event in self._protocol.events():
            if isinstance(event, Ping):
                await self._write(self._protocol.send(event.response()))
            elif isinstance(event, CloseConnection):
                if self._protocol.state is ConnectionState.REMOTE_CLOSING:
                    await self._write(self._protocol.send(event.response()))
                self._gone()
            elif isinstance(event, BytesMessage | TextMessage):
                self._parts.append(
                    bytes(event.data) if isinstance(event, BytesMessage) else event.data
                )
                self._size += len(event.data)
                if self._size > LARGEST_MESSAGE:
                    await self.close(1009)
                    raise WebSocketClosed
                if event.message_finished:
                    self._finish_message()

    def _finish_message(self) -> None:
        texts = [part for part in self._parts if isinstance(part, str)]
        whole: bytes | str
        whole = (
            "".join(texts) if texts else b"".join(p for p in self._parts if isinstance(p, bytes))
        )
        self._messages.append(whole)
        self.exchange.entry.body_bytes += self._size
        self._parts.clear()
        self._size = 0

    def _gone(self) -> None:
        self.exchange.entry.client_gone = now()
        raise WebSocketClosed

    async def _write(self, data: bytes) -> None:
        async with self._lock:
            try:
                await self.exchange.connection.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._gone()
