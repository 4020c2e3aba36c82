"""A router that was stopped for longer than its deadlines, as by Ctrl-Z, and goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from tests.integration.relay.harness import Client, Peer, ScriptedWorker, listen, until
from tests.integration.relay.wire import request
from tests.patience import fail_after

IDLE = 0.5  # seconds of --idle-timeout
WITHIN = 20.0
Pausing = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]
KIND = "Content-Type: application/octet-stream"


@pytest.mark.skipif(os.name != "posix", reason="needs the signals of job control")
def test_what_came_while_it_was_stopped_is_taken(tmp_path: Path) -> None:
    """The rest of a request, and the rest of its answer: each after the deadline for it."""
    log = tmp_path / "log"
    begun, rest_wanted, rest_sent = trio.Event(), trio.Event(), trio.Event()

    async def script(peer: Peer) -> None:
        message = await peer.head()
        await peer.exactly(3, message)
        begun.set()
        await peer.exactly(3, message)
        assert message.body == b"abcdef"
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nghi")
        await rest_wanted.wait()
        await peer.send(b"jkl")
        rest_sent.set()
        await trio.sleep_forever()

    async def have_rest_sent() -> None:
        rest_wanted.set()
        await rest_sent.wait()

    async def exchange(client: Client, while_stopped: Pausing) -> None:
        await client.send(request("POST", "/x", KIND, "Content-Length: 6") + b"abc")
        await begun.wait()
        await while_stopped(lambda: client.send(b"def"))
        await client.until(b"ghi")
        await while_stopped(have_rest_sent)
        await client.until(b"jkl")

    async def talk(router: trio.Process) -> None:
        async def while_stopped(act: Callable[[], Awaitable[None]]) -> None:
            router.send_signal(signal.SIGSTOP)
            await act()
            await trio.sleep(3 * IDLE)
            router.send_signal(signal.SIGCONT)

        await until(lambda: "serves model" in log.read_text(), within=WITHIN)
        port = int(log.read_text().partition("listening on http://127.0.0.1:")[2].split()[0])
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await exchange(Client(stream, stream.socket), while_stopped)

    async def main() -> None:
        with fail_after(WITHIN), log.open("wb") as output:
            async with trio.open_nursery() as nursery:
                worker = ScriptedWorker(script, await listen())
                await nursery.start(worker.run)
                command = [
                    *(sys.executable, "-m", "router", "--host", "127.0.0.1", "--port", "0"),
                    *("--state-dir", "none", "--idle-timeout", str(IDLE), "--peek-limit", "1"),
                    *("--worker-urls", worker.url),
                ]
                router = await trio.lowlevel.open_process(
                    command, stdin=subprocess.DEVNULL, stdout=output, stderr=output
                )
                try:
                    await talk(router)
                finally:
                    router.kill()
                    with trio.CancelScope(shield=True):
                        await router.wait()
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert "timeout" not in log.read_text()
