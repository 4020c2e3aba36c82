"""Heads pass as they are, both ways: header pairs, targets, methods, statuses."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence

import pytest

from tests.integration.relay.harness import Peer, answering, exchange, routed, run
from tests.integration.relay.wire import Headers, lines, request, response, without


def test_request_headers_reach_the_worker_pair_by_pair() -> None:
    given = [
        "Accept: */*",
        "X-Twice: one",
        "Cookie: a=1",
        "X-Twice: two",
        "Cookie: b=2",
        "X-Empty:",
        "X-Latin: caf\xe9 \xff",
        "X-Spaces:   in   between  ",
        "X-List: a, b,, c",
        "Authorization: Bearer abc=",
        "User-Agent: test/1",
        "Accept-Encoding: gzip, br",
        "Content-Type: application/octet-stream",
        "Date: yesterday",
        "X_Under: score",
    ]
    seen, _ = exchange(request("POST", "/x", *given, body=b"abc"), response())
    expected: Headers = [
        (name.lower().encode(), value.strip().encode("latin-1"))
        for name, _, value in (line.partition(":") for line in given)
    ]
    assert seen.headers[0][0] == b"host"
    ours = (
        "x-router-hops",
        "x-request-id",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    )
    assert without(seen.headers[1:], *ours) == [*expected, (b"content-length", b"3")]
    assert [name.decode() for name, _ in seen.headers[-5:]] == list(ours)


def test_response_headers_reach_the_client_pair_by_pair() -> None:
    given = [
        "Date: Mon, 01 Jan 2024 00:00:00 GMT",
        "sErVeR: uvicorn",
        "Set-Cookie: a=1; Path=/",
        "X-Empty:",
        "set-cookie: b=2",
        "Content-Type: image/png",
        "X-Latin: caf\xe9 \xff",
        "Vary: Origin",
        "Vary: Accept",
        'ETag: "abc"',
        "Content-Length: 2",
        "X-Last: 1",
    ]
    _, got = exchange(request("GET"), response(200, *given, body=b"ok"))
    expected = [line if line[-1] != ":" else f"{line} " for line in given]
    ours = ("x-request-id", "x-worker-id", "x-weight-version")
    assert lines(without(got.headers, *ours)) == expected
    assert [name.decode() for name, _ in got.headers[-3:]] == list(ours)


def test_hop_by_hop_headers_stay_on_their_hop() -> None:
    hop = [
        "Connection: keep-alive, X-Mine",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Trailer: X-Sum",
        "Proxy-Authorization: Basic abc",
        "Upgrade: h2c",
        "Expect: 100-continue",
    ]
    seen, _ = exchange(request("GET", "/x", *hop, "X-Kept: 1"), response())
    names = {name for name, _ in seen.headers}
    assert b"x-kept" in names
    assert not names & {line.partition(":")[0].lower().encode() for line in hop}

    back = [
        "Connection: X-Mine",
        "X-Mine: 1",
        "Keep-Alive: timeout=5",
        "Proxy-Authenticate: Basic",
        "Trailer: X-Sum",
        "Upgrade: h2c",
    ]
    _, got = exchange(request("GET"), response(200, *back, "X-Kept: 1"))
    names = {name.lower() for name, _ in got.headers}
    assert b"x-kept" in names
    assert not names & {line.partition(":")[0].lower().encode() for line in back}


def test_connection_cannot_nominate_what_the_request_means() -> None:
    nominated = "host, content-length, content-type, authorization, cookie, transfer-encoding"
    data = request(
        "POST",
        "/x",
        f"Connection: {nominated}, x-request-id, x-forwarded-for",
        "Content-Type: application/json",
        "Authorization: Bearer me",
        "Cookie: a=1",
        "X-Forwarded-For: 203.0.113.9",
        body=b"{}",
    )
    seen, got = exchange(data, response())
    assert seen.body == b"{}"
    assert seen["content-type"] == b"application/json"
    assert seen["authorization"] == b"Bearer me"
    assert seen["cookie"] == b"a=1"
    assert seen["x-forwarded-for"] == b"127.0.0.1"
    assert seen["x-request-id"] == got["x-request-id"]


def test_the_worker_is_told_its_own_host_and_the_clients() -> None:
    seen, _ = exchange(request("GET", "/x", "X-Forwarded-For: 203.0.113.9"), response())
    assert (seen["host"] or b"").startswith(b"127.0.0.1:")
    assert seen.all("x-forwarded-for") == [b"203.0.113.9", b"127.0.0.1"]
    assert seen["x-forwarded-host"] == b"client.test"
    assert seen["x-forwarded-proto"] == b"http"
    given = request("GET", "/x", "X-Forwarded-Host: first", "X-Forwarded-Proto: https")
    seen, _ = exchange(given, response())
    assert seen["x-forwarded-host"] == b"first"
    assert seen["x-forwarded-proto"] == b"https"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["X-Request-Id: mine-1"], True),
        ([], False),
        (["X-Request-Id: has spaces"], False),
        (["X-Request-Id:"], False),
        ([f"X-Request-Id: {'x' * 129}"], False),
        (["X-Request-Id: \xe9"], False),
    ],
)
def test_one_request_id_for_client_and_worker(given: Sequence[str], kept: bool) -> None:
    seen, got = exchange(request("GET", "/x", *given), response(200, "X-Request-ID: theirs"))
    assert seen["x-request-id"] == got["x-request-id"]
    assert bool(got["x-request-id"])
    assert (got["x-request-id"] == b"mine-1") is kept


@pytest.mark.parametrize("status", [200, 422, 500])
def test_the_answer_names_its_worker_and_the_worker_cannot_name_another(status: int) -> None:
    back = response(status, "X-Worker-Id: somebody", "x-weight-version: 99")
    _, got = exchange(request("GET"), back)
    assert got.all("x-weight-version") == [b"0"]
    assert (got["x-worker-id"] or b"").startswith(b"http%3A%2F%2F127.0.0.1%3A")


@pytest.mark.parametrize(
    "header", ["X-Min-Weight-Version", "X-Exact-Weight-Version", "X-Max-Weight-Lag"]
)
def test_what_weights_will_do_is_between_the_client_and_the_router(header: str) -> None:
    seen, got = exchange(request("GET", "/x", f"{header}: 0"), response())
    assert got.status == 200
    assert seen[header.lower()] is None


@pytest.mark.parametrize(
    ("header", "given"),
    [
        *(
            (f"X-{which}-Weight-Version", given)
            for which in ("Min", "Exact")
            for given in ("", "-1", "1.0", "1, 2", "9" * 19, "x" * 201, "\xb2")
        ),
        *(("X-Max-Weight-Lag", given) for given in ("", "-1", "1.0", "two", "9" * 19, "\xb2")),
    ],
)
def test_a_weight_version_that_is_none_is_refused(header: str, given: str) -> None:
    seen, got = exchange(request("GET", "/x", f"{header}: {given}"), response())
    assert got.status == 400
    assert json.loads(got.body)["code"] == "invalid_header"
    assert seen.first == b""


@pytest.mark.parametrize("header", ["X-Min-Weight-Version", "X-Exact-Weight-Version"])
@pytest.mark.parametrize("given", ["1", "two", "0x1"])
def test_a_weight_version_that_was_never_issued_is_not_waited_for(header: str, given: str) -> None:
    seen, got = exchange(request("GET", "/x", f"{header}: {given}"), response())
    assert got.status == 409
    said = json.loads(got.body)
    assert (said["code"], said["weight_version"]) == ("weight_version_unknown", 0)
    assert said["retryable"] is True
    assert seen.first == b""


@pytest.mark.parametrize(
    "target",
    [
        "/a//b/",
        "/a/../b/./c",
        "/%2e%2e/%2F/%00%ff%zz%",
        "/caf%C3%A9",
        "/a;b=c,d:e@f!$&'()*+~",
        "/a?b=c&b=d&e=%20+%2B",
        "/a?b?c=d//e",
        "/a?",
        "/a?#",
        '/a"<>\\^`{|}',
        "/" + "x" * 8000,
    ],
)
def test_targets_pass_byte_for_byte(target: str) -> None:
    seen, got = exchange(request("GET", target), response(body=b"ok"))
    assert got.status == 200
    assert seen.target == target.encode()


def test_an_absolute_target_loses_its_authority() -> None:
    seen, _ = exchange(request("GET", "http://elsewhere.test:81/a/b?c=d"), response())
    assert seen.target == b"/a/b?c=d"
    assert (seen["host"] or b"").startswith(b"127.0.0.1:")
    assert seen["x-forwarded-host"] == b"client.test"


@pytest.mark.parametrize(
    "method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PURGE", "M-SEARCH"]
)
def test_any_method_passes(method: str) -> None:
    seen, got = exchange(request(method, "/x"), response(200, "Allow: GET", body=b"ok"))
    assert seen.method == method.encode()
    assert got.body == b"ok"


def test_options_of_the_whole_server_pass() -> None:
    seen, got = exchange(request("OPTIONS", "*"), response(204, "Allow: GET"))
    assert seen.first == b"OPTIONS * HTTP/1.1"
    assert (got.status, got["allow"]) == (204, b"GET")


def test_statuses_and_bodies_of_workers_pass_untouched() -> None:
    async def main() -> None:
        body = b'{"detail": "\xff not ours"}'
        headers = ["Content-Type: text/plain", "Location: http://elsewhere.test/", "Retry-After: 7"]

        async def script(peer: Peer) -> None:
            while True:
                message = await peer.request()
                await peer.send(response(int(message.target[1:]), *headers, body=body))

        async with routed(script) as router:
            client = await router.client()
            for status in (201, 202, 205, 301, 307, 400, 404, 413, 416, 422, 429, 500, 503, 599):
                for method in ("GET", "POST"):
                    got = await client.ask(request(method, f"/{status}"))
                    assert (got.status, got.body, got.complete) == (status, body, True)
                    assert got["location"] == b"http://elsewhere.test/"
                    assert got["retry-after"] == b"7"
            assert router.worker.connections == 6  # none is used again after 500 and above

    run(main)


def test_interim_answers_are_skipped() -> None:
    interim = response(100) + response(103, "Link: </style.css>") + response(102)
    _, got = exchange(request("GET"), interim + response(200, body=b"ok"))
    assert (got.status, got.body) == (200, b"ok")
    assert got["link"] is None


def test_an_answer_to_head_has_no_body_whatever_it_announces() -> None:
    async def main() -> None:
        for framing in ("Content-Length: 1234567", "Transfer-Encoding: chunked"):
            async with routed(answering(response(200, framing))) as router:
                client = await router.client()
                for _ in range(2):  # the second shows that nothing followed the first
                    got = await client.ask(request("HEAD"))
                    assert (got.status, got.body, got.complete) == (200, b"", True)
                    if framing.startswith("Content"):
                        assert got["content-length"] == b"1234567"
                assert router.worker.connections == 1

    run(main)


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    async def main() -> None:
        answer = response(status, 'ETag: "x"', "Content-Length: 10")
        async with routed(answering(answer)) as router:
            client = await router.client()
            for _ in range(2):
                got = await client.ask(request("GET"))
                assert (got.status, got["etag"]) == (status, b'"x"')
                # RFC 9110 section 8.6: not with 204, but with 304 as for the 200 it stands for.
                assert got["content-length"] == (b"10" if status == 304 else None)
                assert got["transfer-encoding"] is None
            assert router.worker.connections == 1

    run(main)


def test_a_range_passes() -> None:
    part = ["Content-Range: bytes 10-13/100", "Accept-Ranges: bytes"]
    seen, got = exchange(
        request("GET", "/x", "Range: bytes=10-13", 'If-Range: "e"'),
        response(206, *part, body=b"abcd"),
    )
    assert (seen["range"], seen["if-range"]) == (b"bytes=10-13", b'"e"')
    assert (got.status, got["content-range"], got.body) == (206, b"bytes 10-13/100", b"abcd")


def test_encoded_content_is_not_touched() -> None:
    packed = gzip.compress(b"x" * 10_000)
    seen, got = exchange(
        request("POST", "/x", "Content-Encoding: gzip", body=packed),
        response(200, "Content-Encoding: gzip", body=packed),
    )
    assert (seen["content-encoding"], seen.body) == (b"gzip", packed)
    assert (got["content-encoding"], got.body) == (b"gzip", packed)
