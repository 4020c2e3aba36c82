"""The graceful stop of our server."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from router.front.asgi import Receive, Scope, Send, link_of
from router.server import ServerLimits, open_listeners, serve
from tests.integration.serving import (
    Client,
    Served,
    echo,
    request,
    respond,
    run,
    serving,
    settle,
    start,
)
from tests.patience import fail_after

MIB = 1024 * 1024


async def ended(served: Served) -> None:
    with fail_after(5):
        await served.done.wait()


def test_stopping_closes_idle_connections_and_finishes_the_rest() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            await go_on.wait()
        await respond(send, b"done")

    async def main() -> None:
        async with serving(app) as served:
            idle, fresh, busy = [await served.connect() for _ in range(3)]
            await idle.get()
            await busy.send(request("GET", "/slow"))
            await settle()
            served.stop.set()
            assert await idle.read() == b""
            assert await fresh.read() == b""
            with pytest.raises(OSError, match=r"."):
                await served.connect()
            assert not served.done.is_set()
            go_on.set()
            _, headers, body = await busy.answer()
            assert body == b"done"
            assert (b"connection", b"close") in headers
            assert await busy.read() == b""
            busy.stream.socket.close()
            await ended(served)

    run(main)


def test_a_response_begun_before_the_stop_is_finished() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"def"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/") + request("GET", "/not-any-more"))
            await settle()
            served.stop.set()
            await settle()
            go_on.set()
            assert (await client.answer())[2] == b"abcdef"
            assert await client.read() == b""

    run(main)


def test_a_request_that_arrives_with_the_stop_is_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await settle()
        if not link_of(scope).gone:
            await echo(scope, receive, send)

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.get()
            await settle()
            client.push(request("GET", "/last"))
            served.stop.set()
            assert (await client.answer())[2] == b"GET /last "

    run(main)


@pytest.mark.parametrize("when", ["before", "with"])
def test_a_half_sent_head_does_not_hold_the_stop(when: str) -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            await settle()
            client.push(b"GET / HT")
            if when == "before":
                await settle()
            served.stop.set()
            await ended(served)

    run(main)


def test_a_stuck_client_cannot_outlive_the_stop() -> None:
    reasons: list[str | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        link_of(scope).on_gone(lambda: reasons.append(link_of(scope).reason))
        await send({"type": "http.response.body", "body": b"x" * 64 * MIB, "more_body": True})

    async def main() -> None:
        async with serving(app, shutdown=0.05) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await settle()
            served.stop.set()
            await ended(served)
            assert reasons == ["shutdown"]
            with pytest.raises(trio.BrokenResourceError):
                await client.read_all()

    run(main)


def test_an_app_that_does_not_end_is_cancelled_at_last() -> None:
    cancelled = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def main() -> None:
        async with serving(app, shutdown=0.05) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            await settle()
            served.stop.set()
            await ended(served)
            assert cancelled.is_set()

    run(main)


def test_work_after_the_answer_is_waited_for() -> None:
    finished = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)
        await go_on.wait()
        finished.set()

    go_on = trio.Event()

    async def main() -> None:
        async with serving(app) as served:
            await (await served.connect()).get()
            served.stop.set()
            await settle()
            assert not served.done.is_set()
            go_on.set()
            await ended(served)
            assert finished.is_set()

    run(main)


def test_cancelling_the_server_leaves_nothing_behind() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"x" * 64 * MIB})

    async def main() -> None:
        listeners = open_listeners("127.0.0.1", 0)
        address = listeners[0].getsockname()
        async with trio.open_nursery() as nursery:

            async def run_server(task_status: trio.TaskStatus[None]) -> None:
                limits = ServerLimits()
                stop = trio.Event()
                await serve(app, listeners, limits=limits, stop=stop, task_status=task_status)

            await nursery.start(run_server)
            stuck = Client(await trio.open_tcp_stream(*address))
            idle = Client(await trio.open_tcp_stream(*address))
            await stuck.send(request("GET", "/"))
            await settle()
            nursery.cancel_scope.cancel()
        assert await idle.read() == b""
        with pytest.raises(trio.BrokenResourceError):
            await stuck.read_all()
        assert listeners[0].fileno() == -1
        for client in (stuck, idle):
            await client.stream.aclose()

    run(main)
