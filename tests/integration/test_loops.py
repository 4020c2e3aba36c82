"""URLs of workers that lead back to the router: its own, or that of a router behind it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from wsproto.events import RejectConnection, Request

from router import service
from router.net.hops import Instance, LoopDetected
from router.server import open_listeners
from router.store.store import Store
from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, RunRouter, deployed, run, until
from tests.integration.test_websocket_relay import Client


def test_its_own_url_is_refused(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        for _ in range(2):
            response = await at.http.post("/workers", json={"url": at.address})
            assert (response.status_code, response.json()["code"]) == (400, "bad_worker_url")
            assert "this router itself" in response.json()["error"]
            assert (await at.http.get("/workers")).json()["total"] == 0

    run_router(test)


def test_its_own_url_is_refused_where_the_disk_is_slow(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first contact is over before the registration is on the disk."""
    commit = Store.commit

    async def slowly(self: Store) -> None:
        await trio.sleep(0.2)
        await commit(self)

    monkeypatch.setattr(Store, "commit", slowly)

    async def test(at: Deployment) -> None:
        is_ours(await at.http.post("/workers", json={"url": at.address}), 400, "bad_worker_url")

    run_router(test)


def test_its_own_url_among_the_flags_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        listeners = open_listeners("127.0.0.1", 0)
        own = service.address_of(listeners[0])
        async with deployed(listeners=listeners, worker_urls=(own,)) as at:
            await until(lambda: not len(at.running.parts.registry))
            assert (await at.http.get("/health")).status_code == 503

    run(main)
    assert "leads to this router itself; it is left out" in caplog.text


def test_two_routers_in_a_ring() -> None:
    """The second one serves through a worker of its own, and never through the first."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(deployed())
            second = await stack.enter_async_context(deployed())
            real = await second.script()
            await second.register(real.url)
            await first.register(second.address)
            back = await second.http.post("/workers", json={"url": first.address})
            assert not back.json()["worker"]["routable"]
            assert "508" in back.json()["worker"]["health_reason"]
            for _ in range(4):
                assert (await first.image()).status_code == 200

    run(main)


def test_a_request_that_comes_back(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        worker = await at.script()
        await at.register(worker.url)
        own = at.running.parts.client.instance.id
        for hops in (own, f"one, {own}", f"one,{own},two"):
            for path in ("/v1/images/generations", "/v1/list_loras"):
                worker.asked.clear()
                method = "GET" if path == "/v1/list_loras" else "POST"
                back = await at.http.request(method, path, headers={"X-Router-Hops": hops})
                assert (back.status_code, back.json()["code"]) == (508, "loop_detected")
                assert f"{method} {path}" not in worker.asked
        other = await at.http.post("/v1/images/generations", headers={"X-Router-Hops": "one"})
        assert other.status_code == 200
        for path in ("/health", "/workers"):
            answer = await at.http.get(path, headers={"X-Router-Hops": own})
            assert answer.status_code in (200, 503)

    run_router(test)


def test_a_websocket_that_comes_back(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        own = at.running.parts.client.instance.id.encode()
        client = Client(await trio.open_tcp_stream("127.0.0.1", at.running.port))
        await client.send(Request(host="r", target="/x", extra_headers=[(b"X-Router-Hops", own)]))
        answer = await client.event()
        assert isinstance(answer, RejectConnection)
        assert answer.status_code == 508
        await trio.aclose_forcefully(client.stream)

    run_router(test)


def test_hops_are_passed_on_in_order() -> None:
    here = Instance("here")
    given = [(b"A", b"1"), (b"X-Router-Hops", b"a, b"), (b"x-router-hops", b"c")]
    passed = here.passed_by(given)
    assert passed == [(b"A", b"1"), (b"x-router-hops", b"a, b, c, here")]
    assert here.on_call() == ("x-router-hops", "a, b, c, here")
    with pytest.raises(LoopDetected):
        here.passed_by(passed)
