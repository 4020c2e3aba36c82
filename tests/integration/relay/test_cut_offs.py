"""Workers that fail within their answer, or give it before the request is over."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio

from router.errors import WorkerFailed
from router.relay.connection import Broken, Connection
from tests.integration.relay.harness import (
    Peer,
    ScriptedWorker,
    failing,
    listen,
    never,
    routed,
    run,
    until,
)
from tests.integration.relay.rig import FakeExchange, living, rigged
from tests.integration.relay.wire import Message, chunked, error_of, pattern, request, response

KIND = "Content-Type: application/octet-stream"
LARGE = 20_000_000  # more than the kernel holds between two sockets


OK = response(200, "Content-Length: 10")
CHUNKS = response(200, "Transfer-Encoding: chunked")
UNFRAMED = response(200, version="1.0").replace(b"Content-Length: 0\r\n", b"")

CUT_BODIES = [
    (OK, "close"),
    (OK + b"abc", "close"),
    (OK + b"abc", "reset"),
    (CHUNKS, "close"),
    (CHUNKS + b"5\r\nab", "close"),
    (CHUNKS + b"5\r\nab", "reset"),
    (CHUNKS + chunked(b"abc"), "close"),
    (CHUNKS + chunked(b"abc") + b"0\r\n", "close"),
    (CHUNKS + chunked(b"abc") + b"zz\r\n", "hang"),
    (CHUNKS + b"3\r\nabcdef\r\n", "hang"),
    (CHUNKS + chunked(b"abc") + b"0\r\nX: " + b"a" * 100_000, "hang"),
    (UNFRAMED + b"abc", "reset"),
]


@pytest.mark.parametrize(
    ("sends", "ends"), CUT_BODIES, ids=lambda value: repr(value[-30:]) if value else "-"
)
def test_a_cut_off_answer_never_looks_complete(sends: bytes, ends: str) -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(sends)
            if ends == "reset":
                await passed_on.wait()
                peer.reset()
            elif ends == "hang":
                await trio.sleep_forever()

        async with routed(script) as router:
            for version in ("1.1", "1.0"):
                for method in ("GET", "POST"):
                    passed_on = trio.Event()
                    client = await router.client()
                    await client.send(request(method, version=version))
                    head = await client.until(b"\r\n\r\n")
                    client.rest = head + b"\r\n\r\n" + client.rest
                    passed_on.set()
                    got = await client.answer(method)
                    assert got.status == 200
                    assert not got.complete, got
                    assert b"abc".startswith(got.body[:3])
                    await client.ended()
            assert router.worker.connections == 4

    run(main)


def test_a_slow_drip_is_only_slow() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            for byte in response(200, body=b"drip") + b"":
                await peer.send(bytes([byte]))
                await trio.sleep(0.002)

        async with routed(script) as router:
            got = await router.ask(request("POST", body=b"abc"))
            assert (got.status, got.body, got.complete) == (200, b"drip", True)

    run(main)


@pytest.mark.parametrize("size", [200_000, LARGE])
@pytest.mark.parametrize("peek", [1000, LARGE])
@pytest.mark.parametrize("afterwards", ["close", "hang"])
def test_a_worker_may_answer_without_reading(size: int, peek: int, afterwards: str) -> None:
    """Whether the body is held or streamed; whether the worker closes or just stops reading."""

    async def main() -> None:
        answer = response(413, "Connection: close", body=b"too much")

        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(answer)
            if afterwards == "hang":
                await trio.sleep_forever()
            with trio.move_on_after(1):  # a close with bytes unread would reset the connection
                await peer.stream.send_eof()  # type: ignore[attr-defined]
                await never(peer)

        async with routed(script, peek_limit=peek) as router:
            client = await router.client()
            await client.send(request("POST", "/x", f"Content-Length: {size}", KIND))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, pattern(size))
                got = await client.answer()
            assert (got.status, got.body) == (413, b"too much")
            assert router.worker.connections == 1
            assert router.idle(router.worker) == 0

    run(main)


def test_an_answer_is_heard_though_the_upload_broke() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(response(413, body=b"too much"))
            peer.close()  # with bytes unread: resets the connection

        async with routed(script) as router:
            client = await router.client()
            await client.send(request("POST", "/x", f"Content-Length: {LARGE}", KIND))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, pattern(LARGE))
                got = await client.answer()
            assert (got.status, got.body) == (413, b"too much")

    run(main)


@pytest.mark.parametrize("answers", [True, False])
def test_a_worker_that_takes_no_more_is_heard_for_a_moment(
    answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def send(
        self: Connection, data: bytes | memoryview, *, patience: float = math.inf
    ) -> None:
        if broken:
            raise Broken("it takes no more")
        broken.append(True)
        await write(self, data, patience=patience)

    write = Connection.send
    broken: list[bool] = []
    monkeypatch.setattr(Connection, "send", send)
    monkeypatch.setattr("router.relay.upload._LAST_WORDS", 2 if answers else 0.05)

    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            if answers:
                await until(lambda: broken)
                await trio.sleep(0.05)
                await peer.send(response(413, body=b"too much"))
            await peer.ended()

        async with rigged(script) as rig:
            exchange = FakeExchange(pieces=[bytes(900), bytes(900)])
            if answers:
                await rig.exchange(exchange)
                assert (exchange.status, exchange.body) == (413, b"too much")
            else:
                with pytest.raises(WorkerFailed, match="it takes no more"):
                    await rig.exchange(exchange)
            await rig.nothing_left(living())

    run(main)


def test_a_failure_of_one_worker_harms_no_exchange_at_another() -> None:
    async def main() -> None:
        go = trio.Event()

        async def good(peer: Peer) -> None:
            await peer.request()
            await peer.send(OK + b"01234")
            await go.wait()
            await peer.send(b"56789")

        workers: list[Callable[[Peer], object]] = [good, failing(OK + b"abc", record=None)]
        async with routed(*workers) as router:  # type: ignore[arg-type]
            clients = [await router.client() for _ in workers]
            got: list[Message] = []

            async def ask(index: int) -> None:
                got.append(await clients[index].ask(request("GET")))

            async with trio.open_nursery() as nursery:
                for index in range(2):
                    nursery.start_soon(ask, index)
                await until(lambda: len(got) == 1, "the cut-off answer")
                assert not got[0].complete
                go.set()
            assert (got[1].body, got[1].complete) == (b"0123456789", True)

    run(main)


def test_a_dead_backlog_is_a_connect_timeout() -> None:
    async def main() -> None:
        # A listener that nobody accepts from, and whose queue is full: connections hang.
        listener = await listen(0)
        port = listener.socket.getsockname()[1]
        fillers = []
        for _ in range(4):
            filler = trio.socket.socket()
            with trio.move_on_after(0.1):
                await filler.connect(("127.0.0.1", port))
            fillers.append(filler)
        worker = ScriptedWorker(never, listener)
        urls = [worker.url]
        async with routed(worker_urls=urls, healthy=False, connect_timeout=0.2) as router:
            got = await router.ask(request("POST", body=b"abc"))
            assert error_of(got, 504, "connect_timeout")["retry_safe"] is True
        for filler in fillers:
            filler.close()
        listener.socket.close()

    run(main)
