"""How the router's own calls end, seen from the worker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from router.control.client import Call, ControlClient
from tests.patience import fail_after

BODY = b'{"model_path": "v1"}'


@asynccontextmanager
async def worker() -> AsyncIterator[tuple[trio.SocketListener, str]]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        yield listener, f"http://127.0.0.1:{listener.socket.getsockname()[1]}"


async def taken(listener: trio.SocketListener) -> trio.SocketStream:
    """The connection of the next call, which has come whole."""
    with fail_after(30):
        stream, data = await listener.accept(), b""
        while not data.endswith(BODY):
            data += await stream.receive_some()
        return stream


def test_a_call_that_is_broken_off_ends_in_a_reset() -> None:
    """Otherwise the kernel could send the call again and deliver it after the next one."""

    async def main() -> None:
        async with worker() as (listener, url), ControlClient() as client, trio.open_nursery() as n:
            n.start_soon(client.call, url, Call.of_json("/update", 60, BODY))
            stream = await taken(listener)
            n.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError), fail_after(30):
            await stream.receive_some()
        await stream.aclose()

    trio.run(main)


def test_an_answered_call_ends_in_peace() -> None:
    async def main() -> None:
        async with worker() as (listener, url), ControlClient() as client, trio.open_nursery() as n:

            async def answers() -> None:
                async with await taken(listener) as stream:
                    await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                    assert await stream.receive_some() == b""

            n.start_soon(answers)
            with fail_after(30):
                assert (await client.call(url, Call.of_json("/update", 60, BODY))).status == 200

    trio.run(main)
