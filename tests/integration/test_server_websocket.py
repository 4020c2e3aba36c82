"""WebSockets of our server, seen from a wsproto client on the loopback."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing
from attrs import Factory, define
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Message,
    Ping,
    Pong,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import CloseReason

from router.front.asgi import Receive, Scope, Send, link_of
from tests.integration.serving import (
    Client,
    Served,
    request,
    respond,
    run,
    run_by_hand,
    serving,
    settle,
)
from tests.patience import fail_after

MIB = 1024 * 1024
# wsproto sends 1005 as an empty close frame only if it is given by name.
CLOSE_CODES = {1005: CloseReason.NO_STATUS_RCVD}


@define
class WsClient:
    raw: Client
    connection: WSConnection
    events: list[Event] = Factory(list)

    async def send(self, event: Event) -> None:
        await self.raw.send(self.connection.send(event))

    async def next(self) -> Event:
        """The next event; messages are joined. CloseConnection 1006 at the end of the stream."""
        joined: list[str | bytes] = []
        while True:
            for event in self.connection.events():
                self.events.append(event)
            while self.events:
                event = self.events.pop(0)
                if not isinstance(event, Message):
                    return event
                joined.append(event.data)
                if event.message_finished:
                    kind = type(event)
                    return kind(data=event.data[:0].join(joined))
            self.connection.receive_data(await self.raw.read() or None)


async def dial(
    served: Served,
    *,
    path: str = "/",
    subprotocols: Sequence[str] = (),
    extensions: Sequence[Extension] = (),
) -> WsClient:
    """Offer a WebSocket; the answer is the next event."""
    client = WsClient(await served.connect(), WSConnection(ConnectionType.CLIENT))
    await client.send(
        Request(
            host="test", target=path, subprotocols=list(subprotocols), extensions=list(extensions)
        )
    )
    return client


async def open_websocket(served: Served, path: str = "/") -> WsClient:
    client = await dial(served, path=path)
    assert isinstance(await client.next(), AcceptConnection)
    return client


async def accept(receive: Receive, send: Send, **extra: object) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept", **extra})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Sends every message back, until the client leaves."""
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({**message, "type": "websocket.send"})


@pytest.mark.parametrize("offered", [[], [PerMessageDeflate]], ids=["plain", "deflate"])
def test_messages_go_both_ways_unchanged_and_in_order(offered: list[type[Extension]]) -> None:
    messages: list[str | bytes] = ["a", b"b", "", b"", "grün " * 5000, bytes(range(256)) * 4096]

    async def main() -> None:
        async with serving(echo) as served:
            client = await dial(served, extensions=[extension() for extension in offered])
            assert isinstance(await client.next(), AcceptConnection)
            for message in messages:
                kind = TextMessage if isinstance(message, str) else BytesMessage
                await client.send(kind(data=message))  # type: ignore[arg-type]
            for message in messages:
                event = await client.next()
                assert isinstance(event, Message)
                assert event.data == message

    run(main)


def test_fragments_arrive_joined() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await open_websocket(served)
            await client.send(TextMessage(data="a", message_finished=False))
            await client.send(Ping(payload=b"between"))
            await client.send(TextMessage(data="b"))
            assert await client.next() == Pong(payload=b"between")
            assert await client.next() == TextMessage(data="ab")

    run(main)


def test_the_scope_of_a_websocket() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "websocket"
        assert scope["raw_path"] == b"/a%20b"
        assert scope["query_string"] == b"x=1"
        assert scope["subprotocols"] == ["one", "two"]
        assert link_of(scope).peer == scope["client"]
        await accept(receive, send, subprotocol="two", headers=[(b"x-a", b"b")])
        await receive()

    async def main() -> None:
        async with serving(app) as served:
            client = await dial(served, path="/a%20b?x=1", subprotocols=["one", "two"])
            event = await client.next()
            assert isinstance(event, AcceptConnection)
            assert event.subprotocol == "two"
            assert (b"x-a", b"b") in event.extra_headers

    run(main)


@pytest.mark.parametrize(("code", "reason"), [(1000, "bye"), (4321, "mine"), (1005, None)])
def test_the_clients_close_code_is_kept(code: int, reason: str | None) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await receive())["text"] == "last words"
        message = await receive()
        assert message["type"] == "websocket.disconnect"
        assert await receive() == message
        link = link_of(scope)
        assert link.gone
        seen.append((message["code"], message["reason"], link.close_code, link.close_reason))

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            await client.send(TextMessage(data="last words"))
            await client.send(CloseConnection(code=CLOSE_CODES.get(code, code), reason=reason))
            event = await client.next()
            assert isinstance(event, CloseConnection)
            assert event.code == code
            assert await client.raw.read() == b""
        assert seen == [(code, reason, code, reason)]

    run(main)


def test_the_apps_close_code_arrives() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 1012, "reason": "weights change"})

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            event = await client.next()
            assert isinstance(event, CloseConnection)
            assert (event.code, event.reason) == (1012, "weights change")
            await client.send(event.response())  # the socket is still there for it
            assert await client.raw.read() == b""

    run(main)


def test_an_app_that_returns_or_crashes_closes_with_1011() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        if scope["path"] == "/crash":
            raise ValueError("crash")

    async def main() -> None:
        async with serving(app) as served:
            for path in ("/return", "/crash"):
                event = await (await open_websocket(served, path)).next()
                assert isinstance(event, CloseConnection)
                assert event.code == 1011

    run(main)


def test_a_refusal_is_an_http_response() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/x"), (b"content-length", b"7")]
        await send({"type": "websocket.http.response.start", "status": 503, "headers": headers})
        await send({"type": "websocket.http.response.body", "body": b"not", "more_body": True})
        await send({"type": "websocket.http.response.body", "body": b" now"})

    async def main() -> None:
        async with serving(app) as served:
            client = await dial(served)
            event = await client.next()
            assert isinstance(event, RejectConnection)
            assert event.status_code == 503
            assert (b"content-type", b"text/x") in event.headers
            assert (b"connection", b"close") in event.headers
            data = b""
            while isinstance(event := await client.next(), RejectData):
                data += event.data
                if event.body_finished:
                    break
            assert data == b"not now"
            assert await client.raw.read() == b""

    run(main)


@pytest.mark.parametrize(("how", "status"), [("close", 403), ("return", 500)])
def test_not_accepting_is_an_http_status(how: str, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        if how == "close":
            await send({"type": "websocket.close"})

    async def main() -> None:
        async with serving(app) as served:
            client = await dial(served)
            event = await client.next()
            assert isinstance(event, RejectConnection)
            assert event.status_code == status

    run(main)


def test_a_wrong_handshake_is_400_and_closed() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await served.connect()
            status, _, _ = await client.get("/", "Connection: Upgrade", "Upgrade: websocket")
            assert status == 400
            assert await client.read() == b""

    run(main)


def test_data_before_the_handshake_is_400_and_the_app_told() -> None:
    told = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["type"] == "websocket.connect"
        assert (await receive())["type"] == "websocket.disconnect"
        await send({"type": "websocket.accept"})
        told.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await dial(served)
            await client.raw.send(b"too early")
            event = await client.next()
            assert isinstance(event, RejectConnection)
            assert event.status_code == 400
            await told.wait()

    run(main)


def test_a_websocket_may_follow_a_request() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await respond(send)
        else:
            await echo(scope, receive, send)

    async def main() -> None:
        async with serving(app) as served:
            raw = await served.connect()
            client = WsClient(raw, WSConnection(ConnectionType.CLIENT))
            offer = client.connection.send(Request(host="test", target="/"))
            await raw.send(request("GET", "/") + offer)
            assert (await raw.answer())[0] == 200
            assert isinstance(await client.next(), AcceptConnection)
            await client.send(TextMessage(data="hello"))
            assert await client.next() == TextMessage(data="hello")

    run(main)


def test_a_message_that_is_too_big_ends_the_websocket() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        seen.append((await receive())["code"])

    async def main() -> None:
        async with serving(app, websocket_message=1000) as served:
            client = await open_websocket(served)
            await client.send(BytesMessage(data=b"x" * 1001, message_finished=False))
            event = await client.next()
            assert isinstance(event, CloseConnection)
            assert event.code == 1009
            await settle()
            assert seen == [1009]
            # What follows is thrown away, not collected.
            await client.raw.send(b"x" * MIB)
            assert await client.raw.read() == b""

    run(main)


def test_a_message_of_exactly_the_limit_passes() -> None:
    async def main() -> None:
        async with serving(echo, websocket_message=1000) as served:
            client = await open_websocket(served)
            await client.send(BytesMessage(data=b"x" * 1000))
            assert await client.next() == BytesMessage(data=b"x" * 1000)

    run(main)


def test_frames_that_cannot_be_parsed_end_the_websocket() -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await receive())["type"] == "websocket.disconnect"
        ended.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            await client.raw.send(b"\xff\xff\xff\xff\xff\xff")
            event = await client.next()
            assert isinstance(event, CloseConnection)
            assert event.code == 1002
            await ended.wait()

    run(main)


@pytest.mark.parametrize("how", ["eof", "reset"])
def test_a_client_that_vanishes_is_noticed(how: str) -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        link = link_of(scope)
        link.on_gone(lambda: seen.append(link.reason))
        await accept(receive, send)
        message = await receive()
        seen.append((message["type"], message["code"], link.close_code))
        await send({"type": "websocket.send", "text": "to nobody"})

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            await settle()
            if how == "eof":
                client.raw.stream.socket.close()
            else:
                client.raw.reset()
        assert seen == [how, ("websocket.disconnect", 1006, None)]

    run(main)


def test_sends_after_the_end_yield() -> None:
    ended = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await receive()
        with trio.move_on_after(0.05):
            while True:
                await send({"type": "websocket.send", "text": "to nobody"})
        ended.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            client.raw.reset()
            await ended.wait()

    run(main)


def test_messages_are_held_back_while_the_app_does_not_read() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await go_on.wait()
        ahead = 0
        with trio.CancelScope() as what_is_there:
            what_is_there.cancel()
            while True:
                ahead += len((await receive())["bytes"])
        assert 0 < ahead <= 640 * 1024
        while (message := await receive())["type"] == "websocket.receive":
            ahead += len(message["bytes"])
        totals.append(ahead)

    totals: list[int] = []

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            sent = 0
            with trio.move_on_after(0.3):
                while True:
                    data = client.connection.send(BytesMessage(data=b"x" * 50_000))
                    sent += 1
                    await client.raw.send(data)
            assert sent * 50_000 < 24 * MIB
            go_on.set()
            client.raw.stream.socket.close()
        assert totals == [(sent - 1) * 50_000]  # all but the one that was not complete

    run(main)


def test_empty_messages_are_held_back_too() -> None:
    go_on = trio.Event()
    counts: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await go_on.wait()
        count = 0
        with trio.CancelScope() as what_is_there:
            what_is_there.cancel()
            while True:
                await receive()
                count += 1
        counts.append(count)

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            frame = client.connection.send(BytesMessage(data=b""))
            await client.raw.send(frame * 10_000)
            await settle()
            go_on.set()
            assert isinstance(await client.next(), CloseConnection)
        assert 0 < counts[0] < 2000

    run(main)


def test_an_app_that_returns_with_unread_messages_ends_the_websocket() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await go_on.wait()

    go_on = trio.Event()

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            for _ in range(7):
                await client.send(BytesMessage(data=b"x" * 50_000))
            await settle()
            go_on.set()
            event = await client.next()
            assert isinstance(event, CloseConnection)
            assert event.code == 1011
            assert await client.raw.read() == b""

    run(main)


def test_a_slow_reader_slows_the_app() -> None:
    sent = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal sent
        await accept(receive, send)
        for _ in range(64):
            await send({"type": "websocket.send", "bytes": b"x" * MIB})
            sent += 1
        await send({"type": "websocket.close"})

    async def main() -> None:
        async with serving(app) as served:
            client = await open_websocket(served)
            await settle()
            assert sent < 16
            for _ in range(64):
                event = await client.next()
                assert isinstance(event, BytesMessage)
                assert len(event.data) == MIB
            assert isinstance(await client.next(), CloseConnection)

    run(main)


def test_a_silent_websocket_is_not_idle() -> None:
    async def main(clock: trio.testing.MockClock) -> None:
        async with serving(echo) as served:
            client = await open_websocket(served)
            await settle()
            clock.jump(100_000)
            await client.send(TextMessage(data="still here"))
            assert await client.next() == TextMessage(data="still here")

    run_by_hand(main)


def test_a_websocket_that_does_not_end_is_reset_by_the_stop() -> None:
    async def main() -> None:
        async with serving(echo, shutdown=0.05) as served:
            client = await open_websocket(served)
            served.stop.set()
            with fail_after(5):
                await served.done.wait()
            with pytest.raises(trio.BrokenResourceError):
                await client.raw.read_all()

    run(main)


def test_a_websocket_may_be_aborted() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        link_of(scope).abort()
        assert (await receive())["type"] == "websocket.disconnect"

    async def main() -> None:
        async with serving(app) as served:
            client = await dial(served)
            with pytest.raises(trio.BrokenResourceError):
                await client.raw.read_all()

    run(main)
