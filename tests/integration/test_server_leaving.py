"""How our server notices that a client has left."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router.front.asgi import Receive, Scope, Send, link_of
from router.server.link import READ_AHEAD
from tests.integration.serving import (
    flood,
    request,
    respond,
    run,
    serving,
    settle,
    start,
)

MIB = 1024 * 1024


async def until_gone(scope: Scope) -> str | None:
    """Wait for the link's callback."""
    gone = trio.Event()
    link_of(scope).on_gone(gone.set)
    await gone.wait()
    return link_of(scope).reason


@pytest.mark.parametrize("how", ["eof", "reset"])
@pytest.mark.parametrize(
    "sent",
    [
        request("GET", "/"),
        request("POST", "/", body=b"unread"),
        request("POST", "/", "Content-Length: 10"),
        request("GET", "/") + request("GET", "/next"),
        request("GET", "/") + b"stray bytes",
        request("GET", "/", "Connection: close") + b"stray bytes",
    ],
    ids=["get", "unread", "begun", "pipelined", "stray", "stray-last"],
)
def test_a_leaving_client_is_noticed(how: str, sent: bytes) -> None:
    reasons: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["path"] == "/"
        arrived.set()
        reasons.append(await until_gone(scope))
        assert link_of(scope).gone
        assert await receive() == {"type": "http.disconnect"}
        assert await receive() == {"type": "http.disconnect"}

    arrived = trio.Event()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(sent)
            await arrived.wait()
            await settle()
            if how == "eof":
                client.stream.socket.close()
            else:
                client.reset()
        assert reasons == [how]

    run(main)


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_a_client_that_leaves_while_its_body_is_held_back_is_noticed(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.server.connection.GLANCE", 0.1)
    gone: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        gone.append(await until_gone(scope))

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            # A little more than is read ahead: the rest waits in the kernel.
            body = bytes(READ_AHEAD + 80 * 1024)
            await client.send(request("POST", "/", f"Content-Length: {64 * MIB}") + body)
            await settle()
            assert not gone
            if how == "eof":
                await client.stream.aclose()
            else:
                client.reset()
        assert gone == [how]

    run(main)


def test_waiting_for_a_body_ends_when_the_client_leaves() -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"abc"
        assert (await receive())["type"] == "http.disconnect"
        ended.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Content-Length: 10") + b"abc")
            await settle()
            await client.stream.aclose()
            await ended.wait()

    run(main)


def test_a_half_closed_client_gets_what_is_still_sent() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        await respond(send, b"for whoever is still there")

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await client.stream.send_eof()
            assert (await client.answer())[2] == b"for whoever is still there"
            assert await client.read() == b""

    run(main)


def test_leaving_is_noticed_by_sending_if_the_body_is_held_back() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        gone = trio.Event()
        link_of(scope).on_gone(gone.set)
        await start(send)
        while not gone.is_set():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await settle()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", f"Content-Length: {64 * MIB}"))
            await flood(client, bytes(64 * MIB), 64 * MIB)
            client.reset()

    run(main)


def test_on_gone_is_called_once_and_only_while_the_exchange_lasts() -> None:
    calls: list[str] = []
    finished = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        link = link_of(scope)
        if scope["path"] == "/complete":
            link.on_gone(lambda: calls.append("complete"))
            await respond(send)
            return
        link.on_gone(lambda: calls.append("replaced"))
        link.on_gone(lambda: calls.append("removed"))
        link.on_gone(None)
        if scope["path"] == "/removed":
            await respond(send)
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
            link.on_gone(lambda: calls.append("late"))
            finished.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.get("/complete")
            await client.get("/removed")
            await client.send(request("GET", "/late"))
            await settle()
            await client.stream.aclose()
            await finished.wait()
        assert calls == ["late"]

    run(main)


def test_a_crash_in_the_task_of_a_connection_ends_that_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        def crash() -> None:
            raise ZeroDivisionError

        if scope["path"] == "/ok":
            await respond(send, b"ok")
            return
        link_of(scope).on_gone(crash)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.request"
        assert (await receive())["type"] == "http.disconnect"

    async def main() -> None:
        async with serving(app) as served:
            other = await served.connect()
            assert (await other.get("/ok"))[2] == b"ok"
            client = await served.connect()
            await client.send(request("GET", "/", "X-Request-Id: the-one"))
            await client.read()
            client.reset()
            await settle()
            assert (await other.get("/ok"))[2] == b"ok"

    run(main)
    (record,) = caplog.records
    assert record.exc_info
    assert record.request_id == "the-one"  # type: ignore[attr-defined]


def test_a_crash_before_the_app_of_a_websocket_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"ok")

    def crash(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("router.server.websocket.vetted", crash)

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/", "Connection: Upgrade", "Upgrade: websocket"))
            await client.expect_end()
            assert (await (await served.connect()).get())[2] == b"ok"
            served.stop.set()
            with trio.fail_after(20):
                await served.done.wait()

    run(main)


def test_sends_to_a_client_that_left_are_dropped_and_yield() -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        while not link_of(scope).gone:
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
        with trio.move_on_after(0.05):
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        ended.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await client.read()
            client.reset()
            await ended.wait()

    run(main)


def test_abort_resets_this_exchange_only() -> None:
    links = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        links.append(link_of(scope))
        if scope["path"] == "/abort":
            links[0].abort()  # of an exchange that is complete: nothing happens
            assert not links[0].gone
            await start(send)
            await send({"type": "http.response.body", "body": b"abc", "more_body": True})
            link_of(scope).abort()
            assert link_of(scope).gone
            await send({"type": "http.response.body", "body": b"abc"})
        else:
            await respond(send)

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.get("/")
            await client.send(request("GET", "/abort"))
            with pytest.raises(trio.BrokenResourceError):
                await client.read_all()

    run(main)
