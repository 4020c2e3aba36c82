"""What the end of an idle connection is worth, and how one is opened."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from router.control.identity import Evidence, challenge, open_idle, wait_closed
from router.net.addresses import Addresses
from router.net.trust import Trust


def ended(evidence: Evidence, lasted: float, *, proven: bool = True) -> bool:
    """One more end for nothing; whether it made a suspect."""
    counted = evidence.ended(lasted)
    taken = evidence.take()
    assert taken == lasted
    evidence.was_vain(lasted, proven=proven)
    return counted


def test_ends_that_mean_nothing_are_believed_three_times() -> None:
    evidence = Evidence()
    assert [ended(evidence, lasted) for lasted in (60, 7, 40, 60, 3)] == [True] * 3 + [False] * 2


def test_an_end_that_was_true_begins_the_count_anew() -> None:
    evidence = Evidence()
    ended(evidence, 60)
    ended(evidence, 60)
    evidence.was_true()
    assert [ended(evidence, 60) for _ in range(4)] == [True, True, True, False]


def test_it_is_evidence_again_once_one_lasts_much_longer() -> None:
    evidence = Evidence()
    for lasted in (60, 62, 61):
        ended(evidence, lasted)
    assert not ended(evidence, 120)
    assert not evidence.ended(121)  # twice the 120
    assert evidence.ended(241)
    assert evidence.counts


def test_brief_ones_are_outlasted_by_a_second() -> None:
    evidence = Evidence()
    for _ in range(3):
        ended(evidence, 0.01)
    assert not evidence.ended(0.9)
    assert evidence.ended(1.1)


@pytest.mark.parametrize(
    ("lasted", "believed"),
    [
        ([60, 60, 60, 60], [True, True, True, False]),
        ([60, 64, 59, 60], [True, True, True, False]),
        ([0.1, 0.5, 0.2, 0.4], [True, True, True, False]),
        ([60, 30, 60, 600, 20, 60], [True] * 6),
        ([30, 60, 60, 60, 60], [True, True, True, True, False]),
    ],
)
def test_without_proof_only_regular_ends_mean_nothing(
    lasted: list[float], believed: list[bool]
) -> None:
    evidence = Evidence()
    assert [ended(evidence, seconds, proven=False) for seconds in lasted] == believed


def test_an_irregular_end_without_proof_does_not_bring_the_evidence_back() -> None:
    evidence = Evidence()
    for lasted in (60, 60, 60):
        ended(evidence, lasted)
    ended(evidence, 5, proven=False)
    assert not evidence.counts


def test_an_end_is_explained_once() -> None:
    evidence = Evidence()
    assert evidence.take() is None
    evidence.ended(5)
    assert (evidence.take(), evidence.take()) == (5, None)


def test_the_kernel_finds_out_about_a_peer_that_is_gone_without_a_word() -> None:
    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        with listener:
            stream = await open_idle(
                f"http://127.0.0.1:{listener.getsockname()[1]}", Addresses(), Trust()
            )
            assert isinstance(stream, trio.SocketStream)
            assert stream.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            if hasattr(socket, "TCP_KEEPIDLE"):
                assert keepalive(stream) == (10, 5, 120)
                await challenge(stream)
                assert keepalive(stream) == (10, 5, 120)
            accepted, _ = listener.accept()
            accepted.close()
            assert await wait_closed(stream) == "its idle connection was closed"
            await challenge(stream)  # nothing is left to ask, which is no error

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def keepalive(stream: trio.SocketStream) -> tuple[int | bytes, ...]:
    names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    return tuple(stream.getsockopt(socket.IPPROTO_TCP, name) for name in names)


def test_nobody_listens() -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert await open_idle(f"http://127.0.0.1:{port}", Addresses(), Trust()) is None

    trio.run(main)


def test_a_port_that_does_not_speak_tls() -> None:
    async def main() -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")

        async def blurt(stream: trio.SocketStream) -> None:
            await stream.send_all(b"220 smtp.example ESMTP\r\n")
            await stream.aclose()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, blurt, listeners)
            port = listeners[0].socket.getsockname()[1]
            assert await open_idle(f"https://127.0.0.1:{port}", Addresses(), Trust()) is None
            nursery.cancel_scope.cancel()

    trio.run(main)
