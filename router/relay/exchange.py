"""The relay's interface to a client: head of the request, body pieces, ways to answer.

The relay knows nothing of ASGI: another front can replace ours by implementing this interface.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ..front.record import ExchangeRecord


class Exchange(Protocol):
    """One request of a client and its one answer."""

    method: str
    target: bytes  # origin form: raw path and query
    path: str  # percent-decoded, without the query
    headers: Sequence[tuple[bytes, bytes]]
    http_version: str
    scheme: str
    peer: str | None
    record: ExchangeRecord
    responded: bool  # the head of the answer has been sent

    async def read(self) -> bytes:
        """The next piece of the request body, never empty; b"" at its end.

        Raises ClientGone or ClientStalled.
        """
        ...

    async def respond(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, more: bool = False
    ) -> None:
        """Send the head of the answer. `more`: `send` follows at once, and may go out with it."""
        ...

    async def send(self, piece: bytes, *, last: bool = False) -> None:
        """Send a piece of the answer's body; returns when the client has room for more.

        `last`: this piece, which may be empty, completes the answer. An exchange that ends without
        a last piece must not look complete to the client.
        """
        ...

    def on_gone(self, callback: Callable[[], None] | None) -> None:
        """Call back, synchronously, as soon as the client can no longer be served."""
        ...
