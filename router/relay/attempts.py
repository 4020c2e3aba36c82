"""Trying fitting workers one after the other until one takes the exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define

from ..dispatch import Dispatcher
from ..errors import RouterError, WorkerFailed
from ..pool.candidates import Facts
from ..pool.registry import Registry
from ..pool.worker import Lease, Worker


class TryAnother(Exception):
    """This worker has not acted on the exchange: another one may. `failure` if there is none."""

    def __init__(self, failure: WorkerFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


@define(eq=False)
class Attempts:
    """Gives an exchange to one worker after the other, each once (DESIGN section 5, "Retry")."""

    registry: Registry
    dispatcher: Dispatcher
    retries: int

    async def run(self, facts: Facts, attempt: Callable[[Lease], Awaitable[None]]) -> None:
        """Call `attempt` with a lease, which ends with the call. Where it raises TryAnother the
        next worker is tried. Raises the last failure, or PoolUnavailable if there is no worker
        to begin with."""
        tried: list[Worker] = []
        failure: WorkerFailed | None = None
        while failure is None or len(tried) <= self.retries:
            try:
                lease = await self.dispatcher.lease(facts, tried=tried)
            except RouterError:
                if failure is not None:
                    break
                raise
            with lease:
                try:
                    await attempt(lease)
                    return
                except TryAnother as again:
                    failure = again.failure
                    # Before its slot is free: or the next request is sent there too.
                    self.registry.trouble(lease.worker, failure.message)
            tried.append(lease.worker)
        raise failure
