"""The wire: what a connection to a worker looks like, byte by byte."""

from __future__ import annotations

import socket
from collections.abc import Callable

import httpx
import pytest
import trio

from simulated_worker import SimulatedWorker, connection

Run = Callable[..., None]


async def exchange(worker: SimulatedWorker, raw: bytes, *, until: bytes | None = None) -> bytes:
    """Sends bytes and reads to the end of the connection, or until a mark arrives."""
    stream = await trio.open_tcp_stream("127.0.0.1", worker.port)
    async with stream:
        await stream.send_all(raw)
        got = b""
        while until is None or until not in got:
            data = await stream.receive_some()
            if not data:
                break
            got += data
        return got


def test_common_headers_and_their_order(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        raw = b"GET /health HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n"
        head, _, body = (await exchange(worker, raw)).partition(b"\r\n\r\n")
        names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
        assert head.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
        assert names == [
            b"date",
            b"server",
            b"content-length",
            b"content-type",
            b"vary",
            b"Connection",
        ]
        assert body == b'{"status":"ok"}'

    run_worker(test)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("HEAD", "/health", "GET"),
        ("DELETE", "/v1/models", "GET"),
        ("HEAD", "/v1/videos", "POST"),
        ("GET", "/v1/images/generations", "POST"),
        ("PUT", "/v1/videos/x", "GET"),
    ],
)
def test_wrong_method_is_405_with_allow(
    run_worker: Run, method: str, path: str, allow: str
) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == allow

    run_worker(test)


def test_unknown_path_and_trailing_slash(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.get("/nope")
        assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
        moved = await client.get("/v1/videos/?limit=3")
        assert moved.status_code == 307
        assert moved.headers["location"] == f"http://127.0.0.1:{worker.port}/v1/videos?limit=3"

    run_worker(test)


def test_idle_connection_is_closed_but_a_silent_one_stays(
    run_worker: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert connection.KEEP_ALIVE_SECONDS == 5.0
    monkeypatch.setattr(connection, "KEEP_ALIVE_SECONDS", 0.05)

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        silent = await trio.open_tcp_stream("127.0.0.1", worker.port)
        used = await trio.open_tcp_stream("127.0.0.1", worker.port)
        await used.send_all(b"GET /health HTTP/1.1\r\nHost: w\r\n\r\n")
        got = b""
        while data := await used.receive_some():
            got += data
        assert got.endswith(b'{"status":"ok"}')
        with trio.move_on_after(0.2) as waited:
            await silent.receive_some()
        assert waited.cancelled_caught
        await used.aclose()
        await silent.aclose()

    run_worker(test)


@pytest.mark.parametrize(
    "raw",
    [b"GARBAGE\r\n\r\n", b"GET /health HTTP/1.1\r\n\r\n"],
)
def test_what_is_no_request_gets_a_plain_400(run_worker: Run, raw: bytes) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        got = await exchange(worker, raw)
        assert got.startswith(b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain")
        assert got.endswith(b"Invalid HTTP request received.")

    run_worker(test)


def test_http_1_0_pipelining_and_chunked_bodies(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        old = await exchange(worker, b"GET /liveness HTTP/1.0\r\n\r\n")
        assert old.startswith(b"HTTP/1.1 200 OK")
        assert b"\r\nConnection: close\r\n" in old
        both = await exchange(
            worker,
            b"GET /liveness HTTP/1.1\r\nHost: w\r\n\r\n"
            b"GET /health HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n",
        )
        assert both.count(b"HTTP/1.1 200 OK") == 2
        chunked = await exchange(
            worker,
            b"POST /update_weights_from_disk HTTP/1.1\r\nHost: w\r\nConnection: close\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        )
        assert chunked.endswith(b'{"success":false,"message":"model_path is required"}')

    run_worker(test)


def test_continue_is_said_only_when_the_body_is_wanted(run_worker: Run) -> None:
    head = (
        b"POST %s HTTP/1.1\r\nHost: w\r\nExpect: 100-continue\r\nContent-Length: 2\r\n"
        b"Connection: close\r\n\r\n"
    )

    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        got = await exchange(worker, head % b"/get_weights_checksum", until=b"\r\n\r\n")
        assert got == b"HTTP/1.1 100 Continue\r\n\r\n"
        got = await exchange(worker, head % b"/nope", until=b"Not Found")
        assert got.startswith(b"HTTP/1.1 404")

    run_worker(test)


def test_an_early_answer_to_an_unread_upload_is_not_lost(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        worker.faults.add("kill_scheduler")
        answer = await client.post("/v1/videos", content=bytes(8_000_000))
        assert answer.status_code == 503
        again = await client.get("/health")
        assert again.status_code == 503
        assert worker.log.accepted == 1

    run_worker(test, keep_alive=True)


def test_large_json_is_accepted_and_hashed(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        body = b'{"prompt":"' + b"x" * 8_000_000 + b'","size":"16x16","num_inference_steps":1}'
        headers = {"content-type": "application/json"}
        answer = await client.post("/v1/images/generations", content=body, headers=headers)
        assert answer.status_code == 200
        assert worker.log.requests[-1].body_bytes == len(body)

    run_worker(test)


def test_a_client_that_leaves_is_noted_and_stops_nothing(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        raw = (
            b"POST /v1/images/generations HTTP/1.1\r\nHost: w\r\nX-Request-Id: gone\r\n"
            b"Content-Type: application/json\r\nContent-Length: 14\r\n\r\n" + b'{"prompt":"x"}'
        )
        stream = await trio.open_tcp_stream("127.0.0.1", worker.port)
        await stream.send_all(raw)
        while not worker.scheduler.running:
            await trio.sleep(0.001)
        await stream.aclose()
        await client.get("/stats")
        entry = worker.log.generations()[0]
        assert (entry.outcome, entry.request_id) == ("done", "gone")
        request = worker.log.requests[0]
        assert request.client_gone is not None
        assert entry.end is not None
        assert request.client_gone < entry.end

    run_worker(test, time_scale=0.2)


def test_origin_gets_cors_headers_and_plain_500_does_not(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        answer = await client.get("/health", headers={"origin": "http://page"})
        assert answer.headers["access-control-allow-origin"] == "http://page"
        failed = await client.post("/get_weights_checksum", content=b"")
        assert failed.status_code == 500
        assert failed.text == "Internal Server Error"
        assert failed.headers["content-type"] == "text/plain; charset=utf-8"
        assert "vary" not in failed.headers

    run_worker(test)


def test_the_port_above_is_taken_too(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", worker.port + 1))

    run_worker(test)


def test_the_log_knows_headers_ids_and_connections(run_worker: Run) -> None:
    async def test(worker: SimulatedWorker, client: httpx.AsyncClient) -> None:
        await client.get("/health", headers={"x-request-id": "abc"})
        entry = worker.log.requests[-1]
        assert (entry.request_id, entry.host) == ("abc", f"127.0.0.1:{worker.port}")
        told = (await client.get("/simulate/log")).json()
        assert told["requests"][-1]["request_id"] == "abc"
        assert told["connections"] == {"open": 1, "accepted": 1, "most_open": 1}

    run_worker(test, keep_alive=True)
