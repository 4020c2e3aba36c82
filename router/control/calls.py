"""Calls to workers: one body for one or many workers, the workers' answers, and the claims through
which operations have agents make the calls."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeAlias

import trio
from attrs import define, field, frozen

from ..boundary import contained
from ..errors import BadRequest, RouterError
from ..pool.lifecycle import why_unreachable
from ..pool.match import Targets
from ..pool.weights import answers
from ..pool.worker import Worker
from ..text import words
from .client import Call, ControlClient, Unreachable
from .plan import Stage

Outcome: TypeAlias = tuple[int, dict[str, Any]]
"""Status and body of an answer to a client."""

_BROKEN = "collective_broken"
_WINDOW = 4  # pieces that a slower taker may lag behind


class BodyBrokeOff(BadRequest):
    """The body ended before it was complete. No taker may treat it as complete."""


@define(eq=False)
class Pipe:
    """A body on its way to one taker, which may outlive the filling task: an iterator of pieces,
    first the bytes already `held`.

    If the body is not complete, iteration raises the RouterError that ended the reading.
    """

    _held: bytes = b""
    over: bool = field(init=False, default=False)  # the taker wants no more
    _failure: RouterError | None = field(init=False, default=None)
    _send: trio.MemorySendChannel[bytes] = field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](_WINDOW)

    @property
    def beginning(self) -> bytes:
        """The bytes already held, until they are taken."""
        return self._held

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        held, self._held = self._held, b""
        if held:
            return held
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._failure is not None:
                raise self._failure from None
            raise StopAsyncIteration from None

    def close(self) -> None:
        """The taker wants no more."""
        self.over = True
        self._receive.close()

    async def put(self, piece: bytes) -> None:
        """Give the taker a piece once there is room. Does nothing if the taker wants no more."""
        with suppress(trio.BrokenResourceError):
            await self._send.send(piece)

    def end(self, failure: RouterError | None) -> None:
        """No more pieces follow. Without a failure the body is complete."""
        self._failure = failure
        self._send.close()


async def fill(pipes: Sequence[Pipe], source: AsyncIterable[bytes]) -> RouterError | None:
    """Read the source and give every piece to each pipe, at the pace of the slowest taker. Returns
    why the source broke off, or None. Ends early once no taker wants more."""
    failure: RouterError | None = BodyBrokeOff("The request body broke off")
    try:
        async for piece in source:
            for pipe in pipes:
                await pipe.put(piece)
            if all(pipe.over for pipe in pipes):
                return None
        failure = None
    except RouterError as error:
        failure = error
    finally:
        for pipe in pipes:
            pipe.end(failure)
    return failure


@asynccontextmanager
async def filling(pipe: Pipe, source: AsyncIterable[bytes]) -> AsyncIterator[None]:
    """Fill the pipe while the block runs. A RouterError of the block is raised bare."""
    failure: RouterError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill, [pipe], source)
        try:
            yield
        except RouterError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@frozen
class Row:
    """The answer of one worker; `status` is 502 or 504 if no answer came.

    `sent`: the worker may have acted on the call, even without an answer. `answered`: it answered.
    """

    worker: Worker
    status: int
    body: Any
    sent: bool = True
    answered: bool = True

    @classmethod
    def failed(
        cls, worker: Worker, why: str, code: str, *, status: int = 502, sent: bool = True
    ) -> Row:
        """The row of a worker that gave no answer."""
        return cls(worker, status, {"error": why, "code": code, "success": False}, sent, False)

    @property
    def success(self) -> bool:
        """Whether the status is 2xx and the body does not deny success."""
        return answers.succeeded(self.status, self.body)

    @property
    def refused(self) -> bool:
        """The worker called the request itself bad."""
        return self.status in (400, 422)

    def wire(self) -> dict[str, Any]:
        """The row as clients see it."""
        return {
            "worker_url": self.worker.url,
            "status_code": self.status,
            "success": self.success,
            "body": self.body,
        }


@define(eq=False)
class Claim:
    """What an operation wants from a worker: that the worker becomes idle, and then gets the
    `call`. The worker's agent makes this happen.

    `record` is awaited once `row` holds the outcome.
    """

    worker: Worker
    record: Callable[[Claim], Awaitable[None]] = field(repr=False)
    within: float  # seconds that the worker may take to become idle, from now on
    call: Call | None = None
    incarnation: int | None = None  # for this process only; None: for any process that answers
    deadline: float = field(init=False)
    called: int | None = field(init=False, default=None)  # the process that may have got the call
    row: Row | None = field(init=False, default=None)
    given_up: str | None = field(init=False, default=None)  # why nobody waits for it any more
    idle: trio.Event = field(init=False, factory=trio.Event)  # the worker is idle, or a row exists
    over: trio.Event = field(init=False, factory=trio.Event)  # the row is recorded

    def __attrs_post_init__(self) -> None:
        self.deadline = trio.current_time() + self.within

    @property
    def stage(self) -> Stage:
        """How far the claim has come."""
        if self.row is not None:
            return Stage.OVER
        if not self.idle.is_set():
            return Stage.DRAINING
        return Stage.HELD if self.call is None else Stage.DUE

    @property
    def left(self) -> str | None:
        """Why the claim can no longer be met; None if it can."""
        if self.given_up is not None:
            return self.given_up
        replaced = self.incarnation not in (None, self.worker.incarnation)
        if replaced and not self.worker.removed:
            return "another process took its place"
        return why_unreachable(self.worker)

    def fail(self, why: str | None = None, code: str | None = None, status: int = 502) -> None:
        """Set a failed row: no answer came, and none is awaited any more."""
        why = why or self.left or "another process took its place"
        if self.given_up is not None:
            code = _BROKEN
        code = code or ("worker_failed" if self.incarnation is None else "left_change")
        sent = self.called is not None
        self.row = Row.failed(self.worker, why, code, status=status, sent=sent)

    def send(self, call: Call | None) -> None:
        """Set the next call, after an answer to the previous one; None: hold the worker."""
        self.call, self.row, self.called = call, None, None
        if self.over.is_set():
            self.over = trio.Event()

    async def end(self) -> None:
        """Have the row recorded."""
        self.idle.set()
        if self.call is not None and isinstance(self.call.body, Pipe):
            self.call.body.close()
        try:
            await self.record(self)
        finally:
            self.over.set()


async def send(client: ControlClient, worker: Worker, call: Call) -> Row:
    """Send the call to one worker; returns its answer, or the failure as a row."""
    with contained("worker", f"{call.path} at worker {worker.url}") as attempt:
        try:
            answer = await client.call(worker.url, call)
        except Unreachable as error:
            status, code = (504, "worker_timeout") if error.timed_out else (502, "worker_failed")
            return Row.failed(worker, str(error), code, status=status, sent=error.sent)
        except RouterError as error:  # of reading the body; a worker ignores an incomplete call
            return Row.failed(worker, error.message, "worker_failed", sent=False)
        content = answer.json()
        if content is None:
            content = answer.body.decode(errors="replace")
        return Row(worker, answer.status, content)
    why = f"{type(attempt.error).__name__}: {words(attempt.error)}"
    return Row.failed(worker, why, "internal_error")


async def broadcast(
    client: ControlClient, targets: Sequence[Worker], call: Call, grace: float = math.inf
) -> list[Row]:
    """Send the call to all targets in parallel; returns their rows in the order of the targets.
    Once one has failed, the others are given up after `grace` seconds."""
    rows: dict[Worker, Row] = {}

    async def one(worker: Worker) -> None:
        row = rows[worker] = await send(client, worker, call)
        if len(rows) < len(targets):
            await trio.sleep(math.inf if row.success else grace)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for worker in targets:
            nursery.start_soon(one, worker)
    failed = [row for row in rows.values() if not row.success]
    why = [broken_by(row.worker, answers.words(row.body)) for row in failed]
    return [rows.get(w) or Row.failed(w, why[0], _BROKEN) for w in targets]


def broken_by(worker: Worker, why: str) -> str:
    """Why the other workers of a collective are given up."""
    return f"This call needs all workers, and {worker.url} failed: {why}"


def answer(rows: list[Row], targets: Targets) -> Outcome:
    """Status and body of the answer to the client: partial success never looks like success."""
    success = all(row.success for row in rows)
    body = {
        "results": [row.wire() for row in rows],
        "deferred": targets.deferred_rows(),
        "success": success,
    }
    if success:
        return 200, body
    return (400 if all(row.refused for row in rows) else 502), body
