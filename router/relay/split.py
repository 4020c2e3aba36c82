"""Splits a group of rollout samples over several workers, and joins their answers into one.

A worker makes sample i of a group with the seed `seed + i`. The parts of a group are therefore
requests of their own: the same body with another `seed` and another `num_outputs_per_prompt`. Each
part is an ordinary exchange at one worker. The client gets nothing before every part has answered
200, which a worker does once it has made all its samples.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeGuard

import attrs
import trio
from attrs import define, field, frozen

from ..errors import BadRequest, RouterError
from ..front.record import ExchangeRecord
from ..pool.match import Facts
from ..pool.versions import Bounds, Passed
from ..pool.worker import Hold, Lease
from . import headers as heads
from .body import Body
from .connection import Invalid
from .exchange import Exchange
from .forward import GATEWAY, CutOff, Forwarder
from .routes import ROLLOUT, Route
from .samples import Samples, array

_MSGPACK = b"application/msgpack"
_MOST_PARTS = 64
_COUNT, _SEED, _EXTRA = "num_outputs_per_prompt", "seed", "extra_sampling_params"
# Its tensors have shapes that depend on the number of samples.
_ENVIRONMENT = "rollout_return_denoising_env"
_ROLLOUT, _NOISE = "rollout", "rollout_sde_type"
_READ = (_COUNT, _SEED, _EXTRA, _ENVIRONMENT, _ROLLOUT, _NOISE)
_EXACT, _ANY_NOISE = b"true", b"any-noise"
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class CannotSplit(BadRequest):
    """The samples of a split group would not be those of the whole group."""

    default_code = "cannot_split"


def meant(exchange: Exchange) -> bool:
    """Whether this is a rollout whose client asks for a split. Raises BadRequest."""
    if exchange.record.route != ROLLOUT:
        return False
    content = _wish(exchange)
    if content not in (_EXACT, _ANY_NOISE, b"false"):
        raise BadRequest("X-Split must be true, any-noise or false", code="invalid_header")
    return content != b"false"


def _wish(exchange: Exchange) -> bytes:
    return (heads.value(exchange.headers, b"x-split") or b"false").strip().lower()


@frozen
class Group:
    """A request for several samples, and where in its body the two numbers stand."""

    text: str
    count: int
    seed: int
    _spots: tuple[tuple[int, int], tuple[int, int]]  # of the count, of the seed

    def sizes(self, parts: int) -> list[int]:
        """The samples of each part, as equal as possible."""
        size, rest = divmod(self.count, parts)
        return [size + (index < rest) for index in range(parts)]

    @property
    def most(self) -> int:
        """The most parts that it can have."""
        return min(self.count, _MOST_PARTS)

    def body(self, first: int, size: int) -> bytes:
        """The body that asks for `size` samples from sample `first` on: only two numbers change."""
        text = self.text
        changes = zip(self._spots, (size, self.seed + first), strict=True)
        for (begin, end), number in sorted(changes, reverse=True):
            text = f"{text[:begin]}{number}{text[end:]}"
        return text.encode()


def group_of(body: Body, *, exact: bool = True) -> Group | None:
    """The group that a body asks for; None if that is one sample at most. Raises CannotSplit, if
    `exact` also for noise that is drawn for all samples of a request together."""
    if not body.complete or body.spool is not None:
        raise CannotSplit("X-Split needs a JSON body within --peek-limit")
    try:
        text = bytes(body.held).decode()
        found: dict[str, tuple[int, int, object]] = {}
        for name, begin, end, value in _members(text):
            if name in found:
                raise CannotSplit(f"The body names {name} twice")
            if name in _READ:
                found[name] = begin, end, value
    except (ValueError, RecursionError) as error:
        raise CannotSplit("X-Split needs a body that is one JSON object") from error
    extra = found[_EXTRA][2] if _EXTRA in found else None
    hidden = set(_READ) & extra.keys() if isinstance(extra, dict) else ()
    if hidden:
        raise CannotSplit(f"X-Split needs {min(hidden)} outside {_EXTRA}")
    count = found.get(_COUNT, (0, 0, None))[2]
    if count is None or (_is_whole(count) and count <= 1):
        return None
    seed = found.get(_SEED, (0, 0, None))[2]
    if not _is_whole(count) or count >= 1 << 32:
        raise CannotSplit(f"X-Split needs {_COUNT} as a whole number below 2**32")
    if not _is_whole(seed) or not -(1 << 63) <= seed < (1 << 63) - count:
        raise CannotSplit(
            f"X-Split needs a {_SEED}, a whole number of 64 bits: sample i has the seed {_SEED} + i"
        )
    if _ENVIRONMENT in found and found[_ENVIRONMENT][2]:
        raise CannotSplit(
            f"X-Split does not go with {_ENVIRONMENT}: the shapes of its tensors depend on the"
            " number of samples in a request"
        )
    if exact and found.get(_ROLLOUT, (0, 0, True))[2] and found.get(_NOISE, (0, 0))[2:] != ("ode",):
        raise CannotSplit(
            f"X-Split: true needs {_NOISE} ode: a worker draws the noise of sde and cps for all"
            " samples of a request together. X-Split: any-noise accepts other noise, just as random"
        )
    return Group(text, count, seed, (found[_COUNT][:2], found[_SEED][:2]))


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _members(text: str) -> Iterator[tuple[str, int, int, object]]:
    """Name, begin, end and value of each member of a JSON object. Raises ValueError."""
    at, mark = _after(text, 0)
    if mark != "{":
        raise ValueError("no object")
    at, mark = _after(text, at + 1)
    while mark != "}":
        name, at = _DECODER.raw_decode(text, at)
        at, mark = _after(text, at)
        if not isinstance(name, str) or mark != ":":
            raise ValueError("no name of a member")
        begin, _ = _after(text, at + 1)
        value, end = _DECODER.raw_decode(text, begin)
        yield name, begin, end, value
        at, mark = _after(text, end)
        if mark == ",":
            at, _ = _after(text, at + 1)
        elif mark != "}":
            raise ValueError("no end of a member")
    if _after(text, at + 1)[1]:
        raise ValueError("more than an object")


def _after(text: str, at: int) -> tuple[int, str]:
    """The next place without white space, and the character there; "" at the end."""
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end(), text[found.end() : found.end() + 1]


async def run(forwarder: Forwarder, exchange: Exchange, route: Route) -> None:
    """As `Forwarder.run`, for a rollout that is meant to be split. Raises also CannotSplit."""
    body, facts = await forwarder.read(exchange, route)
    try:
        await relay(forwarder, exchange, body, facts)
    finally:
        body.release()


async def relay(forwarder: Forwarder, exchange: Exchange, body: Body, facts: Facts) -> None:
    """Relay a rollout whose body was read over the workers that are free at the moment. What is no
    group, or finds one worker only, is relayed as ever."""
    group = group_of(body, exact=_wish(exchange) == _EXACT)
    facts = forwarder.attempts.looked_up(facts)
    most = group.most if group else 1
    leases = await forwarder.attempts.several(facts, most, held=len(body.held))
    if group is None or len(leases) == 1:
        await forwarder.relay(exchange, body, facts, None, None, first=leases[0])
    else:
        await _Join(forwarder, exchange, facts, group, leases).run()


@define(eq=False)
class _Join:
    """The parts of one group, and their one answer."""

    forwarder: Forwarder
    exchange: Exchange  # with the client
    facts: Facts
    group: Group
    leases: list[Lease]  # one for each part, granted at the same moment
    _parts: list[_Part] = field(init=False, factory=list)
    # Why the client gets no joined answer: an error, or a worker's own answer, which it gets.
    _failure: RouterError | CutOff | None = field(init=False, default=None)
    _refused: _Part | None = field(init=False, default=None)
    _holds: list[Hold] = field(init=False, factory=list)  # of all attempts
    _ready: trio.Event = field(init=False, factory=trio.Event)  # the head is with the client

    async def run(self) -> None:
        # No checkpoint before each lease is in the hands of a task that ends it.
        first = 0
        for size in self.group.sizes(len(self.leases)):
            self._parts.append(_Part(self, first, size))
            first += size
        self.exchange.record.parts = len(self._parts)
        self._parts[0].lead = array(self.group.count)
        self._parts[0].turn.set()
        async with trio.open_nursery() as nursery:
            for part, lease in zip(self._parts, self.leases, strict=True):
                nursery.start_soon(self._run, part, lease)
        if self._failure is not None:
            raise self._failure

    async def _run(self, part: _Part, lease: Lease) -> None:
        bounds = (self.facts.bounds or Bounds())._replace(exact=lease.weight_version)
        work = self.facts.work * part.size / self.group.count
        facts = attrs.evolve(self.facts, work=work, bounds=bounds)
        if lease.hold is not None:
            lease.hold.work = work
        body = Body(None, bytearray(self.group.body(part.first, part.size)), complete=True)

        async def attempt(lease: Lease) -> None:
            part.worker_id, part.url = lease.worker.worker_id, lease.worker.url
            self.exchange.record.lease(lease.worker.url)
            if lease.hold is not None:
                self._holds.append(lease.hold)
            await self.forwarder.at(lease, part, body, None, self.forwarder.limits.response)

        with part.scope:
            try:
                await self.forwarder.attempts.run(facts, attempt, held=len(body.held), first=lease)
            except (RouterError, CutOff) as error:
                self._fail(part, error)

    def _fail(self, part: _Part, error: RouterError | CutOff) -> None:
        if self._failure is not None or self._refused not in (None, part):
            return
        doubt = isinstance(error, CutOff) or error.details.get("retry_safe") is False
        self._blame(part, doubt=doubt)
        if isinstance(error, RouterError) and self.exchange.record.delivered is not None:
            error.details["retry_safe"] = False  # other parts may be under way
        if isinstance(error, Passed):
            asked = self.facts.bounds is not None and self.facts.bounds.exact is not None
            error.details["retryable"] = not asked  # a whole group may get later weights
        self._failure = error
        self._cancel()

    def _blame(self, part: _Part, *, doubt: bool) -> None:
        """This part fails the group. `doubt`: its worker may make it nevertheless."""
        record = self.exchange.record
        record.blame(part.url)
        record.unfinished, record.certain = partial(_unfinished, self._holds), not doubt

    def _cancel(self, but: _Part | None = None) -> None:
        """Give up parts. What their workers have begun goes on, as when a client leaves."""
        for part in self._parts:
            if part is not but:
                part.scope.cancel()

    async def answered(self, part: _Part, status: int, headers: heads.Headers) -> None:
        """The head of a part's answer has come. Returns once the client has the head of the whole
        answer, or that of this one because the worker has refused its part. Raises Invalid."""
        if status < 200 or status >= 300:
            if self._failure is None and self._refused is None:
                self._refused = part
                self._blame(part, doubt=status in GATEWAY)
                self._cancel(but=part)
            await trio.lowlevel.checkpoint()  # ends all parts but the refused one
            kept = [pair for pair in headers if pair[0].lower() != b"x-should-retry"]
            kept.append((b"x-should-retry", b"false"))  # other parts may be under way
            await self.exchange.respond(status, kept, more=True)
            return
        kind = heads.value(headers, b"content-type") or b""
        if status != 200 or kind != _MSGPACK or heads.value(headers, b"content-encoding"):
            raise Invalid(f"its answer cannot be joined with others: {status} {kind!r}")
        part.head = headers
        if all(part.head for part in self._parts):
            await self.exchange.respond(200, self._head(), more=True)
            self._ready.set()
        await self._ready.wait()

    def _head(self) -> heads.Headers:
        """The headers of the whole answer: those of the first part, and who made which samples."""
        makers = ", ".join(f"{part.worker_id};n={part.size}" for part in self._parts)
        kept = [pair for pair in self._parts[0].head if pair[0].lower() != b"content-length"]
        return [*kept, (b"x-split-workers", makers.encode())]

    async def passed(self, part: _Part, piece: bytes, *, last: bool) -> None:
        """A piece of a part's answer has come: pass it on once the parts before are through."""
        if part is self._refused:
            await self.exchange.send(piece, last=last)
            return
        await part.turn.wait()
        piece = part.lead + part.samples.take(piece)
        part.lead = b""
        if last:
            part.samples.over()
        end = last and part is self._parts[-1]
        if piece or end:
            await self.exchange.send(piece, last=end)
        if last and not end:
            self._parts[self._parts.index(part) + 1].turn.set()


def _unfinished(holds: Sequence[Hold]) -> bool:
    """Whether a worker still has work of a group that is over, or may have: only ghosts have slots
    then."""
    return any(hold.orphaned or hold in hold.worker.holds for hold in holds)


@define(eq=False)
class _Part:
    """The Exchange of one part: its request is complete, and its answer goes to the join."""

    join: _Join
    first: int  # the number of its first sample
    size: int
    worker_id: str = ""  # of the last worker tried
    url: str = ""  # its URL
    head: heads.Headers = field(init=False, factory=list)  # of its answer
    lead: bytes = b""  # goes before its first sample
    scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    turn: trio.Event = field(init=False, factory=trio.Event)  # the parts before are through
    samples: Samples = field(init=False)
    # As of the client's exchange.
    method: str = field(init=False)
    target: bytes = field(init=False)
    path: str = field(init=False)
    headers: Sequence[tuple[bytes, bytes]] = field(init=False)
    http_version: str = field(init=False)
    scheme: str = field(init=False)
    peer: str | None = field(init=False)
    record: ExchangeRecord = field(init=False)
    responded: bool = field(init=False, default=False)

    def __attrs_post_init__(self) -> None:
        whole, group = self.join.exchange, self.join.group
        self.samples = Samples(self.size, group.seed + self.first, group.seed)
        self.method, self.target, self.path = whole.method, whole.target, whole.path
        self.http_version, self.scheme, self.peer = whole.http_version, whole.scheme, whole.peer
        self.record = whole.record
        plain = [pair for pair in whole.headers if pair[0].lower() != b"accept-encoding"]
        self.headers = [*plain, (b"accept-encoding", b"identity")]

    async def read(self) -> bytes:
        return b""

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        self.responded = True
        await self.join.answered(self, status, list(headers))

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        await self.join.passed(self, piece, last=last)

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Nothing: the client's own exchange ends all parts."""
