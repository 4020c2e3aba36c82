"""The watch over workers on real sockets: processes that die, refuse, hang, or answer nonsense."""

from __future__ import annotations

import pytest
import trio

from router.control import health
from router.pool import events
from router.pool.worker import Health
from tests.integration.deployment import (
    Deployment,
    RunRouter,
    answer,
    at_pace,
    never,
    until,
)
from tests.patience import fail_after


def test_a_worker_that_restarts_is_noticed_at_once(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        worker = await at.register(process.url)
        assert (worker.incarnation, worker.capabilities is not None) == (1, True)
        process.faults.add("restart", down=0.1)
        await until(lambda: worker.suspicion)
        await until(lambda: worker.incarnation == 2 and worker.health is Health.HEALTHY)
        assert worker.suspicion is None

    # Not by chance of a probe: the first one after that of the registration is far away.
    run_router(test, health_check_interval=600)


def test_a_reset_of_the_idle_connection_counts_as_well(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        worker = await at.register(script.url)
        await trio.sleep(1.0)  # one that ends sooner may be hung up by something in between
        script.hang_up(reset=True)
        await until(lambda: worker.incarnation == 2)

    run_router(test, health_check_interval=600)


def test_probes_leave_the_idle_connection_alone(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        worker = await at.register(script.url)
        await until(lambda: script.asked.count("GET /health") > 10)
        assert (worker.incarnation, worker.suspicion) == (1, None)

    run_router(test, health_check_interval=0.01)


def test_a_port_that_refuses(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        worker = await at.register(script.url)
        script.refuse()
        script.hang_up()
        await until(lambda: worker.health is Health.UNHEALTHY)
        assert worker.health_reason == "GET /health failed: connection refused"
        assert worker.suspicion is not None
        script.listen()
        await until(lambda: worker.health is Health.HEALTHY)
        assert worker.incarnation == 2

    run_router(test)


def test_a_flap_with_the_connection_intact(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        worker = await at.register(script.url)
        script.answers["/health"] = answer(500)
        await until(lambda: worker.health is Health.UNHEALTHY)
        assert worker.health_reason == "GET /health answered 500"
        del script.answers["/health"]
        await until(lambda: worker.health is Health.HEALTHY)
        assert (worker.incarnation, worker.suspicion) == (1, None)

    run_router(test)


def test_a_warm_up_then_health(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated(warmup_seconds=30)
        posted = (await at.http.post("/workers", params={"url": process.url})).json()
        assert posted["worker"]["health"] == "warming"
        assert posted["message"] == (
            "The worker does not serve yet: it is warming up; it is probed further"
        )
        worker = at.running.parts.registry.get(process.url)
        await until(lambda: worker.health is Health.HEALTHY)
        assert worker.incarnation == 1

    run_router(test)


def test_a_dead_backend(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        process = await at.simulated()
        worker = await at.register(process.url)
        process.faults.add("kill_scheduler")
        await until(lambda: worker.health is Health.UNHEALTHY)
        assert "backend died" in (worker.health_reason or "")
        process.faults.clear()
        await until(lambda: worker.health is Health.HEALTHY)

    run_router(test)


def test_an_answer_that_drips_is_not_waited_for(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.2)

    async def test(at: Deployment) -> None:
        # Each byte is in time, all together are not.
        script = await at.script(**{"/health": at_pace(answer(200, {"status": "ok"}), 0.03)})
        await at.http.post("/workers", params={"url": script.url})
        worker = at.running.parts.registry.get(script.url)
        await until(lambda: worker.consecutive_failures >= 2)
        assert "no answer within 0.2 s" in (worker.health_reason or "")

    run_router(test)


def test_models_that_hang_are_a_warm_up(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_TIMEOUT", 0.2)

    async def test(at: Deployment) -> None:
        script = await at.script(**{"/v1/models": never})
        await at.http.post("/workers", params={"url": script.url})
        worker = at.running.parts.registry.get(script.url)
        await until(lambda: worker.health is Health.WARMING)
        del script.answers["/v1/models"]
        await until(lambda: worker.health is Health.HEALTHY)

    run_router(test)


NONSENSE = {
    "not HTTP": b"220 smtp.example ESMTP\r\n",
    "no status line": b"220 smtp.example ESMTP\r\n\r\n",
    "no header": b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
    "no chunk": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    "a cut-off head": b"HTTP/1.1 200",
    "a cut-off body": b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
    "a wrong length": b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n{}",
    "a wrong coding": b"HTTP/1.1 200 X\r\ncontent-encoding: br\r\nContent-Length:2\r\n\r\n\x8b\x00",
    "a bad redirect": b"HTTP/1.1 302 X\r\nlocation: http://xn--a/\r\ncontent-length: 0\r\n\r\n",
    "a worse one": b"HTTP/1.1 302 X\r\nlocation: http://[::1/\r\ncontent-length: 0\r\n\r\n",
    "too much at once": b"HTTP/1.1 200 OK\r\ncontent-length: 9000000\r\n\r\n" + b" " * 9_000_000,
    "too much": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 9,
    "a wrong charset": answer(200, body=b"\xff\xfe\x00"),
}


def test_nonsense_is_a_failure_and_nothing_else(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        told: list[events.Event] = []
        at.running.parts.registry.subscribe(told.append)
        for name, data in NONSENSE.items():

            async def blurt(stream: trio.SocketStream, data: bytes = data) -> None:
                await stream.send_all(data)
                await stream.aclose()

            script = await at.script(**{"/v1/models": blurt})
            posted = (await at.http.post("/workers", params={"url": script.url})).json()
            assert posted["worker"]["routable"] is False, name
            reason = posted["worker"]["health_reason"]
            assert reason, name
            assert "/v1/models" in reason, name
            assert "bytearray" not in reason, name
            assert ("answered more than" in reason) is name.startswith("too much"), name
            assert len(reason) < 400, name
        assert (await at.http.get("/live")).status_code == 200

    run_router(test)


def test_what_a_worker_says_goes_to_no_other(run_router: RunRouter) -> None:
    """No cookie is kept, though cookies know no ports, and no redirect is followed."""

    async def test(at: Deployment) -> None:
        other = await at.script()
        known = await at.register(other.url)
        location = f"location: {other.url}/elsewhere\r\nset-cookie: a=1; path=/\r\n".encode()
        redirect = answer(302).replace(b"X\r\n", b"X\r\n" + location)
        script = await at.script(**{"/health": redirect})
        posted = (await at.http.post("/workers", params={"url": script.url})).json()
        assert "302" in posted["worker"]["health_reason"]
        for url in (script.url, other.url):
            worker = at.running.parts.registry.get(url)
            await at.running.parts.watchman.look_again(worker, within=5)
        assert known.health is Health.HEALTHY
        assert "GET /elsewhere" not in other.asked
        heads = [*script.heads, *other.heads]
        assert len(heads) > 4
        assert not any(b"\r\ncookie:" in head.lower() for head in heads)

    run_router(test)


def test_names_that_cannot_be_looked_up_are_a_failure_and_nothing_else(
    run_router: RunRouter,
) -> None:
    async def test(at: Deployment) -> None:
        for host in ("xn--a", "ab--cd", "my_worker.invalid", "a" * 63 + ".invalid"):
            response = await at.http.post("/workers", json={"url": f"http://{host}:9"})
            assert response.status_code == 200
            assert response.json()["worker"]["routable"] is False
        for worker in at.running.parts.registry:
            with fail_after(10):
                while not worker.consecutive_failures:
                    await trio.sleep(0.01)
        assert (await at.http.get("/live")).status_code == 200

    run_router(test)


def test_trouble_of_the_relay_is_followed_by_a_probe(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        worker = await at.register(script.url)
        await until(lambda: script.asked.count("GET /model_info") == 1)

        async def hang_up(stream: trio.SocketStream) -> None:
            await stream.aclose()

        script.answers["/v1/images/generations"] = hang_up
        before = script.asked.count("GET /health")
        response = await at.image()
        assert response.status_code == 502
        await until(lambda: script.asked.count("GET /health") > before)
        assert worker.health is Health.HEALTHY

    run_router(test, health_check_interval=600)
