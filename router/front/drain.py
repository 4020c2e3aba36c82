"""Draining of the whole router: work that has begun ends, and nothing new begins."""

from __future__ import annotations

import trio
from attrs import define, field

from ..errors import PoolUnavailable

_RETRY = "5"  # seconds: the client's next try should reach another router


class Draining(PoolUnavailable):
    """The router takes no new work; the client should ask another router, or later."""

    default_code = "draining"

    def __init__(self) -> None:
        super().__init__("The router is draining", headers=[("Retry-After", _RETRY)])


@define(eq=False)
class Drain:
    """Whether the router drains, and how many generations, submissions and sessions it has.

    The relay counts in `busy` itself, and calls `look` after each end while `active`.
    """

    active: bool = False
    busy: int = 0
    _ended: trio.Event = field(init=False, factory=trio.Event)

    def look(self) -> None:
        """Some work has ended, or the drain."""
        self._ended.set()
        self._ended = trio.Event()

    async def wait(self, within: float) -> bool:
        """Wait until nothing is under way, at most `within` seconds; whether that is so. Returns
        early if the drain is called off."""
        with trio.move_on_after(within):
            while self.busy and self.active:
                await self._ended.wait()
        return not self.busy
