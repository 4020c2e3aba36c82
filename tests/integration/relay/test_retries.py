"""Workers that fail before the head of their answer: what is told, and what is tried again."""

from __future__ import annotations

import math

import pytest
import trio

from router.relay.body import Limits
from router.relay.connection import Broken, Connection
from tests.integration.relay.harness import answering, failing, never, routed, run, until
from tests.integration.relay.rig import FakeExchange, rigged
from tests.integration.relay.wire import (
    LAST_CHUNK,
    Message,
    chunked,
    error_of,
    pattern,
    request,
    response,
)

KIND = "Content-Type: application/octet-stream"
LARGE = 20_000_000  # more than the kernel holds between two sockets


GARBAGE = [
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/2.0 200 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: tcp\r\nConnection: upgrade\r\n\r\n",
    b"\x00" * 1000,
    b"\r\n" * 60_000,
]
CUT_HEADS = [
    b"",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"HT",
    b"HTTP/1.1 200",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 200 OK\r\nX: a\r\n",
]


@pytest.mark.parametrize("ends", ["close", "reset"])
@pytest.mark.parametrize("sends", CUT_HEADS)
def test_a_post_that_was_delivered_is_never_sent_twice(sends: bytes, ends: str) -> None:
    async def main() -> None:
        seen: list[Message] = []
        script = failing(sends, ends=ends, record=seen)
        async with routed(script, script) as router:
            got = await router.ask(request("POST", body=b"abc"))
            body = error_of(got, 502, "worker_disconnected")
            assert body["retry_safe"] is False
            assert body["worker_url"] in [worker.url for worker in router.workers]
            assert len(seen) == 1

    run(main)


@pytest.mark.parametrize("sends", GARBAGE, ids=lambda data: repr(data[:40]))
def test_what_is_not_http_is_an_error(sends: bytes) -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with routed(failing(sends, ends="hang", record=seen)) as router:
            got = await router.ask(request("POST", body=b"abc"))
            assert error_of(got, 502, "worker_invalid_answer")["retry_safe"] is False
            assert len(seen) == 1
            assert router.idle(router.worker) == 0

    run(main)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("sends", [b"", b"HTTP/1.1 200", b"garbage\r\n\r\n"])
def test_reads_are_tried_at_each_worker_once(method: str, sends: bytes) -> None:
    async def main() -> None:
        seen: list[Message] = []
        bad = failing(sends, record=seen)
        async with routed(bad, bad) as router:
            client = await router.client()
            got = await client.ask(request(method))
            assert got.status == 502
            if method == "GET":
                code = "worker_invalid_answer" if b"garbage" in sends else "worker_disconnected"
                assert error_of(got, 502, code)["retry_safe"] is True
            assert [worker.connections for worker in router.workers] == [1, 1]
        async with routed(bad, answering(response(body=b"ok"))) as router:
            for _ in range(2):  # round-robin: one of them meets the bad one first
                assert (await router.ask(request(method))).status == 200

    run(main)


@pytest.mark.parametrize("reads", ["nothing", "head", "some"])
@pytest.mark.parametrize("ends", ["close", "reset"])
def test_a_post_that_was_not_delivered_goes_to_another_worker(reads: str, ends: str) -> None:
    async def main() -> None:
        body = pattern(LARGE)
        head = request("POST", "/x", f"Content-Length: {LARGE}", KIND)
        good: list[Message] = []
        bad = failing(reads=reads, ends=ends, record=None)
        # Held as a whole, so that it can be sent again.
        async with routed(bad, answering(response(), record=good), peek_limit=LARGE) as router:
            for _ in range(2):
                assert (await router.ask(head + body)).status == 200
            assert [message.body == body for message in good] == [True, True]
            assert 1 <= router.workers[0].connections <= 2
        async with routed(bad, bad, peek_limit=LARGE) as router:
            got = await router.ask(head + body)
            assert error_of(got, 502, "worker_disconnected")["retry_safe"] is True
            assert [worker.connections for worker in router.workers] == [1, 1]

    run(main)


@pytest.mark.parametrize("size", [3, 100_000, 1_000_000])
def test_a_request_whose_end_could_not_be_written_goes_to_another_worker(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = 0

    async def send(
        self: Connection, data: bytes | memoryview, *, patience: float = math.inf
    ) -> None:
        nonlocal failures
        if not failures and data[-1:] == b"!":
            failures += 1
            raise Broken("it broke at the end")
        await write(self, data, patience=patience)

    write = Connection.send
    monkeypatch.setattr(Connection, "send", send)
    monkeypatch.setattr("router.relay.upload._LAST_WORDS", 0.05)

    async def main() -> None:
        seen: list[Message] = []
        good = answering(response(body=b"ok"), record=seen)
        async with rigged(good, good) as rig:
            rig.forwarder.limits = Limits(peek=10_000_000)
            body = bytes(size) + b"!"
            exchange = FakeExchange(pieces=[body])
            await rig.exchange(exchange)
            assert exchange.body == b"ok"
            assert [message.body for message in seen] == [body]
            assert failures == 1

    run(main)


def test_an_upload_that_was_begun_is_not_tried_again() -> None:
    async def main() -> None:
        bad = failing(reads="head", ends="reset", record=None)
        async with routed(bad, bad) as router:
            client = await router.client()
            await client.send(request("POST", "/x", f"Content-Length: {LARGE}", KIND))
            with trio.move_on_after(5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(client.send, pattern(LARGE))
                    got = await client.answer()
                    nursery.cancel_scope.cancel()
            assert not scope.cancelled_caught
            # It had not been sent whole: another attempt is safe, but only the client can make it.
            assert error_of(got, 502, "worker_disconnected")["retry_safe"] is True
            assert sum(worker.connections for worker in router.workers) == 1

    run(main)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_streamed_post_that_was_delivered_is_not_safe_to_repeat(framing: str) -> None:
    async def main() -> None:
        seen: list[Message] = []
        bad = failing(ends="close", record=seen)
        async with routed(bad, bad, peek_limit=1000) as router:
            body = pattern(300_000)
            how = "Transfer-Encoding: chunked" if framing == "chunked" else "Content-Length: 300000"
            framed = chunked(body) + LAST_CHUNK if framing == "chunked" else body
            client = await router.client()
            await client.send(request("POST", "/x", how, KIND))
            await client.send(framed)
            body_ = error_of(await client.answer(), 502, "worker_disconnected")
            assert body_["retry_safe"] is False
            assert len(seen) == 1
            assert seen[0].body == body

    run(main)


def test_a_refused_connection_goes_unnoticed() -> None:
    async def main() -> None:
        good = answering(response(body=b"ok"))
        async with routed(good, good) as router:
            router.workers[0].refuse()
            for _ in range(4):
                got = await router.ask(request("POST", body=b"abc"))
                assert (got.status, got.body) == (200, b"ok")
            assert router.workers[1].connections > 0
            assert router.workers[0].connections == 0
            router.workers[1].refuse()
            # The kept connection is still good; a second one at the same time would be refused.
            assert (await router.ask(request("POST", body=b"abc"))).status == 200

    run(main)


def test_no_worker_that_takes_connections_is_a_502() -> None:
    async def main() -> None:
        async with routed(never, never) as router:
            for worker in router.workers:
                worker.refuse()
            await trio.testing.wait_all_tasks_blocked()
            got = await router.ask(request("POST", body=b"abc"))
            assert error_of(got, 502, "connect_failed")["retry_safe"] is True

    run(main)


@pytest.mark.parametrize(("retries", "contacts"), [(0, 1), (1, 2), (3, 3)])
def test_retries_are_bounded_and_each_worker_is_asked_once(retries: int, contacts: int) -> None:
    async def main() -> None:
        bad = failing(record=None)
        async with routed(bad, bad, bad, retries=retries) as router:
            assert (await router.ask(request("GET"))).status == 502
            assert sum(worker.connections for worker in router.workers) == contacts

    run(main)


def test_trouble_asks_for_a_probe_at_once() -> None:
    async def main() -> None:
        cases: list[bytes] = [b"", response(200, "Content-Length: 5") + b"abc"]
        for sends in cases:
            async with routed(failing(sends, record=None)) as router:
                before = router.worker.probes
                await router.ask(request("POST", body=b"abc"))
                await until(lambda: router.worker.probes > before, "a probe")  # noqa: B023

    run(main)
