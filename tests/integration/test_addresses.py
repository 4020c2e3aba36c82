"""A worker is one address: what its name leads to, and what else leads there."""

from __future__ import annotations

import shutil
from pathlib import Path

import httpx
import pytest
import trio
from wsproto.events import RejectConnection

from router.net import addresses
from router.net.listeners import Listening
from router.pool.worker import Origin, Worker
from router.server import open_listeners
from tests.certificates import certificate
from tests.integration.deployment import (
    Deployment,
    RunRouter,
    ScriptedWorker,
    answer,
    deployed,
    run,
    until,
)
from tests.integration.names import Names
from tests.integration.relay.harness import ScriptedWorker as TlsWorker
from tests.integration.relay.harness import answering, listen
from tests.integration.relay.wire import response
from tests.integration.test_websocket_relay import Client

A, B = "127.0.0.1", "127.0.0.2"
GENERATION = "POST /v1/images/generations"


async def pair(at: Deployment) -> tuple[ScriptedWorker, ScriptedWorker]:
    """Two processes at one port of two addresses."""
    first = await at.script(host=A)
    return first, await at.script(host=B, port=first.port)


async def post(at: Deployment, url: str) -> httpx.Response:
    return await at.http.post("/workers", json={"url": url})


def test_all_connections_go_to_the_address_that_was_met(
    run_router: RunRouter, names: Names
) -> None:
    async def test(at: Deployment) -> None:
        first, second = await pair(at)
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{first.port}")
        asked = names.asked["gpu.test"]
        names.table["gpu.test"] = [B]
        for _ in range(3):
            assert (await at.image()).status_code == 200
            await at.running.parts.watchman.look_again(worker, within=5)
        await at.http.post("/v1/set_lora", json={"lora_nickname": "x"})
        client = Client(await trio.open_tcp_stream(A, at.running.port))
        assert isinstance(await client.open("/socket"), RejectConnection)
        await trio.aclose_forcefully(client.stream)
        assert second.heads == []
        assert "GET /socket" in first.asked
        assert first.asked.count(GENERATION) == 3
        assert names.asked["gpu.test"] == asked == 1
        host = b"host: gpu.test:%d" % first.port
        assert all(host in head.lower() for head in first.heads)

    run_router(test)


def test_a_name_is_looked_up_again_once_its_address_is_lost(
    run_router: RunRouter, names: Names
) -> None:
    async def test(at: Deployment) -> None:
        first, second = await pair(at)
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{first.port}")
        assert (await at.image()).status_code == 200
        names.table["gpu.test"] = [B]
        first.refuse()
        first.hang_up()
        await until(lambda: worker.incarnation == 2 and worker.health == "healthy")
        assert (await at.image()).status_code == 200
        assert second.asked.count(GENERATION) == 1

    run_router(test)


@pytest.mark.parametrize("believed", [True, False])
def test_a_kept_connection_to_the_old_address_is_not_used_again(
    run_router: RunRouter, names: Names, believed: bool
) -> None:
    """Something in front of the old process ends the idle connection, and nothing else: another
    address makes a suspect also where such ends mean nothing."""

    async def test(at: Deployment) -> None:
        first, second = await pair(at)
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{first.port}")
        watch = at.running.parts.watchman._watches[worker]
        watch.evidence._vain += [] if believed else [600.0] * 3
        first.answers["/v1/images/generations"] = answer(200, {})  # nothing to ask the other for
        assert (await at.image()).status_code == 200
        names.table["gpu.test"] = [B]
        idle = watch.idle
        assert isinstance(idle, trio.SocketStream)
        port = idle.socket.getsockname()[1]
        [theirs] = [each for each in first.connections if each.socket.getpeername()[1] == port]
        theirs.socket.close()
        await until(lambda: worker.incarnation == 2 and worker.health == "healthy")
        assert (await at.image()).status_code == 200
        assert second.asked.count(GENERATION) == 1

    run_router(test)


def test_an_address_that_others_joined_is_kept(run_router: RunRouter, names: Names) -> None:
    async def test(at: Deployment) -> None:
        first, second = await pair(at)
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{first.port}")
        names.table["gpu.test"] = [B, A]
        first.refuse()
        first.hang_up()
        await until(lambda: worker.health == "unhealthy")
        first.listen()
        await until(lambda: worker.health == "healthy")
        assert second.heads == []

    run_router(test)


def test_a_name_with_several_addresses_is_refused(run_router: RunRouter, names: Names) -> None:
    async def test(at: Deployment) -> None:
        first, _ = await pair(at)
        names.table["pool.test"] = [A, B]
        refused = await post(at, f"http://pool.test:{first.port}")
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_worker_url")
        assert f"2 addresses ({A}, {B})" in refused.json()["error"]
        assert "register each" in refused.json()["error"]
        assert (await at.http.get("/workers")).json()["total"] == 0

    run_router(test)


def test_a_static_name_with_several_addresses_gets_nothing_until_it_has_one(names: Names) -> None:
    names.table["pool.test"] = [A, B]

    async def main() -> None:
        [listener] = open_listeners(A, 0)
        port = listener.getsockname()[1]
        listener.close()
        async with deployed(worker_urls=(f"http://pool.test:{port}",)) as at:
            script = await at.script(host=A, port=port)
            [worker] = at.running.parts.registry
            await until(lambda: worker.health_reason)
            assert "register each" in str(worker.health_reason)
            assert script.heads == []
            names.table["pool.test"] = [A]
            await until(lambda: worker.health == "healthy")

    run(main)


@pytest.mark.parametrize("order", [["::1", A], [A, "::1"], [f"::ffff:{A}"], [A, f"::ffff:{A}"]])
def test_one_address_of_each_family_is_one_worker(
    run_router: RunRouter, names: Names, order: list[str]
) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(host=A)
        names.table["localhost"] = order
        await at.register(f"http://localhost:{script.port}")
        assert (await at.image()).status_code == 200

    run_router(test)


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.1.1"])
def test_a_name_of_a_blocked_address_is_refused(
    run_router: RunRouter, names: Names, address: str
) -> None:
    async def test(at: Deployment) -> None:
        names.table["innocent.test"] = [address]
        refused = await post(at, "http://innocent.test")
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_worker_url")
        assert "blocked" in refused.json()["error"]
        names.table["innocent.test"] = [A, address]
        assert (await post(at, "http://innocent.test")).status_code == 400
        assert (await at.http.get("/workers")).json()["total"] == 0

    run_router(test)


def test_silent_name_servers_hold_back_nobody_who_is_known(
    run_router: RunRouter, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.web.workers.FIRST_CONTACT", 0.05)

    async def test(at: Deployment) -> None:
        script = await at.script()
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{script.port}")
        hanging = [f"hangs{number}.test" for number in range(60)]
        names.silent |= {"gpu.test", *hanging}
        for name in hanging:
            await post(at, f"http://{name}")
        await until(lambda: names.hanging)
        assert names.hanging <= 36
        for _ in range(2):
            assert (await at.image()).status_code == 200
        script.hang_up()  # the idle connection too: its address is doubted, and kept
        await until(lambda: worker.suspicion is not None or worker.incarnation > 1)
        await until(lambda: worker.health == "healthy" and worker.suspicion is None)
        assert (await at.image()).status_code == 200
        assert names.hanging <= 36

    run_router(test)


# Several URLs of one process.


def test_a_second_url_of_one_address_answers_with_the_first(
    run_router: RunRouter, names: Names
) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        await at.register(script.url)
        names.table["localhost"] = [A]
        again = await at.http.post(
            "/workers", json={"url": f"http://localhost:{script.port}", "max_concurrency": 3}
        )
        assert again.status_code == 200
        assert again.json()["alias_of"] == script.url
        assert again.json()["worker"]["url"] == script.url
        assert again.json()["worker"]["max_concurrency"] == 3
        assert (await at.http.get("/workers")).json()["total"] == 1
        alias = f"/workers/http://localhost:{script.port}"
        assert (await at.http.get(alias)).json()["worker"]["url"] == script.url
        assert (await at.http.delete(alias)).status_code == 200
        assert (await at.http.get("/workers")).json()["total"] == 0
        assert (await at.http.get(alias)).status_code == 404

    run_router(test)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not tell")
def test_addresses_of_this_machine_that_reach_one_socket(
    run_router: RunRouter, names: Names
) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(host="0.0.0.0")
        names.table["myself"] = [B]
        await at.register(f"http://{A}:{script.port}")
        again = await post(at, f"http://myself:{script.port}")
        assert again.json()["alias_of"] == f"http://{A}:{script.port}"
        assert (await at.http.get("/workers")).json()["total"] == 1

    run_router(test)


def test_two_processes_of_one_machine_and_port_are_two(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        for script in await pair(at):
            assert "alias_of" not in (await post(at, script.url)).json()
        assert (await at.http.get("/workers")).json()["total"] == 2

    run_router(test)


def test_the_sockets_of_this_machine_are_not_read_for_each_worker(
    run_router: RunRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand workers on one port would be met one after the other for half a minute."""
    read, reads = addresses.read_listening, []

    def counted() -> Listening:
        reads.append(None)
        return read()

    async def test(at: Deployment) -> None:
        first = await at.script()
        more = [ScriptedWorker(port=first.port, host=f"127.0.1.{last}") for last in range(1, 40)]
        for worker in more:
            at.scripted.append(worker)
            await at.nursery.start(worker.run)
        monkeypatch.setattr(addresses, "read_listening", counted)
        monkeypatch.setattr(addresses, "_MOMENT", 1000.0)  # however long this takes
        for worker in (first, *more):
            assert (await post(at, worker.url)).status_code == 200
        registry = at.running.parts.registry
        assert len(registry) == 40
        assert len(reads) <= 2

    run_router(test)


def test_aliases_among_the_flags(names: Names, caplog: pytest.LogCaptureFixture) -> None:
    names.table |= {"localhost": ["::1", A], "myself": [A]}

    async def main() -> None:
        [listener] = open_listeners(A, 0)
        port = listener.getsockname()[1]
        listener.close()
        urls = [f"http://{host}:{port}" for host in ("localhost", A, "myself")]
        async with deployed(worker_urls=tuple(urls)) as at:
            await at.script(port=port)
            registry = at.running.parts.registry
            await until(lambda: len(registry) == 1 and next(iter(registry)).health == "healthy")
            assert (await at.image()).status_code == 200

    run(main)
    assert caplog.text.count("it is left out") == 2


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the kernel does not tell")
def test_a_launched_worker_takes_the_place_of_a_registered_one(run_router: RunRouter) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script(host="0.0.0.0")
        registry = at.running.parts.registry
        registered = await at.register(f"http://{B}:{script.port}")
        launched = registry.add(f"http://{A}:{script.port}", Origin.LAUNCHED)
        await until(lambda: launched.health == "healthy")
        assert registered.removed
        assert list(registry) == [launched]

    run_router(test)


def test_an_address_that_passed_to_another_name(run_router: RunRouter, names: Names) -> None:
    """As pods have it: the first one ended, and a second one got its address."""

    async def test(at: Deployment) -> None:
        script = await at.script()
        names.table |= {"a.test": [A]}
        first = await at.register(f"http://a.test:{script.port}")
        script.refuse()
        script.hang_up()
        await until(lambda: first.suspicion)
        names.table = {"b.test": [A]}
        await until(lambda: "has no address" in str(first.health_reason))
        script.listen()
        joined = await post(at, f"http://b.test:{script.port}")
        assert "alias_of" not in joined.json()
        second = at.running.parts.registry.get(f"http://b.test:{script.port}")
        await until(lambda: second.health == "healthy")
        assert (await at.image()).headers["x-worker-id"] == second.worker_id
        await until(lambda: "has no address" in str(first.health_reason))

    run_router(test)


def test_a_removed_worker_leaves_its_address(run_router: RunRouter, names: Names) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        names.table["gpu.test"] = [A]
        worker = await at.register(f"http://gpu.test:{script.port}")
        await at.http.delete(f"/workers/{worker.worker_id}")
        assert "alias_of" not in (await post(at, script.url)).json()

    run_router(test)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")
def test_the_certificate_is_that_of_the_name(
    tmp_path: Path, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path, "DNS:gpu.test")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))
    names.table |= {"gpu.test": [A], "other.test": [A]}

    async def main() -> None:
        async with deployed() as at, trio.open_nursery() as nursery:
            for name, well in (("gpu.test", True), ("other.test", False)):
                tls = TlsWorker(answering(response(body=b"{}")), await listen(), tls=made.server())
                await nursery.start(tls.run)
                await post(at, f"https://{name}:{tls.port}")
                worker: Worker = at.running.parts.registry.get(f"https://{name}:{tls.port}")
                await until(lambda: worker.health != "unknown")  # noqa: B023
                assert (worker.health == "healthy") is well, worker.health_reason
            assert (await at.http.get("/anything")).status_code == 200
            nursery.cancel_scope.cancel()

    run(main)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates")
def test_the_other_scheme_of_one_address_is_no_other_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first that answered well stays. A slip, which never did, gives way."""
    made = certificate(tmp_path, "IP:127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(made.file))

    async def main() -> None:
        async with deployed() as at, trio.open_nursery() as nursery:
            plain = await at.script()
            await at.register(plain.url)
            again = await post(at, plain.url.replace("http:", "https:"))
            assert again.json()["alias_of"] == plain.url
            tls = TlsWorker(answering(response(body=b"{}")), await listen(), tls=made.server())
            await nursery.start(tls.run)
            slip, right = (f"{scheme}://{A}:{tls.port}" for scheme in ("http", "https"))
            registry = at.running.parts.registry
            assert (await post(at, slip)).json()["worker"]["routable"] is False
            assert "alias_of" not in (await post(at, right)).json()
            await until(lambda: registry.get(right).health == "healthy")
            assert registry.get(f"{A}:{tls.port}") is registry.get(right)
            assert [worker.url for worker in registry] == [plain.url, right]
            nursery.cancel_scope.cancel()

    run(main)
