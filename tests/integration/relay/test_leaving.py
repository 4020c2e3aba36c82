"""Clients that leave, at each point of an exchange."""

from __future__ import annotations

import contextlib

import pytest
import trio

from tests.integration.relay.harness import Client, Peer, never, routed, run, until
from tests.integration.relay.wire import SOON, Gone, chunked, request, response
from tests.patience import fail_after

KIND = "Content-Type: application/octet-stream"
MB = 1024 * 1024


async def leaves(client: Client, how: str) -> None:
    if how == "reset":
        client.reset()
    else:
        client.close()


@pytest.mark.parametrize("how", ["close", "reset"])
@pytest.mark.parametrize("when", ["waiting", "in the answer", "in a stuck answer", "in the upload"])
def test_a_client_that_leaves_ends_the_workers_connection_at_once(when: str, how: str) -> None:
    async def main() -> None:
        at_work, left = trio.Event(), trio.Event()

        async def script(peer: Peer) -> None:
            if when == "in the upload":
                await peer.head()
            else:
                await peer.request()
            if when == "in the answer":
                await peer.send(response(200, "Transfer-Encoding: chunked") + chunked(b"abc"))
            elif when == "in a stuck answer":
                await peer.send(response(200, f"Content-Length: {200 * MB}"))
                at_work.set()
                with pytest.raises(trio.BrokenResourceError):
                    await peer.send(bytes(200 * MB))
                left.set()
                return
            at_work.set()
            await peer.ended()
            left.set()

        async with routed(script) as router:
            client = await router.client(buffer=64 * 1024)
            if when == "in the upload":
                await client.send(request("POST", "/x", KIND, "Content-Length: 3000000") + b"abc")
            else:
                await client.send(request("POST", body=b"abc"))
            await at_work.wait()
            if when == "in the answer":
                await client.until(b"\r\n\r\n")
            await trio.sleep(0.05 if when == "in a stuck answer" else 0)
            assert router.active == 1
            await leaves(client, how)
            with fail_after(SOON):
                await left.wait()
                await router.settled()
            assert router.idle(router.worker) == 0

    run(main)


def test_a_client_that_leaves_before_its_body_is_whole_costs_no_worker() -> None:
    async def main() -> None:
        async with routed(never) as router:
            granted: list[object] = []
            router.running.parts.registry.subscribe(granted.append)
            client = await router.client()
            await client.send(request("POST", "/x", "Content-Length: 100") + b"abc")
            await trio.sleep(0.02)
            client.close()
            await trio.sleep(0.02)
            assert granted == []
            assert router.worker.connections == 0

    run(main)


def test_a_client_that_leaves_while_it_pipelines_is_noticed() -> None:
    async def main() -> None:
        left = trio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            with pytest.raises(Gone):
                await peer.more()
            left.set()

        async with routed(script) as router:
            client = await router.client()
            await client.send(request("POST", body=b"abc") * 3)
            await until(lambda: router.worker.connections)
            client.close()
            with fail_after(SOON):
                await left.wait()

    run(main)


@pytest.mark.parametrize("gone", [False, True])
def test_a_client_that_takes_nothing_is_told_from_one_that_leaves(
    gone: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        with contextlib.suppress(trio.BrokenResourceError):
            await peer.send(response(body=b"x" * 20 * MB))
        await peer.ended()

    async def main() -> None:
        async with routed(script, client_send_timeout=0.2) as router:
            client = await router.client(buffer=64 * 1024)
            await client.send(request("POST", "/x", "X-Request-Id: slow", body=b"abc"))
            await client.until(b"\r\n\r\n")
            if gone:
                client.reset()
            await until(lambda: router.active == 0)

    run(main)
    (record,) = [r for r in caplog.records if getattr(r, "request_id", None) == "slow"]
    code = record.code  # type: ignore[attr-defined]
    assert code == ("client_gone" if gone else "client_send_timeout")
