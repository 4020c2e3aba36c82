"""Workers behind TLS: certificates are checked, and an end without a farewell is a cut-off."""

from __future__ import annotations

import pytest

from router.errors import WorkerFailed
from router.relay.forward import CutOff
from tests.certificates import Certificate, certificate, needed
from tests.integration.relay.harness import Peer, answering, run, until
from tests.integration.relay.rig import FakeExchange, cancelled_at, living, rigged
from tests.integration.relay.wire import pattern, response

pytestmark = needed


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "IP:127.0.0.1")


@pytest.fixture(scope="module")
def of_another(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return certificate(tmp_path_factory.mktemp("tls"), "DNS:elsewhere.test")


@pytest.fixture
def trusted(right: Certificate, monkeypatch: pytest.MonkeyPatch) -> Certificate:
    """The certificate, which the system trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(right.file))
    return right


def test_an_exchange_over_tls(trusted: Certificate) -> None:
    async def main() -> None:
        body = pattern(1_000_000)
        async with rigged(answering(response(body=body)), tls=trusted.server()) as rig:
            for _ in range(2):
                exchange = FakeExchange(pieces=[body[:900], body[900:]])
                await rig.exchange(exchange)
                assert (exchange.body, exchange.over) == (body, True)
            assert rig.worker.connections == 1

    run(main)


def test_a_certificate_that_is_not_trusted_is_refused(right: Certificate) -> None:
    async def main() -> None:
        async with rigged(answering(response()), tls=right.server()) as rig:
            with pytest.raises(WorkerFailed, match="certificate verification failed") as caught:
                await rig.exchange(FakeExchange())
            assert caught.value.code == "connect_failed"

    run(main)


def test_a_certificate_of_another_is_refused(
    of_another: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(of_another.file))

    async def main() -> None:
        async with rigged(answering(response()), tls=of_another.server()) as rig:
            with pytest.raises(WorkerFailed, match=r"not valid for '127\.0\.0\.1'"):
                await rig.exchange(FakeExchange())
            assert rig.worker.connections == 0

    run(main)


@pytest.mark.parametrize("farewell", [True, False])
def test_an_answer_without_length_is_whole_only_if_tls_was_closed(
    trusted: Certificate, farewell: bool
) -> None:
    """RFC 9112 section 9.8: anyone on the way could have ended the connection below TLS."""

    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(b"HTTP/1.1 200 OK\r\n\r\nabc")
            if farewell:
                await peer.stream.aclose()

        async with rigged(script, tls=trusted.server()) as rig:
            exchange = FakeExchange()
            if farewell:
                await rig.exchange(exchange)
                assert (exchange.body, exchange.over) == (b"abc", True)
            else:
                with pytest.raises(CutOff):
                    await rig.exchange(exchange)
                assert not exchange.over

    run(main)


def test_bytes_that_wait_behind_an_answer_end_the_connection(trusted: Certificate) -> None:
    """They lie decrypted in our own memory, where the socket does not show them."""

    async def main() -> None:
        async def script(peer: Peer) -> None:
            while True:
                await peer.request()
                body = pattern(100_000)
                await peer.send(response(200, "Content-Length: 99990", body=body))

        async with rigged(script, tls=trusted.server()) as rig:
            for _ in range(2):
                exchange = FakeExchange()
                await rig.exchange(exchange)
                assert exchange.body == pattern(99_990)
            await until(lambda: rig.worker.connections == 2, "a connection of its own")

    run(main)


def test_nothing_is_left_wherever_it_is_cancelled(trusted: Certificate) -> None:
    async def main() -> None:
        async with rigged(answering(response(body=b"ok")), tls=trusted.server()) as rig:
            tasks = living()
            step = 1
            while await cancelled_at(rig, step, FakeExchange()):
                await rig.nothing_left(tasks)
                step += 1
            assert step > 10

    run(main)
