"""One exchange over one lease: request to the worker, answer to the client, both as they come."""

from __future__ import annotations

import h11
import trio
from attrs import define, frozen

from ..errors import BadRequest, RouterError, WorkerFailed, WorkerTimeout
from ..pool.worker import Lease
from . import headers as heads
from .attempts import Attempts, TryAnother
from .body import Body, facts_of, peek, too_large
from .exchange import ClientGone, Exchange
from .routes import Route
from .upstream import Broken, ConnectFailed, Connection, ConnectTimeout, Head, Upstream

# How long a worker that closed its side of an upload may still be heard, in seconds.
_LAST_WORDS = 2.0


@frozen
class Limits:
    """Bounds of one exchange. Times in seconds, sizes in bytes."""

    response: float = 1800.0  # from the last byte of the request to the head of the answer
    idle: float = 300.0  # between two pieces of a body
    peek: int = 1024 * 1024
    request_bytes: int = 1024**3


class CutOff(Exception):
    """The answer broke off after its head was sent: all that is left is to break the transfer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@define(eq=False)
class Forwarder:
    """Relays exchanges to workers."""

    attempts: Attempts
    upstream: Upstream
    limits: Limits

    async def run(self, exchange: Exchange, route: Route) -> None:
        """Relay one exchange. Raises RouterError before the answer's head, CutOff after it,
        ClientGone."""
        body = await peek(exchange, limit=self.limits.peek, largest=self.limits.request_bytes)
        facts = facts_of(body, exchange.headers, route.task)

        async def attempt(lease: Lease) -> None:
            await self._at(lease, exchange, body)

        await self.attempts.run(facts, attempt)

    async def _at(self, lease: Lease, exchange: Exchange, body: Body) -> None:
        attempt = _Attempt(self, exchange, body, lease)
        try:
            await attempt.run()
        except _Stale:
            # A kept-alive connection that the worker had closed says nothing against the worker.
            attempt.fresh = True
            await attempt.run()


class _Stale(TryAnother):
    """It failed on a connection that had been kept alive."""


@define(eq=False)
class _Attempt:
    """One try of an exchange at one worker."""

    forwarder: Forwarder
    exchange: Exchange
    body: Body
    lease: Lease
    fresh: bool = False  # on a new connection, not a kept-alive one
    # Pieces beyond the held ones were taken from the client: they cannot be sent again.
    consumed: bool = False
    # The last byte of the request was written: the worker may have acted on it.
    delivered: bool = False

    async def run(self) -> None:
        worker, reused = self.lease.worker, False
        try:
            async with self.forwarder.upstream.connection(
                worker.url, fresh=self.fresh
            ) as connection:
                reused = connection.reused
                await self._over(connection)
        except (ConnectFailed, ConnectTimeout) as error:
            error.details["worker_url"] = worker.url
            raise TryAnother(error) from error
        except Broken as error:
            raise self._broken(error, reused=reused) from error

    async def _over(self, connection: Connection) -> None:
        head_bytes = self._request_head(connection)
        if not self.body.complete:
            await self._stream(connection, head_bytes)
            return
        held = bytes(self.body.held)
        data = head_bytes + (connection.body(held) if held else b"") + connection.end()
        await self._send(connection, data)
        self.delivered = True
        head: Head | None = None
        with trio.move_on_after(self.forwarder.limits.response):
            head = await connection.head(bodiless=self.exchange.method == "HEAD")
        if head is None:
            raise self._late()
        await self._answer(connection, head)

    def _request_head(self, connection: Connection) -> bytes:
        exchange, body = self.exchange, self.body
        framing: tuple[bytes, bytes] | None = None
        if not body.complete and body.length is None:
            framing = (b"transfer-encoding", b"chunked")
        elif body.complete and body.length is None:
            framing = (b"content-length", b"%d" % len(body.held))
        request_headers = heads.for_worker(
            exchange.headers,
            host=connection.host_header,
            request_id=exchange.request_id.encode(),
            peer=exchange.peer,
            scheme=exchange.scheme.encode(),
            framing=framing,
        )
        try:
            return connection.request(exchange.method, exchange.target, request_headers)
        except h11.LocalProtocolError as error:
            raise BadRequest(f"The request cannot be passed on: {error}") from error

    async def _stream(self, connection: Connection, head_bytes: bytes) -> None:
        """Send the body as it comes from the client, and read the answer at the same time: a
        worker may answer, or refuse, before it has read all."""
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            waiting = trio.CancelScope()  # for the head of the answer
            upload = _Upload(self, connection, waiting)
            nursery.start_soon(upload.run, head_bytes)
            try:
                with waiting:
                    head = await connection.head(bodiless=self.exchange.method == "HEAD")
                if waiting.cancelled_caught:
                    failure = upload.failure or self._late()
                else:
                    await self._answer(connection, head)
            except (Broken, CutOff, ClientGone, RouterError) as error:
                failure = upload.failure if isinstance(error, Broken) else None
                failure = failure or error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _send(self, connection: Connection, data: bytes) -> None:
        with trio.move_on_after(self.forwarder.limits.idle):
            await connection.send(data)
            return
        raise WorkerTimeout(
            f"Worker {self.lease.worker.url} took no byte of the request for "
            f"{self.forwarder.limits.idle:g} s",
            code="idle_timeout",
            details={"worker_url": self.lease.worker.url, "retry_safe": True},
        )

    async def _answer(self, connection: Connection, head: Head) -> None:
        exchange, worker = self.exchange, self.lease.worker
        headers = heads.for_client(
            head.headers,
            request_id=exchange.request_id.encode(),
            worker_id=worker.worker_id.encode(),
            bodiless=head.status == 204,
        )
        await exchange.respond(head.status, headers)
        try:
            over = False
            while not over:
                piece = b"" if connection.at_end else await self._piece(connection)
                # The end goes along with the last bytes: a client that has them all may leave.
                over = connection.at_end
                await exchange.send(piece, last=over)
        except Broken as error:
            raise CutOff("worker_cut_off", f"{worker.url}: {error}") from error

    async def _piece(self, connection: Connection) -> bytes:
        idle = self.forwarder.limits.idle
        with trio.move_on_after(idle):
            return await connection.piece()
        raise CutOff("idle_timeout", f"{self.lease.worker.url} sent nothing for {idle:g} s")

    def _late(self) -> WorkerTimeout:
        return WorkerTimeout(
            f"Worker {self.lease.worker.url} did not answer within "
            f"{self.forwarder.limits.response:g} s (--timeout)",
            code="response_timeout",
            details={"worker_url": self.lease.worker.url, "retry_safe": self._repeatable},
        )

    @property
    def _repeatable(self) -> bool:
        return self.exchange.method in ("GET", "HEAD") or not self.delivered

    def _broken(self, error: Broken, *, reused: bool) -> Exception:
        """What a connection that broke before the head of the answer means."""
        url = self.lease.worker.url
        failure = WorkerFailed(
            f"Worker {url} failed before it answered: {error}",
            code="worker_disconnected",
            details={"worker_url": url, "retry_safe": self._repeatable},
        )
        if self._repeatable and not self.consumed:
            return _Stale(failure) if reused else TryAnother(failure)
        self.forwarder.attempts.registry.trouble(self.lease.worker, failure.message)
        return failure


@define(eq=False)
class _Upload:
    """Sends a body that is not held, piece by piece. Never raises: `failure` tells."""

    attempt: _Attempt
    connection: Connection
    waiting: trio.CancelScope
    failure: Exception | None = None

    async def run(self, head_bytes: bytes) -> None:
        attempt = self.attempt
        limits = attempt.forwarder.limits
        try:
            await self._pieces(head_bytes, limits.request_bytes)
        except Broken as error:
            # It may have refused the rest and said why: its answer can still be on the way.
            self.failure = error
            self.waiting.deadline = trio.current_time() + _LAST_WORDS
        except (RouterError, ClientGone) as error:
            self.failure = error
            self.waiting.cancel()
        else:
            attempt.delivered = True
            self.waiting.deadline = trio.current_time() + limits.response

    async def _pieces(self, head_bytes: bytes, largest: int) -> None:
        attempt, connection = self.attempt, self.connection
        held = bytes(attempt.body.held)
        await attempt._send(connection, head_bytes + (connection.body(held) if held else b""))
        total = len(held)
        while piece := await attempt.exchange.read():
            attempt.consumed = True
            total += len(piece)
            if total > largest:
                raise too_large(largest)
            await attempt._send(connection, connection.body(piece))
        await attempt._send(connection, connection.end())
