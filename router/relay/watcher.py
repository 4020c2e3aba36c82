"""What looks at answers as they pass."""

from __future__ import annotations

from typing import Protocol

from ..pool.worker import Lease


class Watcher(Protocol):
    """Looks at the answer to one exchange as it passes.

    `holds`: bytes of the body that are held back from the client until `over` was called.
    """

    holds: int

    def begin(self, lease: Lease, status: int, encoding: bytes | None) -> None:
        """The head of the answer has come; `encoding` is its Content-Encoding."""
        ...

    def saw(self, piece: bytes) -> None:
        """A piece of the body has come."""
        ...

    def over(self) -> None:
        """The whole body has come, or as much as was to be held."""
        ...

    async def durable(self) -> None:
        """Wait until what was learnt of the held body outlives a restart, before the client sees
        it. Raises StateUnavailable."""
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
