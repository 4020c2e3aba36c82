"""What became of one exchange with a client: filled in on its way, given out at its end."""

from __future__ import annotations

import trio
from attrs import define, field, frozen

from ..bus import Event


@define(eq=False)
class ExchangeRecord:
    """One exchange with a client, of a relayed path or of the router's own.

    Times are of trio's clock, in seconds, and None for what an exchange did not come to: `arrived`
    with the head of the request, `leased` when it was first given a worker, `delivered` when a
    worker had all of the request, `answered` with the head of the answer, `ended` with its last
    byte, or when it broke off. Sizes are in bytes, of bodies.

    A client that sends no readable request has `client` for its method and its address for a path.
    """

    request_id: str
    method: str
    path: str  # percent-decoded, without the query
    arrived: float = field(factory=trio.current_time)
    route: str = ""  # the path of its row in the route table
    client: str | None = None  # who asks, as the queue shares by it
    model: str | None = None  # that the request names
    worker: str | None = None  # URL of the last one that was tried
    tries: int = 0  # workers that were tried
    leased: float | None = None
    delivered: float | None = None
    answered: float | None = None
    ended: float | None = None
    received: int = 0
    sent: int = 0
    status: int | None = None
    code: str | None = None  # of the error that was told, or of what ended it before its time

    @property
    def what(self) -> str:
        """What was asked, as the log has it."""
        return f"{self.method} {self.path}"

    def lease(self, worker: str) -> None:
        """The exchange was given the worker of this URL."""
        self.worker = worker
        self.tries += 1
        self.leased = self.leased or trio.current_time()

    def answer(self, status: int) -> None:
        """The head of the answer is sent."""
        self.status, self.answered = status, trio.current_time()


@frozen
class ExchangeEnded(Event):
    """An exchange is over, whether it was completed or not."""

    record: ExchangeRecord
