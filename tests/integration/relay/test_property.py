"""Any exchange comes out as it went in."""

from __future__ import annotations

import trio
from attrs import frozen
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.integration.relay.harness import Peer, routed, run
from tests.integration.relay.wire import (
    LAST_CHUNK,
    Headers,
    Message,
    chunked,
    request,
    response,
    without,
)

TOKEN = st.text(
    "abcdefghijklmnopqrstuvwxyzABCXYZ0123456789!#$%&'*+-.^_`|~", min_size=1, max_size=12
)
VALUE = st.text(
    [chr(c) for c in range(0x20, 0x7F)] + [chr(c) for c in range(0xA1, 0x100)], max_size=30
).map(str.strip)
# Headers that no hop may touch: all names but those that have a meaning of their own here.
KIND = st.sampled_from(
    ["application/json", "application/octet-stream", "multipart/form-data; boundary=b", "x/y"]
)
HEADERS = st.lists(
    st.tuples(TOKEN.map("X-{}".format), VALUE) | st.tuples(st.just("Content-Type"), KIND),
    max_size=5,
)
PATH = st.text([chr(c) for c in range(0x21, 0x7F) if chr(c) not in "?#"], max_size=30)
QUERY = st.text([chr(c) for c in range(0x21, 0x7F) if chr(c) != "#"], min_size=1, max_size=30)
PIECES = st.lists(st.binary(min_size=1, max_size=3000), max_size=5)


@frozen
class Sent:
    """One direction of an exchange."""

    headers: list[tuple[str, str]]
    pieces: list[bytes]
    framing: str

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def lines(self) -> list[str]:
        how = "Transfer-Encoding: chunked"
        if self.framing != "chunked":
            how = f"Content-Length: {len(self.body)}"
        return [*(f"{name}: {value}" for name, value in self.headers), how]

    def framed(self) -> list[bytes]:
        if self.framing != "chunked":
            return self.pieces
        return [*(chunked(piece) for piece in self.pieces), LAST_CHUNK]


def sent(framings: list[str]) -> st.SearchStrategy[Sent]:
    return st.builds(Sent, headers=HEADERS, pieces=PIECES, framing=st.sampled_from(framings))


@frozen
class Exchange:
    method: str
    target: str
    version: str
    there: Sent
    status: int
    back: Sent


EXCHANGES = st.builds(
    Exchange,
    method=st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "QUERY"]),
    target=st.builds("/x/{}".format, PATH) | st.builds("/x/{}?{}".format, PATH, QUERY),
    version=st.sampled_from(["1.1", "1.0"]),
    there=sent(["length", "chunked"]),
    status=st.sampled_from([200, 201, 299, 400, 404, 422, 500, 503]),
    back=sent(["length", "chunked", "close"]),
)


@settings(
    max_examples=12,
    # Without shrinking: each try takes a router of its own.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.lists(EXCHANGES, min_size=1, max_size=12))
def test_any_exchange_comes_out_as_it_went_in(exchanges: list[Exchange]) -> None:
    run(lambda: through(exchanges))


async def through(exchanges: list[Exchange]) -> None:
    seen: list[Message] = []
    now = exchanges[0]

    async def script(peer: Peer) -> None:
        while True:
            seen.append(await peer.request())
            head = response(now.status, *now.back.lines)
            if now.back.framing == "close":
                at = head.index(b"Content-Length")
                head = head[:at] + head[head.index(b"\r\n", at) + 2 :]
            await peer.send(head)
            for piece in now.back.framed():
                await peer.send(piece)
            if now.back.framing == "close":
                return

    async with routed(script, peek_limit=2000) as router:
        for now in exchanges:
            client = await router.client()
            await client.send(
                request(now.method, now.target, *now.there.lines, version=now.version)
            )
            for piece in now.there.framed():
                await client.send(piece)
                await trio.lowlevel.checkpoint()
            got = await client.answer(now.method)
            client.close()

            [there] = seen
            seen.clear()
            assert there.first == f"{now.method} {now.target} HTTP/1.1".encode()
            assert there.body == now.there.body
            assert theirs(there.headers) == theirs(pairs(now.there.headers, lower=True))
            length = there["content-length"]
            assert length is None or int(length) == len(now.there.body)

            assert (got.complete, got.status, got.body) == (True, now.status, now.back.body)
            assert theirs(got.headers) == theirs(pairs(now.back.headers))
            length = str(len(now.back.body)).encode() if now.back.framing == "length" else None
            assert got["content-length"] == length


# What a hop says of itself.
OURS = {
    "host",
    "content-length",
    "transfer-encoding",
    "connection",
    "x-request-id",
    "date",  # given to answers without one
    "x-worker-id",
    "x-weight-version",
    "x-forwarded-for",
    "x-router-hops",
    "x-forwarded-host",
    "x-forwarded-proto",
}


def theirs(headers: Headers) -> Headers:
    """Without those that a hop may set."""
    return without(headers, *OURS)


def pairs(headers: list[tuple[str, str]], *, lower: bool = False) -> Headers:
    return [
        ((name.lower() if lower else name).encode(), value.encode("latin-1"))
        for name, value in headers
    ]
