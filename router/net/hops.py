"""The routers that a request has passed: a request that comes back is refused, so none circles."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from contextvars import ContextVar
from typing import ClassVar

from attrs import field, frozen

from ..errors import Fault, RouterError

HEADER = b"x-router-hops"  # of requests to workers: the instances passed, in order
INSTANCE_HEADER = b"x-router-instance"  # on our own `/health`

# The hops of the request that the current task serves. Calls for that request carry them on.
_passed: ContextVar[bytes | None] = ContextVar("hops", default=None)

Headers = list[tuple[bytes, bytes]]


class LoopDetected(RouterError):
    """The request has passed this router before."""

    fault: ClassVar[Fault] = Fault.POOL
    default_status = 508
    default_code = "loop_detected"


def begin_anew() -> None:
    """Declare that the current task no longer acts on a request of another router."""
    _passed.set(None)


@frozen
class Instance:
    """One router that requests may pass. `id` is random."""

    id: str = field(factory=lambda: secrets.token_hex(8))

    def passed_by(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        """The request's headers with this router added to the hops; calls of this task carry the
        same hops. Raises LoopDetected."""
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
                "This request has already passed through this router: a worker's URL leads back"
                " to the router"
            )
        value = b", ".join([*hops, own])
        _passed.set(value)
        kept.append((HEADER, value))
        return kept

    def on_call(self) -> tuple[str, str]:
        """The hops header for a call by the router, on its own or for a request."""
        return HEADER.decode(), (_passed.get() or self.id.encode()).decode("latin-1")
