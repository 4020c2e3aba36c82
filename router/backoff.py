"""Growing pauses between retries."""

from __future__ import annotations

import trio
from attrs import define, field


@define
class Backoff:
    """Each pause is twice the one before, from `first` to `most` seconds."""

    first: float = 1.0
    most: float = 15.0
    _next: float = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._next = self.first

    def reset(self) -> None:
        """Start again with the first pause: the work succeeded, or something else gives hope."""
        self._next = self.first

    def next(self) -> float:
        """The seconds to pause now."""
        pause, self._next = self._next, min(self.most, self._next * 2)
        return pause

    async def pause(self, hope: trio.Event | None = None) -> None:
        """Pause. If the event `hope` is set, end the pause early and reset."""
        hope = trio.Event() if hope is None else hope
        with trio.move_on_after(self.next()):
            await hope.wait()
        if hope.is_set():
            self.reset()
