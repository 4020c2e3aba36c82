"""Attempts at fitting workers, one after the other, until one takes the exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

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
    # The latest weight version issued to this model in this pool, and the newest one with this
    # label; without a model, of any.
    latest_issued: Callable[[str | None, str | None], int] = lambda *_: 0
    labelled: Callable[[str | None, str, str | None], int | None] = lambda *_: None

    def looked_up(self, facts: Facts) -> Facts:
        """The facts with the versions in numbers. Raises NeverIssued or BadRequest."""
        if facts.asked is None:
            return facts
        model, pool = facts.model, facts.pool
        latest = self.latest_issued(model, pool)
        bounds = facts.asked.bounds(lambda label: self.labelled(model, label, pool), latest)
        return evolve(facts, asked=None, bounds=bounds)

    async def several(self, facts: Facts, most: int, *, held: int = 0) -> list[Lease]:
        """At most `most` leases on different workers with the same weights: one that is waited for,
        and others that are free at that moment. `run` gets each of them, before any checkpoint.

        Raises PoolUnavailable if no worker fits, or Passed.
        """
        leases = [await self.dispatcher.lease(facts, held=held)]
        while len(leases) < most and (another := self.dispatcher.beside(facts, leases)):
            leases.append(another)
        return leases

    async def run(
        self,
        facts: Facts,
        attempt: Callable[[Lease], Awaitable[None]],
        *,
        held: int = 0,
        first: Lease | None = None,
    ) -> None:
        """Call `attempt` with a lease that ends with the call. `held` is the size of the body that
        waits in memory until then. After TryAnother the next worker is tried. `first` is a lease
        that was granted before.

        Raises the last failure, PoolUnavailable if no worker fits at the start, NeverIssued or
        Passed.
        """
        facts = self.looked_up(facts)
        tried: list[Worker] = []
        failure: WorkerFailed | None = None
        while failure is None or len(tried) <= self.retries:
            try:
                lease = first or await self.dispatcher.lease(facts, tried=tried, held=held)
            except Cancelled:
                raise
            except RouterError:
                if failure is not None:
                    break
                raise
            first = None
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
