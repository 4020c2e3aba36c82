"""HTTP exchanges of our server, seen from raw clients on the loopback."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections.abc import Callable

import h11
import pytest
import trio

from router.errors import StartError
from router.server import Receive, Scope, Send, open_listeners
from tests.integration.serving import (
    Client,
    echo,
    link_of,
    read_body,
    request,
    respond,
    run,
    serving,
    start,
)

# Listeners.


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(StartError, match=rf"^Port {port} on 127.0.0.1 is already in use"):
            open_listeners("127.0.0.1", port)


@pytest.mark.parametrize(
    ("host", "port", "sentence"),
    [
        ("x" * 64 + ".invalid", 0, "no address of that name"),
        ("192.0.2.1", 0, "not an address of this machine"),
        ("127.0.0.1", 70000, "not between 0 and 65535"),
    ],
)
def test_an_impossible_address_is_explained(host: str, port: int, sentence: str) -> None:
    with pytest.raises(StartError, match=sentence):
        open_listeners(host, port)


def test_a_privileged_port_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind(self: socket.socket, address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(StartError, match="No permission to listen on port 80"):
        open_listeners("127.0.0.1", 80)


def test_all_addresses_of_a_name_get_the_same_port() -> None:
    listeners = open_listeners("localhost", 0)
    try:
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


def test_the_ipv6_wildcard_takes_ipv4_too() -> None:
    try:
        (listener,) = open_listeners("::", 0)
    except StartError:
        pytest.skip("no IPv6 here")
    with listener, socket.create_connection(("127.0.0.1", listener.getsockname()[1])):
        pass


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


def test_a_malformed_chunk_is_refused_and_the_app_told() -> None:
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


# Never a silent truncation.


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

    async def main() -> None:
        async with serving(app) as served:
            for path in ("/crash", "/group", "/nothing"):
                assert (await (await served.connect()).get(path))[::2] == (500, b"")
            assert (await (await served.connect()).get("/ok"))[2] == b"ok"

    run(main)
    assert "the crash" in caplog.text
    assert "the other crash" in caplog.text
    assert {record.name for record in caplog.records} == {"router.server"}


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
            assert (await client.get("/bad"))[::2] == (500, b"")
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
