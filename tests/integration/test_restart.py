"""A router that is killed and started again: what it still knows, and what it finds out anew."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from router import program
from router.launch.base import WorkerPorts
from router.launch.records import LaunchRecord
from router.pool.assets import AssetKind
from router.pool.worker import Origin, Worker, WorkerRecord
from router.settings import LauncherSettings, WorkerSettings
from router.store import files
from router.store import store as store_module
from router.store.records import unstructured
from router.store.store import Store
from simulated_worker import WorkerConfig, serve
from tests.integration.api.pools import BOTH, direct_to, is_ours
from tests.integration.deployment import Deployment, answer, until
from tests.integration.lives import Lives, RunLives, run_lives
from tests.launchers import FREE_PORTS, restarting

VIDEO = {"prompt": "a red kite", "size": "64x64", "num_frames": 3, "num_inference_steps": 1}
LONG = {**VIDEO, "num_inference_steps": 5000}


@pytest.fixture
def run_restarts(tmp_path: Path) -> RunLives:
    return lambda test: run_lives(test, tmp_path)


async def submit(router: Deployment, **more: Any) -> str:
    made = await router.http.post("/v1/videos", json={**VIDEO, **more})
    assert made.status_code == 200, made.text
    job_id: str = made.json()["id"]
    return job_id


async def payload(router: Deployment, worker: Any) -> dict[str, Any]:
    answer = await router.http.get(f"/workers/{worker.url}")
    found: dict[str, Any] = answer.json()["worker"]
    return found


def known(router: Deployment, url: str) -> Worker:
    worker = router.running.parts.registry.find(url)
    assert worker is not None
    return worker


async def healthy(router: Deployment, *urls: str) -> None:
    await until(lambda: all(known(router, url).health == "healthy" for url in urls))


def test_launched_workers_are_recorded_once_there_is_something_to_know(
    run_restarts: RunLives, tmp_path: Path
) -> None:
    more = {"num_gpus_per_worker": 0, **FREE_PORTS}
    fails = LauncherSettings(model="x/fails", command=("/bin/false",), **restarting("1m"), **more)
    serves = LauncherSettings(
        model="x/serves",
        command=(*program.self_command(), "simulate-worker", "--load-seconds", "0"),
        **more,
    )

    async def test(lives: Lives) -> None:
        async with lives.router(launchers=(fails, serves)) as router:
            registry, store = router.running.parts.registry, router.running.parts.store
            await until(lambda: "status 1" in str(router.running.fleet.views()[0].detail))
            await until(lambda: any(worker.capabilities for worker in registry))
            await store.commit()
            (url,) = (worker.url for worker in registry if worker.capabilities)
            assert len(registry) == 2
        found = Store.open(lives.folder)
        assert list(found.restored(WorkerRecord)) == [url]
        found.close()
        async with lives.router(launchers=(fails,)) as router:
            await until(lambda: "status 1" in str(router.running.fleet.views()[0].detail))
            (worker,) = router.running.parts.registry
            await router.http.put(f"/workers/{worker.url}", json={"is_dead": True})
        found = Store.open(lives.folder)
        assert list(found.restored(WorkerRecord)) == [worker.url]  # in quarantine, by a request
        found.close()

    run_restarts(test)


def test_secrets_that_an_older_version_stored_go(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        record = LaunchRecord(
            *("l", 0, "l-0", "elsewhere", "t", "f", ("sglang",)), WorkerPorts(10090, 30005, 5555)
        )
        row = {**unstructured(record), "command": ["sglang", "--api-key", "hunter2"]}
        store = Store.open(lives.folder)
        async with store.running():
            store.put_row(LaunchRecord.table, record.key, row)
            await store.commit()
        for _ in range(2):  # each makes a snapshot, and drops what is older than the one before
            async with lives.router(crash=False):
                pass
        found = Store.open(lives.folder)
        (kept,) = found.rows(LaunchRecord.table).values()
        found.close()
        assert kept == {**row, "command": ["sglang", "--api-key", "***"]}
        assert not [path for path in lives.folder.iterdir() if b"hunter2" in path.read_bytes()]

    run_restarts(test)


@pytest.mark.parametrize("crash", [True, False], ids=["killed", "stopped"])
def test_everything_is_there_again(run_restarts: RunLives, crash: bool) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router(crash=crash) as router:
            one, two = await router.simulated(**BOTH), await router.simulated(**BOTH)
            for worker in (one, two):
                await router.register(worker.url)
            path = f"/workers/{one.url}"
            put = await router.http.put(path, json={"max_concurrency": 3, "draining": True})
            assert put.status_code == 200, put.text
            done = await submit(router)
            image = (await router.image()).json()["id"]
            assets = router.running.parts.jobs.assets
            await until(lambda: assets.owner(image, AssetKind.IMAGE))
            content = await router.http.get(f"/v1/images/{image}/content")
            before = await payload(router, one)
            await until(lambda: not known(router, two.url).holds)
            await router.running.parts.store.commit()  # images are not waited for
        async with lives.router() as router:
            await healthy(router, one.url, two.url)
            workers = (await router.http.get("/workers")).json()["workers"]
            assert [worker["url"] for worker in workers] == [one.url, two.url]
            after = await payload(router, one)
            for name in ("admin", "max_concurrency", "models", "origin"):
                assert after[name] == before[name]
            assert after["admin"] == "draining"
            assert after["max_concurrency"] == 3
            # Not by asking around.
            assets = router.running.parts.jobs.assets
            owner = assets.owner(done, AssetKind.VIDEO)
            assert owner is not None
            assert owner.worker.url == two.url
            assert known(router, two.url).incarnation == 1
            assert (await router.http.get(f"/v1/videos/{done}")).json()["status"] == "completed"
            assert assets.owner(image, AssetKind.IMAGE) is not None
            again = await router.http.get(f"/v1/images/{image}/content")
            assert again.content == content.content
            assert (await router.image()).status_code == 200

    run_restarts(test)


def test_an_unfinished_job_holds_its_slot_and_is_followed(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(**BOTH, time_scale=2.0)
            await router.register(sim.url)
            job = await submit(router, **LONG)
        async with lives.router() as router:
            worker = known(router, sim.url)
            assert [hold.job_id for hold in worker.holds] == [job, None]  # and the ghost
            assert worker.jobs == 1
            await until(lambda: not worker.holds)
            assert worker.incarnation == 1
            assert (await router.http.get(f"/v1/videos/{job}")).json()["status"] == "completed"
            assert router.running.parts.dispatcher.speeds.of(sim.url)["video"] > 0
            await router.running.parts.store.commit()
        async with lives.router() as router:
            assert known(router, sim.url).jobs == 0

    run_restarts(test)


def test_a_job_that_was_never_recorded_is_found(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(**BOTH, time_scale=100.0)
            await router.register(sim.url)
            recorded = await submit(router, **LONG)  # so that the process can be told
        async with direct_to(sim.url) as direct:
            lost = (await direct.post("/v1/videos", json=LONG)).json()["id"]
        async with lives.router() as router:
            worker = known(router, sim.url)
            await until(lambda: worker.jobs == 2)
            assert {hold.job_id for hold in worker.holds} >= {recorded, lost}
            assert worker.incarnation == 1
            assets = router.running.parts.jobs.assets
            assert assets.order(lost) > assets.order(recorded) > 0
            await router.running.parts.store.commit()
        async with lives.router() as router:  # now it is recorded
            assert lost in {hold.job_id for hold in known(router, sim.url).holds}

    run_restarts(test)


def test_another_process_at_the_address_has_no_jobs(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(**BOTH)
            await router.register(sim.url)
            job = await submit(router, **LONG)
        sim.kill()
        await sim.ended.wait()
        async with lives.router() as router:
            assert known(router, sim.url).jobs == 1
            quick = {"time_scale": 0.01, "warmup_seconds": 0.0, "load_seconds": 0.0}
            config = WorkerConfig(port=sim.port, strict_ports=True, **quick, **BOTH)
            lives.workers.append(await lives.nursery.start(serve, config))
            await healthy(router, sim.url)
            worker = known(router, sim.url)
            assert worker.incarnation == 2
            assert worker.jobs == 0
            is_ours(await router.http.get(f"/v1/videos/{job}"), 404, "unknown_asset")
            await router.running.parts.store.commit()
        async with lives.router() as router:
            worker = known(router, sim.url)
            assert (worker.incarnation, worker.jobs) == (2, 0)
            assert router.running.parts.jobs.assets.owner(job, AssetKind.VIDEO) is None

    run_restarts(test)


def test_a_restored_worker_has_a_ghost_until_its_barrier(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        gate = trio.Event()
        async with lives.router() as router:
            scripted = await router.script()
            await router.register(scripted.url)

        async def barrier(stream: trio.SocketStream) -> None:
            await gate.wait()
            await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

        scripted.answers["/v1/list_loras"] = barrier
        async with lives.router() as router:
            await healthy(router, scripted.url)
            worker = known(router, scripted.url)
            assert worker.ghosts == 1
            assert worker.free_slots == 0
            asked = trio.Event()

            async def ask() -> None:
                asked.set()
                assert (await router.image()).status_code == 200

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await asked.wait()
                await until(lambda: router.running.parts.dispatcher.queue.waiting == 1)
                assert "POST /v1/images/generations" not in scripted.asked
                gate.set()
        scripted.stop()

    run_restarts(test)


def test_a_removal_that_waits_for_a_job_goes_on_after_a_restart(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(**BOTH, time_scale=100.0)
            await router.register(sim.url)
            await submit(router, **LONG)
            worker = known(router, sim.url)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(router.http.delete, f"/workers/{sim.url}?drain=true")
                await until(lambda: worker.leaving is not None)
                await router.running.parts.store.commit()
                nursery.cancel_scope.cancel()
        async with lives.router() as router:
            await healthy(router, sim.url)
            worker = known(router, sim.url)
            assert worker.leaving == "by request"
            assert worker.jobs == 1
            sim.kill()  # what it did will never end
            await until(lambda: worker.removed)
            await router.running.parts.store.commit()
        async with lives.router() as router:
            assert not list(router.running.parts.registry)

    run_restarts(test)


def test_static_workers_are_those_of_the_flags(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        urls = [f"http://127.0.0.1:{port}" for port in (1, 2, 3, 4)]
        a, b, c, d = urls
        async with lives.router(worker_urls=(a, b, c)) as router:
            for url in (b, d):
                await router.http.post("/workers", params={"url": url})
            for url in (a, b, c, d):
                put = await router.http.put(f"/workers/{url}", json={"is_dead": True})
                assert put.status_code == 200
        async with lives.router(worker_urls=(a, d)) as router:
            workers = {worker.url: worker for worker in router.running.parts.registry}
            # a is still named, b was registered too, c is named no more, d is named now.
            assert {url: worker.origin for url, worker in workers.items()} == {
                a: Origin.STATIC,
                b: Origin.REGISTERED,
                d: Origin.STATIC,
            }
            assert all(worker.admin == "quarantined" for worker in workers.values())
            gone = await router.http.delete(f"/workers/{b}")
            assert gone.status_code == 200
        async with lives.router() as router:
            assert [worker.url for worker in router.running.parts.registry] == [d]

    run_restarts(test)


def test_the_slots_of_the_flags_are_not_taken_for_an_operators_wish(
    run_restarts: RunLives,
) -> None:
    async def test(lives: Lives) -> None:
        a, b, c = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))
        async with lives.router(worker_concurrency=2) as router:
            for url, slots in ((a, None), (b, 5), (c, None)):
                body = {"url": url, "max_concurrency": slots} if url != a else {"url": url}
                assert (await router.http.post("/workers", json=body)).status_code == 200
        async with lives.router(worker_concurrency=3) as router:
            limits = {w.url: w.concurrency_limit for w in router.running.parts.registry}
            assert limits == {a: 3, b: 5, c: None}

    run_restarts(test)


def test_the_slots_of_single_workers_are_those_of_todays_file(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        a, b, c = (f"http://127.0.0.1:{port}" for port in (1, 2, 3))

        async def limits(*, put: bool = False, **slots: int | None) -> dict[str, int | None]:
            urls = {"a": a, "b": b, "c": c}
            named = tuple(
                WorkerSettings(url=urls[name], max_concurrency=count)
                for name, count in slots.items()
            )
            options: dict[str, Any] = {"workers": named, "worker_urls": (a,)}
            async with lives.router(worker_concurrency=2, **options) as router:
                if put:
                    body = {"max_concurrency": 9}
                    assert (await router.http.put(f"/workers/{c}", json=body)).is_success
                registry = router.running.parts.registry
                names = {url: name for name, url in urls.items()}
                return {names[each.url]: each.concurrency_limit for each in registry}

        assert await limits(a=4, b=3, c=5) == {"a": 4, "b": 3, "c": 5}
        assert await limits(b=6, c=5, put=True) == {"a": 2, "b": 6, "c": 9}
        assert await limits(b=None, c=5) == {"a": 2, "b": 2, "c": 9}

    run_restarts(test)


def test_a_sleeper_still_sleeps(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sims = [await router.simulated(**BOTH) for _ in range(2)]
            for sim in sims:
                await router.register(sim.url)
                await submit(router)
            path = "/release_memory_occupation"
            slept = await router.http.post(path, params={"workers": sims[0].url})
            assert slept.status_code == 200, slept.text
        async with lives.router() as router:
            await healthy(router, *(sim.url for sim in sims))
            assert [known(router, sim.url).memory for sim in sims] == ["asleep", "awake"]
            woken = await router.http.post("/resume_memory_occupation")
            assert woken.status_code == 200, woken.text
        async with lives.router() as router:
            assert known(router, sims[0].url).memory == "awake"

    run_restarts(test)


def test_a_call_that_was_under_way_counts_as_sleep(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        for path in ("/release_memory_occupation", "/resume_memory_occupation"):
            async with lives.router() as router, trio.open_nursery() as nursery:
                scripted = await router.script()
                await router.register(scripted.url)
                begun = trio.Event()

                async def hang(stream: trio.SocketStream, begun: trio.Event = begun) -> None:
                    begun.set()
                    await trio.sleep_forever()

                if path.startswith("/resume"):
                    scripted.answers["/release_memory_occupation"] = (
                        b'HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{"success":true}'
                    )
                    slept = await router.http.post("/release_memory_occupation")
                    assert slept.status_code == 200, slept.text
                scripted.answers[path] = hang
                nursery.start_soon(router.http.post, path)
                await begun.wait()
                nursery.cancel_scope.cancel()
            async with lives.router() as router:
                assert known(router, scripted.url).is_sleeping
                await router.http.delete(f"/workers/{scripted.url}")
            scripted.stop()

    run_restarts(test)


def test_a_worker_is_removed_by_the_url_that_registered_it(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            worker = await router.simulated()
            await router.register(worker.url)
            alias = worker.url.replace("127.0.0.1", "localhost")
            said = (await router.http.post("/workers", json={"url": alias})).json()
            assert said["alias_of"] == worker.url
        async with lives.router() as router:
            assert (await router.http.delete(f"/workers/{alias}")).status_code == 200
            assert (await router.http.get("/workers")).json()["total"] == 0

    run_restarts(test)


def test_the_order_of_the_list_survives(run_restarts: RunLives) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            for _ in range(2):
                sim = await router.simulated(**BOTH)
                await router.register(sim.url)
            ids = [await submit(router) for _ in range(6)]
            page = (await router.http.get("/v1/videos?limit=2&order=asc")).json()
            assert [job["id"] for job in page["data"]] == ids[:2]
        async with lives.router(crash=False) as router:
            rest = await router.http.get(f"/v1/videos?order=asc&after={ids[1]}")
            assert [job["id"] for job in rest.json()["data"]] == ids[2:]
            await router.http.delete(f"/v1/videos/{ids[0]}")
        async with lives.router() as router:
            assert router.running.parts.jobs.assets.order(ids[0]) == 0
            ids.append(await submit(router))
            orders = [router.running.parts.jobs.assets.order(job_id) for job_id in ids[1:]]
            assert orders == sorted(orders)

    run_restarts(test)


def test_a_job_that_is_deleted_while_its_worker_is_asked_stays_deleted(
    run_restarts: RunLives,
) -> None:
    async def test(lives: Lives) -> None:
        job = {"id": "gone", "status": "completed"}
        asked, gate = trio.Event(), trio.Event()

        async def old_list(stream: trio.SocketStream) -> None:
            asked.set()
            await gate.wait()
            await stream.send_all(answer(200, {"data": [job]}))

        async with lives.router() as router:
            scripted = await router.script()
            kinds = {"supported_task_types": ["T2V", "I2M"]}
            scripted.answers["/model_info"] = answer(200, kinds)
            scripted.answers["/v1/videos"] = answer(200, job)
            scripted.answers["/v1/videos/gone"] = answer(200, {"id": "gone", "deleted": True})
            await router.register(scripted.url)
            assert await submit(router) == "gone"
        scripted.answers["/v1/videos?limit=100&order=asc"] = old_list
        async with lives.router() as router:
            await asked.wait()
            assert (await router.http.delete("/v1/videos/gone")).status_code == 200
            gate.set()
            meshes = "GET /v1/meshes?limit=100&order=asc"  # are asked for next
            await until(lambda: meshes in scripted.asked)
            assert router.running.parts.jobs.assets.owner("gone", AssetKind.VIDEO) is None
        scripted.stop()

    run_restarts(test)


class Disk:
    full = False


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, write = Disk(), files.write

    def limited(fd: int, data: bytes) -> None:
        if disk.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(fd, data)

    monkeypatch.setattr(files, "write", limited)
    monkeypatch.setattr(store_module, "_RETRY_FIRST", 0.01)
    monkeypatch.setattr(store_module, "_RETRY_MOST", 0.01)
    return disk


def test_a_full_disk(run_restarts: RunLives, disk: Disk) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            sim = await router.simulated(**BOTH)
            await router.register(sim.url)
            http, store = router.http, router.running.parts.store
            assert (await http.get("/health")).json()["state"] == "ok"
            disk.full = True
            # The first one may find out; the disk was well when it was submitted.
            lost = is_ours(await http.post("/v1/videos", json=VIDEO), 503, "state_unavailable")
            assert lost["retry_safe"] is False
            assert (await http.get(f"/v1/videos/{lost['id']}")).status_code == 200
            health = (await http.get("/health")).json()
            assert health["state"] == "failing"
            assert health["state_reason"] == "no space left on device"
            assert health["status"] == "healthy"
            submitted = len([e for e in sim.log.requests if e.target == "/v1/videos"])
            refused = is_ours(await http.post("/v1/videos", json=VIDEO), 503, "state_unavailable")
            assert "id" not in refused
            assert len([e for e in sim.log.requests if e.target == "/v1/videos"]) == submitted
            path = f"/workers/{sim.url}"
            is_ours(await http.put(path, json={"is_dead": True}), 503, "state_unavailable")
            is_ours(await http.delete(path), 503, "state_unavailable")
            is_ours(await http.post("/workers", json={"url": "x://"}), 400, "bad_worker_url")
            other = {"url": "http://127.0.0.1:1"}
            is_ours(await http.post("/workers", json=other), 503, "state_unavailable")
            is_ours(await http.post("/release_memory_occupation"), 503, "state_unavailable")
            assert [w.url for w in router.running.parts.registry] == [sim.url]
            assert known(router, sim.url).admin == "enabled"
            assert known(router, sim.url).memory == "awake"
            # Requests go on.
            assert (await router.image()).status_code == 200
            disk.full = False
            await until(lambda: store.failing is None)
            assert "state_reason" not in (await http.get("/health")).json()
            made = await submit(router)
        async with lives.router() as router:
            assets = router.running.parts.jobs.assets
            for job in (lost["id"], made):
                assert assets.owner(job, AssetKind.VIDEO) is not None

    run_restarts(test)


def test_without_a_directory_health_says_so(tmp_path: Path) -> None:
    async def test(lives: Lives) -> None:
        async with lives.router() as router:
            router.running.parts.store.close()
            assert (await router.http.get("/health")).json()["state"] == "none"

    run_lives(test, tmp_path)
    assert not Store().keeps
