"""Bounded reading of request bodies, and the facts that routing needs from them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from attrs import define, field

from ..dispatch import Dispatcher
from ..errors import BadRequest, RequestTooLarge
from ..front.priority import Priority
from ..pool.cost import Costs
from ..pool.match import AmbiguousModel, AmbiguousTarget, Facts, Need, client_class
from ..pool.versions import Asked
from . import facts as reading
from . import headers as heads
from . import versions
from .exchange import Exchange
from .routes import ROLLOUT, How, Route
from .spool import Room, Spool

_LONGEST_SHOWN = 200  # characters of a model's name in an error
_NAME = re.compile(rb"[!-~]{1,128}\Z")


@define
class Limits:
    """Bounds of one exchange. Times in seconds, sizes in bytes."""

    response: float = 1800.0  # from the last byte of the request to the head of the answer
    idle: float = 300.0  # between two pieces of a body
    peek: int = 1024 * 1024
    facts: int = 64 * 1024 * 1024  # bytes read of a body that cannot be routed without its model
    request_bytes: int = 1024**3
    spooled: int = 1024**3  # in the temporary files of all bodies together
    prompts: bool = False  # the log may have them


@define(eq=False)
class Body:
    """A request body: the part that is held, and whether that is all of it.

    `length` is the length that the client announced, None for a chunked body. `fields` holds the
    `facts.WANTED` that were found. `spool` holds what exceeds memory.
    """

    length: int | None
    held: bytearray = field(factory=bytearray, repr=False)
    complete: bool = False
    fields: Mapping[str, Any] = field(factory=dict)
    spool: Spool | None = None

    @property
    def taken(self) -> int:
        """How many bytes were taken from the client."""
        return len(self.held) + (self.spool.size if self.spool else 0)

    def release(self) -> None:
        """Drop the held part: the body is not sent again."""
        self.held.clear()
        if self.spool is not None:
            self.spool.close()


async def read(
    exchange: Exchange,
    route: Route,
    dispatcher: Dispatcher,
    limits: Limits,
    room: Room,
    *,
    owned: bool,
    whole: bool,
) -> tuple[Body, Facts]:
    """Read as much of the body as routing needs, or the `whole` body. The caller releases it.

    `owned`: the worker is known already. Raises ClientGone, RouterError.
    """
    bounds = {"limit": limits.peek, "largest": limits.request_bytes}
    body = await peek(exchange, **bounds, awaited=awaited_of(route))
    try:
        facts = facts_of(body, exchange, route, dispatcher.costs)
        if not owned and facts.model is None and dispatcher.queue.ambiguous(facts):
            await read_on(exchange, body, **bounds, most=limits.facts, room=room)
            facts = facts_of(body, exchange, route, dispatcher.costs)
        if whole:
            await read_rest(exchange, body, **bounds, room=room)
    except BaseException:
        body.release()
        raise
    exchange.record.client, exchange.record.model = facts.client, facts.model
    if limits.prompts:
        exchange.record.prompt = reading.prompt_in(exchange.headers, body.held)
    return body, facts


def announced_length(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """Content-Length, 0 without a body, None for a chunked body."""
    if heads.value(headers, b"transfer-encoding") is not None:
        return None
    length = heads.value(headers, b"content-length")
    return int(length) if length is not None else 0


async def peek(
    exchange: Exchange,
    *,
    limit: int,
    largest: int | None,
    awaited: frozenset[str] = reading.MODEL,
) -> Body:
    """Read the beginning of the body: at most `limit` bytes and the rest of a piece.

    A body of up to `limit` bytes that is not a form is held whole, so that it can be parsed and
    sent again. Of any other body only as much is read as its field reader asks for, and nothing if
    it has no reader. `awaited`: the fields of a JSON object that it asks for.

    Raises RequestTooLarge if more than `largest` bytes are announced or were read, ClientGone,
    ClientStalled.
    """
    body = Body(announced_length(exchange.headers))
    if body.length is not None and largest is not None and body.length > largest:
        raise too_large(largest)
    if body.length == 0:
        body.complete = True
        return body
    is_json, is_form = reading.is_json(exchange.headers), reading.is_form(exchange.headers)
    whole = is_json if body.length is None else body.length <= limit and not is_form
    reader = None if whole else reading.reader(exchange.headers, body.held, awaited=awaited)
    if not whole and reader is None:
        return body
    while len(body.held) < limit or body.length == len(body.held):
        piece = await exchange.read()
        if not piece:
            body.complete = True
            break
        body.held += piece
        # A body whose last byte is here is taken whole, even if its fields were known earlier.
        if not whole and body.length != len(body.held) and reader is not None and reader.done():
            break
    if largest is not None and len(body.held) > largest:
        raise too_large(largest)
    if body.complete and is_json:
        body.fields = reading.from_json(body.held)
    elif reader := reader or reading.reader(exchange.headers, body.held):
        reader.done()
        body.fields = reader.fields
    return body


async def read_on(
    exchange: Exchange, body: Body, *, limit: int, most: int, largest: int | None, room: Room
) -> None:
    """Read on, past files and long strings, until the model is known or `most` bytes were taken.
    Bytes beyond `limit` go to a temporary file.

    Raises RequestTooLarge, SpoolFull, SpoolFailed, ClientGone, ClientStalled.
    """
    window = bytearray()
    reader = reading.reader(exchange.headers, window, on=True)
    if reader is None:
        return
    window += body.held
    done = reader.done()
    # A body whose last byte is here is taken whole.
    while not body.complete and (body.taken == body.length or (not done and body.taken < most)):
        piece = await exchange.read()
        if not piece:
            body.complete = True
            break
        if body.spool is None and len(body.held) + len(piece) <= limit:
            body.held += piece
        else:
            body.spool = body.spool or Spool(room)
            await body.spool.add(piece)
        if largest is not None and body.taken > largest:
            raise too_large(largest)
        window += piece
        done = reader.done()
    if body.spool is not None:
        await body.spool.flush()
    elif body.complete and reading.is_json(exchange.headers):
        body.fields = reading.from_json(body.held)
        return
    body.fields = {**body.fields, **reader.fields}


async def read_rest(
    exchange: Exchange, body: Body, *, limit: int, largest: int | None, room: Room
) -> None:
    """Read to the end of the body. Bytes beyond `limit` go to a temporary file.

    Raises RequestTooLarge, SpoolFull, SpoolFailed, ClientGone, ClientStalled.
    """
    while not body.complete:
        piece = await exchange.read()
        body.complete = not piece
        if body.spool is None and len(body.held) + len(piece) <= limit:
            body.held += piece
        elif piece:
            body.spool = body.spool or Spool(room)
            await body.spool.add(piece)
        if largest is not None and body.taken > largest:
            raise too_large(largest)
    if body.spool is not None:
        await body.spool.flush()


def too_large(largest: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {largest} bytes (--max-request-bytes)",
        details={"max_request_bytes": largest},
    )


def awaited_of(route: Route) -> frozenset[str]:
    """The fields of a long JSON body that routing waits for, within the peeked beginning."""
    return reading.MODEL | {versions.FIELD} if route.path == ROLLOUT else reading.MODEL


def facts_of(body: Body, exchange: Exchange, route: Route, costs: Costs) -> Facts:
    """The facts for routing, from the body's fields, the headers, the query and the route. Raises
    BadRequest."""
    client, group, asked, pool, priority = wishes(exchange.headers, exchange.record.most_urgent)
    pool = one_pool(queried(exchange.target, "pool"), pool)
    if route.how is How.PLAIN:
        need = Need.NOTHING if exchange.method in ("GET", "HEAD", "OPTIONS") else Need.SLOT
        kind = f"pool {pool}"
        return Facts(need=need, client=client, kind=kind, group=group, pool=pool, priority=priority)
    named = body.fields.get("model")
    model = named if isinstance(named, str) and named else None
    if route.need is not Need.NOTHING:
        model = one_model(queried(exchange.target, "model"), model)
    needs_slot = route.need is not Need.NOTHING
    if route.path == ROLLOUT:
        asked = versions.with_field(asked, body.fields.get(versions.FIELD))
    need = route.need
    if route.how is How.ANY and exchange.method not in ("GET", "HEAD"):
        need = Need.CALL
    return Facts(
        model=model,
        task=route.task,
        need=need,
        client=client,
        work=costs.work(model, route.kind, body.fields) if needs_slot else 0.0,
        kind=route.kind,
        asked=asked,
        group=group,
        pool=pool,
        sole=route.sole,
        priority=priority,
    )


def queried(target: bytes, name: str) -> list[str]:
    """The values of this name in the query of a request."""
    query = target.partition(b"?")[2]
    pairs = parse_qsl(query.decode("latin-1")) if query else ()
    return [value for key, value in pairs if key == name]


def one_model(queried: Sequence[str], other: str | None) -> str | None:
    """The one model that query and body (or header) name. Raises AmbiguousModel if they differ."""
    if not queried:
        return other
    names = list(dict.fromkeys([*queried, *([other] if other is not None else [])]))
    if len(names) > 1:
        shown = " and ".join(repr(name[:_LONGEST_SHOWN]) for name in names[:2])
        raise AmbiguousModel(f"The request names two models, {shown}: name one, once")
    return names[0]


def one_pool(queried: Sequence[str], other: str | None) -> str | None:
    """The one pool that query and header name. Raises AmbiguousTarget if they differ."""
    if not queried:
        return other
    names = {*queried} if other is None else {*queried, other}
    if len(names) > 1:
        raise AmbiguousTarget("The request names two pools: name one, once")
    return queried[0]


def named_pool(target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The pool that a request names first."""
    found = queried(target, "pool")
    named = heads.value(headers, b"x-pool")
    return found[0] if found else named.decode("latin-1") if named is not None else None


def wishes(
    headers: Sequence[tuple[bytes, bytes]], most: Priority
) -> tuple[str, str, Asked | None, str | None, Priority]:
    """The client class that shares slots in turn (`X-Client-Id`; one class for all clients without
    it), the group that is cancelled together (`X-Group-Id`), which weights will do
    (`X-Min-Weight-Version`, `X-Exact-Weight-Version`, `X-Max-Weight-Lag`), the pool (`X-Pool`),
    and the priority (`X-Priority`), within the greatest that it may ask for. Raises BadRequest."""
    client, group, asked, pool, priority = b"", "", {}, None, Priority.NORMAL
    for name, content in reversed(headers):  # of several the first counts
        match name.lower():
            case b"x-client-id":
                client = content
            case b"x-group-id":
                group = name_in(content, "X-Group-Id")
            case b"x-pool":
                pool = content.decode("latin-1")
            case b"x-priority":
                priority = _priority(content)
            case lower if lower in versions.HEADERS:
                asked[lower] = content
    weights = versions.in_headers(asked) if asked else None
    if most is not Priority.HIGH:
        priority = priority.within(most)
    return client_class(client), group, weights, pool, priority


def _priority(content: bytes) -> Priority:
    try:
        return Priority(content.decode("latin-1"))
    except ValueError:
        raise BadRequest(
            f"X-Priority must be high, normal or low, not {content[:40].decode('latin-1')!r}",
            code="invalid_header",
        ) from None


def name_in(content: bytes, header: str) -> str:
    """A name that a client has chosen. Raises BadRequest."""
    if not _NAME.match(content):
        raise BadRequest(
            f"{header} must have 1 to 128 visible ASCII characters, not"
            f" {content[:40].decode('latin-1')!r}",
            code="invalid_header",
        )
    return content.decode()
