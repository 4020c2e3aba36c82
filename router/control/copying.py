"""One body, copied to several takers as it comes, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from contextlib import suppress
from typing import Self

import trio
from attrs import define, field

_WINDOW = 4  # pieces that a slower taker may lag behind


class BrokenOff(Exception):
    """The body ended before it was whole: nobody may take it for a complete one."""


@define(eq=False)
class Copy:
    """One taker's copy: an iterator of pieces, read within `with`.

    The iterator raises BrokenOff where the body broke off.
    """

    over: bool = field(init=False, default=False)  # the taker wants no more
    _whole: bool = field(init=False, default=False)
    _send: trio.MemorySendChannel[bytes] = field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](_WINDOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.over = True
        self._receive.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            if not self._whole:
                raise BrokenOff from None
            raise StopAsyncIteration from None

    def offer(self, piece: bytes) -> bool:
        """Give it a piece, if there is room or it wants no more; else False."""
        try:
            self._send.send_nowait(piece)
        except trio.WouldBlock:
            return False
        except trio.BrokenResourceError:
            pass
        return True

    async def put(self, piece: bytes) -> None:
        """Give it a piece once there is room, or it wants no more."""
        with suppress(trio.BrokenResourceError):
            await self._send.send(piece)

    def end(self, *, whole: bool) -> None:
        """No more comes; `whole`: that was all."""
        self._whole = whole
        self._send.close()


async def copy_out(source: AsyncIterable[bytes], copies: Sequence[Copy]) -> None:
    """Read the source and give every piece to each copy, at the pace of the slowest. Ends early
    once nobody wants more."""
    whole = False
    try:
        async for piece in source:
            waiting = [copy for copy in copies if not copy.offer(piece)]
            if waiting:
                async with trio.open_nursery() as nursery:
                    for copy in waiting:
                        nursery.start_soon(copy.put, piece)
            if all(copy.over for copy in copies):
                return
        whole = True
    finally:
        for copy in copies:
            copy.end(whole=whole)
