"""Groups that are split over scripted workers: answers in any order, odd ones, lost ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio

from router.errors import RouterError, WorkerFailed
from router.pool import events
from router.pool.worker import UNKNOWN_VERSION, Weights, Worker
from router.relay.forward import CutOff
from simulated_worker.msgpack import decode, encode
from tests.integration.relay.harness import Peer, Script, run, until
from tests.integration.relay.rig import FakeExchange, Rig, cancelled_at, living, rigged
from tests.integration.relay.wire import Message, response

KIND = "Content-Type: application/msgpack"


def group(count: int = 4, seed: int = 126) -> FakeExchange:
    content = {"prompt": "p", "seed": seed, "num_outputs_per_prompt": count, "rollout": False}
    path, body = "/rollout/generate", json.dumps(content).encode()
    exchange = FakeExchange(pieces=[body], path=path, target=path.encode())
    exchange.headers = [
        (b"content-length", b"%d" % len(body)),
        (b"x-split", b"true"),
        (b"accept-encoding", b"gzip"),
    ]
    return exchange


def samples(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """What a worker makes: its own seeds show only in the data."""
    seed, count = asked["seed"], asked["num_outputs_per_prompt"]
    return [{"seed": seed, "data": b"%d" % (seed + index)} for index in range(count)]


def whole(count: int = 4, seed: int = 126) -> bytes:
    return encode(samples({"seed": seed, "num_outputs_per_prompt": count}))


Answer = Callable[[list[dict[str, Any]]], bytes]


def good(made: list[dict[str, Any]]) -> bytes:
    return response(200, KIND, body=encode(made))


def making(
    answer: Answer = good, *, at: trio.Event | None = None, seen: list[Message] | None = None
) -> Script:
    """Answers each request with its samples, once `at` is set."""

    async def script(peer: Peer) -> None:
        while True:
            message = await peer.request()
            if seen is not None:
                seen.append(message)
            if at is not None:
                await at.wait()
            await peer.send(answer(samples(json.loads(message.body))))

    return script


async def set_after(event: trio.Event, seen: list[Message], count: int) -> None:
    await until(lambda: len(seen) == count, "the requests")
    event.set()


def test_parts_that_come_in_any_order_are_joined_in_theirs() -> None:
    async def main() -> None:
        seen: list[Message] = []
        late = trio.Event()
        async with rigged(making(at=late, seen=seen), making(seen=seen), making(seen=seen)) as rig:
            exchange = group(count=7)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.exchange, exchange)
                await until(lambda: sum(not w.holds for w in rig.registry) == 2, "two answers")
                assert not exchange.responded  # while a part may still fail
                late.set()
            assert (exchange.status, exchange.over) == (200, True)
            assert exchange.body == whole(7)
            assert all(message["accept-encoding"] == b"identity" for message in seen)
            assert all(message["x-split"] is None for message in seen)
            assert exchange.record.tries == 3
            await rig.nothing_left(living())

    run(main)


def test_a_part_that_a_worker_never_got_goes_to_another() -> None:
    async def main() -> None:
        async with rigged(making(), making()) as rig:
            rig.workers[0].refuse()
            exchange = group()
            await rig.exchange(exchange)
            assert exchange.body == whole()
            assert exchange.over
            assert exchange.record.tries == 3

    run(main)


@pytest.mark.parametrize("doubt", [False, True])
def test_parts_never_mix_weights(doubt: bool) -> None:
    """One worker never gets its part, and once the other is free its weights are others."""

    async def main() -> None:
        rigs: list[Rig] = []

        seen: list[int] = []

        def changed(made: list[dict[str, Any]]) -> bytes:
            seen.append(len(made))
            for worker in rigs[0].registry:
                rigs[0].registry.set_weights(worker, Weights.CURRENT, 2, newest=2)
            return good(made)

        async with rigged(making(changed), making(changed)) as rig:
            rigs.append(rig)
            for worker in rig.registry:
                rig.registry.set_weights(worker, Weights.CURRENT, 1, newest=1)
            granted: list[Worker] = []

            def replaced(event: events.LeaseGranted) -> None:
                granted.append(event.lease.worker)
                if len(granted) == 2:
                    rig.registry.reincarnate(granted[0], "another process")

            if doubt:
                rig.registry.subscribe(replaced, events.LeaseGranted)
            else:
                rig.workers[0].refuse()
            exchange = group()
            with pytest.raises(RouterError) as caught:
                await rig.exchange(exchange)
            assert caught.value.code == ("weight_version_passed" if doubt else "connect_failed")
            assert caught.value.details["retry_safe"] is False
            assert not doubt or caught.value.details["retryable"] is True
            assert not exchange.responded
            assert len(seen) == 1

    run(main)


def test_workers_with_other_weights_get_no_part() -> None:
    async def main() -> None:
        async with rigged(making(), making(), making()) as rig:
            rig.registry.set_weights(list(rig.registry)[1], Weights.CURRENT, 1)
            exchange = group()
            await rig.exchange(exchange)
            assert exchange.body == whole()
            assert [worker.connections for worker in rig.workers] in ([1, 0, 1], [0, 1, 0])

    run(main)


def test_workers_whose_weights_nobody_knows_share_no_group() -> None:
    async def main() -> None:
        async with rigged(making(), making()) as rig:
            for worker in rig.registry:
                rig.registry.set_weights(worker, Weights.CURRENT, UNKNOWN_VERSION)
            exchange = group()
            await rig.exchange(exchange)
            assert exchange.body == whole()
            assert sum(worker.connections for worker in rig.workers) == 1

    run(main)


ODD: dict[str, Answer] = {
    "too few": lambda made: good(made[1:]),
    "too many": lambda made: good([*made, made[0]]),
    "other seeds": lambda made: good([{**one, "seed": 9} for one in made]),
    "cut off": lambda made: good(made)[:-3],
    "no msgpack": lambda made: response(200, KIND, body=b"\xc1" * len(made)),
    "empty": lambda made: response(200, KIND, body=b"" * len(made)),
}


@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("answer", ODD.values(), ids=ODD)
def test_an_answer_that_breaks_off_never_looks_complete(answer: Answer, odd: int) -> None:
    async def main() -> None:
        async def broken(peer: Peer) -> None:
            message = await peer.request()
            await peer.send(answer(samples(json.loads(message.body))))

        scripts = [making(), making()]
        scripts[odd] = broken
        async with rigged(*scripts) as rig:
            exchange = group()
            with pytest.raises(CutOff):
                await rig.exchange(exchange)
            assert exchange.status == 200
            assert not exchange.over
            with pytest.raises(ValueError, match="not msgpack"):
                decode(exchange.body)
            await rig.nothing_left(living())

    run(main)


@pytest.mark.parametrize(
    "answer",
    [
        response(200, "Content-Type: application/json", body=b"[]"),
        response(200, KIND, "Content-Encoding: gzip", body=b"\x90"),
        response(201, KIND, body=b"\x90"),
    ],
)
def test_an_answer_that_cannot_be_joined_is_an_error(answer: bytes) -> None:
    async def main() -> None:
        seen: list[Message] = []
        never, both = trio.Event(), trio.Event()
        scripts = making(lambda _: answer, at=both), making(at=never, seen=seen)
        async with rigged(*scripts) as rig, trio.open_nursery() as nursery:
            nursery.start_soon(set_after, both, seen, 1)
            exchange = group()
            with pytest.raises(WorkerFailed) as caught:
                await rig.exchange(exchange)
            assert caught.value.code == "worker_invalid_answer"
            assert caught.value.retry_safe is False
            assert not exchange.responded
            # The other part goes on at its worker.
            assert [worker.ghosts for worker in rig.registry] == [0, 1]

    run(main)


def test_a_part_that_nobody_takes_fails_the_whole_with_the_truth() -> None:
    async def main() -> None:
        async with rigged(making(), making()) as rig:
            for worker in rig.workers:
                worker.refuse()
            with pytest.raises(RouterError) as caught:
                await rig.exchange(group())
            # No worker has got any part.
            assert caught.value.retry_safe is True
            assert not any(worker.leases or worker.holds for worker in rig.registry)

    run(main)


def test_a_refusal_of_one_part_is_the_answer() -> None:
    refusal = response(400, "Content-Type: application/json", body=b'{"detail": "no"}')

    async def main() -> None:
        seen: list[Message] = []
        never, all_seen = trio.Event(), trio.Event()
        waits = making(at=never, seen=seen)
        scripts = waits, making(lambda _: refusal, at=all_seen), waits
        async with rigged(*scripts) as rig, trio.open_nursery() as nursery:
            nursery.start_soon(set_after, all_seen, seen, 2)
            exchange = group()
            await rig.exchange(exchange)
            assert (exchange.status, exchange.body, exchange.over) == (
                400,
                b'{"detail": "no"}',
                True,
            )
            assert [worker.ghosts for worker in rig.registry] == [1, 0, 1]

    run(main)


def test_cancelled_at_any_step_nothing_leaks() -> None:
    async def main() -> None:
        async with rigged(making(), making(), making()) as rig:
            tasks = living()
            step, cancelled = 1, True
            while cancelled:
                exchange = group(count=5)
                cancelled = await cancelled_at(rig, step, exchange)
                step += 1
                for worker in rig.registry:
                    # Nobody asks here whether an abandoned generation is over.
                    for hold in list(worker.holds):
                        assert hold.kind == "ghost"
                        rig.registry.drop(hold)
                await rig.nothing_left(tasks)
            assert exchange.body == whole(5)
            assert step > 20

    run(main)
