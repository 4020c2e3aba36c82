"""One body, copied to several takers as it comes, in bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
from types import TracebackType
from typing import Self

import trio
from attrs import define, field

_WINDOW = 4  # pieces that a slower taker may lag behind


class BrokenOff(Exception):
    """The body ended before it was whole: nobody may take it for a complete one."""


@define(eq=False)
class Copy:
    """One taker's copy: an iterator of pieces, read within `with`, which a stall cancels.

    The iterator raises BrokenOff where the body broke off.
    """

    stalled: bool = field(init=False, default=False)
    _whole: bool = field(init=False, default=False)
    _over: bool = field(init=False, default=False)  # the taker wants no more
    _scope: trio.CancelScope = field(init=False, factory=trio.CancelScope)
    _send: trio.MemorySendChannel[bytes] = field(init=False)
    _receive: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[bytes](_WINDOW)

    @property
    def over(self) -> bool:
        """Whether the taker wants no more."""
        return self._over

    def __enter__(self) -> Self:
        self._scope.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        self._over = True
        self._receive.close()
        return self._scope.__exit__(kind, error, trace)

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
        """Give it a piece if that can be done at once, or is of no use any more."""
        try:
            self._send.send_nowait(piece)
        except trio.WouldBlock:
            return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        return True

    async def put(self, piece: bytes, patience: float) -> None:
        """Give it a piece; after so many seconds without room for it, give the taker up."""
        with trio.move_on_after(patience) as scope:
            try:
                await self._send.send(piece)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return
        if scope.cancelled_caught:
            self.stalled = True
            self._scope.cancel()
            self._send.close()

    def end(self, *, whole: bool) -> None:
        """No more comes; `whole`: that was all."""
        self._whole = whole
        self._send.close()


async def copy_out(
    source: AsyncIterable[bytes], copies: Sequence[Copy], *, patience: float
) -> None:
    """Read the source and give every piece to each copy, at the pace of the slowest; one that has
    no room for `patience` seconds is given up. Ends early once nobody wants more."""
    whole = False
    try:
        async for piece in source:
            waiting = [copy for copy in copies if not copy.offer(piece)]
            if waiting:
                async with trio.open_nursery() as nursery:
                    for copy in waiting:
                        nursery.start_soon(copy.put, piece, patience)
            if all(copy.over or copy.stalled for copy in copies):
                return
        whole = True
    finally:
        for copy in copies:
            copy.end(whole=whole)
