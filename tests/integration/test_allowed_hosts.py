"""Workers elsewhere than `--allowed-worker-hosts` are refused, and never called."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from attrs import evolve

from tests.integration.api.pools import is_ours
from tests.integration.deployment import Deployment, RunRouter, deployed, run, until
from tests.integration.lives import Lives, run_lives
from tests.integration.names import Names

A, B = "127.0.0.1", "127.0.0.2"
CODE = "worker_host_not_allowed"


def test_registration(run_router: RunRouter, names: Names) -> None:
    names.table |= {"gpu.test": [A], "far.test": [B], "named.test": [B]}

    async def test(at: Deployment) -> None:
        near = await at.script(host=A)
        far = await at.script(host=B, port=near.port)
        for url in (near.url, f"http://gpu.test:{near.port}"):
            added = await at.http.post("/workers", json={"url": url})
            assert added.status_code == 200
            await at.http.delete(f"/workers/{added.json()['worker']['worker_id']}")
        far.heads.clear()
        plain = {"kind": "http", "pool": "reward"}
        for url in (far.url, f"http://far.test:{far.port}"):
            for path, more in (("/workers", {}), ("/add_worker", {}), ("/workers", plain)):
                refused = await at.http.post(path, json={"url": url, **more})
                said = is_ours(refused, 403, CODE)
                assert "is not among --allowed-worker-hosts" in said["error"]
        assert far.heads == []
        assert (await at.http.get("/list_workers")).json() == {"urls": []}
        # The name itself is allowed, wherever it leads.
        await at.register(f"http://named.test:{far.port}")
        later = await at.http.post("/workers", json={"url": "http://unknown.test:1"})
        assert later.status_code == 200

    run_router(test, allowed_worker_hosts=("127.0.0.1/32", "named.test"))


def test_a_name_that_moves_to_where_no_worker_may_be(run_router: RunRouter, names: Names) -> None:
    names.table["gpu.test"] = [A]

    async def test(at: Deployment) -> None:
        near = await at.script(host=A)
        far = await at.script(host=B, port=near.port)
        worker = await at.register(f"http://gpu.test:{near.port}")
        names.table["gpu.test"] = [B]
        near.refuse()
        near.hang_up()
        await until(lambda: worker.health == "unhealthy")
        assert "gpu.test with the address 127.0.0.2 is not among" in (worker.health_reason or "")
        assert far.heads == []
        names.table["gpu.test"] = [A]
        near.listen()
        await until(lambda: worker.health == "healthy")

    run_router(test, allowed_worker_hosts=("127.0.0.1",))


def test_each_address_of_an_allowed_name(run_router: RunRouter, names: Names) -> None:
    names.table["pool.test"] = [A, B]

    async def test(at: Deployment) -> None:
        first = await at.script(host=A)
        second = await at.script(host=B, port=first.port)
        said = await at.http.post("/workers", json={"url": f"http://pool.test:{first.port}"})
        assert [each["url"] for each in said.json()["workers"]] == [first.url, second.url]
        for url in (first.url, second.url):
            worker = at.running.parts.registry.get(url)
            await until(lambda worker=worker: worker.health == "healthy")
        is_ours(await at.http.post("/workers", json={"url": "http://127.0.0.3:1"}), 403, CODE)

    run_router(test, allowed_worker_hosts=("pool.test",), resolve_all=True)


def test_a_name_with_one_address_outside_is_refused_whole(
    run_router: RunRouter, names: Names
) -> None:
    names.table["pool.test"] = [A, B]

    async def test(at: Deployment) -> None:
        is_ours(await at.http.post("/workers", json={"url": "http://pool.test:1"}), 403, CODE)
        assert (await at.http.get("/list_workers")).json() == {"urls": []}

    run_router(test, allowed_worker_hosts=("127.0.0.1",), resolve_all=True)


def test_a_restored_worker_is_named_and_not_called(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as at:
            script = await at.script()
            await at.register(script.url)
        script.heads.clear()
        async with lives.router(allowed_worker_hosts=("10.0.0.0/8",)) as at:
            worker = at.running.parts.registry.get(script.url)
            await until(lambda: worker.health == "unhealthy")
            [row] = (await at.http.get("/workers")).json()["workers"]
            assert row["health_reason"] == "127.0.0.1 is not among --allowed-worker-hosts"
        assert script.heads == []
        script.stop()

    with caplog.at_level(logging.INFO, "router"):
        run_lives(test, tmp_path / "state")
    assert any("not among --allowed-worker-hosts" in each.message for each in caplog.records)


def test_a_reload_drains_and_removes_who_is_no_longer_allowed() -> None:
    async def main() -> None:
        wanted = None
        async with deployed(again=lambda: wanted) as at:  # type: ignore[arg-type,return-value]
            here, there = await at.script(host=A), await at.script(host=B)
            await at.register(here.url)
            await at.register(there.url)
            now = at.running.reload.live.settings
            wanted = evolve(now, allowed_worker_hosts=("127.0.0.2",))
            told = (await at.http.post("/config/reload")).json()
            assert told["applied"] == ["allowed_worker_hosts"]
            await until(lambda: at.running.parts.registry.find(here.url) is None)
            assert (await at.http.get("/list_workers")).json() == {"urls": [there.url]}

    run(main)
