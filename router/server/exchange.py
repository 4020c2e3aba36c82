"""One HTTP request and its response: the ASGI `receive` and `send` of one call of the app.

Request header names reach the app lower-cased (ASGI), in their order, duplicates kept; response
names keep their case.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

import h11
import trio

from .. import text
from ..errors import RouterError
from ..front.asgi import Message, Scope, extensions_with
from ..front.client import ClientLink, ClientStalled, Reason
from ..front.errors import error_answer, http_date, internal_error, log_error
from ..front.record import ExchangeRecord
from .link import READ_AHEAD, log

if TYPE_CHECKING:
    from .http1 import Http1Protocol

_ROUNDS = 2  # of the event loop: the first asks the kernel, the second takes its bytes
COALESCE = 16 * 1024  # smaller pieces are joined, because one-byte chunks would cost an object each


class HttpExchange(ClientLink):
    """One request and its response: the ASGI `receive` and `send` of one call of the app.

    Extension: `"router.more": True` in `http.response.start` promises that a body message follows
    at once, so that head and body leave in one segment.
    """

    def __init__(
        self, protocol: Http1Protocol, request: h11.Request, target: bytes, record: ExchangeRecord
    ) -> None:
        transport = protocol.transport
        super().__init__(transport, record, target)
        path, _, query = target.partition(b"?")
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": request.http_version.decode("ascii"),
            "method": record.method,
            "scheme": "https" if transport.secure else "http",
            "path": record.path,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": list(request.headers),
            "client": transport.peer,
            "server": transport.local,
            "state": {},
            "extensions": extensions_with(self),
        }
        self.request_done = False
        self._transport = transport
        self._protocol = protocol
        self._body: deque[bytes | bytearray] | None = deque()  # None: the app has the end
        self._size = 0  # sum of the lengths in _body
        self._news: trio.Event | None = None
        self._started = False
        self._mute = False  # the server has answered in the app's place
        self._held: list[bytes] = []  # the head, while "router.more" promises a body
        self._no_body = False
        self._cut_by_reset = False

    # The request side.

    @property
    def full(self) -> bool:
        return self._size >= READ_AHEAD

    def feed(self, data: bytes | bytearray) -> None:
        if self._body is None or self.gone:
            return
        last = self._body[-1] if self._body else b""
        if isinstance(last, bytearray) and len(last) < COALESCE:
            last += data
        else:
            self._body.append(bytearray(data) if len(data) < COALESCE else data)
        self._size += len(data)
        self.record.received += len(data)
        self._wake()

    def feed_end(self) -> None:
        self.request_done = True
        self._wake()

    def lose(self, reason: Reason) -> None:
        super().lose(reason)
        self._mute = self._mute or reason == "protocol_error"
        self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    async def receive(self) -> Message:
        """The next piece of the body, or `http.disconnect` as soon as the client is gone."""
        if self._body is not None:
            # Only when the app reads: an early refusal must not invite the body.
            await self._protocol.invite_body()
        while True:
            if self.gone or self._over:
                return {"type": "http.disconnect"}
            if self._body:
                was_full = self.full
                piece = self._body.popleft()
                self._size -= len(piece)
                more = bool(self._body) or not self.request_done
                if not more:
                    self._body = None
                elif was_full and not self.full:
                    self._transport.resume()
                return {"type": "http.request", "body": bytes(piece), "more_body": more}
            if self._body is not None and self.request_done:
                self._body = None
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._wait_for_news()

    async def _wait_for_news(self) -> None:
        if self._news is None:
            self._news = trio.Event()
        news = self._news
        if self.request_done:
            await news.wait()
            return
        with trio.move_on_after(self._transport.limits.body) as scope:
            await news.wait()
        if scope.cancelled_caught:
            # Give the reading task its turn first: the process may have been busy or stopped.
            for _ in range(_ROUNDS):
                await trio.lowlevel.checkpoint()
            if news.is_set():
                return
            self.close_after()
            self.lose("body_timeout")

    # The response side.

    async def send(self, message: Message) -> None:
        """ASGI `send`.

        Raises h11.LocalProtocolError if the body does not fit the Content-Length, RuntimeError for
        messages out of order.
        """
        if self._mute or not self._transport.usable:
            await trio.lowlevel.checkpoint()  # a loop of sends to a dead client must yield
        elif message["type"] == "http.response.start" and not self._started:
            try:
                self._held = self._head(int(message["status"]), message.get("headers", ()))
            except h11.LocalProtocolError as error:
                # A head that h11 rejects must not reach the client.
                self._mute = True
                await self._fail(
                    RouterError(f"The answer cannot be sent: {text.without_bytes(str(error))}")
                )
                return
            self._started = True
            if not message.get("router.more", False):
                await self._flush([])
        elif message["type"] == "http.response.body" and self._started and not self._over:
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is out of order")

    async def _send_body(self, body: bytes, more: bool) -> None:
        connection = self._protocol.h11
        parts: list[bytes] = []
        if body and not self._no_body:
            self.record.sent += len(body)
            parts += connection.send_with_data_passthrough(h11.Data(data=body)) or ()
        if more:
            await self._flush(parts)
            await trio.lowlevel.checkpoint()
        else:
            parts += connection.send_with_data_passthrough(h11.EndOfMessage()) or ()
            await self._flush(parts)
            await self._complete()

    async def _flush(self, parts: list[bytes]) -> None:
        if self._held:
            parts = self._held + parts
            self._held = []
        if parts:
            await self._transport.write(parts)

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> list[bytes]:
        """The bytes of the response's head. Raises h11.LocalProtocolError."""
        kept = [(bytes(name).strip(), bytes(value).strip()) for name, value in headers]
        if all(name.lower() != b"date" for name, _ in kept):
            kept.append((b"date", http_date()))
        if self._close_after or self._transport.stopping or self._protocol.body_uninvited:
            kept.append((b"connection", b"close"))
        response = h11.Response(status_code=status, headers=kept, reason=phrase(status))
        if self.scope["method"] == "HEAD" or status in (204, 304):
            self._no_body = True
        elif self.scope["http_version"] < "1.1":
            self._cut_by_reset = all(name.lower() != b"content-length" for name, _ in kept)
        head = self._protocol.h11.send(response)
        self.record.answer(status)
        return [head]

    async def _complete(self) -> None:
        if not self._over:
            self._over = True
            self._wake()
            await self._protocol.response_complete()

    async def _fail(self, error: RouterError, *, told: bool = False) -> None:
        """Answer in place of the app, which has sent nothing. `told`: the log has the error."""
        if not told:
            log_error(log, self.record, error)
        headers, body = error_answer(self.record, error)
        self._held = self._head(error.status, headers)
        await self._send_body(body, False)

    async def finish(self, *, crashed: bool) -> None:
        """The app has returned, or crashed."""
        if self._over:
            return
        if self._started and self._transport.usable:
            # The answer is cut off: no promised body may make its end look clean.
            await self._flush([])
            self._over = True
            if self._cut_by_reset:
                self._transport.abort()
        elif self._transport.usable and (not self.gone or self.reason == "body_timeout"):
            self._close_after = True
            await self._fail(_unanswered(crashed=crashed, stalled=self.gone), told=crashed)
        self._over = True
        self._protocol.end()


def _unanswered(*, crashed: bool, stalled: bool) -> RouterError:
    """The error for a client to which the app gave no answer."""
    return ClientStalled() if stalled and not crashed else internal_error()


_PHRASES = {status.value: status.phrase.encode("ascii") for status in HTTPStatus}


def phrase(status: int) -> bytes:
    """The reason phrase of a status; empty if it has none."""
    return _PHRASES.get(status, b"")
