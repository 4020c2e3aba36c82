"""Bounded reading of request bodies, and the facts that routing needs from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from attrs import define, field

from ..errors import RequestTooLarge
from ..pool.candidates import Facts
from ..pool.worker import Task
from . import headers as heads
from .exchange import Exchange


@define(eq=False)
class Body:
    """A request body: what of it is held, and whether that is all.

    `length` is what the client announced, None if it did not (chunked).
    """

    length: int | None
    held: bytearray = field(factory=bytearray, repr=False)
    complete: bool = False


def announced_length(headers: Sequence[tuple[bytes, bytes]]) -> int | None:
    """Content-Length, or 0 where no body is announced; None for a chunked one."""
    if heads.value(headers, b"transfer-encoding") is not None:
        return None
    length = heads.value(headers, b"content-length")
    return int(length) if length is not None else 0


async def peek(exchange: Exchange, *, limit: int, largest: int | None) -> Body:
    """Read up to `limit` bytes of the body: all of it, if it is no longer than that.

    Raises RequestTooLarge if more than `largest` bytes are announced, ClientGone.
    """
    body = Body(announced_length(exchange.headers))
    if body.length is not None and largest is not None and body.length > largest:
        raise too_large(largest)
    if body.length == 0:
        body.complete = True
        return body
    while len(body.held) < limit or body.length == len(body.held):
        piece = await exchange.read()
        if not piece:
            body.complete = True
            break
        body.held += piece
    if largest is not None and len(body.held) > largest:
        raise too_large(largest)
    return body


def too_large(largest: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"The request body is larger than {largest} bytes (--max-request-bytes)",
        details={"max_request_bytes": largest},
    )


def facts_of(body: Body, headers: Sequence[tuple[bytes, bytes]], task: Task | None) -> Facts:
    """What the held part of the body says to routing. A body that cannot be read says nothing:
    judging it is the worker's business."""
    kind = (heads.value(headers, b"content-type") or b"").partition(b";")[0].strip().lower()
    model: Any = None
    if body.held and body.complete and kind in (b"application/json", b""):
        try:
            content = json.loads(body.held)
        except (ValueError, RecursionError):
            content = None
        if isinstance(content, dict):
            model = content.get("model")
    return Facts(model=model if isinstance(model, str) and model else None, task=task)
