"""What an operation wants of one worker, which the agent of the worker brings about."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from ..pool.lifecycle import why_unreachable
from ..pool.worker import Worker
from .calls import Pipe, Row
from .client import Call
from .plan import Stage


@define(eq=False)
class Claim:
    """That the worker is idle, and then that it is sent the `call`.

    `record` is awaited when there is a `row`, which says what came of it.
    """

    worker: Worker
    record: Callable[[Claim], Awaitable[None]] = field(repr=False)
    within: float  # seconds until the worker is idle, from now on
    call: Call | None = None
    incarnation: int | None = None  # it is about this process; None: about any that answers
    deadline: float = field(init=False)
    called: int | None = field(init=False, default=None)  # the process that may have got the call
    row: Row | None = field(init=False, default=None)
    idle: trio.Event = field(init=False, factory=trio.Event)  # the worker is, or there is a row
    over: trio.Event = field(init=False, factory=trio.Event)  # the row is recorded

    def __attrs_post_init__(self) -> None:
        self.deadline = trio.current_time() + self.within

    @property
    def stage(self) -> Stage:
        """How far it is."""
        if self.row is not None:
            return Stage.OVER
        if not self.idle.is_set():
            return Stage.DRAINING
        return Stage.HELD if self.call is None else Stage.DUE

    @property
    def left(self) -> str | None:
        """Why it cannot be met any more; None if it can."""
        replaced = self.incarnation not in (None, self.worker.incarnation)
        if replaced and not self.worker.removed:
            return "another process took its place"
        return why_unreachable(self.worker)

    def fail(self, why: str | None = None, code: str | None = None, status: int = 502) -> None:
        """There is no answer, and none is waited for any more."""
        why = why or self.left or "another process took its place"
        code = code or ("worker_failed" if self.incarnation is None else "left_change")
        sent = self.called is not None
        self.row = Row.failed(self.worker, why, code, status=status, sent=sent)

    def send(self, call: Call | None) -> None:
        """The next call, where one was answered already; None: the worker is held."""
        self.call, self.row, self.called = call, None, None
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
