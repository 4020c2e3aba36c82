"""Headers on their way through: pairs, order, duplicates, and what stops here."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.relay.headers import HOP_BY_HOP, Headers, for_client, for_worker, retry_after, value


def to_worker(headers: Headers, framing: tuple[bytes, bytes] | None = None) -> Headers:
    return for_worker(
        headers,
        host=b"worker:1",
        request_id=b"r1",
        peer="10.0.0.9",
        scheme=b"http",
        framing=framing,
    )


def to_client(
    headers: Headers,
    *,
    bodiless: bool = False,
    url: str = "http://worker:1",
    address: str | None = None,
) -> Headers:
    return for_client(
        headers,
        request_id=b"r1",
        worker_id=b"w1",
        weight_version=7,
        bodiless=bodiless,
        url=url,
        address=address,
    )


ADDED_FOR_WORKER = [
    (b"x-request-id", b"r1"),
    (b"x-forwarded-for", b"10.0.0.9"),
    (b"x-forwarded-proto", b"http"),
]
ADDED_FOR_CLIENT = [
    (b"x-request-id", b"r1"),
    (b"x-worker-id", b"w1"),
    (b"x-weight-version", b"7"),
]


def test_order_case_and_duplicates_are_kept() -> None:
    pairs = [(b"X-B", b"1"), (b"x-a", b"2"), (b"X-b", b"3"), (b"X-B", b"1"), (b"Empty", b"")]
    assert to_worker(pairs) == [(b"host", b"worker:1"), *pairs, *ADDED_FOR_WORKER]
    cookies = [(b"Set-Cookie", b"a=1"), (b"Date", b"now"), (b"Set-Cookie", b"b=2")]
    assert to_client(cookies) == [*cookies, *ADDED_FOR_CLIENT]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_stop_here(name: bytes) -> None:
    pairs = [(b"a", b"1"), (name.title(), b"x"), (b"b", b"2")]
    for through in (to_worker(pairs), to_client(pairs)):
        assert name not in [key.lower() for key, _ in through]
        assert (b"a", b"1") in through
        assert (b"b", b"2") in through


def test_what_connection_names_stops_here_too() -> None:
    pairs = [
        (b"X-Hop", b"1"),
        (b"Connection", b"close, X-HOP ,x-other"),
        (b"X-Other", b"2"),
        (b"connection", b"X-Third,"),
        (b"x-third", b"3"),
        (b"X-Stays", b"4"),
    ]
    for through in (to_worker(pairs), to_client(pairs)):
        names = [key.lower() for key, _ in through]
        assert b"x-stays" in names
        assert not {b"x-hop", b"x-other", b"x-third", b"connection"} & set(names)


@pytest.mark.parametrize(
    "name", [b"content-length", b"content-type", b"content-encoding", b"authorization", b"cookie"]
)
def test_connection_cannot_take_away_what_gives_the_message_its_meaning(name: bytes) -> None:
    pairs = [(b"connection", name), (name, b"1")]
    assert (name, b"1") in to_worker(pairs)
    assert (name, b"1") in to_client(pairs)


def test_the_worker_sees_its_own_host_and_learns_the_clients() -> None:
    through = to_worker([(b"Host", b"router:30080"), (b"Expect", b"100-continue")])
    assert through == [
        (b"host", b"worker:1"),
        (b"x-request-id", b"r1"),
        (b"x-forwarded-for", b"10.0.0.9"),
        (b"x-forwarded-host", b"router:30080"),
        (b"x-forwarded-proto", b"http"),
    ]


def test_an_earlier_proxy_is_believed_and_we_are_added() -> None:
    earlier = [
        (b"x-forwarded-for", b"1.2.3.4"),
        (b"x-forwarded-host", b"public"),
        (b"x-forwarded-proto", b"https"),
    ]
    through = to_worker([(b"host", b"router"), *earlier])
    assert through[1:4] == earlier
    assert through[4:] == [(b"x-request-id", b"r1"), (b"x-forwarded-for", b"10.0.0.9")]


def test_the_request_has_one_name() -> None:
    assert [
        v for k, v in to_worker([(b"X-Request-Id", b"theirs")]) if k.lower() == b"x-request-id"
    ] == [b"r1"]
    through = to_client([(b"X-Request-Id", b"theirs"), (b"X-Worker-Id", b"fake")])
    assert through == ADDED_FOR_CLIENT


def test_our_framing_replaces_that_of_the_client() -> None:
    chunked = [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")]
    through = to_worker(chunked, framing=(b"content-length", b"7"))
    assert [pair for pair in through if pair[0].lower() == b"content-length"] == [
        (b"content-length", b"7")
    ]
    assert (b"Content-Length", b"5") in to_worker([(b"Content-Length", b"5")])


def test_length_beside_a_transfer_coding_or_without_a_body_is_dropped() -> None:
    length = (b"Content-Length", b"5")
    assert length in to_client([length])
    assert length not in to_client([(b"Transfer-Encoding", b"chunked"), length])
    assert length not in to_client([length], bodiless=True)


def test_no_peer_no_forwarded_for() -> None:
    through = for_worker([], host=b"w", request_id=b"r", peer=None, scheme=b"http", framing=None)
    assert value(through, b"x-forwarded-for") is None


def test_the_first_value_is_found_whatever_its_case() -> None:
    assert value([(b"A", b"0"), (b"X-b", b"1"), (b"x-B", b"2")], b"x-b") == b"1"
    assert value([], b"x-b") is None


_NAMES = st.sampled_from([b"accept", b"X-A", b"x-a", b"Set-Cookie", b"content-type", b"via"])
_PAIRS = st.lists(st.tuples(_NAMES, st.binary(max_size=5)), max_size=12)


@given(_PAIRS)
def test_anything_else_passes_pair_by_pair(pairs: Headers) -> None:
    assert to_worker(pairs)[1 : 1 + len(pairs)] == pairs
    assert to_client(pairs)[: len(pairs)] == pairs


@pytest.mark.parametrize(
    ("given", "url", "address", "passed"),
    [
        ("http://worker:1/a?b=c#d", "http://worker:1", None, "/a?b=c#d"),
        ("HTTP://Worker:1/a", "http://worker:1", None, "/a"),
        ("//worker:1/a", "http://worker:1", None, "/a"),
        ("http://worker:1", "http://worker:1", None, "/"),
        ("http://worker:1?a", "http://worker:1", None, "/?a"),
        ("http://10.0.0.7:1/a", "http://worker:1", "10.0.0.7", "/a"),
        ("http://[fd00::7]:1/a", "http://worker:1", "fd00::7", "/a"),
        ("http://[fd00::7]:1/a", "http://[fd00::7]:1", "fd00::7", "/a"),
        ("http://worker/a", "http://worker", None, "/a"),
        ("http://worker:80/a", "http://worker", None, "/a"),
        ("https://worker/a", "https://worker", None, "/a"),
        ("//worker/a", "https://worker", None, "/a"),
        # Another host stays, and none is made.
        ("http://worker:2/a", "http://worker:1", "10.0.0.7", "http://worker:2/a"),
        ("http://other:1/a", "http://worker:1", "10.0.0.7", "http://other:1/a"),
        ("http://u@worker:1/a", "http://worker:1", None, "http://u@worker:1/a"),
        ("http://worker/a", "http://worker:1", None, "http://worker/a"),
        ("ftp://worker:1/a", "http://worker:1", None, "ftp://worker:1/a"),
        ("/a", "http://worker:1", None, "/a"),
        ("a", "http://worker:1", None, "a"),
        ("", "http://worker:1", None, ""),
        ("http://worker:1//evil/a", "http://worker:1", None, "/.//evil/a"),
        ("http://worker:1/\\evil/a", "http://worker:1", None, "/./\\evil/a"),
        ("http://worker:1/\t/evil", "http://worker:1", None, "http://worker:1/\t/evil"),
        ("http://worker:1\\@evil/", "http://worker:1", None, "/./\\@evil/"),
    ],
)
def test_a_location_at_the_worker_is_one_at_the_router(
    given: str, url: str, address: str | None, passed: str
) -> None:
    headers = to_client([(b"Location", given.encode())], url=url, address=address)
    assert headers[0] == (b"Location", passed.encode())


def in_a_while(**delay: int) -> bytes:
    return format_datetime(datetime.now(UTC) + timedelta(**delay), usegmt=True).encode()


@pytest.mark.parametrize(
    ("asked", "date", "least", "most"),
    [
        (b"7", b"", 7, 7),
        (b"0", b"", 0, 0),
        (in_a_while(hours=2), b"", 3600, 7200),
        (in_a_while(hours=-1), b"", 0, 0),
        # By the worker's clock, if that goes wrong.
        (in_a_while(hours=9), in_a_while(hours=9, minutes=-1), 59, 61),
        (b"soon", b"", 1, 1),
        (b"-5", b"", 1, 1),
        (b"1e9", b"", 1, 1),
        (b"9" * 5000, b"", 1, 1),
    ],
    ids=itertools.count(),  # the dates differ in each process
)
def test_how_long_a_worker_asks_to_be_left_alone(
    asked: bytes, date: bytes, least: float, most: float
) -> None:
    found = retry_after(503, [(b"Date", date), (b"Retry-After", asked)])
    assert found is not None
    assert least <= found <= most
    assert retry_after(503, [(b"Date", date)]) is None
    assert retry_after(429, [(b"Date", date)]) == 1
