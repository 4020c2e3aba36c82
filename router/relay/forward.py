"""One exchange over one lease: passes the request to the worker and the answer to the client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio
from attrs import define, field

from ..errors import BadRequest, PoolUnavailable, RouterError, WorkerFailed, WorkerTimeout
from ..pool.match import Facts
from ..pool.worker import Hold, Lease, Worker
from . import headers as heads
from .attempts import Attempts, TryAnother
from .body import Body, Limits, read
from .connection import Broken, Connection
from .exchange import Exchange
from .routes import Route
from .spool import Room
from .upload import Upload
from .upstream import ConnectFailed, ConnectTimeout, NoneFree, Upstream
from .watcher import NO_WATCHER, Watcher
from .wire import Head, NotAllowed

# How long the owner of a job or file may take to answer a read, in seconds.
_OWNER = 30.0
# A held body up to this size is written before the answer is awaited. The kernel's buffers take
# that much, so a worker that answers without reading blocks nothing.
_AT_ONCE = 64 * 1024
# Answers of a proxy that gave up on its worker; a worker itself never sends them.
GATEWAY = (502, 504)
# Answers of these types begin before the generation has ended.
_STREAMS = (b"text/event-stream", b"application/x-ndjson", b"application/jsonl")


# What a sleeping engine answers to a generation, in an error of at most this many bytes.
_ASLEEP, _SHORT = b"Server is sleeping.", 1024


class Unanswered(WorkerTimeout):
    """The head of the answer did not arrive in time."""

    default_code = "response_timeout"


class CutOff(Exception):
    """The answer broke off after its head was sent: the relay can only break the transfer."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@define(eq=False)
class Forwarder:
    """Relays exchanges to workers."""

    attempts: Attempts
    upstream: Upstream
    limits: Limits
    room: Room = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.room = Room(self.limits.spooled)

    async def run(
        self,
        exchange: Exchange,
        route: Route,
        *,
        owner: Worker | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        """Relay one exchange: to its owner, whatever the owner's state, or to a fitting worker.

        Raises ClientGone, RouterError before the answer's head, CutOff after it.
        """
        body, facts = await self.read(exchange, route, owned=owner is not None)
        try:
            await self.relay(exchange, body, facts, owner, watcher)
        finally:
            body.release()

    async def read(
        self, exchange: Exchange, route: Route, *, owned: bool = False, whole: bool = False
    ) -> tuple[Body, Facts]:
        """Read what `body.read` reads. The caller releases the body."""
        parts = self.attempts.dispatcher, self.limits, self.room
        return await read(exchange, route, *parts, owned=owned, whole=whole)

    async def relay(
        self,
        exchange: Exchange,
        body: Body,
        facts: Facts,
        owner: Worker | None,
        watcher: Watcher | None,
        first: Lease | None = None,
        intend: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Relay a request whose body was read; `first` is a lease that was granted before. `intend`
        is awaited before a worker gets anything. Raises what `run` and `intend` raise."""

        async def attempt(lease: Lease) -> None:
            exchange.record.lease(lease.worker.url)
            if intend is not None:
                await intend()
            # Reads of jobs and files do not queue behind generations.
            patience = self.limits.response if owner is None else min(_OWNER, self.limits.response)
            await self.at(lease, exchange, body, watcher, patience, chosen=owner is None)

        if owner is None:
            await self.attempts.run(facts, attempt, held=len(body.held), first=first)
            return
        with self.attempts.registry.lease(owner) as lease:
            lease.weight_version = None  # today's weights did not make the asset
            try:
                await attempt(lease)
            except (TryAnother, Unanswered) as failed:
                why = str(failed)
                self.attempts.registry.trouble(owner, why)
                raise PoolUnavailable(
                    f"The worker that owns this does not answer: {why}",
                    code="owner_unavailable",
                    details={"worker_url": owner.url},
                ) from failed

    async def at(
        self,
        lease: Lease,
        exchange: Exchange,
        body: Body,
        watcher: Watcher | None,
        patience: float,
        *,
        chosen: bool = True,
    ) -> None:
        """One exchange at the worker of the lease."""
        attempt = _Attempt(self, exchange, body, lease, watcher, patience, chosen)
        try:
            await attempt.run()
        except _Stale:
            # A kept-alive connection that the worker has closed says nothing against the worker.
            attempt.fresh = True
            await attempt.run()


class _Stale(TryAnother):
    """The attempt failed on a kept-alive connection."""


@define(eq=False)
class _Attempt:
    """One exchange at one worker; tried twice if the kept-alive connection was stale."""

    forwarder: Forwarder
    exchange: Exchange
    body: Body
    lease: Lease
    watcher: Watcher | None
    patience: float  # seconds from the last byte of the request to the head of the answer
    chosen: bool  # the dispatcher chose the worker; it does not own an asset of the request
    fresh: bool = False  # on a new connection, not a kept-alive one
    # Pieces beyond the held ones were taken from the client: the body cannot be sent again.
    consumed: bool = False
    # The worker may have the last byte of the request, and then acts on the request.
    delivered: bool = False
    # The whole answer has arrived.
    finished: bool = False
    # The slot taken at first, until a failure has counted against it.
    hold: Hold | None = field(init=False, default=None)

    async def run(self) -> None:
        worker, reused = self.lease.worker, False
        self.hold = self.lease.hold
        begun = trio.current_time()
        try:
            async with self.forwarder.upstream.connection(
                worker.url, fresh=self.fresh, within=self.patience, beside=not self.chosen
            ) as connection:
                reused = connection.reused
                self.patience = max(0.0, self.patience + begun - trio.current_time())
                if self.chosen:
                    self.forwarder.attempts.check(self.lease)
                await self._over(connection)
        except (ConnectFailed, ConnectTimeout) as error:
            error.details |= {"worker_url": worker.url, "retry_safe": True}
            raise TryAnother(error) from error
        except NoneFree:
            raise  # says nothing against the worker
        except WorkerTimeout as error:
            self._trouble(error.message)
            raise
        except Broken as error:
            raise self._broken(error, reused=reused) from error
        finally:
            if self.delivered and not self.finished:
                # The client has left, or the time is up; the worker cannot be stopped. If the head
                # of the answer has arrived, the worker generates no more and this does nothing.
                self.forwarder.attempts.dispatcher.abandon(self.lease)

    async def _over(self, connection: Connection) -> None:
        head_bytes = self._request_head(connection)
        if not self.body.complete or self.body.spool or len(self.body.held) > _AT_ONCE:
            await self._stream(connection, head_bytes)
            return
        await self.send(connection, head_bytes + self.held(connection), last=True)
        head: Head | None = None
        with trio.move_on_after(self.patience):
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
            framing = (b"content-length", b"%d" % body.taken)
        request_headers = heads.for_worker(
            exchange.headers,
            host=connection.host_header,
            request_id=exchange.record.request_id.encode(),
            peer=exchange.peer,
            scheme=exchange.scheme.encode(),
            framing=framing,
        )
        request_headers = connection.trust.present(request_headers)
        try:
            return connection.request(exchange.method, exchange.target, request_headers)
        except NotAllowed as error:
            raise BadRequest(f"The request cannot be passed on: {error}") from error

    async def _stream(self, connection: Connection, head_bytes: bytes) -> None:
        """Send the body as it arrives from the client, and read the answer at the same time: a
        worker may answer, or refuse, before it has read the whole body."""
        # Before any other task runs: bytes that arrive before the request do not answer it.
        await self.send(connection, head_bytes, last=False)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            largest = self.forwarder.limits.request_bytes
            upload = Upload(self, largest, connection, both=nursery.cancel_scope)
            nursery.start_soon(upload.run)
            try:
                with upload.waiting:
                    head = await connection.head(bodiless=self.exchange.method == "HEAD")
                if upload.waiting.cancelled_caught:
                    failure = upload.broken or self._late()
                else:
                    await self._answer(connection, head)
            except (Broken, CutOff, RouterError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure := upload.refusal or failure:
            raise failure

    def held(self, connection: Connection) -> bytes:
        """The part of the request's body held in memory, framed for the connection."""
        held = bytes(self.body.held)
        data = connection.body(held) if held else b""
        return data + connection.end() if self.body.complete and not self.body.spool else data

    async def send(self, connection: Connection, data: bytes | memoryview, *, last: bool) -> None:
        """Send bytes of the request; `last`: they end it. Raises Broken or WorkerTimeout."""
        # Before sending: the answer, or the death of the worker, may be seen before `send` returns.
        await trio.lowlevel.checkpoint_if_cancelled()  # what was not begun is not delivered
        self.delivered = last
        record, worker = self.exchange.record, self.lease.worker
        if last:
            process = worker.incarnation if worker.suspicion is None else None
            record.deliver(process, worker.url)
        idle = self.forwarder.limits.idle
        try:
            await connection.send(data, patience=idle)
        except Broken:
            self._take_back()
            raise
        except trio.TooSlowError:
            self._take_back()
            raise WorkerTimeout(
                f"Worker {worker.url} took no byte of the request for {idle:g} s",
                code="idle_timeout",
                details={"worker_url": worker.url, "retry_safe": True},
            ) from None
        if last:
            self.forwarder.attempts.dispatcher.delivered(self.lease)
        if self.consumed or not self._repeatable:
            self.body.release()  # the body cannot be sent again, and answers can take long

    def _take_back(self) -> None:
        """The worker has not got the whole request after all."""
        if self.delivered:
            self.delivered = False
            self.exchange.record.take_back()

    async def _answer(self, connection: Connection, head: Head) -> None:
        exchange, worker = self.exchange, self.lease.worker
        headers = heads.for_client(
            head.headers,
            request_id=exchange.record.request_id.encode(),
            worker_id=worker.worker_id.encode(),
            weight_version=self.lease.weight_version,
            bodiless=head.status == 204,
            url=worker.url,
            address=connection.address,
        )
        if head.status in GATEWAY and not self._repeatable:
            headers = [(n, v) for n, v in headers if n.lower() != b"x-should-retry"]
            headers.append((b"x-should-retry", b"false"))  # the worker may still act on it
        watcher = self.watcher or NO_WATCHER
        late = self._judge(head)
        watcher.begin(self.lease, head.status, heads.value(head.headers, b"content-encoding"))
        held = await self._hold(connection, watcher) if watcher.holds else b""
        await exchange.respond(head.status, headers, more=connection.ahead or bool(held))
        try:
            over = bool(held) and connection.at_end
            if over:
                self._finish(head, bytes(held), late=late)
            if held:
                await exchange.send(held, last=over)
            said = bytes(held)
            while not over:
                piece = b"" if connection.at_end else await self._piece(connection)
                watcher.saw(piece)
                if late and head.status == 500:
                    said += piece
                if connection.at_end:
                    watcher.over()
                # The end goes out with the last bytes: a client may leave once it has them all.
                over = connection.at_end
                if over:
                    self._finish(head, said, late=late)
                await exchange.send(piece, last=over)
        except Broken as error:
            self._trouble(str(error))
            raise CutOff("worker_cut_off", f"{worker.url}: {error}") from error

    def _judge(self, head: Head) -> bool:
        """Tell the dispatcher what the head of the answer means for the slot. Returns whether only
        the last byte tells: the generation goes on, or the answer may say that the engine sleeps,
        so that no other request may take the slot before."""
        dispatcher, ok = self.forwarder.attempts.dispatcher, 200 <= head.status < 300
        if self.delivered and head.status in GATEWAY:
            self._failed(f"something in between answered {head.status}")
            dispatcher.abandon(self.lease)  # the worker goes on, as when a client leaves
            return False
        if ok and any(
            name.lower() == b"content-type" and value.strip().lower().startswith(_STREAMS)
            for name, value in head.headers
        ):
            return True
        if head.status == 500 and heads.length(head.headers) <= _SHORT and self.hold is not None:
            return True
        pause = heads.retry_after(head.status, head.headers)
        dispatcher.answered(self.lease, head.status, retry_after=pause)
        if head.status >= 500:
            self.hold = None  # `answered` has counted the failure
        return False

    def _finish(self, head: Head, said: bytes, *, late: bool) -> None:
        """The whole answer has arrived. `said`: its body, if that is short and of an error."""
        self.finished = True
        dispatcher = self.forwarder.attempts.dispatcher
        if late and head.status == 500 and _ASLEEP in said:
            self.forwarder.attempts.registry.ejection.dozes(self.hold, trio.current_time())
        if late:
            dispatcher.answered(self.lease, head.status)
            self.hold = None if head.status >= 500 else self.hold  # `answered` has counted it
        if self.hold is not None and not self.hold.job and 200 <= head.status < 300:
            dispatcher.succeeded(self.hold)

    async def _hold(self, connection: Connection, watcher: Watcher) -> bytes:
        """The beginning of the answer, as much as the watcher must see before the client."""
        held = bytearray()
        while not connection.at_end and len(held) < watcher.holds:
            try:
                piece = await self._piece(connection)
            except CutOff as late:
                raise self._lost_answer(str(late)) from late
            except Broken as error:
                self._trouble(str(error))
                raise self._lost_answer(str(error)) from error
            watcher.saw(piece)
            held += piece
        watcher.over()
        await watcher.durable()
        return bytes(held)

    def _lost_answer(self, why: str) -> WorkerFailed:
        return WorkerFailed(
            f"Worker {self.lease.worker.url} took the request, but its answer broke off: {why}",
            code="worker_cut_off",
            details={"worker_url": self.lease.worker.url, "retry_safe": False},
        )

    async def _piece(self, connection: Connection) -> bytes:
        if connection.ahead:  # no cancel scope for a read that need not wait
            return await connection.piece()
        idle = self.forwarder.limits.idle
        with trio.move_on_after(idle):
            return await connection.piece()
        raise CutOff("idle_timeout", f"{self.lease.worker.url} sent nothing for {idle:g} s")

    def _late(self) -> WorkerTimeout:
        return Unanswered(
            f"Worker {self.lease.worker.url} did not answer within {round(self.patience, 2):g} s",
            details={"worker_url": self.lease.worker.url, "retry_safe": self._repeatable},
        )

    @property
    def _repeatable(self) -> bool:
        return self.exchange.method in ("GET", "HEAD") or not self.delivered

    def _broken(self, error: Broken, *, reused: bool) -> Exception:
        """The exception for a connection that broke before the head of the answer."""
        url = self.lease.worker.url
        failure = WorkerFailed(
            f"Worker {url} failed before it answered: {error}",
            code=error.code,
            details={"worker_url": url, "retry_safe": self._repeatable},
        )
        if self._repeatable and not self.consumed:
            return _Stale(failure) if reused else TryAnother(failure)
        self._trouble(failure.message)
        return failure

    def _trouble(self, why: str) -> None:
        """Record that the worker failed an exchange, even one that it may have acted on."""
        if self.delivered:
            self._failed(why)
        self.forwarder.attempts.registry.trouble(self.lease.worker, why)

    def _failed(self, why: str) -> None:
        """Count that the worker failed the request, once."""
        hold, self.hold = self.hold, None
        self.forwarder.attempts.dispatcher.failed(hold, why)
