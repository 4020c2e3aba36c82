"""Our server over TLS: as over plain sockets, and what only TLS brings."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from router.server import ServerLimits, Tls, open_listeners, serve
from router.settings import load_certificate
from tests.certificates import Certificate, certificate, needed
from tests.integration import serving as rig
from tests.integration import (
    test_server,
    test_server_cut_off,
    test_server_leaving,
    test_server_limits,
    test_server_stop,
    test_server_websocket,
)
from tests.integration.serving import echo, request, run, run_by_hand, serving, settle
from tests.patience import fail_after

pytestmark = needed

# What these tests say of plain sockets holds for TLS, too.
_SAME = {
    test_server: (
        "test_bodies_come_and_go_unchanged",
        "test_one_connection_serves_any_number_of_requests",
    ),
    test_server_cut_off: ("test_the_address_of_the_client_is_known",),
    test_server_leaving: (
        "test_a_half_closed_client_gets_what_is_still_sent",
        "test_waiting_for_a_body_ends_when_the_client_leaves",
        "test_leaving_is_noticed_by_sending_if_the_body_is_held_back",
    ),
    test_server_limits: (
        "test_an_unread_body_is_held_back",
        "test_pipelined_bytes_are_held_back",
        "test_a_slow_reader_slows_the_app",
        "test_an_early_answer_gets_through_and_the_connection_lives_on",
        "test_an_upload_is_drained_only_so_far",
        "test_an_idle_connection_is_closed",
    ),
    test_server_stop: (
        "test_stopping_closes_idle_connections_and_finishes_the_rest",
        "test_a_request_that_arrives_with_the_stop_is_answered",
        "test_a_half_sent_head_does_not_hold_the_stop",
    ),
    test_server_websocket: (
        "test_messages_go_both_ways_unchanged_and_in_order",
        "test_messages_are_held_back_while_the_app_does_not_read",
        "test_the_clients_close_code_is_kept",
        "test_a_slow_reader_slows_the_app",
    ),
}
for _module, _names in _SAME.items():
    for _name in _names:
        _found = getattr(_module, _name)
        globals()[_name if _name not in globals() else f"{_name}_of_a_websocket"] = _found


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1,DNS:test")


@pytest.fixture(autouse=True)
def over_tls(right: Certificate) -> Iterator[None]:
    """All of `serving` uses TLS."""
    server = load_certificate(str(right.file), str(right.key), None).context
    client = right.client()
    client.check_hostname = False
    rig.secure.append((server, client))
    yield
    rig.secure.clear()


async def plain(served: rig.Served) -> rig.Client:
    client = rig.Client(await trio.open_tcp_stream(*served.address))
    served.clients.append(client)
    return client


def test_a_client_without_tls_is_told_so_in_plain_text() -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await plain(served)
            await client.send(request("POST", "/", body=b"x" * 100_000))
            said = await client.read_all()
            assert said.startswith(b"HTTP/1.1 400 ")
            assert b'"tls_required"' in said
            assert (await (await served.connect()).get())[0] == 200

    run(main)


def test_a_peer_that_is_silent_or_slow_is_given_up_and_holds_up_nobody() -> None:
    async def main(clock: object) -> None:
        async with serving(echo, handshake=10) as served:
            silent, slow = await plain(served), await plain(served)
            await slow.send(b"\x16\x03\x01\x02")  # the beginning of a handshake
            await settle()
            assert (await (await served.connect()).get())[0] == 200
            await settle()
            clock.jump(11)  # type: ignore[attr-defined]
            with fail_after(20):
                assert await silent.read() == await slow.read() == b""

    run_by_hand(main)


def test_garbage_in_place_of_a_handshake_gets_an_alert(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(echo) as served:
            client = await plain(served)
            await client.send(b"\x16\x03\x01\x00\x05garbage")
            assert (await client.read_all())[:1] == b"\x15"

    with caplog.at_level(logging.INFO, "router.server"):
        run(main)
    assert any("TLS handshake with 127.0.0.1 failed" in each.message for each in caplog.records)


@pytest.mark.parametrize("end", ["broken", "farewell"])
def test_an_end_that_comes_together_with_data_is_noticed(end: str) -> None:
    received: list[object] = []
    left = trio.Event()

    async def app(scope: rig.Scope, receive: rig.Receive, send: rig.Send) -> None:
        while "http.disconnect" not in received:
            received.append((await receive())["type"])
        left.set()

    async def main() -> None:
        async with serving(app) as served:
            client = await served.connect()
            client.push(request("POST", "/", "Content-Length: 10") + b"abc")
            broken = b"\x17\x03\x03\x00\x20" + b"x" * 32
            last = broken if end == "broken" else client.stream.farewell()
            os.write(client.stream.fileno(), last)
            with fail_after(20):
                await left.wait()

    run(main)


def test_only_clients_with_a_certificate_get_in(right: Certificate, tmp_path: Path) -> None:
    of_a_client = certificate(tmp_path, "DNS:client")
    mutual = load_certificate(str(right.file), str(right.key), str(of_a_client.file))
    rig.secure[0] = (mutual.context, rig.secure[0][1])

    async def main() -> None:
        async with serving(echo) as served:
            # With TLS 1.3 a client hears of its refusal only when it reads.
            client = await served.connect()
            await client.send(request("POST", "/", body=b"x" * 100_000))
            with pytest.raises(ssl.SSLError, match=r"(?i)certificate required"):
                await client.read()
            known = right.client(of_a_client)
            known.check_hostname = False
            rig.secure[0] = (mutual.context, known)
            assert (await (await served.connect()).get())[0] == 200
            stranger = right.client(right)
            stranger.check_hostname = False
            rig.secure[0] = (mutual.context, stranger)
            with pytest.raises(ssl.SSLError, match=r"(?i)unknown ca"):
                await (await served.connect()).read()

    run(main)


def test_the_protocol_is_negotiated_and_named_to_the_app() -> None:
    schemes: list[str] = []

    async def app(scope: rig.Scope, receive: rig.Receive, send: rig.Send) -> None:
        schemes.append(scope["scheme"])
        await echo(scope, receive, send)

    async def main() -> None:
        rig.secure[0][1].set_alpn_protocols(["h2", "http/1.1"])
        async with serving(app) as served:
            client = await served.connect()
            assert client.stream._tls.selected_alpn_protocol() == "http/1.1"
            await client.get()
        assert schemes == ["https"]

    run(main)


def test_another_certificate_is_for_new_connections_only(
    right: Certificate, tmp_path: Path
) -> None:
    other = certificate(tmp_path, "IP:127.0.0.1")

    async def main() -> None:
        listeners, stop = open_listeners("127.0.0.1", 0), trio.Event()
        tls = Tls(right.server())
        async with trio.open_nursery() as nursery:
            running = {"limits": ServerLimits(), "stop": stop, "tls": tls}
            await nursery.start(lambda **task: serve(echo, listeners, **running, **task))
            served = rig.Served(listeners[0].getsockname(), stop, trio.Event())
            before = await served.connect()
            tls.context = other.server()
            rig.secure[0] = (tls.context, other.client())
            rig.secure[0][1].check_hostname = False
            assert (await (await served.connect()).get())[0] == 200
            assert (await before.get())[0] == 200
            for client in served.clients:
                client.stream.socket.close()
            stop.set()

    run(main)
