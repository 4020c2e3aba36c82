"""Trying fitting workers one after the other until one takes the exchange."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from attrs import define

from ..dispatch import Dispatcher
from ..errors import Conflict, RouterError, WorkerFailed
from ..pool.lifecycle import doubted
from ..pool.match import Facts
from ..pool.registry import Registry
from ..pool.worker import Lease, Worker


class TryAnother(Exception):
    """This worker has not acted on the exchange: another one may. `failure` if there is none."""

    def __init__(self, failure: WorkerFailed) -> None:
        super().__init__(failure.message)
        self.failure = failure


class Withdrawn(Exception):
    """The worker must not have the exchange any more; nothing of it was sent."""


class NeverIssued(Conflict):
    """The weight version that the request wants at least: to wait for it would have no end."""

    default_code = "weight_version_unknown"


@define(eq=False)
class Attempts:
    """Gives an exchange to one worker after the other, each once."""

    registry: Registry
    dispatcher: Dispatcher
    retries: int
    # The latest weight version that was issued to the model, or to any if none is named.
    latest_issued: Callable[[str | None], int] = lambda _: 0

    async def run(
        self, facts: Facts, attempt: Callable[[Lease], Awaitable[None]], *, held: int = 0
    ) -> None:
        """Call `attempt` with a lease, which ends with the call; `held` bytes of its body wait
        until then. Where it raises TryAnother the next worker is tried. Raises the last failure,
        PoolUnavailable if there is no worker to begin with, or NeverIssued."""
        if facts.min_version:
            self._check_version(facts)
        tried: list[Worker] = []
        failure: WorkerFailed | None = None
        while failure is None or len(tried) <= self.retries:
            try:
                lease = await self.dispatcher.lease(facts, tried=tried, held=held)
            except RouterError:
                if failure is not None:
                    break
                raise
            with lease:
                try:
                    await attempt(lease)
                    return
                except Withdrawn:
                    continue  # it may well have it once that doubt is cleared
                except TryAnother as again:
                    failure = again.failure
                    # Before its slot is free: or the next request is sent there too.
                    self.registry.trouble(lease.worker, failure.message)
            tried.append(lease.worker)
        raise failure

    @staticmethod
    def check(lease: Lease) -> None:
        """With a connection to the worker at hand: is it still as sound as when it was chosen?

        The connection may be to another process, with other weights. Raises Withdrawn.
        """
        worker = lease.worker
        if doubted(worker) or worker.incarnation != lease.incarnation:
            raise Withdrawn

    def _check_version(self, facts: Facts) -> None:
        latest = self.latest_issued(facts.model)
        if facts.min_version > latest:
            raise NeverIssued(
                f"Weight version {facts.min_version} was never issued; the latest is {latest}",
                details={"weight_version": latest},
            )
