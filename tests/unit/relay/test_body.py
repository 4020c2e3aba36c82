"""How much of a request body is held, and what is too large."""

from __future__ import annotations

import errno
import tracemalloc
from typing import Any

import pytest
import trio
from attrs import Factory, define

from router.errors import RequestTooLarge
from router.front.record import ExchangeRecord
from router.pool.cost import Costs
from router.pool.match import AmbiguousModel
from router.relay.body import Body, announced_length, facts_of, peek, read_on
from router.relay.routes import find
from router.relay.spool import Room, Spool, SpoolFailed, SpoolFull

JSON = (b"content-type", b"application/json")


@define
class Client:
    """An exchange of which only the request is there."""

    pieces: list[bytes]
    headers: list[tuple[bytes, bytes]] = Factory(list)
    target: bytes = b"/v1/images/generations"
    record: ExchangeRecord = Factory(lambda: ExchangeRecord("r", "POST", "/", arrived=0.0))
    taken: int = 0

    async def read(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.taken == len(self.pieces):
            return b""
        self.taken += 1
        return self.pieces[self.taken - 1]


def send(
    *pieces: bytes, chunked: bool = False, kind: tuple[bytes, bytes] = JSON, announced: int = -1
) -> Client:
    length = announced if announced >= 0 else sum(map(len, pieces))
    framing = (b"transfer-encoding", b"chunked") if chunked else (b"content-length", b"%d" % length)
    return Client(list(pieces), [kind, framing])


def take(client: Client, limit: int = 20, largest: int | None = None) -> Body:
    async def main() -> Body:
        exchange: Any = client
        return await peek(exchange, limit=limit, largest=largest)

    return trio.run(main)


def model_of(body: Body, query: bytes = b"") -> str | None:
    exchange: Any = Client([])
    exchange.target += query
    return facts_of(body, exchange, find("POST", "/v1/images/generations"), Costs()).model


@pytest.mark.parametrize(
    ("headers", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"7")], 7),
        ([(b"content-length", b"0")], 0),
        ([(b"transfer-encoding", b"chunked")], None),
        ([(b"content-length", b"7"), (b"Transfer-Encoding", b"chunked")], None),
    ],
)
def test_what_is_announced(headers: list[tuple[bytes, bytes]], length: int | None) -> None:
    assert announced_length(headers) == length


@pytest.mark.parametrize("chunked", [False, True])
def test_a_small_body_is_held_whole(chunked: bool) -> None:
    body = take(send(b'{"model":', b'"m"}', chunked=chunked))
    assert (bytes(body.held), body.complete) == (b'{"model":"m"}', True)
    assert model_of(body) == "m"


def test_a_body_of_just_the_limit_is_whole() -> None:
    body = take(send(b"x" * 12, b"x" * 8))
    assert (len(body.held), body.complete) == (20, True)


@pytest.mark.parametrize("chunked", [False, True])
def test_of_a_large_body_no_more_is_taken_than_the_limit_asks_for(chunked: bool) -> None:
    client = send(*[b"[" * 8] * 100, chunked=chunked)
    body = take(client)
    assert not body.complete
    assert len(body.held) < 20 + 8
    assert client.taken <= 3


def test_no_body_is_complete_unread() -> None:
    client = Client([], [JSON])
    body = take(client)
    assert (bytes(body.held), body.complete, client.taken) == (b"", True, 0)


def test_too_much_is_refused_before_it_is_read() -> None:
    client = send(announced=101)
    with pytest.raises(RequestTooLarge) as caught:
        take(client, largest=100)
    assert client.taken == 0
    error = caught.value
    assert (error.status, error.code) == (413, "request_too_large")
    assert error.details == {"max_request_bytes": 100}
    take(send(b"x" * 100), largest=100)


def test_too_much_that_was_not_announced_is_refused_as_it_comes() -> None:
    with pytest.raises(RequestTooLarge):
        take(send(b"[" * 8, b"[" * 8, chunked=True), largest=10)


def test_a_body_that_is_not_json_says_nothing() -> None:
    for held in (
        b"",
        b"{",
        b"[]",
        b'"model"',
        b"\xff",
        b"[" * 19,
        b'{"model": 3}',
        b'{"model":""}',
    ):
        assert model_of(take(send(held))) is None


@pytest.mark.parametrize(
    ("query", "body", "model"),
    [
        (b"", b"{}", None),
        (b"?model=a", b"{}", "a"),
        (b"?x=1&model=org%2Fa", b'{"model": "org/a"}', "org/a"),
        (b"?%6dodel=a", b"{}", "a"),
        (b"?model=", b'{"model": "b"}', "b"),
        (b"?models=a", b'{"model": "b"}', "b"),
        (b"?model=a&model=a", b"{}", "a"),
    ],
)
def test_the_query_names_a_model_too(query: bytes, body: bytes, model: str | None) -> None:
    assert model_of(take(send(body), 100), query) == model


@pytest.mark.parametrize("query", [b"?model=a", b"?model=b&model=a"])
def test_query_and_body_must_agree(query: bytes) -> None:
    with pytest.raises(AmbiguousModel, match="names two models, "):
        model_of(take(send(b'{"model": "b"}')), query)


MIB = 1024 * 1024
BEGIN = b'{"image": "'


def read_to_the_model(client: Client, limit: int, most: int, largest: int | None = None) -> Body:
    room = Room(2000 + most)

    async def main() -> Body:
        exchange: Any = client
        body = await peek(exchange, limit=limit, largest=largest)
        try:
            await read_on(exchange, body, limit=limit, most=most, largest=largest, room=room)
            size = body.spool.size if body.spool else 0
            again = b""
            while body.spool and len(again) < size:
                again += await body.spool.read(len(again))
            body.held += again
        finally:
            body.release() if body.spool is None else body.spool.close()
            assert room.taken == 0
        return body

    return trio.run(main)


def test_a_large_body_waits_in_a_file() -> None:
    piece = b"x" * 65536
    client = send(BEGIN, *[piece] * (60 * 16), b'", "model": "m"}')

    async def main() -> None:
        exchange: Any = client
        tracemalloc.start()
        body = await peek(exchange, limit=MIB, largest=None)
        room = Room(64 * MIB)
        await read_on(exchange, body, limit=MIB, most=64 * MIB, largest=None, room=room)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (body.fields, body.complete) == ({"model": "m"}, True)
        assert body.taken == body.length
        assert len(body.held) <= MIB + 65536
        assert peak < 8 * MIB
        body.release()

    trio.run(main)


@pytest.mark.parametrize("chunked", [False, True])
def test_what_was_spooled_is_what_came(chunked: bool) -> None:
    pieces = [BEGIN, *(b"%06d" % n for n in range(500)), b'"', b', "model": "m", "x": "', b"y" * 99]
    client = send(*pieces, b'"}', chunked=chunked)
    body = read_to_the_model(client, 200, 10_000)
    taken = b"".join(pieces[: client.taken])
    assert (bytes(body.held), body.complete) == (taken, False)
    assert client.taken == len(pieces) - 1  # no further than to the model
    assert body.fields == {"model": "m"}


def test_no_more_is_read_than_may_be() -> None:
    client = send(BEGIN, *[b"x" * 100] * 100)
    body = read_to_the_model(client, 200, 1000)
    assert 1000 <= len(body.held) < 1100
    assert not body.complete
    with pytest.raises(RequestTooLarge):
        read_to_the_model(send(BEGIN, *[b"x" * 100] * 100, chunked=True), 200, 10_000, 500)


def test_a_body_that_cannot_be_read_is_not_taken_further() -> None:
    for kind in (b"video/mp4", b"multipart/form-data"):
        client = send(*[b"x" * 100] * 100, kind=(b"content-type", kind))
        assert read_to_the_model(client, 200, 10_000).taken == client.taken == 0
    client = send(b"no object", *[b"x" * 100] * 100)
    read_to_the_model(client, 200, 10_000)
    assert client.taken <= 3


def test_a_file_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(SpoolFailed, match="no space left") as caught:
        read_to_the_model(send(BEGIN, *[b"x" * 100] * 100), 200, 10_000)
    assert (caught.value.status, caught.value.code) == (503, "spool_failed")


def test_all_files_together_are_bounded() -> None:
    async def main() -> None:
        room = Room(100)
        first, second = Spool(room), Spool(room)
        await first.add(b"x" * 60)
        with pytest.raises(SpoolFull, match="hold 60 bytes already") as caught:
            await second.add(b"x" * 41)
        assert (caught.value.status, caught.value.code) == (503, "queue_full")
        assert caught.value.retry_safe
        await second.add(b"x" * 40)
        for _ in range(2):
            second.close()
            assert room.taken == 60
        first.close()
        assert room.taken == 0

    trio.run(main)
