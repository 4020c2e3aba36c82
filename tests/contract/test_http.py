"""Connections, headers, methods and paths."""

from __future__ import annotations

import json
import time

import pytest

from tests.contract.harness import IMAGE, Worker, connection, ended, head, read_answer

WEBSOCKET = [
    *("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13"),
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


def test_headers_of_an_answer(worker: Worker) -> None:
    with connection(worker) as sock:
        sock.sendall(head("GET", "/liveness"))
        status, headers, body = read_answer(sock)
    assert status == "HTTP/1.1 200 OK"
    assert list(headers) == ["date", "server", "content-length", "content-type", "vary"]
    assert headers["server"] == "uvicorn"
    assert headers["content-type"] == "application/json"
    assert headers["vary"] == "Origin"
    assert json.loads(body) == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("HEAD", path) for path in ("/health", "/v1/models", "/v1/images/generations")),
        *(("PUT", "/health"), ("POST", "/v1/models"), ("DELETE", "/server_info")),
        *(("GET", "/v1/images/generations"), ("GET", "/update_weights_from_disk")),
    ],
)
def test_methods_that_are_refused(worker: Worker, method: str, path: str) -> None:
    answer = worker.http.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == ("POST" if method == "GET" or "gener" in path else "GET")
    if method != "HEAD":
        assert answer.json() == {"detail": "Method Not Allowed"}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nope"), ("POST", "/v1/nope"), ("GET", "/v1/images/x")]
)
def test_unknown_paths(worker: Worker, method: str, path: str) -> None:
    answer = worker.http.request(method, path)
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


def test_older_generation_path_is_gone(worker: Worker) -> None:
    assert worker.http.post("/v1/diffusion/generate", json={}).status_code == 404


def test_a_slash_at_the_end_is_redirected(worker: Worker) -> None:
    answer = worker.http.get("/health/")
    assert answer.status_code == 307
    assert answer.headers["location"] == f"{worker.url}/health"


def test_browsers_of_other_origins_are_let_in(worker: Worker) -> None:
    answer = worker.http.get("/health", headers={"Origin": "http://elsewhere"})
    assert answer.headers["access-control-allow-origin"] in ("*", "http://elsewhere")
    assert answer.headers["access-control-allow-credentials"] == "true"

    asked = {"Origin": "http://elsewhere", "Access-Control-Request-Method": "POST"}
    preflight = worker.http.options("/v1/images/generations", headers=asked)
    assert (preflight.status_code, preflight.text) == (200, "OK")
    assert preflight.headers["access-control-allow-origin"] == "http://elsewhere"
    assert "POST" in preflight.headers["access-control-allow-methods"]


def test_a_connection_carries_many_requests_also_after_an_error(worker: Worker) -> None:
    with connection(worker) as sock:
        for path, status in (("/health", 200), ("/nope", 404), ("/v1/models/x", 404)):
            sock.sendall(head("GET", path))
            assert int(read_answer(sock)[0].split()[1]) == status
        sock.sendall(head("POST", "/v1/images/generations", "Content-Length: 0"))
        assert " 422 " in read_answer(sock)[0]
        sock.sendall(head("GET", "/health"))
        assert " 200 " in read_answer(sock)[0]


def test_the_text_500_closes_its_connection_without_saying_so(worker: Worker) -> None:
    with connection(worker) as sock:
        sock.sendall(head("POST", "/update_weights_from_disk", "Content-Length: 1") + b"{")
        status, headers, body = read_answer(sock)
        assert status == "HTTP/1.1 500 Internal Server Error"
        assert headers["content-type"] == "text/plain; charset=utf-8"
        assert "vary" not in headers
        assert "connection" not in {name.lower() for name in headers}
        assert body == b"Internal Server Error"
        assert ended(sock, within=2) is not None


@pytest.mark.parametrize(
    "request_", [head("GET", "/health", "Connection: close"), b"GET /health HTTP/1.0\r\n\r\n"]
)
def test_a_client_may_ask_for_the_end(worker: Worker, request_: bytes) -> None:
    with connection(worker) as sock:
        sock.sendall(request_)
        status, headers, _ = read_answer(sock)
        assert status == "HTTP/1.1 200 OK"
        assert headers["Connection"] == "close"
        assert ended(sock, within=2) is not None


def test_what_is_no_http(worker: Worker) -> None:
    with connection(worker) as sock:
        sock.sendall(b"\x16\x03\x01\r\n\r\n")
        status, headers, _ = read_answer(sock)
        assert status == "HTTP/1.1 400 Bad Request"
        assert headers["Connection"] == "close"


def test_chunked_requests_are_read(worker: Worker) -> None:
    lines = ("Content-Type: application/json", "Transfer-Encoding: chunked")
    with connection(worker) as sock:
        sock.sendall(head("POST", "/v1/images/generations", *lines))
        sock.sendall(b"2\r\n{}\r\n0\r\n\r\n")
        status, _, body = read_answer(sock)
        assert " 422 " in status
        assert json.loads(body)["detail"][0]["loc"] == ["body", "prompt"]


def test_a_client_may_wait_for_100_continue(worker: Worker) -> None:
    lines = ("Content-Type: application/json", "Expect: 100-continue", "Content-Length: 2")
    with connection(worker) as sock:
        sock.sendall(head("POST", "/v1/images/generations", *lines))
        assert read_answer(sock)[0] == "HTTP/1.1 100 Continue"
        sock.sendall(b"{}")
        assert " 422 " in read_answer(sock)[0]


def test_large_json_is_accepted(image: Worker) -> None:
    told = image.image(padding="x" * 20_000_000)
    assert told["data"][0]["url"]


def test_a_websocket_where_there_is_none(worker: Worker) -> None:
    with connection(worker) as sock:
        sock.sendall(head("GET", "/nope", *WEBSOCKET))
        assert read_answer(sock)[0] == "HTTP/1.1 403 Forbidden"
    assert worker.http.get("/v1/realtime_video/generate").status_code == 404


@pytest.mark.slow
def test_how_long_idle_connections_live(image: Worker) -> None:
    """A used one five seconds; one on which nothing was ever sent, as long as the worker."""
    with connection(image) as unused, connection(image) as used:
        used.sendall(head("GET", "/health"))
        read_answer(used)
        seconds = ended(used, within=8)
        assert seconds is not None
        assert 4.5 < seconds < 7
        time.sleep(1)
        assert ended(unused, within=0.1) is None
        unused.settimeout(5)
        unused.sendall(head("GET", "/health"))
        assert " 200 " in read_answer(unused)[0]
        body = json.dumps(IMAGE)
        sent = head("POST", "/v1/images/generations", f"Content-Length: {len(body)}")
        unused.sendall(sent + body.encode())
        assert " 422 " in read_answer(unused)[0]  # no content type: not taken for JSON
