"""Request bodies of the router's own endpoints, read at the pace of their consumer.

Quart reads a body to its end and would hold gigabytes in memory.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self, cast

import trio
from attrs import define, field
from quart import request
from quart_trio.asgi import TrioASGIHTTPConnection

from ..errors import RequestTooLarge
from ..front.asgi import Receive, link_of
from ..front.client import ClientStalled

_UPLOAD, _ENDING = "router.upload", "router.ending"

HELD = 1024 * 1024  # bytes held of a body at most, and the largest body that most endpoints take


@define(eq=False)
class Upload:
    """The body of one request, read once."""

    _receive: Receive
    _over: bool = field(init=False, default=False)

    async def whole(self, most: int = HELD) -> bytes:
        """The whole body. Raises RequestTooLarge, ClientStalled."""
        length = request.content_length
        if length is None or length <= most:
            held = await self.begin(most)
            if self._over and len(held) <= most:
                return held
        raise RequestTooLarge(f"The body of {request.path} is larger than {most} bytes")

    async def begin(self, most: int) -> bytes:
        """The first `most` bytes and the rest of a piece, or all there is; then see `over`."""
        held = bytearray()
        while len(held) <= most and not self._over:
            held += await self._piece()
        return bytes(held)

    @property
    def over(self) -> bool:
        """Whether the whole body was read."""
        return self._over

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """The next piece not read yet. Raises ClientStalled."""
        while not self._over:
            if piece := await self._piece():
                return piece
        raise StopAsyncIteration

    async def _piece(self) -> bytes:
        message = await self._receive()
        if message["type"] != "http.request":
            # If the client is gone, the whole endpoint is already cancelled.
            await trio.lowlevel.checkpoint()
            raise ClientStalled
        self._over = not message.get("more_body", False)
        return cast(bytes, message.get("body", b""))


def upload() -> Upload:
    """The body of the current request."""
    return cast(Upload, request.scope["extensions"][_UPLOAD])


def ending() -> ExitStack:
    """What is left when the current request is over, its answer included."""
    return cast(ExitStack, request.scope["extensions"][_ENDING])


class Connection(TrioASGIHTTPConnection):
    """Leaves the body to the endpoint, and ends the endpoint when the client leaves."""

    async def __call__(self, receive: Any, send: Any) -> None:
        handled = self._create_request_from_scope(send)
        extensions = cast(dict[str, Any], self.scope["extensions"])
        extensions[_UPLOAD] = Upload(receive)
        link = link_of(self.scope)  # type: ignore[arg-type]
        with ExitStack() as stack:
            extensions[_ENDING] = stack
            async with trio.open_nursery() as nursery:

                def gone() -> None:
                    if link.reason != "body_timeout":
                        nursery.cancel_scope.cancel()

                link.on_gone(gone)
                try:
                    await self.handle_request(nursery, handled, send)
                finally:
                    link.on_gone(None)
