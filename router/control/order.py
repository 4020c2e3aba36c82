"""What a client asks of workers by a call about weights: the call, and which workers it means."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from attrs import frozen

from ..errors import PoolUnavailable
from ..pool.match import Targets
from ..pool.weights.recipe import BOUND, COLLECTIVES
from ..pool.worker import Worker
from .client import Call
from .fenced_change import Rolling

# Calls that change no weights, for all workers at once: they are about what runs.
SIGNALS = ("/pause_generation", "/continue_generation", "/abort_request", "/flush_cache")

Choose: TypeAlias = Callable[[], list[Worker]]


@frozen
class Order:
    """A client's request: the call, its target workers, and the content of its body.

    `who`: the target as the query names it. `content`: None if the body is streamed. `full`:
    whether tensors replace all weights; None: as the settings say. `rolling`: how many workers may
    be fenced at once; None: all.
    """

    call: Call
    choose: Choose
    who: tuple[str | None, ...] = (None, None, None)
    content: Mapping[str, Any] | None = None
    full: bool | None = None
    rolling: Rolling | None = None

    @property
    def digest(self) -> str | None:
        """Equal for orders that ask for the same; None if each one counts: streamed bodies,
        collectives."""
        body = self.call.body
        if not isinstance(body, bytes) or self.call.path in COLLECTIVES:
            return None
        asked = f"{self.call.path} {self.who} " + ("" if self.full is None else f"{self.full} ")
        return hashlib.sha256(asked.encode() + body).hexdigest()

    def check(self, targets: Targets) -> None:
        """Raises PoolUnavailable if the call needs all workers that it names, and cannot have
        them."""
        if self.call.path in BOUND and self.who[1] is not None and targets.deferred:
            missing = ", ".join(worker.worker_id for worker in targets.deferred)
            raise PoolUnavailable(
                f"This call needs all workers that it names, and these cannot be called: {missing}",
                code="collective_broken",
                details={"deferred": targets.deferred_rows()},
            )
