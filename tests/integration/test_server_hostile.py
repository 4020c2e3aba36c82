"""Bytes that no client should send: the connection that they come over may end, nothing else."""

from __future__ import annotations

import json

import h11
import pytest
import trio
import trio.testing
from wsproto.events import AcceptConnection, TextMessage

from router.front.asgi import Receive, Scope, Send
from tests.integration.serving import Client, Served, read_body, request, respond, run, serving
from tests.integration.test_server_websocket import WsClient, dial
from tests.integration.test_server_websocket import echo as ws_echo

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = ["Connection: Upgrade", "Upgrade: websocket", KEY, "Sec-WebSocket-Version: 13"]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await ws_echo(scope, receive, send)
    else:
        await respond(send, await read_body(receive))


async def still_serves(served: Served) -> None:
    assert (await (await served.connect()).get())[0] == 200


async def refusal(client: Client, method: str = "GET") -> tuple[int, bytes]:
    """Status and code of an error in the router's shape, after which the connection ends."""
    status, headers, body = await client.answer(method)
    fields = dict(headers)
    assert fields[b"content-type"] == b"application/json"
    assert len(fields[b"x-request-id"]) == 32
    await client.expect_end()
    if method == "HEAD":
        assert body == b""
        return status, b""
    told = json.loads(body)
    assert told["request_id"].encode() == fields[b"x-request-id"]
    assert "bytearray" not in told["error"]
    return status, told["code"].encode()


def handshake(*headers: str) -> bytes:
    return "\r\n".join(["GET / HTTP/1.1", "Host: x", *headers, "", ""]).encode("latin-1")


@pytest.mark.parametrize(
    "headers",
    [
        [*UPGRADE, "Sec-WebSocket-Protocol: \xff"],
        [*UPGRADE, "Sec-WebSocket-Protocol: a b"],
        [*UPGRADE, "Connection: \xff"],
        [*UPGRADE[:2], KEY + "\xff", UPGRADE[3]],
        UPGRADE[:3],
        UPGRADE[:2],
        [*UPGRADE, "Content-Length: 3"],
        [*UPGRADE, "Transfer-Encoding: chunked"],
    ],
)
def test_a_handshake_that_makes_no_sense_is_refused(
    headers: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(handshake(*headers))
            status, code = await refusal(client)
            assert (status, code) == (426 if headers == UPGRADE[:3] else 400, b"bad_request")
            await still_serves(served)

    run(main)
    (record,) = caplog.records
    assert record.exc_info is None


@pytest.mark.parametrize(
    ("offer", "agreed"),
    [
        ("\xe9", False),
        ("permessage-deflate; client_max_window_bits=abc", False),
        ("permessage-deflate; server_max_window_bits", False),
        ("permessage-deflate; client_max_window_bits=99999999999999999999", False),
        ("permessage-deflate; server_max_window_bits=10; server_max_window_bits=11", False),
        ("permessage-deflate; unheard_of", False),
        ("permessage-deflate; \xff, permessage-deflate", True),
        ("x-other, permessage-deflate; client_max_window_bits", True),
        (";;,=,\t,", False),
        ("permessage-deflate; server_max_window_bits=8", False),
    ],
)
def test_an_offer_of_an_extension_that_makes_no_sense_is_left_out(offer: str, agreed: bool) -> None:
    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(handshake(*UPGRADE, f"Sec-WebSocket-Extensions: {offer}"))
            head = await client.read()
            assert head.startswith(b"HTTP/1.1 101 ")
            assert (b"permessage-deflate" in head) is agreed
            await still_serves(served)

    run(main)


def test_fields_of_a_handshake_may_come_in_pieces() -> None:
    seen: list[list[str]] = []

    async def offered(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["subprotocols"])
        await send({"type": "websocket.accept", "subprotocol": "b"})

    async def main() -> None:
        async with serving(offered) as served:
            for protocols in (["a", "b"], [",,a,", " ,b,,"]):
                client = await served.connect()
                await client.send(
                    handshake(
                        "Connection: Upgrade",
                        "Connection: keep-alive",
                        *UPGRADE[1:],
                        *(f"Sec-WebSocket-Protocol: {name}" for name in protocols),
                    )
                )
                assert (await client.read()).startswith(b"HTTP/1.1 101 ")

    run(main)
    assert seen == [["a", "b"], ["a", "b"]]


def test_an_empty_list_of_subprotocols_offers_none() -> None:
    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(handshake(*UPGRADE, "Sec-WebSocket-Protocol: ,,,"))
            assert b"101" in await client.read()

    run(main)


def test_a_byte_after_a_refused_handshake_is_thrown_away(caplog: pytest.LogCaptureFixture) -> None:
    """Before the refusal is written, while it is, and after it."""
    begun, go_on = trio.Event(), trio.Event()

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-length", b"2")]
        await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"n", "more_body": True})
        begun.set()
        await go_on.wait()
        await send({"type": "websocket.http.response.body", "body": b"o"})

    async def main() -> None:
        async with serving(refuse) as served:
            client = await served.connect()
            await client.send(handshake(*UPGRADE))
            await begun.wait()
            await client.send(b"\x81")
            await trio.testing.wait_all_tasks_blocked(0.02)
            go_on.set()
            answer = await client.read_all()
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert answer.endswith(b"no")

    run(main)
    assert not caplog.records


def test_a_refusal_after_an_early_byte_was_answered_is_dropped() -> None:
    early = trio.Event()

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.http.response.start", "status": 403, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})
        early.set()

    async def main() -> None:
        async with serving(refuse) as served:
            client = await served.connect()
            await client.send(handshake(*UPGRADE) + b"\x81")
            assert await refusal(client) == (400, b"bad_request")
            await early.wait()

    run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HEAD / HTTP/2.0\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: a b\r\n\r\n",
    ],
)
def test_the_refusal_of_a_head_has_no_body(data: bytes) -> None:
    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(data)
            assert (await refusal(client, "HEAD"))[0] in (400, 505)
            await still_serves(served)

    run(main)


@pytest.mark.parametrize("crash", [True, False])
def test_a_head_whose_app_has_no_answer_is_told_so(crash: bool) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if crash:
            raise ValueError("crash")

    async def main() -> None:
        async with serving(broken) as served:
            client = await served.connect()
            await client.send(request("HEAD", "/"))
            assert (await refusal(client, "HEAD"))[0] == 500

    run(main)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"Host: a b", 400),
        (b"Host: a/b", 400),
        (b"Host: \xc3\xa9", 400),
        (b"Host: a:b", 400),
        (b"Host: x\r\nBad Header: 1", 400),
        (b"Host: x\r\n\xff\xfe: 1", 400),
        (b"Host: x\r\nContent-Length: 1, 2", 400),
        (b"Host: x\r\nTransfer-Encoding: gzip", 501),
        (b"Host: a\r\nHost: b", 400),
        (b"Host: a:80", 200),
        (b"Host: [::1]:80", 200),
        (b"Host:", 200),
        (b"Host: a_b.example.", 200),
    ],
)
def test_a_head_is_refused_in_our_shape_and_one_line(
    line: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(b"GET / HTTP/1.1\r\n" + line + b"\r\n\r\n")
            if status == 200:
                assert (await client.answer())[0] == 200
                return
            assert await refusal(client) == (status, b"bad_request")

    run(main)
    assert len(caplog.records) == (status != 200)
    assert "bytearray" not in caplog.text


def test_a_crash_of_a_websocket_before_its_answer_is_500() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/subprotocol":
            await send({"type": "websocket.accept", "subprotocol": "never offered"})
        if scope["path"] == "/header":
            headers = [(b"x", b"a\r\nb: c")]
            await send({"type": "websocket.accept", "headers": headers})
        raise ValueError("crash")

    async def main() -> None:
        async with serving(broken) as served:
            for path in ("/", "/subprotocol", "/header"):
                client = await served.connect()
                await client.send(handshake(*UPGRADE).replace(b"GET /", b"GET " + path.encode()))
                assert await refusal(client) == (500, b"internal_error")

    run(main)


def test_two_framings_end_the_connection() -> None:
    """RFC 9112 section 6.1: Transfer-Encoding counts, and nothing may follow."""

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            both = request("POST", "/", "Content-Length: 3", "Transfer-Encoding: chunked")
            await client.send(both + b"3\r\nabc\r\n0\r\n\r\n" + request("GET", "/smuggled"))
            status, headers, body = await client.answer()
            assert (status, body) == (200, b"abc")
            assert (b"connection", b"close") in headers
            await client.expect_end()

    run(main)


def test_answers_are_dated() -> None:
    async def dated(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/theirs":
            await respond(send, headers=[(b"Date", b"Thu, 01 Jan 1970 00:00:00 GMT")])
        await respond(send)

    async def main() -> None:
        async with serving(dated) as served:
            for head in (request("GET", "/"), b"nonsense\r\n\r\n", handshake(*UPGRADE[:3])):
                client = await served.connect()
                await client.send(head)
                assert (await client.read()).count(b"\r\ndate: ") == 1
            client = await served.connect()
            await client.send(request("GET", "/theirs"))
            assert (await client.read()).lower().count(b"\r\ndate: ") == 1

    run(main)


def test_a_websocket_still_works() -> None:
    async def main() -> None:
        async with serving(app) as served:
            client: WsClient = await dial(served, subprotocols=["a"])
            assert isinstance(await client.next(), AcceptConnection)
            await client.send(TextMessage(data="hello"))
            assert await client.next() == TextMessage(data="hello")

    run(main)


def test_h11_takes_no_body_for_a_head() -> None:
    """Why refusals of a HEAD have none."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.next_event()
    connection.send(h11.Response(status_code=400, headers=[("content-length", "2")]))
    with pytest.raises(h11.LocalProtocolError):
        connection.send(h11.Data(data=b"no"))
