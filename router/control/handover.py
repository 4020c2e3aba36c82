"""A body that one task reads from a client and another one passes on.

The other one may outlive the first: work that has begun goes on when its client leaves, and must
then know whether the body was whole.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from typing import Self

import trio
from attrs import define, field

from ..errors import BadRequest, RouterError


class BodyBrokeOff(BadRequest):
    """The client left before its body was whole. Nobody is there to be told."""


@define(eq=False)
class Handover:
    """An iterator of what is handed over, and before it of what was `held` already.

    Raises the RouterError that the reading ended with, or BodyBrokeOff.
    """

    _held: bytes | None
    _whole: bool = field(init=False, default=False)
    _failure: RouterError | None = field(init=False, default=None)
    _send: trio.MemorySendChannel[bytes] = field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        held, self._held = self._held, None
        if held:
            return held
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if self._whole:
                raise StopAsyncIteration from None
            raise self._failure or BodyBrokeOff("The request body broke off") from None

    async def feed(self, pieces: AsyncIterable[bytes]) -> None:
        """Hand over all pieces. Never raises a RouterError: the taker gets it."""
        with self._send:
            try:
                async for piece in pieces:
                    await self._send.send(piece)
            except RouterError as error:
                self._failure = error
            else:
                self._whole = True


@asynccontextmanager
async def serving(handover: Handover, pieces: AsyncIterable[bytes]) -> AsyncIterator[None]:
    """Hand over while the block runs. A RouterError of the block comes out as it is."""
    failure: RouterError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handover.feed, pieces)
        try:
            yield
        except RouterError as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
