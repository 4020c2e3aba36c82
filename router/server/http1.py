"""HTTP/1.1 on one connection: h11 parses, exchanges answer.

This module uses no sockets: a connection implements `Transport`.
"""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import unquote

import h11
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext

from .. import text
from ..errors import BadRequest, RouterError
from ..front.client import ClientStalled, Reason
from ..front.errors import error_answer, http_date, log_error, new_request_id, request_id
from ..front.origins import READS
from ..front.record import ExchangeRecord
from .calls import call_app
from .exchange import HttpExchange, phrase
from .handshake import tokens
from .link import Transport, log
from .websocket import WebsocketStream

PIPELINED = 64 * 1024  # bytes of later requests held while one is answered
STOPPING = 1.0  # seconds to complete a begun request head once the server is stopping


class Http1Protocol:
    """The exchanges and the WebSocket of one connection; no HTTP/2.

    Reading never waits for the end of an exchange, so that the server notices a leaving client even
    if that client has pipelined the next request.
    """

    def __init__(self, transport: Transport, config: Config, context: WorkerContext) -> None:
        self.h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=transport.limits.max_head)
        self.transport = transport
        self.config = config  # for hypercorn's WebSockets
        self.context = context
        self.exchange: HttpExchange | None = None
        self.websocket: WebsocketStream | None = None
        self._ahead = 0  # bytes received beyond the current request
        self._drained: int | None = None  # bytes of an upload read after its answer
        self._record: ExchangeRecord | None = None  # of the request being answered
        self.head_begun = False  # a part of a request head was read
        self._lost = False  # nothing more is read from the client

    @property
    def idle(self) -> bool:
        """Whether there is neither an exchange nor a begun request head."""
        return (
            self.exchange is None
            and self.websocket is None
            and self._drained is None
            and not self.head_begun
        )

    @property
    def _awaits_head(self) -> bool:
        return self.h11.their_state is h11.IDLE

    @property
    def busy(self) -> bool:
        """Whether an app is working for this connection."""
        return self.exchange is not None or (self.websocket is not None and self.websocket.begun)

    @property
    def record(self) -> ExchangeRecord:
        """The record of the exchange under way, or a new one."""
        if self._record is None:
            peer = self.transport.peer
            address = peer[0] if peer else "of no address"
            self._record = ExchangeRecord(new_request_id(), "client", address)
        return self._record

    @property
    def full(self) -> bool:
        """Whether reading must pause until `Transport.resume`."""
        exchange = self.exchange
        return exchange is not None and (exchange.full or self._ahead >= PIPELINED)

    @property
    def body_uninvited(self) -> bool:
        """Whether the client waits for 100 Continue: then it may never send its body."""
        return self.h11.they_are_waiting_for_100_continue

    async def feed(self, data: bytes) -> None:
        """Take bytes read from the client (not empty)."""
        if self.websocket is not None:
            await self.websocket.feed(data)
            return
        if self._awaits_head and not self.head_begun and data[0] in b"\r\n":
            data = data.lstrip(b"\r\n")  # RFC 9112 section 2.2: empty lines before a request line
            if not data:
                return
        self.h11.receive_data(data)
        if self.exchange is not None and self.exchange.request_done:
            self._ahead += len(data)
        else:
            await self._parse()

    async def _parse(self) -> None:
        while True:
            try:
                event = self.h11.next_event()
            except h11.RemoteProtocolError as error:
                await self.refuse(BadRequest(_in_words(error), status=error.error_status_hint))
                return
            if isinstance(event, h11.Data):
                if self.exchange is not None:
                    self.exchange.feed(event.data)
                elif not self._drain(len(event.data)):
                    return
            elif isinstance(event, h11.EndOfMessage):
                if self.exchange is not None:
                    self.exchange.feed_end()
                    self._ahead = len(self.h11.trailing_data[0])
                    return
                if not self._next_cycle():
                    return
            elif isinstance(event, h11.Request):
                if not await self._begin(event):
                    return
            else:
                break
        if self._awaits_head and not self.head_begun and self.h11.trailing_data[0]:
            self.head_begun = True
            limit = self.transport.limits.head
            self.transport.expire_after(STOPPING if self.transport.stopping else limit)

    async def _begin(self, request: h11.Request) -> bool:
        self.head_begun = False
        target = _origin_form(request.target)
        path = unquote(target.partition(b"?")[0].decode("ascii"))
        method = request.method.decode("ascii")
        websocket = _offers_websocket(request)
        record = self._record = ExchangeRecord(
            request_id(request.headers), "WebSocket" if websocket else method, path
        )
        self.transport.expire_after(None)
        if refusal := _refusal(request, self.transport, websocket=websocket):
            await self.refuse(refusal)
            return False
        if websocket:
            self.websocket = WebsocketStream(self, target, record)
            await self.websocket.begin(request)
            return False
        exchange = self.exchange = HttpExchange(self, request, target, record)
        if _framed_twice(request):
            exchange.close_after()
        self.transport.spawn(call_app, self, exchange, exchange.send)
        return True

    async def invite_body(self) -> None:
        if self.h11.they_are_waiting_for_100_continue:
            response = h11.InformationalResponse(status_code=100, headers=[])
            await self.transport.write([self.h11.send(response)])

    async def response_complete(self) -> None:
        """The last byte of a response is written: decide how the connection goes on."""
        self.exchange = self._record = None
        ours, theirs = self.h11.our_state, self.h11.their_state
        if self._lost or self.transport.stopping or ours is not h11.DONE:
            self.transport.close()
        elif theirs is h11.DONE:
            if self._next_cycle() and self._ahead:
                self._ahead = 0
                await self._parse()
            self.transport.resume()
        elif theirs is h11.SEND_BODY:
            # The answer came early. Closing now would reset the connection and lose the answer.
            self._drained = 0
            self.transport.expire_after(self.transport.limits.linger_time)
            self.transport.resume()
        else:
            self.transport.close()

    def _drain(self, count: int) -> bool:
        self._drained = (self._drained or 0) + count
        if self._drained <= self.transport.limits.linger_bytes:
            return True
        self.transport.close(linger=False)
        return False

    def _next_cycle(self) -> bool:
        self._drained = None
        if self.transport.stopping:
            self.transport.close()
            return False
        self.h11.start_next_cycle()
        self.transport.expire_after(self.transport.limits.keep_alive)
        return True

    def end(self) -> None:
        """The app has returned, and the connection ends with it."""
        self.exchange = self.websocket = self._record = None
        self.transport.close()

    async def refuse(self, error: RouterError) -> None:
        """Answer a request that the app must not see, and close."""
        record = self.record
        log_error(log, record, error)
        await self.answer(error)
        self.lose("protocol_error")
        self.transport.close()
        if not self.busy:  # else the connection ends with the app
            self._record = None
            self.transport.ended(record)

    async def answer(self, error: RouterError) -> None:
        """Tell the client of an error, unless another answer has begun."""
        record = self.record
        if self.h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        headers, body = error_answer(record, error)
        headers += [(b"date", http_date()), (b"connection", b"close")]
        response = h11.Response(
            status_code=error.status, headers=headers, reason=phrase(error.status)
        )
        parts = [self.h11.send(response)]
        record.answer(error.status)
        if record.method != "HEAD":
            parts.append(self.h11.send(h11.Data(data=body)))
            record.sent += len(body)
        await self.transport.write(parts)

    async def expired(self) -> None:
        """A deadline of `Transport.expire_after` has passed."""
        if self.head_begun:
            await self.refuse(ClientStalled("The request head took too long"))

    def lose(self, reason: Reason) -> None:
        """The client is gone."""
        self._lost = True
        if self.exchange is not None:
            self.exchange.lose(reason)
        elif self.websocket is not None:
            self.websocket.lose(reason)


# A host with an optional port (RFC 9110 section 7.2); names may hold what RFC 3986 allows.
_HOST = re.compile(rb"(?:\[[0-9A-Za-z:.%~_-]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")


def _refusal(request: h11.Request, transport: Transport, *, websocket: bool) -> RouterError | None:
    """Why the app must not see a request that h11 accepts; None if it may."""
    if request.http_version not in (b"1.1", b"1.0"):
        return BadRequest("This server supports only HTTP/1.1 and HTTP/1.0", status=505)
    if request.method == b"CONNECT":
        return BadRequest("CONNECT is not supported", status=405)
    if not _origin_form(request.target).startswith((b"/", b"*")):
        return BadRequest("The request target must begin with a slash")
    host = origin = site = None
    for name, value in request.headers:
        if name == b"host":
            if not _HOST.fullmatch(value):
                return BadRequest("The Host header names no host")
            host = value
        elif name == b"origin":
            origin = value
        elif name == b"sec-fetch-site":
            site = value
    if origin is None and site is None:
        return None  # no browser
    if not websocket and request.method.decode("ascii") in READS:
        return None
    local = transport.peer is not None and ip_address(transport.peer[0]).is_loopback
    return transport.origins.refusal(host, origin, site, local=local)


def _in_words(error: h11.RemoteProtocolError) -> str:
    """The error in a client's bytes, in words that suit the client and the log."""
    sentence = text.without_bytes(str(error))
    return sentence if len(sentence) <= _LONGEST else f"{sentence[:_LONGEST]}..."


_LONGEST = 200  # characters of that sentence


def _framed_twice(request: h11.Request) -> bool:
    """Whether the body is framed by Content-Length and Transfer-Encoding: the latter counts, and
    the connection must close (RFC 9112 section 6.1)."""
    names = {name for name, _ in request.headers}
    return b"transfer-encoding" in names and b"content-length" in names


def _origin_form(target: bytes) -> bytes:
    """The path and query of a request target, without scheme and authority (RFC 9112 3.2.2)."""
    if target[:1] == b"/" or b"://" not in target:
        return target
    rest = target.partition(b"://")[2]
    for position, byte in enumerate(rest):
        if byte == 0x2F:  # /
            return rest[position:]
        if byte in b"?#":
            return b"/" + rest[position:]
    return b"/"


def _offers_websocket(request: h11.Request) -> bool:
    if request.method != b"GET":
        return False
    upgrade, connection = b"", b""
    for name, value in request.headers:
        if name == b"upgrade":
            upgrade = value
        elif name == b"connection":
            connection += b"," + value  # several fields form one list
    return upgrade.strip().lower() == b"websocket" and b"upgrade" in tokens(connection)
