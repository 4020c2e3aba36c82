"""The record of an exchange: what it says of each way that one can go."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
import trio

from router.front.record import ExchangeEnded, ExchangeRecord
from tests.integration.relay.harness import (
    Peer,
    Routed,
    Script,
    answering,
    failing,
    never,
    routed,
    run,
    until,
)
from tests.integration.relay.wire import error_of, request, response

JSON = "Content-Type: application/json"
GENERATE = "/v1/images/generations"
OTHER_MODEL = request("POST", GENERATE, JSON, body=b'{"model": "other"}')
UPGRADE = (
    *("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
)


@contextlib.asynccontextmanager
async def recorded(
    *scripts: Script, **settings: object
) -> AsyncIterator[tuple[Routed, list[ExchangeRecord]]]:
    """A router, and the records of the exchanges that have ended."""
    records: list[ExchangeRecord] = []
    async with routed(*scripts, **settings) as router:
        bus = router.running.parts.registry.bus
        bus.subscribe(lambda event: records.append(event.record), ExchangeEnded)
        yield router, records


async def only(records: list[ExchangeRecord]) -> ExchangeRecord:
    await until(lambda: records, "the record")
    [record] = records
    assert record.ended is not None
    assert record.ended >= record.arrived
    return record


def test_a_generation_is_recorded_from_its_arrival_to_its_end() -> None:
    async def main() -> None:
        async with recorded(answering(response(body=b"12345"))) as (router, records):
            body = b'{"model": "model", "prompt": "a cat"}'
            head = request("POST", f"{GENERATE}?a=b", JSON, "X-Client-Id: trainer", body=body)
            assert (await router.ask(head)).status == 200
            record = await only(records)
            assert record.what == f"POST {GENERATE}"
            assert (record.route, record.client, record.model) == (GENERATE, "trainer", "model")
            assert (record.worker, record.tries) == (router.worker.url, 1)
            assert (record.status, record.code) == (200, None)
            assert (record.received, record.sent) == (len(body), 5)
            assert record.leased is not None
            assert record.delivered is not None
            assert record.answered is not None
            assert record.ended is not None
            assert record.arrived <= record.leased <= record.delivered
            assert record.delivered <= record.answered <= record.ended

    run(main)


def test_each_worker_that_was_tried_counts() -> None:
    async def main() -> None:
        good = answering(response())
        async with recorded(good, good, retries=1) as (router, records):
            router.workers[0].refuse()
            for _ in range(2):
                assert (await router.ask(request("POST", "/x", body=b"a"))).status == 200
            await until(lambda: len(records) == 2, "both records")
            assert sorted(record.tries for record in records) == [1, 2]
            assert {record.worker for record in records} == {router.workers[1].url}

    run(main)


@pytest.mark.parametrize(
    ("asked", "route", "status", "code"),
    [
        (request("GET", "/live"), "/live", 200, None),
        (request("GET", "/workers/nobody"), "/workers/{+worker_id}", 404, "unknown_worker"),
        (request("PATCH", "/workers"), "/workers", 405, "method_not_allowed"),
        (OTHER_MODEL, GENERATE, 404, "unknown_model"),
        (request("GET", "/v1/videos/x"), "/v1/videos/{id}", 503, "asset_lookup_incomplete"),
    ],
)
def test_what_the_router_answers_itself_has_no_worker(
    asked: bytes, route: str, status: int, code: str | None
) -> None:
    async def main() -> None:
        async with recorded(never, strict_model=True) as (router, records):
            answer = await router.ask(asked)
            assert answer.status == status
            record = await only(records)
            assert (record.route, record.status, record.worker) == (route, status, None)
            assert record.code == code
            assert record.sent == len(answer.body)

    run(main)


def test_what_the_admin_key_refuses_is_recorded() -> None:
    async def main() -> None:
        async with recorded(never, admin_api_key="secret") as (router, records):
            error_of(await router.ask(request("DELETE", "/workers/x")), 401, "admin_key_missing")
            record = await only(records)
            assert (record.route, record.status) == ("/workers/{+worker_id}", 401)
            assert record.code == "admin_key_missing"

    run(main)


@pytest.mark.parametrize("asked", [b"nonsense\r\n\r\n", request("GET", "/", "Host: a b")])
def test_what_no_app_sees_is_recorded_once(asked: bytes) -> None:
    async def main() -> None:
        async with recorded(never) as (router, records):
            assert (await router.ask(asked)).status == 400
            record = await only(records)
            assert (record.status, record.code, record.route) == (400, "bad_request", "")
            await router.ask(request("GET", "/live"))
            await until(lambda: len(records) == 2, "the next record")

    run(main)


def test_a_client_that_leaves_is_recorded_as_gone() -> None:
    async def main() -> None:
        async with recorded(never) as (router, records):
            client = await router.client()
            await client.send(request("POST", "/x", body=b"abc"))
            await until(lambda: router.worker.connections == 1, "the request at the worker")
            client.close()
            record = await only(records)
            assert (record.status, record.code) == (None, "client_gone")
            assert record.worker == router.worker.url

    run(main)


def test_an_answer_that_breaks_off_keeps_its_status_and_says_why() -> None:
    async def main() -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc"
        script = failing(head, ends="close", record=[])
        async with recorded(script) as (router, records):
            assert not (await router.ask(request("POST", "/x", body=b"abc"))).complete
            record = await only(records)
            assert (record.status, record.code, record.sent) == (200, "worker_cut_off", 3)

    run(main)


def test_kept_connections_have_a_record_for_each_exchange() -> None:
    async def main() -> None:
        async with recorded(answering(response(body=b"1"))) as (router, records):
            client = await router.client()
            for size in (1, 2, 3):
                await client.ask(request("POST", "/x", body=b"a" * size))
            await until(lambda: len(records) == 3, "all records")
            assert [record.received for record in records] == [1, 2, 3]
            assert len({record.request_id for record in records}) == 3

    run(main)


def test_a_websocket_is_recorded_as_one_exchange() -> None:
    async def refusing(peer: Peer) -> None:
        await peer.head()
        await peer.send(response(403, body=b"no"))

    async def main() -> None:
        async with recorded(refusing) as (router, records):
            answer = await router.ask(request("GET", "/v1/realtime_video", *UPGRADE))
            assert answer.status == 403
            record = await only(records)
            assert record.what == "WebSocket /v1/realtime_video"
            assert (record.worker, record.tries) == (router.worker.url, 1)
            assert (record.status, record.sent) == (403, 2)

    run(main)


def test_a_handshake_that_is_refused_before_the_app_is_recorded_once() -> None:
    async def main() -> None:
        async with recorded(never) as (router, records):
            bad = [line for line in UPGRADE if "Version" not in line]
            answer = await router.ask(request("GET", "/v1/realtime_video", *bad))
            assert answer.status >= 400
            record = await only(records)
            assert (record.status, record.code) == (answer.status, "bad_request")

    run(main)


def test_exchanges_that_a_stop_breaks_off_are_recorded() -> None:
    async def main() -> None:
        records: list[ExchangeRecord] = []
        async with routed(never, shutdown_timeout=0.1) as router:
            bus = router.running.parts.registry.bus
            bus.subscribe(lambda event: records.append(event.record), ExchangeEnded)
            client = await router.client()
            await client.send(request("POST", "/x", body=b"abc"))
            await until(lambda: router.worker.connections == 1, "the request at the worker")
            await trio.lowlevel.checkpoint()
        assert [record.status for record in records] == [None]

    run(main)
