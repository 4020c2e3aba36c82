"""Bodies pass as they are and as they come, both ways, in every framing."""

from __future__ import annotations

import hashlib

import pytest
import trio

from tests.integration.relay.harness import Peer, answering, routed, run
from tests.integration.relay.wire import LAST_CHUNK, Message, chunked, pattern, request, response

MB = 1024 * 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


SIZES = [0, 1, 64 * 1024 - 1, 64 * 1024 + 1, MB, 5 * MB + 3]


def upload(body: bytes, how: str) -> bytes:
    if how == "length":
        return request("POST", "/x", f"Content-Length: {len(body)}") + body
    step = max(1, len(body) // 7)
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    return request("POST", "/x", "Transfer-Encoding: chunked") + chunked(*pieces) + LAST_CHUNK


def download(body: bytes, how: str) -> bytes:
    if how == "length":
        return response(200, body=body)
    if how == "until the end":
        return response(200, version="1.0").replace(b"Content-Length: 0\r\n", b"") + body
    step = max(1, len(body) // 7)
    pieces = [body[at : at + step] for at in range(0, len(body), step)]
    return response(200, "Transfer-Encoding: chunked") + chunked(*pieces) + LAST_CHUNK


@pytest.mark.parametrize("how", ["length", "chunked"])
@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_request_bodies_of_all_sizes(how: str, kind: str) -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with routed(answering(response(), record=seen)) as router:
            client = await router.client()
            for size in SIZES:
                body = pattern(size)
                data = upload(body, how).replace(b"\r\n\r\n", b"\r\nContent-Type: %s\r\n\r\n", 1)
                assert (await client.ask(data.replace(b"%s", kind.encode(), 1))).status == 200
                assert sha256(seen[-1].body) == sha256(body)
                assert seen[-1]["content-type"] == kind.encode()
            assert router.worker.connections == 1

    run(main)


@pytest.mark.parametrize("how", ["length", "chunked", "until the end"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_response_bodies_of_all_sizes(how: str, version: str) -> None:
    async def main() -> None:
        body = b""

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(download(body, how))
            if how == "until the end":
                peer.close()
            else:
                await script(peer)

        async with routed(script) as router:
            for size in SIZES:
                body = pattern(size)
                got = await router.ask(request("GET", "/x", version=version))
                assert got.complete
                assert sha256(got.body) == sha256(body)
                length = str(size).encode() if how == "length" else None
                assert got["content-length"] == length
                if version == "1.0":
                    assert got["transfer-encoding"] is None
            assert router.worker.connections == (len(SIZES) if how == "until the end" else 1)

    run(main)


def test_an_http_1_0_worker_may_keep_the_connection() -> None:
    async def main() -> None:
        answer = response(200, "Connection: keep-alive", body=b"ok", version="1.0")
        async with routed(answering(answer)) as router:
            for _ in range(3):
                assert (await router.ask(request("GET"))).body == b"ok"
            assert router.worker.connections == 1

    run(main)


def test_a_worker_that_says_close_is_believed() -> None:
    async def main() -> None:
        async with routed(answering(response(200, "Connection: close", body=b"ok"))) as router:
            for _ in range(3):
                assert (await router.ask(request("GET"))).body == b"ok"
            assert router.worker.connections == 3

    run(main)


@pytest.mark.parametrize("framing", ["chunked", "length", "until the end"])
def test_an_answer_is_passed_on_piece_by_piece(framing: str) -> None:
    async def main() -> None:
        arrived = trio.Event()
        events = [b"data: 1\n\n", b"data: 2\n\n"]

        async def script(peer: Peer) -> None:
            await peer.request()
            pieces = [chunked(event) if framing == "chunked" else event for event in events]
            how = {
                "chunked": "Transfer-Encoding: chunked",
                "length": f"Content-Length: {sum(map(len, events))}",
                "until the end": "Connection: close",
            }[framing]
            head = response(200, "Content-Type: text/event-stream", how)
            if framing == "until the end":
                head = head.replace(b"Content-Length: 0\r\n", b"")
            await peer.send(head)
            await head_arrived.wait()
            await peer.send(pieces[0])
            await arrived.wait()
            await peer.send(pieces[1] + (LAST_CHUNK if framing == "chunked" else b""))

        head_arrived = trio.Event()
        async with routed(script) as router:
            client = await router.client()
            await client.send(request("GET"))
            await client.until(b"\r\n\r\n")
            head_arrived.set()
            await client.until(events[0])
            arrived.set()
            await client.until(events[1])

    run(main)


def test_a_large_upload_reaches_the_worker_before_its_end() -> None:
    async def main() -> None:
        arrived = trio.Event()
        body = pattern(200_000)

        async def script(peer: Peer) -> None:
            message = await peer.head()
            message.raw_body = await peer.exactly(100_000, message)
            arrived.set()
            await peer.exactly(100_000, message)
            assert message.body == body
            await peer.send(response(200))

        async with routed(script, peek_limit=1000) as router:
            client = await router.client()
            await client.send(request("POST", "/x", "Content-Length: 200000") + body[:150_000])
            await arrived.wait()
            await client.send(body[150_000:])
            assert (await client.answer()).status == 200

    run(main)


def test_an_upload_and_its_answer_may_go_on_at_the_same_time() -> None:
    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.head()
            await peer.send(response(200, "Transfer-Encoding: chunked"))
            while size := int(await peer.until(b"\r\n"), 16):
                piece = await peer.exactly(size, Message(b"", []))
                await peer.until(b"\r\n")
                await peer.send(chunked(piece.upper()))
            await peer.send(LAST_CHUNK)

        async with routed(script) as router:
            client = await router.client()
            head = request(
                "POST", "/x", "Transfer-Encoding: chunked", "Content-Type: application/x-stream"
            )
            await client.send(head)
            for word in (b"one", b"two", b"three"):
                await client.send(chunked(word))
                await client.until(word.upper())
            await client.send(LAST_CHUNK)
            await client.until(LAST_CHUNK)

    run(main)


def test_an_expectation_is_answered_here() -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with routed(answering(response(200, body=b"ok"), record=seen)) as router:
            client = await router.client()
            await client.send(request("POST", "/x", "Expect: 100-continue", "Content-Length: 3"))
            assert (await client.head()).status == 100
            await client.send(b"abc")
            assert (await client.answer()).body == b"ok"
        assert seen[0].body == b"abc"
        assert seen[0]["expect"] is None

    run(main)


def test_clients_may_pipeline() -> None:
    async def main() -> None:
        seen: list[Message] = []
        async with routed(
            answering(*[response(body=b"%d" % i) for i in range(3)], record=seen)
        ) as router:
            client = await router.client()
            await client.send(b"".join(request("POST", f"/{i}", body=b"x" * i) for i in range(3)))
            assert [(await client.answer()).body for _ in range(3)] == [b"0", b"1", b"2"]
        assert [message.target for message in seen] == [b"/0", b"/1", b"/2"]

    run(main)


def test_connections_are_used_again_newest_first() -> None:
    async def main() -> None:
        numbers: list[int] = []

        async def script(peer: Peer) -> None:
            while True:
                message = await peer.request()
                if message.target == b"/both":
                    together.append(peer.number)
                    while len(together) < 2:
                        await trio.sleep(0.001)
                numbers.append(peer.number)
                await peer.send(response())

        together: list[int] = []
        async with routed(script) as router:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(router.ask, request("GET", "/both"))
            assert router.idle(router.worker) == 2
            last = numbers[-1]
            for _ in range(3):
                await router.ask(request("GET"))
            assert numbers[2:] == [last] * 3
            assert router.worker.connections == 2

    run(main)


def test_client_and_connection_go_on_after_every_kind_of_answer() -> None:
    async def main() -> None:
        answers = [
            response(200, body=b"a"),
            response(200, "Transfer-Encoding: chunked") + chunked(b"b") + LAST_CHUNK,
            response(204),
            response(404, body=b"c"),
            response(200),
        ]
        async with routed(answering(*answers)) as router:
            client = await router.client()
            bodies = [(await client.ask(request("POST", body=b"x"))).body for _ in answers]
            assert bodies == [b"a", b"b", b"", b"c", b""]
            assert router.worker.connections == 1

    run(main)
