"""Connections to workers: which are used again, which have gone stale, how many there may be."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from router.relay.connection import Connection
from router.relay.routes import find
from tests.integration.relay.harness import Peer, Routed, Script, answering, routed, run, until
from tests.integration.relay.rig import FakeExchange, rigged
from tests.integration.relay.wire import LAST_CHUNK, Message, chunked, error_of, request, response
from tests.patience import fail_after


async def close_idle(router: Routed, peers: list[Peer]) -> None:
    for peer in peers:
        peer.close()
    # The end of file has crossed the loopback when a read of it would not wait.
    [pool] = [pool for pool in router.running.upstream._pools.values() if pool.idle]
    await until(lambda: not any(connection.quiet() for connection in pool.idle), "end of file")


def remembering(peers: list[Peer], seen: list[Message]) -> Script:
    async def script(peer: Peer) -> None:
        peers.append(peer)
        await answering(response(body=b"ok"), record=seen)(peer)

    return script


def test_a_kept_connection_with_an_end_of_file_is_not_used() -> None:
    async def main() -> None:
        peers: list[Peer] = []
        seen: list[Message] = []
        async with routed(remembering(peers, seen)) as router:
            assert (await router.ask(request("POST", body=b"1"))).status == 200
            assert router.idle(router.worker) == 1
            await close_idle(router, peers)
            assert (await router.ask(request("POST", body=b"2"))).status == 200
            assert [message.body for message in seen] == [b"1", b"2"]
            assert router.worker.connections == 2

    run(main)


def test_a_kept_connection_with_stray_bytes_is_not_used() -> None:
    async def main() -> None:
        stray = response(200, body=b"not asked for")

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response(200, body=b"ok"))
            await close.wait()
            await peer.send(stray)
            sent.set()
            await answering(response(200, body=b"second"))(peer)

        for late in (True, False):
            close, sent = trio.Event(), trio.Event()
            async with routed(script) as router:
                if not late:
                    close.set()
                assert (await router.ask(request("GET"))).body == b"ok"
                close.set()
                await sent.wait()
                await trio.sleep(0.01)
                client = await router.client()
                await client.send(request("GET"))
                await until(lambda: router.worker.connections == 2, "a new connection")

    run(main)


def test_a_streamed_request_has_begun_before_its_answer_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a worker says between the last look at a kept connection and the request is stray."""
    done: list[str] = []
    send, head = Connection.send, Connection.head

    async def sending(self: Connection, data: Any, **how: Any) -> None:
        await send(self, data, **how)
        done.append("sent")

    async def reading(self: Connection, *, bodiless: bool) -> Any:
        done.append("reads")
        return await head(self, bodiless=bodiless)

    monkeypatch.setattr(Connection, "send", sending)
    monkeypatch.setattr(Connection, "head", reading)

    async def main() -> None:
        async with routed(answering(response(body=b"ok"))) as router:
            upload = request("POST", "/x", "Transfer-Encoding: chunked") + chunked(b"x" * 3_000_000)
            assert (await router.ask(upload + LAST_CHUNK)).status == 200
        assert done[:2] == ["sent", "reads"]

    run(main)


def test_an_answer_with_bytes_beyond_its_end_is_cut_to_its_length() -> None:
    async def main() -> None:
        long = [
            response(200, "Content-Length: 2")
            + b"okHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad",
            response(200, "Transfer-Encoding: chunked") + chunked(b"ok") + LAST_CHUNK + b"bad",
            response(204) + b"bad",
        ]
        for answer in long:
            async with routed(answering(answer)) as router:
                for _ in range(2):
                    got = await router.ask(request("GET"))
                    assert got.body == (b"" if got.status == 204 else b"ok")
                    assert got.complete
                assert router.idle(router.worker) == 0
                assert router.worker.connections == 2

    run(main)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_kept_connection_that_dies_under_a_request(method: str) -> None:
    """The worker closes as the next request is on its way: no one can tell whether it acted."""

    async def main() -> None:
        seen: list[Message] = []

        async def script(peer: Peer) -> None:
            while True:
                message = await peer.request()
                seen.append(message)
                if message.target == b"/die" and peer.number == 0:
                    peer.close()
                await peer.send(response(body=b"%d" % peer.number))

        async with routed(script) as router:
            assert (await router.ask(request(method))).body == b"0"
            got = await router.ask(request(method, "/die"))
            if method == "GET":
                # A stale connection says nothing against the worker: it is asked again, anew.
                assert (got.status, got.body) == (200, b"1")
            else:
                assert error_of(got, 502, "worker_disconnected")["retry_safe"] is False
                assert len(seen) == 2

    run(main)


def test_a_kept_connection_is_dropped_after_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.relay.upstream.IDLE_LIMIT", 0.05)
    monkeypatch.setattr("router.relay.upstream._REAP_INTERVAL", 0.02)

    async def main() -> None:
        ended: list[bool] = []

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response())
            ended.append(not (await peer.ended()).reset)

        async with routed(script) as router:
            await router.ask(request("GET"))
            await until(lambda: ended == [True], "the end of the idle connection")
            assert not router.running.upstream._pools

    run(main)


def test_an_old_connection_is_not_used_even_before_it_is_reaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.relay.upstream.IDLE_LIMIT", 1000)
    monkeypatch.setattr("router.relay.upstream._REAP_INTERVAL", 1000)

    async def main() -> None:
        async with routed(answering(response())) as router:
            await router.ask(request("GET"))
            await router.ask(request("GET"))
            assert router.worker.connections == 1
            monkeypatch.setattr("router.relay.upstream.IDLE_LIMIT", 0)
            await router.ask(request("GET"))
            assert router.worker.connections == 2

    run(main)


def test_idle_connections_end_with_the_router() -> None:
    async def main() -> None:
        ended = trio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response())
            await peer.ended(5)
            ended.set()

        async with routed(script) as router:
            await router.ask(request("GET"))
        assert ended.is_set()

    run(main)


def test_more_connections_than_allowed_are_waited_for() -> None:
    async def main() -> None:
        most = now = 0
        go = trio.Semaphore(0)

        async def script(peer: Peer) -> None:
            nonlocal most, now
            while True:
                await peer.request()
                now += 1
                most = max(most, now)
                await go.acquire()
                now -= 1
                await peer.send(response(body=b"ok"))

        async with routed(script, max_connections=2) as router:
            answers: list[Message] = []

            async def ask() -> None:
                answers.append(await router.ask(request("POST", body=b"abc")))

            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(ask)
                await until(lambda: router.users == 6 and now == 2)
                for _ in range(6):
                    go.release()
            assert [answer.body for answer in answers] == [b"ok"] * 6
            assert most == 2
            assert router.worker.connections == 2

    run(main)


def test_clients_that_leave_while_they_wait_for_a_connection_leak_nothing() -> None:
    async def main() -> None:
        go = trio.Event()

        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                await go.wait()
                await peer.send(response(body=b"ok"))

        async with routed(script, max_connections=1) as router:
            clients = [await router.client() for _ in range(5)]
            for client in clients:
                await client.send(request("POST", body=b"abc"))
                await until(lambda: router.users == 1 + clients.index(client))  # noqa: B023
            for client in clients[1:4]:
                client.close()
            await until(lambda: router.users == 2, "the end of those who left")
            assert router.active == 2
            go.set()
            for client in (clients[0], clients[4]):
                assert (await client.answer()).body == b"ok"
            assert router.worker.connections == 1
            assert (await router.ask(request("POST", body=b"abc"))).body == b"ok"

    run(main)


def test_the_wait_for_a_connection_has_the_clock_of_the_answer() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await trio.sleep(60)
            await peer.send(response(body=b"ok"))

        async with routed(script, max_connections=1, timeout=2.0) as router:
            client = await router.client()
            async with router.running.upstream.connection(router.worker.url):
                answer = await client.ask(request("POST", body=b"abc"))
                told = error_of(answer, 504, "response_timeout")
                assert "--max-connections" in told["error"]
                await client.send(request("POST", body=b"abc"))
                await trio.sleep(0.3)
            # It has a connection now, and so little time left for the answer.
            answer = await client.answer()
            told = error_of(answer, 504, "response_timeout")
            assert "--max-connections" not in told["error"]

    run(main)


def test_reads_of_what_a_worker_owns_do_not_wait_for_a_connection() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            asked = await peer.request()
            if asked.method == b"GET":
                await peer.send(response(body=b"mine"))
            await trio.sleep_forever()

        async with rigged(script, max_connections=1) as rig, trio.open_nursery() as nursery:
            nursery.start_soon(rig.exchange, FakeExchange())
            await until(lambda: rig.worker.open == 1)
            (owner,) = rig.registry
            reading = FakeExchange(method="GET", pieces=(), path="/v1/videos/1")
            route = find("GET", "/v1/videos/1")
            with fail_after(2):
                await rig.forwarder.run(reading, route, owner=owner)
            assert reading.body == b"mine"
            nursery.cancel_scope.cancel()

    run(main)


def test_idle_connections_count_among_those_allowed() -> None:
    async def main() -> None:
        together = 0

        async def script(peer: Peer) -> None:
            nonlocal together
            while True:
                await peer.request()
                together += 1
                await until(lambda: together >= 2)  # noqa: B023
                await peer.send(response())

        async with rigged(script, max_connections=2) as rig:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(rig.exchange, FakeExchange())
            url = rig.worker.url
            assert rig.upstream.idle(url) == 2
            # As for a WebSocket, or where a kept connection has proved stale.
            async with rig.upstream.connection(url, fresh=True):
                assert rig.upstream.idle(url) == 1
            assert rig.upstream.idle(url) == 1
            async with rig.upstream.connection(url) as connection:
                assert connection.reused
                assert rig.upstream.idle(url) == 0

    run(main)
