"""`--resolve-all`: each address of a name is a worker, and they come and go with its answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from router.pool.worker import Worker
from tests.integration.deployment import Deployment, deployed, run, run_deployed, until
from tests.integration.lives import Lives
from tests.integration.names import Names

A, B, C = "127.0.0.1", "127.0.0.2", "127.0.0.3"


async def three(at: Deployment) -> tuple[int, list[str]]:
    """Three processes at one port: it, and their URLs."""
    first = await at.script(host=A)
    others = [await at.script(host=host, port=first.port) for host in (B, C)]
    return first.port, [worker.url for worker in (first, *others)]


def urls(at: Deployment) -> list[str]:
    return sorted(worker.url for worker in at.running.parts.registry)


def test_workers_join_and_leave_with_the_answers(names: Names) -> None:
    async def test(at: Deployment) -> None:
        port, [a, b, c] = await three(at)
        names.table["pool.test"] = [A, B, "::1"]
        given = {"url": f"http://pool.test:{port}", "max_concurrency": 3, "pool": "teacher"}
        answer = (await at.http.post("/workers", json=given)).json()
        assert [each["url"] for each in answer["workers"]] == [a, b]
        assert answer["worker"]["max_concurrency"] == 3
        await until(lambda: all(each.health == "healthy" for each in at.running.parts.registry))
        names.table["pool.test"] = [B, C]
        await until(lambda: urls(at) == [b, c])
        assert at.running.parts.registry.get(c).max_concurrency == 3
        assert {each.pool for each in at.running.parts.registry} == {"teacher"}
        del names.table["pool.test"]
        await until(lambda: urls(at) == [])
        names.table["pool.test"] = [A]
        await until(lambda: urls(at) == [a])
        names.silent.add("pool.test")
        await trio.sleep(0.2)
        assert urls(at) == [a]

    run_deployed(test, resolve_all=True)


def test_a_name_that_is_removed_takes_its_workers_along(names: Names) -> None:
    async def test(at: Deployment) -> None:
        port, [a, b, _] = await three(at)
        names.table["pool.test"] = [A, B]
        name = f"http://pool.test:{port}"
        for drain in ("false", "true"):
            await at.http.post("/workers", json={"url": name})
            assert urls(at) == [a, b]
            gone = await at.http.delete(f"/workers/{name}?drain={drain}")
            assert gone.status_code == 200
            assert urls(at) == []
            await trio.sleep(0.15)
            assert urls(at) == []
        await at.http.post("/workers", json={"url": name})
        await at.http.post("/remove_worker", json={"url": name})
        assert urls(at) == []

    run_deployed(test, resolve_all=True)


def test_one_that_is_removed_by_itself_stays_away(names: Names) -> None:
    async def test(at: Deployment) -> None:
        port, [a, b, _] = await three(at)
        names.table["pool.test"] = [A, B]
        await at.http.post("/workers", json={"url": f"http://pool.test:{port}"})
        await at.http.delete(f"/workers/{a}")
        await trio.sleep(0.2)
        assert urls(at) == [b]
        names.table["pool.test"] = [B]
        await trio.sleep(0.2)
        names.table["pool.test"] = [A, B]
        await until(lambda: urls(at) == [a, b])

    run_deployed(test, resolve_all=True)


@pytest.mark.parametrize("addresses", [["169.254.169.254"], [A, "169.254.1.1"]])
def test_blocked_addresses(names: Names, addresses: list[str]) -> None:
    async def test(at: Deployment) -> None:
        names.table["pool.test"] = addresses
        refused = await at.http.post("/workers", json={"url": "http://pool.test"})
        assert (refused.status_code, refused.json()["code"]) == (400, "bad_worker_url")
        assert "blocked" in refused.json()["error"]
        assert urls(at) == []

    run_deployed(test, resolve_all=True)


def test_localhost_and_addresses_are_workers_as_ever(names: Names) -> None:
    async def test(at: Deployment) -> None:
        script = await at.script()
        names.table["localhost"] = ["::1", A]
        await at.register(f"http://localhost:{script.port}")
        again = await at.http.post("/workers", json={"url": script.url})
        assert again.json()["alias_of"] == f"http://localhost:{script.port}"

    run_deployed(test, resolve_all=True)


def test_names_among_the_flags(names: Names) -> None:
    names.table["pool.test"] = [A, B]

    async def main() -> None:
        async with deployed() as outside:
            port, [a, b, _] = await three(outside)
            static = (f"http://pool.test:{port}",)
            async with deployed(resolve_all=True, worker_urls=static) as at:
                await until(lambda: urls(at) == [a, b])
                assert (await at.image()).status_code == 200

    run(main)


@pytest.mark.parametrize("registered", [True, False])
def test_a_restart_while_name_servers_are_silent(
    tmp_path: Path, names: Names, registered: bool
) -> None:
    names.table["pool.test"] = [A, B]

    async def main() -> None:
        async with deployed() as outside, trio.open_nursery() as nursery:
            port, [a, b, c] = await three(outside)
            name = f"http://pool.test:{port}"
            settings = {"resolve_all": True, "worker_urls": () if registered else (name,)}
            lives = Lives(tmp_path / "state", nursery)
            async with lives.router(**settings) as at:
                if registered:
                    await at.http.post("/workers", json={"url": name})
                await until(lambda: urls(at) == [a, b])
                await at.http.put(f"/workers/{a}", json={"is_dead": True})
            names.silent.add("pool.test")
            async with lives.router(**settings) as at:
                assert urls(at) == [a, b]
                assert at.running.parts.registry.get(a).admin == "quarantined"
            names.silent.clear()
            names.end()
            names.table["pool.test"] = [A, C]
            async with lives.router(**settings) as at:
                await until(lambda: urls(at) == [a, c])
            async with lives.router(**settings | {"resolve_all": False, "worker_urls": ()}) as at:
                assert urls(at) == []
            nursery.cancel_scope.cancel()

    run(main)


def test_one_that_is_about_to_leave_stays_if_its_name_leads_to_it_again(
    tmp_path: Path, names: Names
) -> None:
    """Whether or not the router was restarted meanwhile: an operator's removal would go on."""
    names.table["pool.test"] = [A, B]

    async def main() -> None:
        async with deployed() as outside, trio.open_nursery() as nursery:
            port, [a, b, _] = await three(outside)
            lives = Lives(tmp_path / "state", nursery)

            async def busy(at: Deployment) -> Worker:
                registry = at.running.parts.registry
                await until(lambda: urls(at) == [a, b])
                worker = registry.get(a)
                await until(lambda: worker.admin == "enabled" and not worker.holds)
                registry.lease(worker)
                names.table["pool.test"] = [B]
                await until(lambda: worker.leaving is not None)
                return worker

            async with lives.router(resolve_all=True) as at:
                await at.http.post("/workers", json={"url": f"http://pool.test:{port}"})
                worker = await busy(at)
                names.table["pool.test"] = [A, B]
                await until(lambda: worker.admin == "enabled" and worker.leaving is None)
                await busy(at)
                await at.running.parts.store.commit()
            names.table["pool.test"] = [A, B]
            async with lives.router(resolve_all=True) as at:
                await busy(at)
            nursery.cancel_scope.cancel()

    run(main)
