"""Answers that break off, and what the app may do to a connection: never a silent truncation."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

import h11
import pytest
import trio

from router.front.asgi import Receive, Scope, Send, link_of
from tests.integration.serving import (
    Client,
    request,
    respond,
    run,
    serving,
    start,
)


async def chunked_then_nothing(send: Send) -> None:
    await start(send)
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})


async def length_then_nothing(send: Send) -> None:
    await start(send, headers=[(b"content-length", b"5")])
    await send({"type": "http.response.body", "body": b"abc", "more_body": True})


async def length_then_too_soon_an_end(send: Send) -> None:
    await start(send, headers=[(b"content-length", b"5")])
    await send({"type": "http.response.body", "body": b"abc"})


async def chunked_then_crash(send: Send) -> None:
    await chunked_then_nothing(send)
    raise ValueError("crash")


async def only_a_promise(send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "router.more": True})


@pytest.mark.parametrize(
    "answer",
    [
        chunked_then_nothing,
        length_then_nothing,
        length_then_too_soon_an_end,
        chunked_then_crash,
        only_a_promise,
    ],
)
def test_a_cut_off_answer_is_never_complete(answer: Callable[[Send], object]) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send)  # type: ignore[misc]

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            with pytest.raises(
                h11.RemoteProtocolError, match=r"incomplete|without sending complete"
            ):
                await client.answer()

    run(main)


def test_a_cut_off_answer_without_framing_is_a_reset() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await go_on.wait()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/", version="1.0"))
            data = b""
            while b"abc" not in data:
                data += await client.read()
            go_on.set()
            with pytest.raises(trio.BrokenResourceError):
                await client.read()

    run(main)


def test_http_1_0_ends_by_close() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["http_version"] == "1.0"
        await start(send)
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"def"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/", version="1.0"))
            head, _, body = (await client.read_all()).partition(b"\r\n\r\n")
            assert body == b"abcdef"
            assert b"chunked" not in head

    run(main)


def test_too_long_a_body_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, headers=[(b"content-length", b"2")])
        await send({"type": "http.response.body", "body": b"abc"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            with pytest.raises(h11.RemoteProtocolError):
                await client.answer()

    run(main)
    assert "Too much data" in caplog.text


def test_a_crash_before_the_answer_is_500(caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/crash":
            raise ValueError("the crash")
        if scope["path"] == "/group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise ValueError("the other crash")
        if scope["path"] == "/ok":
            await respond(send, b"ok")

    names: list[str] = []

    async def main() -> None:
        async with serving(app) as served:
            for path in ("/crash", "/group", "/nothing"):
                status, headers, body = await (await served.connect()).get(path)
                told = json.loads(body)
                assert (status, told["code"]) == (500, "internal_error")
                assert (b"x-request-id", told["request_id"].encode()) in headers
                assert (b"connection", b"close") in headers
                names.append(told["request_id"])
            assert (await (await served.connect()).get("/ok"))[2] == b"ok"

    run(main)
    assert "the crash" in caplog.text
    assert "the other crash" in caplog.text
    assert [record.request_id for record in caplog.records] == names  # type: ignore[attr-defined]
    assert [bool(record.exc_info) for record in caplog.records] == [True, True, False]
    assert {record.name for record in caplog.records} == {"router.boundary", "router.server"}


@pytest.mark.parametrize(
    "header", [(b"x-bad", b"a\r\nSet-Cookie: b"), (b"x bad", b"a"), (b"content-length", b"a")]
)
def test_an_impossible_header_becomes_500(
    header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/ok":
            await respond(send, b"ok")
            return
        await start(send, headers=[header])
        await send({"type": "http.response.body", "body": b"abc", "more_body": True})
        await send({"type": "http.response.body", "body": b"def"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            status, _, body = await client.get("/bad")
            assert (status, json.loads(body)["code"]) == (500, "internal_error")
            assert (await client.get("/ok"))[2] == b"ok"

    run(main)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "/bad" in record.message
    assert record.exc_info is None


def test_close_after_ends_the_connection_cleanly() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        link_of(scope).close_after()
        await respond(send, b"bye")

    async def main() -> None:
        async with serving(app) as served:
            client: Client = await served.connect()
            _, headers, body = await client.get()
            assert body == b"bye"
            assert (b"connection", b"close") in headers
            assert await client.read() == b""

    run(main)


def test_the_address_of_the_client_is_known() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["client"] == link_of(scope).peer
        await respond(send, str(scope["client"][1]).encode())

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            port = client.stream.socket.getsockname()[1]
            assert (await client.get())[2] == str(port).encode()

    run(main)
