"""Which routers a request has passed, so that one that comes back is refused instead of going
round for ever."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import ClassVar

from attrs import field, frozen

from ..errors import Fault, RouterError

HEADER = b"x-router-hops"  # on what goes to a worker: the instances that it passed, in order
INSTANCE_HEADER = b"x-router-instance"  # on our own `/health`

# The hops of the request that the current task serves. Calls made for it carry them on.
_passed: ContextVar[bytes | None] = ContextVar("hops", default=None)

Headers = list[tuple[bytes, bytes]]


class LoopDetected(RouterError):
    """The request has passed this router before."""

    fault: ClassVar[Fault] = Fault.POOL
    default_status = 508
    default_code = "loop_detected"


def begin_anew() -> None:
    """What the current task does from now on is for no request of another router."""
    _passed.set(None)


@frozen
class Instance:
    """One router among those that a request may pass. `id` is random."""

    id: str = field(factory=lambda: secrets.token_hex(8))

    def passed_by(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The headers of a request as it goes on from here, and for the calls that this task
        makes for it. Raises LoopDetected."""
        own = self.id.encode()
        kept: Headers = []
        hops: list[bytes] = []
        for name, value in headers:
            if name.lower() == HEADER:
                hops += [hop.strip() for hop in value.split(b",")]
            else:
                kept.append((name, value))
        if own in hops:
            raise LoopDetected(
                "This request has passed this router before: a worker's URL leads back to it"
            )
        value = b", ".join([*hops, own])
        _passed.set(value)
        kept.append((HEADER, value))
        return kept

    def on_call(self) -> tuple[str, str]:
        """The header of a call that the router makes by itself, or for a request."""
        return HEADER.decode(), (_passed.get() or self.id.encode()).decode("latin-1")
