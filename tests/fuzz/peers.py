"""The workers and the clients of a batch, and what they notice."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import h11
import trio
from attrs import Factory, define, field

from router.control import client
from tests.fuzz.exchanges import ACCEPT, ANSWERS, CONTROL, TOKEN
from tests.fuzz.mutations import Case, End, Second, Side, control_answer

HANG = 30.0  # seconds without the end that must come; the router's own limits are far shorter
SOUND = b"tk" + b"5" * 16  # the token of a request that is not of the batch
_LINGERING = 0.15  # seconds that a client stays silent on an open WebSocket
_TOKENS = re.compile(rb"tk[0-9a-f]{16}")  # of requests
_ANSWERED = re.compile(rb"an[0-9a-f]{16}")  # of answers
_JOB_ID = re.compile(rb'"job_id":"[^"]*"')
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_OURS = dict(client._HEADERS)["user-agent"].encode()  # of the router's own calls to workers


@define
class Batch:
    """Cases that one router has had, and what was wrong."""

    cases: Sequence[Case]
    seed: str
    faults: list[str] = Factory(list)
    playing: dict[bytes, Case] = Factory(dict)
    statuses: Counter[bytes] = Factory(Counter)
    # Answers of other clients that came, and to whom.
    mixed: list[tuple[bytes, Case, bytes]] = Factory(list)
    # Answers that crossed the next request on the wire.
    crossed: set[bytes] = Factory(set)
    answers: set[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        # What workers say of a change is told to all.
        self.answers = {case.answered for case in self.cases if not case.changes}

    def judge(self) -> None:
        """Once all cases are over."""
        for answer, case, got in self.mixed:
            if answer not in self.crossed:
                self.fault(f"{answer!r} of another client came: {got!r}", case)

    def fault(self, what: str, *cases: Case) -> None:
        shown = "".join(f"\n{case}" for case in cases[:60])
        self.faults.append(f"{what}{shown}")


@define(eq=False)
class Worker:
    """A worker that answers each request as the case says to which its token belongs.

    `mad`: it also answers the router's own questions as chance has it.
    """

    batch: Batch
    by_token: dict[bytes, Case]
    mad: random.Random | None = None
    questions: int = 0  # of the router's own, that it was asked
    listener: socket.socket = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.listener.setblocking(False)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    async def run(self) -> None:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(self.listener))
        async with listener, trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(_Served(self, await listener.accept()).run)

    def side(self, request: h11.Request, seen: bytes) -> Side:
        """What it answers to a request."""
        ours = dict(request.headers).get(b"user-agent") == _OURS
        self.questions += ours
        met = {token for token in _TOKENS.findall(seen) if token in self.by_token}
        if len(met) > 1:
            self.batch.fault(f"one request has tokens of several: {seen!r}")
        if ours and self.mad is not None and self.mad.random() < 0.5:
            return control_answer(self.mad, request.target)
        if met and not ours:
            return self.by_token[met.pop()].worker
        path = request.target.partition(b"?")[0]
        body = CONTROL.get(path, CONTROL[b""]) if ours else ANSWERS[0][0]
        token = SOUND if SOUND in seen else b"tk" + b"0" * 16
        return Side([body.replace(TOKEN, token)], [0], End.WAIT)


@define(eq=False)
class _Served:
    """One connection of the router's to a worker."""

    worker: Worker
    stream: trio.SocketStream
    parser: h11.Connection = field(
        factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=1_000_000)
    )
    # The last answer, if a second one followed it that the router could see in time.
    spoilt: Side | None = None

    async def run(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            async with self.stream:
                while await self._exchange():
                    if self.parser.states != {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}:
                        return
                    self.parser.start_next_cycle()

    async def _exchange(self) -> bool:
        """Read one request and answer it; False at the end of the connection."""
        stream, parser = self.stream, self.parser
        request: h11.Request | None = None
        seen = bytearray()
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError as error:
                what = bytes(seen or parser.trailing_data[0])
                self.worker.batch.fault(f"a worker was sent what is no HTTP: {error}, in {what!r}")
                return False
            if event is h11.NEED_DATA:
                if parser.they_are_waiting_for_100_continue:
                    await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                    parser.send(h11.InformationalResponse(status_code=100, headers=[]))
                data = await stream.receive_some(65536)
                if not data:
                    return False
                parser.receive_data(data)
            elif isinstance(event, h11.Request):
                request = event
                seen += event.target + b" "
                seen += b"\n".join(b"%b: %b" % pair for pair in event.headers)
            elif isinstance(event, h11.Data):
                seen += event.data
            else:
                break
        if request is None:
            return False
        if self.spoilt is not None:
            self.worker.batch.fault(
                f"a connection was used again behind a second answer, {self.spoilt}: {seen!r}"
            )
        return await self._answer(request, self.worker.side(request, bytes(seen)))

    async def _answer(self, request: h11.Request, side: Side) -> bool:
        stream, fields = self.stream, dict(request.headers)
        accept = base64.b64encode(
            hashlib.sha1(fields.get(b"sec-websocket-key", b"") + _GUID).digest()
        )
        for piece, pause in zip(side.pieces, side.pauses, strict=True):
            if pause:
                await _pause(stream, pause)
                if b"upgrade" not in fields and _readable(stream.socket):
                    return False  # the router is on to the next exchange, or has left
            await stream.send_all(piece.replace(ACCEPT, accept))
        if len(side.pieces) > 1 and side.second is not Second.BESIDE and b"upgrade" not in fields:
            # What is no part of the answer may cross the next request on the wire: then it is
            # taken for the answer to that, by whatever router.
            for _ in range(2):
                await trio.lowlevel.checkpoint()
            if _readable(stream.socket):
                self.worker.batch.crossed.update(_ANSWERED.findall(b"".join(side.pieces)))
                return side.second is Second.NONE
        if side.second is not Second.NONE:
            self.spoilt = side
        if side.end is End.RST:
            _reset(stream)
            return False
        if side.end is End.FIN or b"upgrade" in fields:
            if side.end is End.FIN:
                await stream.send_eof()
            with trio.move_on_after(3):
                while await stream.receive_some(65536):
                    pass
            return False
        # The answer was written past the parser.
        self.parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        self.parser.send(h11.EndOfMessage())
        return True


async def _pause(stream: trio.SocketStream, kind: int) -> None:
    if kind == 1:
        await trio.lowlevel.checkpoint()
    elif kind == 2:
        await trio.sleep(0.002)
    else:
        with trio.move_on_after(0.03):
            await trio.lowlevel.wait_readable(stream.socket)


def _readable(sock: trio.socket.SocketType) -> bool:
    plain = socket.socket(fileno=os.dup(sock.fileno()))
    try:
        plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        plain.close()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()


async def play(batch: Batch, case: Case, port: int) -> None:
    """The client's side of a case."""
    got = _Heard()
    sock = trio.socket.socket()
    await sock.connect(("127.0.0.1", port))
    stream = trio.SocketStream(sock)
    batch.playing[case.token] = case
    try:
        with trio.fail_after(HANG):
            await _talk(stream, case.client, got)
    except trio.TooSlowError:
        batch.fault(f"no end within {HANG:g} s; so far {bytes(got)!r}", case)
    finally:
        del batch.playing[case.token]
        await trio.aclose_forcefully(stream)
    if wrong := _wrong(bytes(got), case.method):
        batch.fault(f"{wrong}: {bytes(got)!r}", case)
    batch.statuses[bytes(got[9:12])] += 1
    # What the router itself tells (`/queue`) may name other clients, but never their answers. The
    # ids of their jobs hold slots, which `/workers` shows.
    found = _ANSWERED.findall(_JOB_ID.sub(b"", got))
    for answer in batch.answers.intersection(found) - {case.answered}:
        batch.mixed.append((answer, case, bytes(got)))


def _wrong(got: bytes, method: bytes | None) -> str | None:
    """What is wrong with what a client got. `method`: that of its one request, if it sent one."""
    if got and not got.startswith(b"HTTP/1.1 "):
        return "this is no answer"
    if method is None or not got:
        return None
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method=method, target="/", headers=[("host", "")]))
    parser.receive_data(got)
    try:
        while (event := parser.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.EndOfMessage):
                return "there is more than one answer" if any(parser.trailing_data) else None
    except h11.RemoteProtocolError as error:
        return f"this is no HTTP ({error})"
    return None  # it may be cut off


class _Heard(bytearray):
    """What a client got so far."""

    def __init__(self) -> None:
        super().__init__()
        self.news = trio.lowlevel.ParkingLot()

    def hear(self, data: bytes) -> None:
        self += data
        self.news.unpark_all()

    async def wait(self, seconds: float) -> None:
        """Wait for more, but no longer than so."""
        with trio.move_on_after(seconds):
            await self.news.park()


async def _talk(stream: trio.SocketStream, side: Side, got: _Heard) -> None:
    async def read() -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await stream.receive_some(65536):
                got.hear(data)

    async def write(scope: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            await say(scope)

    async def say(scope: trio.CancelScope) -> None:
        for piece, pause in zip(side.pieces, side.pauses, strict=True):
            if pause == 3:
                await got.wait(0.25)
            elif pause:
                await _pause(stream, pause)
            await stream.send_all(piece)
        if side.end is End.WAIT:
            # A WebSocket has no end of its own, nor has the stream of a worker that goes on.
            await trio.sleep(_LINGERING)
            if b" 101 " not in got[:20]:
                return
        elif not got:
            await got.wait(0.2)
        if side.end is End.RST:
            scope.cancel()
            _reset(stream)
        else:
            await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, nursery.cancel_scope)
        await read()
        nursery.cancel_scope.cancel()
