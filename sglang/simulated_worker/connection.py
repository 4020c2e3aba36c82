"""One client connection: h11 over a trio stream, as uvicorn treats it, and the faults of the wire.

A connection that never sent a byte stays open; one that had an answer is closed after 5 idle
seconds. A client that leaves is noticed but stops nothing: real workers finish what they began.
"""

from __future__ import annotations

import contextlib
import math
import socket
import struct
from typing import Protocol

import h11
import trio
from attrs import define, field

from .exchange import Exchange
from .faults import Fault, Faults
from .messages import PIECE, Response, http_date, phrase, slices
from .record import Record, RequestEntry, now

KEEP_ALIVE_SECONDS = 5.0
_HEALTH_KINDS = ("delay", "slow_health")


class ClientGone(Exception):
    """The client left before its request was read whole."""


class _Ended(Exception):
    """This connection is over (a fault, or the end of a WebSocket)."""


class Application(Protocol):
    """What a connection needs of the worker behind it."""

    @property
    def record(self) -> Record: ...

    @property
    def faults(self) -> Faults: ...

    @property
    def closing(self) -> bool: ...

    async def respond(self, exchange: Exchange) -> Response: ...

    async def websocket(self, exchange: Exchange) -> None: ...


@define(eq=False)
class Connection:
    """Serves one stream until either side ends it."""

    stream: trio.SocketStream
    application: Application
    number: int
    _h11: h11.Connection = field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=65536)
    )
    _answered: bool = False
    _idle: trio.CancelScope | None = None

    async def run(self) -> None:
        """Returns when the connection is over, for whatever reason."""
        try:
            with trio.CancelScope():
                while await self._one():
                    pass
        except (trio.BrokenResourceError, trio.ClosedResourceError, ClientGone, _Ended):
            pass
        finally:
            await trio.aclose_forcefully(self.stream)

    @property
    def peer(self) -> str:
        """Address and port of the client, `-` once it is gone."""
        try:
            address = self.stream.socket.getpeername()
        except OSError:
            return "-"
        return f"{address[0]}:{address[1]}"

    def close_if_idle(self) -> None:
        """Ends the connection if no request is under way."""
        if self._idle is not None:
            self._idle.cancel()

    def abort(self) -> None:
        """Resets the connection at once."""
        with contextlib.suppress(OSError):
            self.stream.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
        self.stream.socket.close()

    async def refuse_websocket(self) -> None:
        """What uvicorn answers to an upgrade of a path that has no WebSocket."""
        await self.stream.send_all(
            b"HTTP/1.1 403 Forbidden\r\nDate: " + http_date() + b"\r\nConnection: close\r\n"
            b"Content-Length: 0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n"
        )

    @property
    def trailing_data(self) -> bytes:
        """What was read past the request: the first bytes of an upgraded protocol."""
        return self._h11.trailing_data[0]

    async def _one(self) -> bool:
        """One request and its answer. False if the connection cannot carry another."""
        if not await self._first_bytes():
            return False
        try:
            head = await self._event()
        except h11.RemoteProtocolError:
            await self._malformed()
            return False
        if not isinstance(head, h11.Request):
            return False
        exchange = self._exchange(head)
        quiet = exchange.path.startswith("/simulate")
        if not quiet:
            self.application.record.requests.append(exchange.entry)
        try:
            return await self._serve(exchange, quiet=quiet)
        finally:
            exchange.entry.end = now()

    async def _serve(self, exchange: Exchange, *, quiet: bool) -> bool:
        if exchange.header(b"upgrade").lower() == "websocket" and not quiet:
            await self.application.websocket(exchange)
            return False
        read = trio.Event()
        exchange._receive = lambda: self._body_piece(read)
        answer: Response | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, exchange, read)
            try:
                if not quiet:
                    await self._misbehave(exchange)
                answer = await self.application.respond(exchange)
            except (trio.BrokenResourceError, trio.ClosedResourceError, ClientGone, _Ended):
                pass
            nursery.cancel_scope.cancel()
        if answer is None:
            return False
        if exchange.entry.client_gone is not None:
            return False
        await self._send(exchange, answer, quiet=quiet)
        self._answered = True
        with trio.move_on_after(KEEP_ALIVE_SECONDS):
            while self._h11.their_state is h11.SEND_BODY:
                await self._event()
        if self.application.closing or self._h11.their_state is not h11.DONE:
            return False
        if self._h11.our_state is not h11.DONE or answer.last:
            return False
        self._h11.start_next_cycle()
        return True

    async def _first_bytes(self) -> bool:
        """Waits for a request to begin; False if the client, the clock or a stop ended that."""
        if self._h11.trailing_data[0]:
            return True
        if self.application.closing:
            return False
        limit = KEEP_ALIVE_SECONDS if self._answered else math.inf
        data = b""
        with trio.move_on_after(limit) as self._idle:
            data = await self.stream.receive_some(PIECE)
        self._idle = None
        if not data:
            return False
        self._h11.receive_data(data)
        return True

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                if self._h11.they_are_waiting_for_100_continue:
                    await self._write(
                        h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue")
                    )
                self._h11.receive_data(await self.stream.receive_some(PIECE))
            elif isinstance(event, type):
                return h11.PAUSED
            else:
                return event

    async def _body_piece(self, read: trio.Event) -> bytes | None:
        """The next piece of the request body, None at its end. Raises `ClientGone`."""
        while not read.is_set():
            try:
                event = await self._event()
            except h11.RemoteProtocolError:
                raise ClientGone from None
            if isinstance(event, h11.Data):
                return bytes(event.data)
            read.set()
        return None

    async def _cancel_if_gone(self, exchange: Exchange, scope: trio.CancelScope) -> None:
        await exchange.gone.wait()
        scope.cancel()

    async def _watch(self, exchange: Exchange, read: trio.Event) -> None:
        """Notes that the client left while its answer was being made."""
        await read.wait()
        try:
            data = await self.stream.socket.recv(1, socket.MSG_PEEK)
        except OSError:
            data = b""
        if not data:
            exchange.entry.client_gone = now()
            exchange.gone.set()

    def _exchange(self, head: h11.Request) -> Exchange:
        headers = [(bytes(name), bytes(value)) for name, value in head.headers]
        method, target = head.method.decode("ascii"), head.target.decode("ascii", "replace")

        def first(wanted: bytes) -> str:
            return next((v.decode("latin-1") for n, v in headers if n == wanted), "")

        entry = RequestEntry(
            connection=self.number,
            method=method,
            target=target,
            headers=[(n.decode("latin-1"), v.decode("latin-1")) for n, v in headers],
            start=now(),
            request_id=first(b"x-request-id"),
            host=first(b"host"),
        )
        return Exchange(method, target, headers, self, entry, self._nothing)

    async def _nothing(self) -> bytes | None:
        return None

    async def _misbehave(self, exchange: Exchange) -> None:
        """The faults that come before the answer."""
        faults, path = self.application.faults, exchange.path
        for kind in _HEALTH_KINDS:
            if fault := faults.take(kind, path):  # type: ignore[arg-type]
                exchange.entry.faults.append(kind)
                await trio.sleep(fault.number("by", 3.0))
        if fault := faults.take("hang", path):
            exchange.entry.faults.append("hang")
            await exchange.drop_body()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_if_gone, exchange, nursery.cancel_scope)
                await faults.over(fault)
                nursery.cancel_scope.cancel()
            raise _Ended
        if fault := faults.take("drop", path):
            exchange.entry.faults.append("drop")
            await exchange.drop_body()
            self._end(reset=bool(fault.settings.get("reset")))
        if faults.take("garbage", path):
            exchange.entry.faults.append("garbage")
            await exchange.drop_body()
            await self.stream.send_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
            raise _Ended

    def _end(self, *, reset: bool) -> None:
        if reset:
            self.abort()
        raise _Ended

    async def _malformed(self) -> None:
        """What uvicorn says to bytes that are no request."""
        await self.stream.send_all(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"Connection: close\r\n\r\nInvalid HTTP request received."
        )

    async def _send(self, exchange: Exchange, answer: Response, *, quiet: bool) -> None:
        entry, faults = exchange.entry, self.application.faults
        death = None if quiet else faults.take("die_at_byte", exchange.path)
        drip = None if quiet else faults.take("drip", exchange.path)
        left = math.inf if death is None else death.number("byte", 0)
        for fault in (death, drip):
            if fault is not None:
                entry.faults.append(fault.kind)
        entry.status = answer.status
        headers = [(b"date", http_date()), (b"server", b"uvicorn"), *answer.headers]
        if answer.cors:
            if origin := exchange.header(b"origin"):
                headers.append((b"access-control-allow-origin", origin.encode("latin-1")))
                headers.append((b"access-control-allow-credentials", b"true"))
            headers.append((b"vary", b"Origin"))
        try:
            await self._write(
                h11.Response(
                    status_code=answer.status, headers=headers, reason=phrase(answer.status)
                )
            )
            if exchange.method != "HEAD":
                for piece in answer.pieces() if answer.pieces else slices(answer.body):
                    await self._send_piece(piece[: int(min(left, len(piece)))], entry, drip)
                    left -= len(piece)
                    if left <= 0:
                        break
            if death is not None:
                self._end(reset=bool(death.settings.get("reset")))
            await self._write(h11.EndOfMessage())
        except trio.BrokenResourceError:
            entry.client_gone = now()
            raise

    async def _send_piece(self, piece: bytes, entry: RequestEntry, drip: Fault | None) -> None:
        if drip is None:
            await self._write(h11.Data(data=piece))
            entry.sent_bytes += len(piece)
            return
        rate = max(1.0, drip.number("bytes_per_second", 1000))
        size = max(1, int(rate / 10))
        for at in range(0, len(piece), size):
            part = piece[at : at + size]
            await trio.sleep(len(part) / rate)
            await self._write(h11.Data(data=part))
            entry.sent_bytes += len(part)

    async def _write(self, event: h11.Event) -> None:
        data = self._h11.send(event)
        if data:
            await self.stream.send_all(data)
