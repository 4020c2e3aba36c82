"""Attempts at fitting workers, one after the other, until one takes the exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from attrs import define, evolve

from ..dispatch import Cancelled, Dispatcher
from ..errors import RouterError, WorkerFailed
from ..pool.lifecycle import doubted
from ..pool.match import Facts
from ..pool.registry import Registry
from ..pool.worker import Lease, Worker


class TryAnother(Exception):
    """This worker has not acted on the exchange: another may. `failure` is raised if none can."""

    def __init__(self, failure: WorkerFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Withdrawn(Exception):
    """The chosen worker must no longer get the exchange; nothing was sent."""


@define(eq=False)
class Attempts:
    """Gives an exchange to one worker after the other, at most once to each."""

    registry: Registry
    dispatcher: Dispatcher
    retries: int
    # The latest weight version issued to this model, and the newest one with this label; without a
    # model, of any.
    latest_issued: Callable[[str | None], int] = lambda _: 0
    labelled: Callable[[str | None, str], int | None] = lambda _, __: None

    async def run(
        self, facts: Facts, attempt: Callable[[Lease], Awaitable[None]], *, held: int = 0
    ) -> None:
        """Call `attempt` with a lease that ends with the call. `held` is the size of the body that
        waits in memory until then. After TryAnother the next worker is tried.

        Raises the last failure, PoolUnavailable if no worker fits at the start, NeverIssued or
        Passed.
        """
        if facts.asked is not None:
            named = partial(self.labelled, facts.model)
            facts = evolve(facts, bounds=facts.asked.bounds(named, self.latest_issued(facts.model)))
        tried: list[Worker] = []
        failure: WorkerFailed | None = None
        while failure is None or len(tried) <= self.retries:
            try:
                lease = await self.dispatcher.lease(facts, tried=tried, held=held)
            except Cancelled:
                raise
            except RouterError:
                if failure is not None:
                    break
                raise
            with lease:
                try:
                    await attempt(lease)
                    return
                except Withdrawn:
                    continue  # not in `tried`: this worker may have it once the doubt is cleared
                except TryAnother as again:
                    failure = again.failure
                    # Before the lease ends: otherwise the next request goes to the same worker.
                    self.registry.trouble(lease.worker, failure.message)
            tried.append(lease.worker)
        raise failure

    @staticmethod
    def check(lease: Lease) -> None:
        """Check, once connected, that the worker is still as sound as when it was chosen.

        The connection may lead to a new process with other weights. Raises Withdrawn.
        """
        worker = lease.worker
        if doubted(worker) or worker.incarnation != lease.incarnation:
            raise Withdrawn
