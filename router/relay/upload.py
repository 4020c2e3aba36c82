"""Sends the body of a request while its answer is awaited."""

from __future__ import annotations

from typing import Protocol

import trio
from attrs import define, field

from ..errors import RouterError
from ..front.client import ClientGone
from .body import Body, too_large
from .connection import Broken, Connection
from .exchange import Exchange

# How long a worker that closed its side of an upload may still answer, in seconds.
_LAST_WORDS = 2.0
_SLICE = 256 * 1024  # of a held body


class Attempt(Protocol):
    """What an upload needs from the exchange at one worker."""

    exchange: Exchange
    body: Body
    patience: float  # seconds from the last byte of the request to the head of the answer
    consumed: bool  # pieces beyond the held ones were taken from the client

    def held(self, connection: Connection) -> bytes: ...

    async def send(
        self, connection: Connection, data: bytes | memoryview, *, last: bool
    ) -> None: ...


@define(eq=False)
class Upload:
    """Sends a body while its answer is awaited. `run` never raises: see `broken` and `refusal`.

    `both` is the cancel scope around sending and answering.
    """

    attempt: Attempt
    largest: int  # bytes of a body
    connection: Connection
    both: trio.CancelScope
    # The wait for the head of the answer. It has no deadline while the upload goes on.
    waiting: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    # The worker took no more bytes.
    broken: Broken | None = field(init=False, default=None)
    # Why the whole exchange ended.
    refusal: RouterError | ClientGone | None = field(init=False, default=None)

    async def run(self) -> None:
        try:
            await self._pieces()
        except Broken as error:
            # The worker may have refused the rest and said why: the answer can still be on its way.
            self.broken = error
            self.waiting.deadline = trio.current_time() + _LAST_WORDS
        except (RouterError, ClientGone) as error:
            self.refusal = error
            self.both.cancel()
        else:
            self.waiting.deadline = trio.current_time() + self.attempt.patience

    async def _pieces(self) -> None:
        attempt, connection, body = self.attempt, self.connection, self.attempt.body
        total, spool = body.taken, body.spool
        data = memoryview(attempt.held(connection))
        for start in range(0, len(data), _SLICE):
            end = start + _SLICE
            last = body.complete and not spool and end >= len(data)
            await attempt.send(connection, data[start:end], last=last)
        at = 0
        while spool and at < spool.size:
            piece = await spool.read(at)
            at += len(piece)
            last = body.complete and at == spool.size
            framed = connection.body(piece) + (connection.end() if last else b"")
            await attempt.send(connection, framed, last=last)
        if body.complete:
            return
        while piece := await attempt.exchange.read():
            attempt.consumed = True
            total += len(piece)
            if total > self.largest:
                raise too_large(self.largest)
            await attempt.send(connection, connection.body(piece), last=total == body.length)
        if last_chunk := connection.end():
            await attempt.send(connection, last_chunk, last=True)
