"""Watches answers as they pass."""

from __future__ import annotations

from typing import Protocol

from ..pool.worker import Lease


class Watcher(Protocol):
    """Watches the answer to one exchange as it passes.

    `holds`: how many bytes of the body are held back from the client until `over` was called.
    """

    holds: int

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        """The head of the answer has arrived; `encoding` is its Content-Encoding."""
        ...

    def saw(self, piece: bytes) -> None:
        """A piece of the body has arrived."""
        ...

    def over(self) -> None:
        """The whole body has arrived, or as much as is held back."""
        ...

    async def durable(self) -> None:
        """Wait until the facts learnt from the held body outlive a restart; the client sees the
        answer only then. Raises StateUnavailable."""
        ...


class _NoWatcher:
    holds = 0

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        pass

    def saw(self, piece: bytes) -> None:
        pass

    def over(self) -> None:
        pass

    async def durable(self) -> None:
        pass


NO_WATCHER = _NoWatcher()
