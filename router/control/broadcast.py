"""One call to several workers at once, and what their answers mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import trio
from attrs import define, field, frozen

from ..pool.targets import Targets
from ..pool.worker import Worker
from .client import ControlClient, Unreachable

_WINDOW = 4  # pieces that a slower target may lag behind


@frozen
class Row:
    """What one worker answered; `status` is 502 or 504 where no answer came.

    `sent`: the worker may have acted on the call though no answer came.
    """

    worker: Worker
    status: int
    body: Any
    sent: bool = True

    @property
    def success(self) -> bool:
        """2xx, and the worker does not say otherwise."""
        said = self.body.get("success") if isinstance(self.body, dict) else None
        return 200 <= self.status < 300 and said is not False

    @property
    def refused(self) -> bool:
        """The worker called the request itself bad."""
        return self.status in (400, 422)

    def wire(self) -> dict[str, Any]:
        """The row as clients know it."""
        return {"worker_url": self.worker.url, "status_code": self.status, "body": self.body}


@frozen
class Call:
    """What every target is sent."""

    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes | Callable[[], AsyncIterator[bytes]]
    # Seconds from the last byte sent to the answer: it may queue behind a generation.
    within: float
    # Seconds that a target of a streamed body may take no byte before it is dropped.
    idle: float = 300.0
    method: str = "POST"


async def broadcast(client: ControlClient, targets: Sequence[Worker], call: Call) -> list[Row]:
    """Send the call to all targets in parallel; their rows, in the order of the targets.

    A body that is a function of an iterator is read once and copied to all, in bounded memory.
    """
    rows: dict[Worker, Row] = {}
    if isinstance(call.body, bytes):
        body = call.body
        async with trio.open_nursery() as nursery:
            for worker in targets:
                nursery.start_soon(_one, client, worker, call, body, rows)
    else:
        await _streamed(client, targets, call, call.body, rows)
    return [rows[worker] for worker in targets]


def answer(rows: list[Row], targets: Targets) -> tuple[int, dict[str, Any]]:
    """Status and body of a broadcast: partial success never looks like success."""
    success = all(row.success for row in rows)
    body = {
        "results": [row.wire() for row in rows],
        "deferred": targets.deferred_rows(),
        "success": success,
    }
    if success:
        return 200, body
    return (400 if all(row.refused for row in rows) else 502), body


async def _one(
    client: ControlClient,
    worker: Worker,
    call: Call,
    body: bytes | AsyncIterator[bytes],
    rows: dict[Worker, Row],
) -> None:
    try:
        answer = await client.call(
            call.method, worker.url, call.path, within=call.within, headers=call.headers, body=body
        )
    except Unreachable as error:
        status, code = (504, "worker_timeout") if error.timed_out else (502, "worker_failed")
        said = {"error": str(error), "code": code, "success": False}
        rows[worker] = Row(worker, status, said, sent=error.sent)
        return
    content = answer.json()
    if content is None:
        content = answer.body.decode(errors="replace")
    rows[worker] = Row(worker, answer.status, content)


async def _streamed(
    client: ControlClient,
    targets: Sequence[Worker],
    call: Call,
    source: Callable[[], AsyncIterator[bytes]],
    rows: dict[Worker, Row],
) -> None:
    streams = [_Stream(worker) for worker in targets]
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for stream in streams:
            nursery.start_soon(_deliver, client, stream, call, rows)
        try:
            async for piece in source():
                for stream in streams:
                    await stream.put(piece, call.idle)
        except Exception as error:  # whatever the client's side raises is the caller's
            failure = error
            for stream in streams:
                stream.broken = True
        for stream in streams:
            stream.end()
    if failure is not None:
        raise failure


class _SourceBroken(Exception):
    """The body ended before it was whole: a worker must not take it for a complete one."""


@define(eq=False)
class _Stream:
    """One target's copy of a streamed body, at most a window behind the others."""

    worker: Worker
    broken: bool = False
    stalled: bool = False
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    _send: trio.MemorySendChannel[bytes] = field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](_WINDOW)

    async def put(self, piece: bytes, patience: float) -> None:
        with trio.move_on_after(patience) as scope:
            try:
                await self._send.send(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return  # it has answered, or failed: its row says which
        if scope.cancelled_caught:
            self.stalled = True
            self.scope.cancel()
            self._send.close()

    def end(self) -> None:
        self._send.close()

    def close(self) -> None:
        self._receive.close()

    async def pieces(self) -> AsyncIterator[bytes]:
        async for piece in self._receive:
            yield piece
        if self.broken:
            raise _SourceBroken


async def _deliver(
    client: ControlClient, stream: _Stream, call: Call, rows: dict[Worker, Row]
) -> None:
    worker = stream.worker
    said = {"error": "the body broke off", "code": "worker_failed", "success": False}
    rows[worker] = Row(worker, 502, said)
    with stream.scope:
        try:
            await _one(client, worker, call, stream.pieces(), rows)
        except _SourceBroken:
            pass  # the row says so already
        finally:
            stream.close()
    if stream.stalled:
        said = {
            "error": f"it took no byte of the body for {call.idle:g} s",
            "code": "worker_timeout",
            "success": False,
        }
        rows[worker] = Row(worker, 504, said)
