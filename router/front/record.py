"""The record of one exchange with a client: filled in on the way, handed over at the end."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import trio
from attrs import define, field, frozen

from ..bus import Event
from ..text import masked
from .priority import Priority


@define(eq=False)
class ExchangeRecord:
    """One exchange with a client, on a relayed path or on one of the router's own.

    Times are seconds of trio's clock; None if the exchange did not get that far. `arrived`: head of
    the request received. `leased`: first worker assigned. `delivered`: a worker has the whole
    request, or may have it. `answered`: head of the answer sent. `ended`: the app is done with the
    exchange, whole or broken off. Sizes are bytes of bodies; of a WebSocket, of its frames.

    For a client that sends no readable request, the method is `client` and the path is its address.
    """

    request_id: str
    method: str
    path: str  # percent-decoded, without the query
    arrived: float = field(factory=trio.current_time)
    route: str = ""  # the path of its row in the route table
    client: str | None = None  # the client class by which the queue shares
    most_urgent: Priority = Priority.HIGH  # that the client may ask for
    model: str | None = None  # named in the request
    prompt: str | None = None  # its beginning, if prompts may be logged
    worker: str | None = None  # URL of the last worker tried
    tries: int = 0  # number of workers tried
    parts: int = 1  # of a split group, each with tries of its own
    leased: float | None = None
    delivered: float | None = None
    incarnation: int | None = None  # of the worker's process then; None if that is not certain
    answered: float | None = None
    ended: float | None = None
    received: int = 0
    sent: int = 0
    status: int | None = None
    code: str | None = None  # of the error sent to the client, or of the early end
    # Of a split group that has failed. `unfinished`: whether workers still make parts of it.
    # `certain`: no worker can have the part that failed, or the worker has refused it.
    unfinished: Callable[[], bool] | None = None
    certain: bool = False
    _deliveries: int = field(init=False, default=0)  # workers that may have the whole request
    _processes: dict[str, int | None] = field(init=False, factory=dict)  # theirs, by their URLs

    @property
    def what(self) -> str:
        """The request's method and path, as the log shows them."""
        return f"{self.method} {masked(self.path)}"

    @property
    def phases(self) -> dict[str, float]:
        """Seconds in the queue, at the worker (until the head of its answer), and from then to the
        end, as far as the exchange got; of an answer without a worker, none."""
        arrived, leased, answered, ended = self.arrived, self.leased, self.answered, self.ended
        found: dict[str, float] = {}
        if leased is not None:
            found["queue"] = leased - arrived
            if answered is not None:
                found["worker"] = answered - leased
                if ended is not None:
                    found["transfer"] = ended - answered
        return found

    def lease(self, worker: str) -> None:
        """The worker of this URL was assigned to the exchange."""
        self.worker = worker
        self.tries += 1
        if self.leased is None:
            self.leased = trio.current_time()

    def deliver(self, incarnation: int | None, worker: str = "") -> None:
        """A worker's process may have the whole request, or a whole part of it, from now on."""
        self._processes[worker] = None if worker in self._processes else incarnation
        self._deliveries += 1
        self.delivered = trio.current_time()
        self.incarnation = incarnation if self._deliveries == 1 else None

    def take_back(self) -> None:
        """One of these workers has not got it after all."""
        self._deliveries -= 1
        if not self._deliveries:
            self.delivered = None

    def blame(self, worker: str) -> None:
        """This worker has failed the exchange, whichever others have a part of it."""
        self.worker, self.incarnation = worker, self._processes.get(worker)

    def answer(self, status: int) -> None:
        """The head of the answer is sent."""
        self.status, self.answered = status, trio.current_time()


serving: ContextVar[ExchangeRecord | None] = ContextVar("serving", default=None)
"""The exchange for which this task works. Tasks that it starts work for the same exchange."""


def served_id() -> str | None:
    """The request id of the exchange for which this task works; None if there is none."""
    exchange = serving.get()
    return None if exchange is None else exchange.request_id


@frozen
class ExchangeEnded(Event):
    """An exchange is over, whether it was completed or not."""

    record: ExchangeRecord
