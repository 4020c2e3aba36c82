"""Where an unexpected error ends: at a client connection, or at a task about one worker.

The error ends only that connection or task; it is logged once with its traceback, and counted.
Errors of the shared core pass: a change that broke off half-way leaves the state unknown.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Literal, Self, TypeAlias

import trio

from . import text
from .backoff import Backoff
from .errors import RouterError

logger = logging.getLogger("router.boundary")

Kind: TypeAlias = Literal["client", "worker"]
"""Where the error happened: in the connection of a client, or in a task about a worker."""

Words: TypeAlias = str | Callable[[], str]
"""Words for the log, or a function that makes the words on demand."""

CORE = (
    "router.bus",
    "router.dispatch",
    "router.pool.assets",
    "router.pool.lifecycle",
    "router.pool.lines",
    "router.pool.queue",
    "router.pool.registry",
    "router.pool.weights.ledger",
    "router.pool.weights.ledgers",
    "router.pool.weights.state",
    "router.pool.weights.view",
    "router.pool.worker",
    "router.store.changes",
    "router.store.journal",
    "router.store.store",
)
"""The modules of the shared core. An unexpected error that has passed through one of them is fatal:
state that all parts share may be left half changed."""

_RETRY_MOST = 60.0  # the longest pause before a failed task runs again, in seconds
_LASTED = 60.0  # a run that lasted longer than these seconds resets the pause

counts: Counter[Kind] = Counter()
"""The errors that boundaries have contained in this process."""


class contained:
    """Contain unexpected errors of the block. `error` is the error that ended the block, or None.

    `what` names the failed work in the log. Cancellation, errors that end the process, and errors
    of the core pass. A class, because a generator costs each exchange several microseconds.
    """

    def __init__(self, kind: Kind, what: Words, *, request_id: Words | None = None) -> None:
        self.error: Exception | None = None
        self._kind: Kind = kind
        self._what = what
        self._request_id = request_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            return False
        ours, others = _parted(error)
        if ours is None or is_of_core(ours):
            return False
        self.error = _only(ours)
        note(self._kind, _said(self._what) or "", ours, request_id=_said(self._request_id))
        if others is not None:
            raise others from None
        return True


def note(kind: Kind, what: str, error: Exception, *, request_id: str | None = None) -> None:
    """Log and count an error that a boundary has contained."""
    counts[kind] += 1
    only = _only(error)
    logger.error(
        "%s failed unexpectedly: %s: %s",
        *(what, type(only).__name__, text.words(only)),
        exc_info=error,
        extra={"request_id": request_id, "code": "internal_error"},
    )


async def keep_running(
    what: str,
    work: Callable[[], Awaitable[None]],
    failed: Callable[[Exception], None] = lambda _: None,
) -> None:
    """Do the work about one worker. If the work fails unexpectedly, call `failed`, pause for a
    growing time, and do the work again."""
    backoff = Backoff(most=_RETRY_MOST)
    while True:
        began = trio.current_time()
        with contained("worker", what) as outcome:
            await work()
        if outcome.error is None:
            return
        failed(outcome.error)
        if trio.current_time() - began > _LASTED:
            backoff.reset()
        await backoff.pause()


def _only(error: Exception) -> Exception:
    """The error itself if a group holds just one error; else the group."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


def _said(words: Words | None) -> str | None:
    return words() if callable(words) else words


def is_of_core(error: BaseException) -> bool:
    """Whether the error, or an error of its group, has passed through the shared core.

    A RouterError never counts: the core raises these on purpose, as answers.
    """
    if isinstance(error, RouterError):
        return False
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") in CORE:
            return True
        trace = trace.tb_next
    return isinstance(error, BaseExceptionGroup) and any(map(is_of_core, error.exceptions))


def _parted(error: BaseException) -> tuple[Exception | None, BaseException | None]:
    """Split into errors, and the rest: cancellation and exceptions that end the process."""
    if isinstance(error, Exception):
        return error, None
    if isinstance(error, BaseExceptionGroup):
        ours, others = error.split(Exception)
        assert ours is None or isinstance(ours, Exception)
        return ours, others
    return None, error
