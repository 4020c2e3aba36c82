"""Answers that say more than their status: failures, gateways that gave up, streams."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio

from router.pool.worker import HoldKind, Worker
from tests.integration.relay.harness import (
    Peer,
    Routed,
    Script,
    ScriptedWorker,
    listen,
    routed,
    run,
    until,
)
from tests.integration.relay.wire import LAST_CHUNK, chunked, request, response

IMAGE = request("POST", "/v1/images/generations", body=b'{"prompt": "p"}')
VIDEO = request("POST", "/v1/videos", body=b'{"prompt": "p"}')
EVENTS = response(
    200, "Content-Type: text/event-stream; charset=utf-8", "Transfer-Encoding: chunked"
)


def record(router: Routed) -> Worker:
    [worker] = router.running.parts.registry
    return worker


def closing_after_failures(failures: Sequence[int]) -> Script:
    """Ends a connection after a 500 without saying so, once the next request is on its way."""

    async def script(peer: Peer) -> None:
        failed = False
        while True:
            message = await peer.request()
            if failed:
                return
            failed = int(message.body) in failures
            await peer.send(response(500 if failed else 200, body=b"x"))

    return script


def test_no_connection_is_used_again_that_answered_with_a_failure() -> None:
    async def main() -> None:
        failures = range(0, 120, 6)
        async with routed(closing_after_failures(failures)) as router:
            answers = [
                await router.ask(request("POST", "/v1/images/generations", body=b"%d" % number))
                for number in range(120)
            ]
            assert [answer.status for answer in answers] == [
                500 if number in failures else 200 for number in range(120)
            ]

    run(main)


BOTH = ("T2I", "T2V")


def gateway(status: int) -> Script:
    """A proxy that gives up on its worker."""

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(response(status, "X-Should-Retry: true", body=b"gave up"))

    return script


@pytest.mark.parametrize("status", [502, 504])
@pytest.mark.parametrize("asking", [IMAGE, VIDEO], ids=["image", "video"])
def test_a_gateway_that_gave_up_leaves_a_ghost(
    status: int, asking: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.control.follow._AGAIN", 0.01)

    async def main() -> None:
        barriers: list[int] = []
        done = False

        def barrier() -> bytes:
            barriers.append(200 if done else status)
            return response(barriers[-1], body=b"{}")

        behind = ScriptedWorker(gateway(status), await listen(), task_types=BOTH, barrier=barrier)
        async with routed(behind) as router:
            answer = await router.ask(asking)
            assert (answer.status, answer.all("x-should-retry")) == (status, [b"false"])
            worker = record(router)
            assert worker.ghosts == 1
            # The same gateway gives up on the barrier too: that does not say that work has ended.
            await until(lambda: len(barriers) >= 2, "a second barrier")
            assert worker.ghosts == 1
            done = True
            await until(lambda: not worker.holds, "the end of the ghost")

    run(main)


def test_a_gateway_that_gave_up_on_a_read_leaves_no_ghost() -> None:
    async def main() -> None:
        async with routed(gateway(504)) as router:
            answer = await router.ask(request("GET", "/v1/something"))
            assert (answer.status, answer.all("x-should-retry")) == (504, [b"true"])
            assert not record(router).holds

    run(main)


@pytest.mark.parametrize("status", [400, 422, 500, 503])
def test_a_failed_answer_holds_no_slot(status: int) -> None:
    """Not even while the client has not read it to the end."""

    async def main() -> None:
        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(response(status, "Transfer-Encoding: chunked") + chunked(b"why"))
            await trio.sleep_forever()

        worker = ScriptedWorker(script, await listen(), task_types=BOTH)
        async with routed(worker) as router:
            for asking in (IMAGE, VIDEO):
                client = await router.client()
                await client.send(asking)
                assert (await client.head()).status == status
                assert not record(router).holds
                client.close()
            await until(lambda: not router.active, "the end of both")
            assert not record(router).holds

    run(main)


def streaming(more: trio.Event) -> Script:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(EVENTS + chunked(b"data: 1\n\n"))
        await more.wait()
        await peer.send(chunked(b"data: [DONE]\n\n") + LAST_CHUNK)

    return script


def test_a_stream_of_events_holds_its_slot_to_the_last_byte() -> None:
    async def main() -> None:
        more = trio.Event()
        async with routed(streaming(more)) as router:
            client = await router.client()
            await client.send(IMAGE)
            message = await client.head()
            assert message.status == 200
            assert [hold.kind for hold in record(router).holds] == [HoldKind.GENERATION]
            more.set()
            await client.body(message, length=None)
            assert message.body.endswith(b"data: [DONE]\n\n")
            assert not record(router).holds

    run(main)


def test_a_client_that_leaves_a_stream_of_events_leaves_a_ghost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("router.control.follow._AGAIN", 0.01)

    async def main() -> None:
        done = False

        def barrier() -> bytes:
            return response(200 if done else 504, body=b"{}")

        worker = ScriptedWorker(streaming(trio.Event()), await listen(), barrier=barrier)
        async with routed(worker) as router:
            client = await router.client()
            await client.send(IMAGE)
            await client.head()
            client.close()
            await until(lambda: record(router).ghosts == 1, "a ghost")
            done = True
            await until(lambda: not record(router).holds, "the end of the ghost")

    run(main)
