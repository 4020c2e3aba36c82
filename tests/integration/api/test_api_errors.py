"""Errors that the router makes: one shape on every path, and one line of the log."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import trio

from router.relay.routes import ROUTES, How
from tests.integration.api.pools import IMAGES, Member, RunPool, is_ours
from tests.integration.deployment import Deployment, until

# Answered as they should be, and not in JSON or not with an error.
FINE = ("*", "/live", "/", "/dashboard", "/events", "/config/reload", "/drain")
PATHS = sorted(
    {
        (method, route.path.replace("{+path}", "any/thing"))
        for route in ROUTES
        for method in route.methods
        if method != "*" and route.path not in FINE
    }
)
BODY = {
    "model_path": "x",
    "serialized_named_tensors": ["x"],
    "lora_nickname": "x",
    "prompt": "x",
}


def of(path: str) -> str:
    for word in ("{id}", "{+worker_id}", "{+model}"):
        path = path.replace(word, "nobodys")
    return path


@pytest.mark.parametrize(("method", "path"), [*PATHS, ("GET", "/any"), ("PUT", "/any/thing")])
def test_every_path_of_an_empty_pool(
    run_pool: RunPool, caplog: pytest.LogCaptureFixture, method: str, path: str
) -> None:
    async def test(pool: Deployment) -> None:
        caplog.clear()
        headers = {"x-request-id": f"test-{method}"}
        content: Any = {} if path == "/workers" else BODY
        answer = await pool.http.request(method, of(path), json=content, headers=headers)
        assert answer.headers["x-request-id"] == f"test-{method}"
        if answer.status_code == 200:  # an empty list is no error
            lists = ("/workers", "/list_workers", "/queue", "/weights", "/v1/videos", "/v1/meshes")
            lists += ("/metrics", "/engine_metrics")
            assert path in lists
            assert method in ("GET", "HEAD")
            return
        assert answer.status_code >= 400
        assert answer.headers["content-type"] == "application/json"
        if method == "HEAD" or path in ("/health", "/ready"):
            return
        body = is_ours(answer, answer.status_code, answer.json()["code"])
        assert body["request_id"] == f"test-{method}"
        lines = [r for r in caplog.records if getattr(r, "request_id", None) == f"test-{method}"]
        assert len(lines) == 1
        assert lines[0].code == body["code"]  # type: ignore[attr-defined]
        assert lines[0].levelno >= logging.WARNING
        assert method in lines[0].getMessage()
        assert of(path) in lines[0].getMessage()

    run_pool(test)


@pytest.mark.parametrize(
    ("how", "status", "code"),
    [("refuses", 502, "connect_failed"), ("drops", 502, "worker_disconnected")],
)
def test_workers_that_fail(run_pool: RunPool, how: str, status: int, code: str) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        if how == "refuses":
            a.sim.faults.add("refuse")
            a.sim._abort_connections()
        else:
            a.sim.faults.add("drop", path="/v1/images")
        body = is_ours(await pool.image(), status, code)
        assert body["retry_safe"] is (how == "refuses")

    run_pool(test, IMAGES, health_check_interval=5.0)


def test_wrong_methods_of_the_routers_own_paths(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        own = {route.path for route in ROUTES if route.how is How.OWN}
        for path in own:
            answer = await pool.http.request("PATCH", of(path))
            is_ours(answer, 405, "method_not_allowed")
            assert answer.headers["allow"]
        assert [e for e in a.sim.log.requests if e.method == "PATCH"] == []

    run_pool(test, IMAGES)


def test_a_request_id_that_cannot_be_shown_is_replaced(run_pool: RunPool) -> None:
    async def test(pool: Deployment) -> None:
        for bad in ("has space", "x" * 129, "", b"\xff"):
            answer = await pool.http.get("/workers/nobodys", headers={"x-request-id": bad})
            name = answer.headers["x-request-id"]
            assert name not in (bad, "")
            assert answer.json()["request_id"] == name

    run_pool(test)


def test_clients_that_stall_within_small_bodies(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        for path in ("/workers", "/update_weights_from_disk", "/release_memory_occupation"):
            async with await trio.open_tcp_stream("127.0.0.1", pool.running.port) as stream:
                head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 20\r\n\r\n{{"
                await stream.send_all(head.encode())
                said = await stream.receive_some()
            assert said.startswith(b"HTTP/1.1 408 ")
            assert b"client_timeout" in said
        assert a.asked("POST", "/release_memory_occupation") == []
        await until(lambda: not a.known.leases)

    run_pool(test, IMAGES, idle_timeout=0.2)


def test_a_fault_of_the_router_is_an_answer_too(
    run_pool: RunPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def test(pool: Deployment) -> None:
        monkeypatch.setattr("router.web.payload.worker_payload", broken)
        sim = await pool.simulated(**IMAGES)
        is_ours(await pool.http.post("/workers", json={"url": sim.url}), 500, "internal_error")
        assert (await pool.http.get("/live")).status_code == 200

    run_pool(test)


@pytest.mark.parametrize("host", ["a..b", ".", "a" * 64, "xn--", "a_b", "[::1]:1"])
def test_own_endpoints_do_not_look_at_host(
    run_pool: RunPool, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    async def test(pool: Deployment) -> None:
        for path in ("/live", "/workers"):
            answer = await pool.http.get(path, headers={"Host": host})
            assert answer.status_code == 200
            assert len(answer.headers.get_list("date")) == 1

    run_pool(test)
    assert not [record for record in caplog.records if record.exc_info]
