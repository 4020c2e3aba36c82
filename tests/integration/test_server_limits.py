"""Clients that stall or send too much: back-pressure, early answers, deadlines."""

from __future__ import annotations

import contextlib
import errno
import socket

import pytest
import trio
import trio.testing

from router.front.asgi import Receive, Scope, Send, link_of
from router.server import ServerLimits, _Server
from tests.integration.serving import (
    echo,
    flood,
    read_body,
    request,
    respond,
    run,
    run_by_hand,
    serving,
    settle,
    start,
)

MIB = 1024 * 1024


def test_a_lack_of_file_descriptors_is_told_once_a_second(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Connections wait in the kernel meanwhile; an error that is no such lack concerns one."""

    class Exhausted:
        def __init__(self, readable: socket.socket) -> None:
            self.fileno = readable.fileno
            self.left = 35

        def accept(self) -> None:
            self.left -= 1
            raise OSError(errno.EMFILE if self.left else errno.EBADF, "too many open files")

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.send(b"x")
            async with trio.open_nursery() as nursery:
                server = _Server(echo, ServerLimits(), nursery, lambda _: None)
                with pytest.raises(OSError, match="open files"):
                    await server.accept(Exhausted(ours))  # type: ignore[arg-type]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(caplog.records) == 4  # in 3.4 s


# Bounded reading.


def test_an_unread_body_is_held_back() -> None:
    go_on = trio.Event()
    sent = bytes(range(256)) * 256 * 1024  # 64 MiB

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        ahead = 0
        with trio.CancelScope() as scope_of_what_is_there:
            scope_of_what_is_there.cancel()  # so that waiting for more ends the loop
            while True:
                ahead += len((await receive())["body"])
        assert 0 < ahead <= 640 * 1024
        body_rest = await read_body(receive)
        await respond(send, b"%d" % (ahead + len(body_rest)))

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", f"Content-Length: {len(sent)}"))
            taken = await flood(client, sent, len(sent))
            assert taken < 24 * MIB  # what the kernel's buffers hold
            go_on.set()
            await client.send(sent[taken:])
            assert (await client.answer())[2] == b"%d" % len(sent)

    run(main)


def test_pipelined_bytes_are_held_back() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await echo(scope, receive, send)

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            one = request("GET", "/" + "x" * 8000)
            taken = await flood(client, one * 4096, len(one) * 4096)
            assert taken < 24 * MIB
            go_on.set()
            count = taken // len(one)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, one[taken % len(one) :])
                for _ in range(count + 1):
                    assert (await client.answer())[0] == 200

    run(main)


def test_tiny_chunks_are_joined() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        pieces = 0
        while True:
            message = await receive()
            pieces += 1
            if not message["more_body"]:
                break
        await respond(send, b"%d" % pieces)

    go_on = trio.Event()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Transfer-Encoding: chunked"))
            await client.send(b"1\r\na\r\n" * 20_000 + b"0\r\n\r\n")
            await settle()
            go_on.set()
            assert int((await client.answer())[2]) <= 4

    run(main)


def test_a_slow_reader_slows_the_app() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await start(send, headers=[(b"content-length", b"%d" % (64 * MIB))])
        for number in range(64):
            await send({"type": "http.response.body", "body": b"x" * MIB, "more_body": number < 63})
            sent += 1

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await settle()
            assert sent < 16
            assert len((await client.answer())[2]) == 64 * MIB
            assert sent == 64

    run(main)


# Early answers.


def early(status: int = 413) -> object:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/early":
            await respond(send, b"no", status=status)
        else:
            await echo(scope, receive, send)

    return app


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_an_early_answer_gets_through_and_the_connection_lives_on(framing: str) -> None:
    body = b"x" * (8 * MIB)
    if framing == "length":
        sent = request("POST", "/early", body=body)
    else:
        head = request("POST", "/early", "Transfer-Encoding: chunked")
        sent = head + (b"%x\r\n" % len(body)) + body + b"\r\n0\r\n\r\n"

    async def main() -> None:
        async with serving(early()) as served:  # type: ignore[arg-type]
            client = await served.connect()
            # A client that reads nothing before all is sent.
            await client.send(sent + request("GET", "/next"))
            assert (await client.answer())[::2] == (413, b"no")
            assert (await client.answer())[2] == b"GET /next "

    run(main)


def test_the_rest_of_an_upload_is_no_request() -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(early()) as served:  # type: ignore[arg-type]
            client = await served.connect()
            await client.send(request("POST", "/early", "Content-Length: 6") + b"a")
            assert (await client.answer())[0] == 413
            for piece in (b"\r\n", b"b", b"\r\n"):
                await client.send(piece)
                await settle()
            clock.jump(70)  # no request has begun: it is idle, and no deadline of a head runs
            await settle()
            assert (await client.get("/next"))[2] == b"GET /next "

    run_by_hand(main)


@pytest.mark.parametrize("last", ["Connection: close", "X: y"])
def test_an_early_answer_to_the_last_request_of_a_connection(last: str) -> None:
    version = "1.1" if "close" in last else "1.0"

    async def main() -> None:
        async with serving(early()) as served:  # type: ignore[arg-type]
            client = await served.connect()
            body = b"x" * (8 * MIB)
            await client.send(request("POST", "/early", last, body=body, version=version))
            assert (await client.answer())[::2] == (413, b"no")
            assert await client.read() == b""

    run(main)


def test_an_upload_is_drained_only_so_far() -> None:
    async def main() -> None:
        async with serving(early(), linger_bytes=MIB) as served:  # type: ignore[arg-type]
            client = await served.connect()
            await client.send(request("POST", "/early", f"Content-Length: {1024 * MIB}"))
            assert (await client.answer())[0] == 413
            with pytest.raises(trio.BrokenResourceError):
                await client.send(b"x" * (64 * MIB))

    run(main)


def test_an_upload_is_drained_only_so_long() -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(early()) as served:  # type: ignore[arg-type]
            client = await served.connect()
            await client.send(request("POST", "/early", "Content-Length: 10") + b"abc")
            assert (await client.answer())[0] == 413
            clock.jump(29)
            await client.send(b"d")
            await settle()
            clock.jump(2)
            assert await client.read() == b""

    run_by_hand(main)


# Deadlines.


def test_an_idle_connection_is_closed() -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(echo) as served:
            fresh, used = await served.connect(), await served.connect()
            clock.jump(70)
            await used.get()
            await settle()
            clock.jump(6)
            assert await fresh.read() == b""
            assert (await used.get())[0] == 200
            await settle()
            clock.jump(74)
            assert (await used.get())[0] == 200
            await settle()
            clock.jump(76)
            assert await used.read() == b""

    run_by_hand(main)


def test_a_request_that_arrives_at_the_last_moment_is_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await settle()
        if not link_of(scope).gone:
            await echo(scope, receive, send)

    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(app) as served:
            client = await served.connect()
            await settle()
            client.push(request("GET", "/last"))
            clock.jump(75)
            assert (await client.answer())[2] == b"GET /last "

    run_by_hand(main)


def test_a_request_at_work_is_not_idle() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive)
        await go_on.wait()
        await respond(send, b"done")

    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", body=b"x"))
            await settle()
            clock.jump(100_000)
            await settle()
            go_on.set()
            assert (await client.answer())[2] == b"done"

    run_by_hand(main)


@pytest.mark.parametrize("before", [b"", request("GET", "/")])
def test_a_head_that_does_not_end_is_408(before: bytes) -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(echo) as served:
            client = await served.connect()
            await client.send(before + b"GET / HTTP/1.1\r\n")
            if before:
                assert (await client.answer())[0] == 200
            await settle()
            clock.jump(40)
            await client.send(b"Host: a\r\n")  # a drip does not extend it
            await settle()
            clock.jump(21)
            assert (await client.answer())[0] == 408
            assert await client.read() == b""

    run_by_hand(main)


@pytest.mark.parametrize("answers", [True, False])
def test_a_body_that_stalls(answers: bool) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"abc"
        assert (await receive())["body"] == b"d"
        assert (await receive())["type"] == "http.disconnect"
        assert link_of(scope).gone
        assert link_of(scope).reason == "body_timeout"
        if answers:
            await respond(send, b"too slow", status=408)

    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Content-Length: 10") + b"abc")
            await settle()
            clock.jump(299)
            await client.send(b"d")
            await settle()
            clock.jump(299)
            await settle()
            clock.jump(2)
            status, _, body = await client.answer()
            assert status == 408
            assert (body == b"too slow") if answers else (b'"client_timeout"' in body)
            assert await client.read() == b""

    run_by_hand(main)


def test_a_reader_that_stalls_is_given_up() -> None:
    reasons: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        with trio.move_on_after(1):  # cancelling does not end a send: half of it is on its way
            await send({"type": "http.response.body", "body": b"x" * 64 * MIB, "more_body": True})
        reasons.append(link_of(scope).reason)

    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await settle()
            for _ in range(3):  # slow, but it reads
                clock.jump(59)
                for _ in range(8):
                    await client.read(64 * 1024)
                    await settle()
            assert reasons == []
            clock.jump(61)
            await settle()
            assert reasons == ["send_timeout"]
            with pytest.raises(trio.BrokenResourceError):
                await client.read_all()

    run_by_hand(main)


# Connections.


def test_surplus_connections_are_told_so_and_the_rest_is_served() -> None:
    async def main() -> None:
        async with serving(echo, connections=2) as served:
            first, second = await served.connect(), await served.connect()
            assert (await first.get())[0] == 200
            third = await served.connect()
            status, headers, body = await third.answer()
            assert (status, b'"too_many_connections"' in body) == (503, True)
            assert (b"retry-after", b"1") in headers
            assert await third.read() == b""
            assert (await second.get())[0] == 200
            first.stream.socket.close()
            third.stream.socket.close()
            await settle()
            assert (await (await served.connect()).get())[0] == 200

    run(main)


def test_far_too_many_connections_are_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server._SURPLUS", 1)

    async def main() -> None:
        async with serving(echo, connections=1) as served:
            first = await served.connect()
            assert (await first.get())[0] == 200
            assert (await (await served.connect()).answer())[0] == 503
            with contextlib.suppress(OSError):  # reset before or after the client knows
                await (await served.connect()).expect_end()
            assert (await first.get())[0] == 200

    run(main)
