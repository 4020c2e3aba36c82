"""HTTP exchanges of our server, seen from raw clients on the loopback."""

from __future__ import annotations

import hashlib

import pytest
import trio

from router.front.asgi import Receive, Scope, Send, link_of
from tests.integration.serving import (
    echo,
    read_body,
    request,
    respond,
    run,
    serving,
    settle,
    start,
)

# Heads and framing.


def test_one_connection_serves_any_number_of_requests() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            for number in range(1200):
                assert await client.get(f"/{number}") == (
                    200,
                    [(b"content-length", b"%d" % len(f"GET /{number} "))],
                    f"GET /{number} ".encode(),
                )

    run(main)


def test_headers_keep_their_order_and_duplicates() -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend(scope["headers"])
        await respond(
            send, b"", headers=[(b"X-One", b"1"), (b"set-COOKIE", b"a"), (b"X-one", b"2")]
        )

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            _, headers, _ = await client.get("/", "X-B: 1", "x-a: 2", "X-B: 3")
            assert headers == [
                (b"X-One", b"1"),
                (b"set-COOKIE", b"a"),
                (b"X-one", b"2"),
                (b"content-length", b"0"),
            ]
        assert seen == [(b"host", b"test"), (b"x-b", b"1"), (b"x-a", b"2"), (b"x-b", b"3")]

    run(main)


def test_both_framing_headers_reach_the_app() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        names = [name for name, _ in scope["headers"]]
        assert b"content-length" in names
        assert b"transfer-encoding" in names
        await respond(send, await read_body(receive))

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            head = request("POST", "/", "Content-Length: 99", "Transfer-Encoding: chunked")
            await client.send(head + b"3\r\nabc\r\n0\r\n\r\n")
            assert (await client.answer())[2] == b"abc"

    run(main)


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        ("/a%20b/c?x=1&y=%2F", "/a b/c", b"/a%20b/c", b"x=1&y=%2F"),
        ("http://some.host:1/a%2Fb?q", "/a/b", b"/a%2Fb", b"q"),
        ("http://some.host", "/", b"/", b""),
        ("http://some.host?q=http://other/", "/", b"/", b"q=http://other/"),
        ("/redirect?to=http://other/x", "/redirect", b"/redirect", b"to=http://other/x"),
        ("*", "*", b"*", b""),
    ],
)
def test_targets(target: str, path: str, raw_path: bytes, query: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (scope["path"], scope["raw_path"], scope["query_string"]) == (path, raw_path, query)
        await respond(send)

    async def main() -> None:
        async with serving(app) as served:
            assert (await (await served.connect()).get(target))[0] == 200

    run(main)


def test_bodies_come_and_go_unchanged() -> None:
    sent = bytes(range(256)) * 40_000  # 10 MB

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send)  # no length: chunked
        while True:
            message = await receive()
            more = message["more_body"]
            await send({"type": "http.response.body", "body": message["body"], "more_body": more})
            if not more:
                return

    async def main() -> None:
        async with serving(app) as served:
            for version in ("length", "chunked"):
                client = await served.connect()
                async with trio.open_nursery() as nursery:
                    if version == "length":
                        nursery.start_soon(client.send, request("POST", "/", body=sent))
                    else:
                        pieces = [sent[at : at + 77_777] for at in range(0, len(sent), 77_777)]
                        chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces)
                        head = request("POST", "/", "Transfer-Encoding: chunked")
                        nursery.start_soon(client.send, head + chunks + b"0\r\n\r\n")
                    _, headers, body = await client.answer()
                assert (b"Transfer-Encoding", b"chunked") in headers
                assert hashlib.sha256(body).digest() == hashlib.sha256(sent).digest()

    run(main)


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
def test_answers_without_a_body(method: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        length = [] if status == 204 else [(b"content-length", b"5")]
        await start(send, status, length)
        await send({"type": "http.response.body", "body": b"12345"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            for _ in range(2):
                await client.send(request(method, "/"))
                got, headers, body = await client.answer(method)
                assert (got, body) == (status, b"")
                assert len(headers) == (status != 204)

    run(main)


def test_pipelined_requests_are_answered_in_order() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            await client.send(
                b"".join(request("POST", f"/{n}", body=b"b" * n) for n in range(1, 200))
                + request("GET", "/last")
            )
            for number in range(1, 200):
                body = (await client.answer())[2]
                assert body == f"POST /{number} ".encode() + b"b" * number
            assert (await client.answer())[2] == b"GET /last "

    run(main)


def test_empty_lines_between_requests_are_ignored() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            await client.send(b"\r\n" + request("GET", "/a"))
            assert (await client.answer())[2] == b"GET /a "

    run(main)


def test_a_head_is_sent_before_its_body_is_known() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start(send, headers=[(b"content-length", b"1")])
        await receive()
        assert (await receive())["type"] == "http.disconnect"

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            assert (await client.read()).endswith(b"\r\n\r\n")
            await client.stream.aclose()

    run(main)


def test_a_promised_body_leaves_with_its_head() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "router.more": True})
        await trio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b"12345"})

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("GET", "/"))
            assert b"12345\r\n0\r\n\r\n" in await client.read()

    run(main)


# Offers and requests that no app sees.


def test_an_offer_of_h2c_is_ignored() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMA")
            for _ in range(2):
                assert (await client.get("/", *offer))[0] == 200

    run(main)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET live HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", 400),  # TLS
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 200_000, 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ],
)
def test_refused_by_the_server_itself(sent: bytes, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(sent)
            got, headers, body = await client.answer()
            assert got == status
            assert (b"connection", b"close") in headers
            assert b'"code": "bad_request"' in body
            await client.expect_end()

    run(main)


def test_a_malformed_chunk_is_refused_and_the_app_told(caplog: pytest.LogCaptureFixture) -> None:
    reasons: list[str | None] = []
    read = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"abc"
        read.set()
        assert (await receive())["type"] == "http.disconnect"
        reasons.append(link_of(scope).reason)
        await respond(send, b"nobody reads this")

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
            await read.wait()
            await client.send(b"zz\r\n")
            assert (await client.answer())[0] == 400
            assert await client.read_all() == b""
        assert reasons == ["protocol_error"]
        (record,) = caplog.records
        assert "400" in record.getMessage()

    run(main)


def test_a_large_head_is_taken() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            head = request("GET", "/", *(f"X-{n}: {'x' * 1000}" for n in range(60)))
            await client.send(head[:50_000])
            await settle()
            await client.send(head[50_000:])
            assert (await client.answer())[0] == 200

    run(main)


# Expect: 100-continue.


def test_the_body_is_invited_when_the_app_reads_it() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Expect: 100-continue", "Content-Length: 3"))
            assert (await client.read()).startswith(b"HTTP/1.1 100 ")
            await client.send(b"abc")
            assert (await client.answer())[2] == b"POST / abc"
            assert (await client.get("/next"))[0] == 200

    run(main)


def test_an_early_refusal_does_not_invite_the_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"too large", status=413)

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            await client.send(request("POST", "/", "Expect: 100-continue", "Content-Length: 3"))
            status, headers, _ = await client.answer()
            assert status == 413
            # Whether the client will still send its body is unknown: no further request here.
            assert (b"connection", b"close") in headers
            await client.expect_end()

    run(main)
