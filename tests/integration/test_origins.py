"""Web pages of other origins: what they may read, and that they change nothing."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from wsproto.events import RejectConnection

from router.front.origins import Origins
from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, answer, run_deployed
from tests.integration.test_websocket_relay import Client

EVIL, FRIEND = "https://evil.test", "https://tools.example.org"
WORKER_SAYS = {"access-control-allow-origin": "*", "access-control-allow-credentials": "true"}


def said(headers: httpx.Headers) -> dict[str, str]:
    return {name: v for name, v in headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),
        ({"origin": EVIL}, True),
        ({"origin": "null"}, True),
        ({"sec-fetch-site": "cross-site"}, True),
        ({"sec-fetch-site": "same-site", "origin": "http://other.localhost"}, True),
        ({"sec-fetch-site": "same-origin", "origin": "http://behind-a-proxy"}, False),
        ({"sec-fetch-site": "none"}, False),
        ({"origin": "http://127.0.0.1:{port}"}, False),
        ({"origin": "http://127.0.0.1:1"}, True),
        ({"origin": "http://router.test", "host": "router.test"}, True),  # DNS rebinding
        ({"origin": "http://localhost", "host": "localhost:80"}, False),
        ({"origin": "https://[::1]:44", "host": "[::1]:44"}, False),
    ],
)
def test_who_may_change_something(headers: dict[str, str], refused: bool) -> None:
    async def test(at: Deployment) -> None:
        given = {name: v.format(port=at.running.port) for name, v in headers.items()}
        for path in ("/drain", "/v1/images/generations", "/workers"):
            asked = await at.http.post(path, json={}, headers=given)
            if refused:
                is_ours(asked, 403, "foreign_origin")
            else:
                assert asked.status_code != 403
        assert (await at.http.get("/workers", headers=given)).status_code == 200
        assert at.running.parts.drain.active is not refused

    run_deployed(test)


def test_a_foreign_page_opens_no_websocket() -> None:
    async def test(at: Deployment) -> None:
        for origin, status in ((EVIL, 403), (FRIEND, 503)):  # 503: there is no worker
            socket = Client(await trio.open_tcp_stream("127.0.0.1", at.running.port))
            refusal = await socket.open("/socket", extra_headers=[(b"origin", origin.encode())])
            assert isinstance(refusal, RejectConnection)
            assert refusal.status_code == status
            await trio.aclose_forcefully(socket.stream)

    run_deployed(test, cors_origin=(FRIEND,))


def test_without_the_flag_no_answer_may_be_read_by_others() -> None:
    async def test(at: Deployment) -> None:
        raw = answer(200, {}).replace(b"\r\n", b"\r\naccess-control-allow-origin: *\r\n", 1)
        worker = await at.script(**{"/page": raw})
        await at.register(worker.url)
        for path in ("/workers", "/page"):
            assert said((await at.http.get(path, headers={"origin": EVIL})).headers) == {}

    run_deployed(test)


@pytest.mark.parametrize("allowed", [FRIEND, "*"])
def test_with_the_flag(allowed: str) -> None:
    async def test(at: Deployment) -> None:
        raw = answer(200, {}).replace(b"\r\n", b"\r\naccess-control-allow-origin: x\r\n", 1)
        worker = await at.script(**{"/page": raw})
        at.http.headers["x-api-key"] = "key"
        await at.register(worker.url)
        del at.http.headers["x-api-key"]
        origin = {"origin": FRIEND}

        def check(answered: httpx.Response, status: int) -> dict[str, str]:
            assert answered.status_code == status
            found = said(answered.headers)
            assert answered.headers.get_list("access-control-allow-origin") == [allowed]
            assert "access-control-allow-credentials" not in found
            assert ("origin" in answered.headers.get("vary", "")) is (allowed != "*")
            return found

        exposed = "access-control-expose-headers"
        assert "x-worker-id" in check(await at.http.get("/workers", headers=origin), 200)[exposed]
        check(await at.http.get("/page", headers=origin), 200)
        check(await at.http.post("/v1/images/generations", json={}, headers=origin), 200)
        check(await at.http.get("/nowhere", headers=origin), 404)
        check(await at.http.post("/workers", json={}, headers=origin), 401)
        asks: dict[str, Any] = {
            **origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type, x-api-key",
        }
        found = check(await at.http.options("/v1/images/generations", headers=asks), 204)
        assert "POST" in found["access-control-allow-methods"]
        assert found["access-control-allow-headers"] == "content-type, x-api-key"
        assert [each for each in worker.asked if each.startswith("OPTIONS")] == []
        foreign = await at.http.options("/workers", headers={**asks, "origin": EVIL})
        if allowed != "*":
            assert said(foreign.headers) == {}
            assert said((await at.http.get("/workers", headers={"origin": EVIL})).headers) == {}

    run_deployed(test, cors_origin=(allowed,), admin_api_key="key")


def test_own_answers_give_browsers_nothing_to_run() -> None:
    async def test(at: Deployment) -> None:
        for path in ("/workers", "/", "/dashboard", "/metrics", "/workers/unknown"):
            headers = (await at.http.get(path, headers={"accept": "text/html"})).headers
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["referrer-policy"] == "no-referrer"

    run_deployed(test)


def test_hosts_that_are_not_local_may_have_any_name() -> None:
    page, host = b"http://router.test:3", b"router.test:3"
    assert Origins().refusal(host, page, None, local=False) is None
    assert Origins().refusal(host, page, None, local=True) is not None
    assert Origins().refusal(b"router.test", b"https://ROUTER.test", None, local=False) is None
    assert Origins(("*",)).refusal(host, b"null", b"cross-site", local=True) is None
