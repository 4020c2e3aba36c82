"""Workers whose answer to a WebSocket handshake is not what it should be."""

from __future__ import annotations

import contextlib
import json

import pytest
import trio
from wsproto.utilities import generate_accept_token

from tests.integration.relay.harness import Peer, routed, run
from tests.integration.relay.wire import Gone, request

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
OFFER = request(
    "GET", "/ws", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    f"Sec-WebSocket-Key: {KEY.decode()}", "Sec-WebSocket-Protocol: a",
)  # fmt: skip
ACCEPT = (
    b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
)
HELLO = b"\x81\x02hi"


async def answer(*pieces: bytes) -> tuple[bytes, bytes]:
    """Head and the rest of what a client gets whose worker answers with these pieces."""

    async def script(peer: Peer) -> None:
        asked = await peer.request()
        (key,) = [value for name, value in asked.headers if name.lower() == b"sec-websocket-key"]
        for piece in pieces:
            await peer.send(piece.replace(b"%b", generate_accept_token(key)))
            await trio.sleep(0.02)
        with contextlib.suppress(Gone):
            await peer.more()  # the close of the session

    async with routed(script, retries=0) as router:
        client = await router.client()
        await client.send(OFFER)
        got = bytearray()
        while b"\r\n\r\n" not in got or not (got.endswith((b"}\n", b"hi"))):
            got += await client.stream.receive_some()
        head, _, rest = bytes(got).partition(b"\r\n\r\n")
        return head, rest


@pytest.mark.parametrize(
    "reply",
    [
        ACCEPT + b"Sec-WebSocket-Protocol: \xff\r\n\r\n",
        ACCEPT + b"Sec-WebSocket-Protocol: never-offered\r\n\r\n",
        ACCEPT + b"Sec-WebSocket-Extensions: \xff\r\n\r\n",
        ACCEPT + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n",
        ACCEPT.replace(b"Connection: Upgrade", b"Connection: \xff") + b"\r\n",
        ACCEPT.replace(b"%b", b"\xff") + b"\r\n",
        b"HTTP/1.1 101 x\r\n\r\n",
        b"\xff\xfe\r\n\r\n",
    ],
)
def test_an_invalid_acceptance_is_502(reply: bytes) -> None:
    async def main() -> None:
        head, body = await answer(reply)
        assert head.startswith(b"HTTP/1.1 502 ")
        told = json.loads(body)
        assert (told["code"], told["retry_safe"]) == ("worker_invalid_answer", True)

    run(main)


@pytest.mark.parametrize("together", [True, False])
def test_early_hints_are_no_answer(together: bool) -> None:
    async def main() -> None:
        pieces = [b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", ACCEPT + b"\r\n" + HELLO]
        head, rest = await answer(*([b"".join(pieces)] if together else pieces))
        assert head.startswith(b"HTTP/1.1 101 ")
        assert rest == HELLO

    run(main)


def test_odd_bytes_in_other_fields_pass() -> None:
    async def main() -> None:
        head, _ = await answer(ACCEPT + b"X-Odd: \xff\r\n\r\n" + HELLO)
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"x-odd: \xff" in head.lower()

    run(main)
