"""One call to several workers at once, and what their answers mean."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from typing import Any

import trio
from attrs import frozen

from ..boundary import contained
from ..errors import RouterError
from ..pool.targets import Targets
from ..pool.worker import Worker
from ..text import words
from .client import ControlClient, Unreachable
from .copying import BrokenOff, Copy, copy_out


@frozen
class Row:
    """What one worker answered; `status` is 502 or 504 where no answer came.

    `sent`: the worker may have acted on the call though no answer came. `answered`: one came.
    """

    worker: Worker
    status: int
    body: Any
    sent: bool = True
    answered: bool = True

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
    body: bytes | AsyncIterable[bytes]
    # Seconds from the last byte sent to the answer: it may queue behind a generation.
    within: float
    # Seconds that a target may take for a piece of the body before it is dropped.
    idle: float = 300.0
    method: str = "POST"


async def broadcast(client: ControlClient, targets: Sequence[Worker], call: Call) -> list[Row]:
    """Send the call to all targets in parallel; their rows, in the order of the targets.

    A body that comes in pieces is read once and copied to all, in bounded memory. Raises what
    reading it raises; then no target was sent a complete one.
    """
    rows: dict[Worker, Row] = {}
    failure: RouterError | None = None
    async with trio.open_nursery() as nursery:
        if isinstance(call.body, bytes):
            for worker in targets:
                nursery.start_soon(call_one, client, worker, call, call.body, rows)
        else:
            copies = [Copy() for _ in targets]
            for worker, copied in zip(targets, copies, strict=True):
                nursery.start_soon(send_copy, client, worker, call, copied, rows)
            try:
                await copy_out(call.body, copies)
            except RouterError as error:  # caught here, lest the nursery wrap and cancel
                failure = error
    if failure is not None:
        raise failure
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


async def call_one(
    client: ControlClient,
    worker: Worker,
    call: Call,
    body: bytes | AsyncIterable[bytes],
    rows: dict[Worker, Row],
) -> None:
    """Send the call to one worker; its row is entered when it has answered, or failed."""
    with contained("worker", f"{call.path} at worker {worker.url}") as attempt:
        await _call_one(client, worker, call, body, rows)
    if attempt.error is not None:
        why = f"{type(attempt.error).__name__}: {words(attempt.error)}"
        said = {"error": why, "code": "internal_error", "success": False}
        rows[worker] = Row(worker, 502, said, answered=False)


async def _call_one(
    client: ControlClient,
    worker: Worker,
    call: Call,
    body: bytes | AsyncIterable[bytes],
    rows: dict[Worker, Row],
) -> None:
    try:
        answer = await client.call(
            call.method,
            worker.url,
            call.path,
            within=call.within,
            stall=call.idle,
            headers=call.headers,
            body=body,
        )
    except Unreachable as error:
        status, code = (504, "worker_timeout") if error.timed_out else (502, "worker_failed")
        said = {"error": str(error), "code": code, "success": False}
        rows[worker] = Row(worker, status, said, sent=error.sent, answered=False)
        return
    content = answer.json()
    if content is None:
        content = answer.body.decode(errors="replace")
    rows[worker] = Row(worker, answer.status, content)


async def send_copy(
    client: ControlClient, worker: Worker, call: Call, copied: Copy, rows: dict[Worker, Row]
) -> None:
    """`call_one` with a copy of a body that others get too."""
    with copied:
        try:
            await call_one(client, worker, call, copied, rows)
        except BrokenOff:
            said = {"error": "the body broke off", "code": "worker_failed", "success": False}
            # Of an incomplete call it does nothing.
            rows[worker] = Row(worker, 502, said, sent=False, answered=False)
