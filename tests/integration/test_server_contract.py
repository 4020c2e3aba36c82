"""What `router.server` relies on inside hypercorn, h11 and wsproto.

hypercorn is pinned because these are not its public interface. When a new version fails here, read
what changed before moving the pin.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import h11
import hypercorn
import pytest
import trio
from hypercorn.config import Config
from hypercorn.protocol import events, ws_stream
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr
from wsproto.connection import Connection, ConnectionType
from wsproto.connection import ConnectionState as FrameState
from wsproto.events import CloseConnection, TextMessage
from wsproto.frame_protocol import CloseReason

from router.server.websocket import CloseTap, WebsocketStream

STREAM = 1


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_version_is_the_one_that_was_read() -> None:
    assert hypercorn.__name__ == "hypercorn"
    assert version("hypercorn").startswith("0.18.")


def test_the_settings_that_we_set_exist() -> None:
    config = Config()
    for name in (
        "accesslog",
        "errorlog",
        "websocket_max_message_size",
        "websocket_ping_interval",
    ):
        assert hasattr(config, name)
    assert config.websocket_ping_interval is None
    assert config.server_names == []


def test_addresses_are_pairs() -> None:
    import socket

    assert parse_socket_addr(socket.AF_INET, ("127.0.0.1", 1)) == ("127.0.0.1", 1)
    assert parse_socket_addr(socket.AF_INET6, ("::1", 1, 0, 0)) == ("::1", 1)
    assert parse_socket_addr(socket.AF_UNIX, ("",)) is None


# WSStream.


class Recorder:
    """A task group and a protocol for a stock `WSStream`."""

    def __init__(self) -> None:
        self.spawned: list[Any] = []
        self.put: list[Any] = []
        self.sent: list[events.Event] = []

    async def spawn_app(self, app: Any, config: Any, scope: Any, send: Any) -> Any:
        self.spawned = [app, config, scope, send]

        async def put(message: Any) -> None:
            self.put.append(message)

        return put

    async def send(self, event: events.Event) -> None:
        self.sent.append(event)


def stock_stream(recorder: Recorder, limit: int = 100) -> ws_stream.WSStream:
    config = Config()
    config.accesslog = config.errorlog = None
    config.websocket_max_message_size = limit
    return ws_stream.WSStream(
        "app", config, WorkerContext(None), recorder, False, None, None, recorder.send, STREAM  # type: ignore[arg-type]
    )  # fmt: skip


def offer(**replaced: bytes) -> events.Request:
    headers = {
        "connection": b"Upgrade",
        "upgrade": b"websocket",
        "sec_websocket_version": b"13",
        "sec_websocket_key": b"dGhlIHNhbXBsZSBub25jZQ==",
    } | replaced
    return events.Request(
        stream_id=STREAM,
        headers=[(name.replace("_", "-").encode(), value) for name, value in headers.items()],
        http_version="1.1",
        method="GET",
        raw_path=b"/a?b",
        state={},  # type: ignore[arg-type]
    )


def test_the_stream_starts_the_app_through_its_task_group() -> None:
    async def main() -> None:
        recorder = Recorder()
        stream = stock_stream(recorder)
        assert stream.closed is False
        await stream.handle(offer())
        app, config, scope, send = recorder.spawned
        assert app == "app"
        assert config is stream.config
        assert send == stream.app_send  # so that our override of it is what the app gets
        assert isinstance(scope["extensions"], dict)
        assert recorder.put == [{"type": "websocket.connect"}]
        assert stream.state is ws_stream.ASGIWebsocketState.HANDSHAKE
        assert stream.handshake.accepted is False

    trio.run(main)


def test_a_bad_handshake_closes_the_stream_without_an_app() -> None:
    async def main() -> None:
        recorder = Recorder()
        stream = stock_stream(recorder)
        await stream.handle(offer(sec_websocket_version=b"7"))
        assert stream.closed is True
        assert recorder.spawned == []
        assert [type(event) for event in recorder.sent] == [events.Response, events.EndBody]

    trio.run(main)


def test_data_before_the_handshake_closes_the_stream() -> None:
    async def main() -> None:
        stream = stock_stream(Recorder())
        await stream.handle(offer())
        await stream.handle(events.Data(STREAM, b"x"))
        assert stream.closed is True
        assert stream.handshake.accepted is False

    trio.run(main)


async def accepted(recorder: Recorder, limit: int = 100) -> ws_stream.WSStream:
    stream = stock_stream(recorder, limit)
    await stream.handle(offer())
    await stream.app_send({"type": "websocket.accept", "subprotocol": None, "headers": []})
    assert stream.handshake.accepted is True
    assert isinstance(stream.connection, Connection)
    return stream


def test_a_tapped_connection_is_used_for_everything() -> None:
    async def main() -> None:
        from router.front.client import ClientLink
        from router.front.record import ExchangeRecord

        recorder = Recorder()
        stream = await accepted(recorder)
        link = ClientLink(None, ExchangeRecord("", "", ""), b"")  # type: ignore[arg-type]
        stream.connection = CloseTap(stream.connection, link)  # type: ignore[assignment]
        client = Connection(ConnectionType.CLIENT)
        await stream.handle(events.Data(STREAM, client.send(TextMessage(data="hello"))))
        assert recorder.put[-1] == {"type": "websocket.receive", "bytes": None, "text": "hello"}
        close = client.send(CloseConnection(code=4000, reason="why"))
        await stream.handle(events.Data(STREAM, close))
        assert (link.close_code, link.close_reason) == (4000, "why")
        assert [type(event) for event in recorder.sent] == [
            events.Response,
            events.Data,  # the answer to the close frame
            events.StreamClosed,
        ]

    trio.run(main)


def test_a_closed_stream_ignores_both_sides() -> None:
    async def main() -> None:
        recorder = Recorder()
        stream = await accepted(recorder)
        recorder.sent.clear()
        stream.closed = True
        await stream.app_send({"type": "websocket.send", "text": "x", "bytes": None})
        await stream.app_send(None)
        await stream.handle(events.Data(STREAM, b"x"))
        assert recorder.sent == []

    trio.run(main)


def test_the_end_of_the_app_closes_the_stream() -> None:
    async def main() -> None:
        recorder = Recorder()
        stream = await accepted(recorder)
        await stream.app_send(None)
        assert [type(event) for event in recorder.sent] == [
            events.Response,
            events.Data,
            events.StreamClosed,
        ]

    trio.run(main)


def test_too_big_a_message_leaves_the_stream_open_but_the_connection_closing() -> None:
    async def main() -> None:
        stream = await accepted(Recorder(), limit=3)
        client = Connection(ConnectionType.CLIENT)
        await stream.handle(events.Data(STREAM, client.send(TextMessage(data="1234"))))
        assert stream.closed is False
        assert stream.state is ws_stream.ASGIWebsocketState.CONNECTED
        assert stream.connection.state is FrameState.LOCAL_CLOSING

    trio.run(main)


def test_our_stream_overrides_what_exists() -> None:
    ours = {name for name in vars(WebsocketStream) if not name.startswith("__")}
    assert ours & set(dir(ws_stream.WSStream)) == {"_send_error_response"}
    assert parameters(ws_stream.WSStream._send_error_response) == ["self", "status_code"]
    assert parameters(ws_stream.WSStream.app_send) == ["self", "message"]
    assert parameters(ws_stream.WSStream._send_wsproto_event) == ["self", "event"]


# h11 and wsproto.


def test_h11_passes_large_bodies_through() -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    while connection.next_event() is not h11.NEED_DATA and connection.their_state is not h11.DONE:
        pass
    connection.send(h11.Response(status_code=200, headers=[]))
    body = b"x" * 1000
    parts = connection.send_with_data_passthrough(h11.Data(data=body))
    assert parts is not None
    assert any(part is body for part in parts)


def test_h11_checks_a_response_before_it_changes_state() -> None:
    with pytest.raises(h11.LocalProtocolError):
        h11.Response(status_code=200, headers=[(b"x", b"a\r\nb: c")])


def test_h11_says_whether_the_body_is_invited() -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.next_event()
    assert connection.they_are_waiting_for_100_continue
    connection.send(h11.InformationalResponse(status_code=100, headers=[]))
    assert not connection.they_are_waiting_for_100_continue


def test_wsproto_reports_what_it_cannot_parse_as_a_close_while_open() -> None:
    server = Connection(ConnectionType.SERVER)
    server.receive_data(b"\xff\xff\xff\xff\xff\xff")
    (event,) = server.events()
    assert isinstance(event, CloseConnection)
    assert event.code == CloseReason.PROTOCOL_ERROR
    assert server.state is FrameState.OPEN
