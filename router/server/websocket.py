"""WebSockets: hypercorn's `WSStream`, with a bounded inbox and the client's close code kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import h11
import trio
from hypercorn.config import Config
from hypercorn.protocol.events import Body, Data, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.typing import AppWrapper, ConnectionState, TaskGroup
from wsproto.connection import Connection as FrameConnection
from wsproto.connection import ConnectionState as FrameState
from wsproto.events import CloseConnection
from wsproto.events import Event as FrameEvent
from wsproto.frame_protocol import CloseReason

from ..errors import BadRequest, RouterError
from ..front.asgi import Message, extensions_with
from ..front.client import ClientLink, Reason
from ..front.errors import http_date, internal_error
from ..front.record import ExchangeRecord
from .calls import call_app
from .handshake import vetted
from .link import READ_AHEAD

if TYPE_CHECKING:
    from .http1 import Http1Protocol


_STREAM_ID = 1  # HTTP/1.1 has one stream


class WebsocketStream(WSStream):
    """One WebSocket: hypercorn's stream, with a bounded inbox and the client's close code kept.

    It is also hypercorn's task group: `WSStream` calls `spawn_app` to start the app.
    """

    def __init__(self, protocol: Http1Protocol, target: bytes, record: ExchangeRecord) -> None:
        transport = protocol.transport
        super().__init__(
            cast(AppWrapper, None), protocol.config, protocol.context, cast(TaskGroup, self),
            transport.secure, transport.peer, transport.local, self._carry, _STREAM_ID,
        )  # fmt: skip
        self.record = record
        self.link = ClientLink(transport, record, target)
        self.begun = False  # the app was started
        self._protocol = protocol
        self._inbox: deque[Message] = deque()
        self._size = 0  # sum of the message sizes in _inbox
        self._news: trio.Event | None = None
        self._room: trio.Event | None = None

    async def begin(self, request: h11.Request) -> None:
        try:
            headers, subprotocols = vetted(request)
        except BadRequest as error:
            self.closed = True
            await self._protocol.refuse(error)
            self._protocol.end()
            return
        self._subprotocols = subprotocols
        await self.handle(
            Request(
                stream_id=_STREAM_ID,
                headers=headers,
                http_version="1.1",
                method="GET",
                raw_path=self.link.target,
                state=ConnectionState({}),
            )
        )
        if ahead := self._protocol.h11.trailing_data[0]:
            await self.feed(ahead)

    async def feed(self, data: bytes) -> None:
        """Take bytes read from the client. Waits while the app does not read its messages."""
        if not self.handshake.accepted:
            # The client must not send before the answer (RFC 6455 section 4.1). If an answer has
            # begun it is a refusal, and these bytes are discarded.
            if self._unanswered and not self.closed:
                self.closed = True
                await self._protocol.refuse(
                    BadRequest("The client sent data before its WebSocket was accepted")
                )
            return
        if not isinstance(self.connection, CloseTap):
            self.connection = CloseTap(self.connection, self.link)  # type: ignore[assignment]
        self.record.received += len(data)
        await self.handle(Data(stream_id=_STREAM_ID, data=data))
        if (
            self.state is ASGIWebsocketState.CONNECTED
            and self.connection.state is FrameState.LOCAL_CLOSING
        ):
            # A message was too big and is refused; hypercorn would go on collecting it.
            self.link.close_code = CloseReason.MESSAGE_TOO_BIG.value
            await self._ended()

    @property
    def _unanswered(self) -> bool:
        return self._protocol.h11.our_state is h11.SEND_RESPONSE

    async def spawn_app(
        self, app: AppWrapper, config: Config, scope: Any, send: Callable[[Any], Awaitable[None]]
    ) -> Callable[[Any], Awaitable[None]]:
        scope["extensions"] |= extensions_with(self.link)
        scope["subprotocols"] = self._subprotocols
        self.begun = True
        self._protocol.transport.spawn(call_app, self._protocol, self, self._send_message)
        return self.put

    async def put(self, message: Message) -> None:
        self._push(message)
        while self._size >= READ_AHEAD and not self.closed:
            self._room = trio.Event()
            await self._room.wait()

    def _push(self, message: Message) -> None:
        if message["type"] == "websocket.disconnect" and self.link.close_code is not None:
            message["code"], message["reason"] = self.link.close_code, self.link.close_reason
        self._inbox.append(message)
        self._size += _message_size(message)
        if self._news is not None:
            self._news.set()
            self._news = None

    async def receive(self) -> Message:
        """ASGI `receive`: the messages in order, then `websocket.disconnect` for ever."""
        while not self._inbox:
            if self._news is None:
                self._news = trio.Event()
            await self._news.wait()
        message = self._inbox[0]
        if message["type"] != "websocket.disconnect":
            self._inbox.popleft()
            self._size -= _message_size(message)
            if self._room is not None and self._size < READ_AHEAD:
                self._room.set()
                self._room = None
        return message

    async def _send_message(self, message: Message) -> None:
        """ASGI `send`."""
        if not self.closed:
            await self.app_send(message)  # type: ignore[arg-type]
        await trio.lowlevel.checkpoint()  # writes yield only when the kernel's buffer is full

    async def finish(self, *, crashed: bool) -> None:
        """The app has returned, or crashed."""
        self.link._over = True
        if self._unanswered and not self.closed:
            await self._protocol.answer(internal_error())
        else:
            await self.app_send(None)
        self._protocol.end()

    async def _send_error_response(self, status_code: int) -> None:
        # The app closed the WebSocket without accepting it.
        error = RouterError("The WebSocket was refused", status=status_code, code="bad_request")
        await self._protocol.answer(error)

    async def _carry(self, event: StreamEvent) -> None:
        """Send the events of `WSStream` to the client."""
        match event:
            case StreamClosed():
                await self._ended()
            case Data(data=frames):
                self.record.sent += len(frames)
                await self._protocol.transport.write([frames])
            case Response(status_code=101, headers=headers):
                self.record.answer(101)
                await self._send(h11.InformationalResponse(status_code=101, headers=headers))
            case Response(status_code=status, headers=given):
                self.record.answer(status)
                headers = [pair for pair in given if pair[0].lower() != b"connection"]
                if all(name.lower() != b"date" for name, _ in headers):
                    headers.append((b"date", http_date()))
                headers.append((b"connection", b"close"))
                await self._send(h11.Response(status_code=status, headers=headers))
            case Body(data=data):
                self.record.sent += len(data)
                await self._send(h11.Data(data=data))
            case EndBody():
                await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._protocol.h11.send(event)
        except h11.LocalProtocolError:
            if self._protocol.h11.their_state is not h11.ERROR:
                raise
        else:
            await self._protocol.transport.write([data or b""])

    async def _ended(self) -> None:
        """The client has ended the WebSocket, or the app has returned."""
        if self.handshake.accepted and self.connection.state is FrameState.OPEN:
            # The client's bytes could not be parsed: say so in the close code.
            code = self.link.close_code or CloseReason.PROTOCOL_ERROR.value
            await self._send_wsproto_event(CloseConnection(code=code))
        self.lose("eof")
        self._protocol.transport.close()

    def lose(self, reason: Reason) -> None:
        """The client is gone."""
        if not self.closed or not self.link.gone:
            self.closed = True
            self._push({"type": "websocket.disconnect", "code": 1006})
            if self._room is not None:
                self._room.set()
                self._room = None
            self.link.lose(reason)


class CloseTap:
    """A wsproto connection that records code and reason of the client's close frame."""

    def __init__(self, connection: FrameConnection, link: ClientLink) -> None:
        self._connection = connection
        self._link = link
        self.receive_data = connection.receive_data
        self.send = connection.send

    @property
    def state(self) -> FrameState:
        return self._connection.state

    def events(self) -> Iterator[FrameEvent]:
        for event in self._connection.events():
            if isinstance(event, CloseConnection):
                self._link.close_code = int(event.code)
                self._link.close_reason = event.reason or None
            yield event


def _message_size(message: Message) -> int:
    """The rough size of a message in bytes, never 0: empty messages must fill the inbox, too."""
    return 256 + len(message.get("bytes") or message.get("text") or b"")
