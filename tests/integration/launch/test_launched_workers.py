"""Real processes behind a whole router: started, killed, looked at and ended over HTTP."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve

from router import program
from router.errors import StateUnavailable
from router.launch import logs as launch_logs
from router.launch import processes
from router.launch.phases import Phase
from router.pool.lifecycle import routable
from router.settings import LauncherSettings
from router.store.store import Store
from tests.integration.deployment import Deployment, deployed, until
from tests.launchers import FREE_PORTS, restarting
from tests.patience import fail_after

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX process groups")

SIMULATED = (*program.self_command(), "simulate-worker")
# A worker in the smallest form, which starts in a moment: healthy, and of no other use. It has a
# child, as real ones have.
SMALL = """
import http.server, json, os, sys, time
port = int(sys.argv[sys.argv.index("--port") + 1])
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def do_GET(self):
        found = self.path in ("/health", "/v1/models")
        body = json.dumps({"data": [{"id": "small"}]} if found else {}).encode()
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
child = os.fork()
if not child:
    time.sleep(600)
print("worker", os.getpid(), "with child", child, flush=True)
server.serve_forever()
"""
AS_JSON = {"accept": "application/json"}
Body = Callable[[Deployment], Awaitable[None]]


def launcher(folder: Path, command: Sequence[str], **more: Any) -> LauncherSettings:
    options: dict[str, Any] = {
        "model": "demo/image",
        "command": tuple(command),
        "num_gpus_per_worker": 0,
        **FREE_PORTS,
        "log_dir": str(folder),
        **restarting("1ms"),
        **more,
    }
    return LauncherSettings(**options)


def small(folder: Path, **more: Any) -> LauncherSettings:
    script = folder / "worker.py"
    script.write_text(SMALL)
    return launcher(folder, (sys.executable, "-I", "-S", str(script)), **more)


def with_router(body: Body, *launchers: LauncherSettings, **settings: Any) -> None:
    """Run a test beside a router with these launchers; afterwards nothing of them may be left."""

    async def main() -> None:
        with fail_after(90):
            async with deployed(launchers=launchers, **settings) as pool:
                await body(pool)
                left = [view for view in pool.running.fleet.views() if view.pid]
            for view in left:
                assert view.pid
                assert not processes.members(view.pid)
                assert view.url
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port_of(view.url))).close()

    trio.run(main, strict_exception_groups=True)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def workers(pool: Deployment) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await pool.http.get("/workers")).json()["workers"]
    return found


async def ready(pool: Deployment, count: int, within: float = 60) -> None:
    views = pool.running.fleet.views
    await until(lambda: sum(v.phase is Phase.READY for v in views()) == count, within)


def test_eight_workers_serve_as_they_come_up(tmp_path: Path) -> None:
    async def body(pool: Deployment) -> None:
        # There is none yet, and so it waits for the first.
        assert (await pool.http.post("/v1/images/generations", json=IMAGE, timeout=60)).is_success
        await ready(pool, 8)
        found = await workers(pool)
        assert [worker["launch"]["index"] for worker in found] == list(range(8))
        assert {worker["origin"] for worker in found} == {"launched"}
        assert {worker["max_concurrency"] for worker in found} == {2}
        assert len({worker["launch"]["pid"] for worker in found}) == 8
        first = found[0]
        assert first["launch"] | {"pid": 0} == {
            "launcher": "image",
            "index": 0,
            "phase": "ready",
            "detail": None,
            "pid": 0,
            "gpus": [],
            "restarts": 0,
            "log": str(tmp_path / "image-0.log"),
        }
        assert first["name"] == "image-0"
        log = await pool.http.get("/workers/image-0/logs", params={"tail": 2}, headers=AS_JSON)
        assert log.json()["worker_id"] == first["worker_id"]
        assert len(log.json()["lines"]) == 2
        text = await pool.http.get("/workers/image-0/logs", params={"tail": 2})
        assert text.headers["content-type"] == "text/plain; charset=utf-8"
        assert len(text.text.splitlines()) == 2
        assert text.text.endswith("\n")
        done = await pool.http.post("/launcher/scale", json={"num_workers": 1})
        assert (done.json()["status"], len(done.json()["ending"])) == ("success", 7)
        await until(lambda: len(pool.running.parts.registry) == 1, 20)
        gone = [worker["launch"]["pid"] for worker in found[1:]]
        await until(lambda: not any(map(processes.members, gone)), 20)

    extra = ("--batching-max-size", "2", "--time-scale", "0.01", "--load-seconds", "0")
    with_router(body, launcher(tmp_path, SIMULATED, num_workers=8, worker_extra_args=extra))


def test_a_disk_that_fails_brings_back_no_worker_that_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body(pool: Deployment) -> None:
        async def fail(store: Store) -> None:
            raise StateUnavailable("the disk is full")

        await ready(pool, 2)
        fleet, registry = pool.running.fleet, pool.running.parts.registry
        second = registry.get("image-1")
        lease = registry.lease(second)
        with monkeypatch.context() as broken:
            broken.setattr(Store, "commit", fail)
            await pool.http.post("/launcher/scale", json={"num_workers": 1})
            await until(lambda: second.leaving)
            assert [slot.index for slot in fleet._slots.values()] == [0]
            lease.release()
            await until(lambda: len(registry) == 1, 20)

    with_router(body, small(tmp_path, num_workers=2))


def test_one_that_is_killed_comes_back_each_time_and_its_children_never_stay(
    tmp_path: Path,
) -> None:
    async def body(pool: Deployment) -> None:
        fleet = pool.running.fleet
        fleet.shared.supervision = evolve(fleet.shared.supervision, settled=0)
        children = set()
        for count in range(21):
            await ready(pool, 1)
            (worker,) = await workers(pool)
            assert worker["routable"]
            assert worker["launch"]["restarts"] == count
            assert worker["incarnation"] == count + 1
            pid = worker["launch"]["pid"]
            path = f"/workers/{worker['worker_id']}/logs?tail=1"
            log = (await pool.http.get(path, headers=AS_JSON)).json()
            child = re.fullmatch(rf"worker {pid} with child (\d+)", log["lines"][0])
            assert child
            children.add(int(child[1]))
            assert not any(map(processes.look_up, children - {int(child[1])}))
            if count < 20:
                os.kill(pid, signal.SIGKILL)
                while fleet.views()[0].restarts == count:
                    await fleet.changed()
        assert len(children) == 21

    with_router(body, small(tmp_path))


def test_of_a_log_of_one_long_line_no_more_than_a_mebibyte_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Counted(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            data = super().read(size)
            read.append(len(data))
            return data

    log, really_open = tmp_path / "image-0.log", Path.open

    def counting(self: Path, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if (self, mode) == (log, "rb"):
            return Counted(self)
        return really_open(self, mode, *rest, **more)

    async def body(pool: Deployment) -> None:
        await ready(pool, 1)
        with log.open("ab") as file:
            file.truncate(68_000_000)
            file.write(b"the end")
        monkeypatch.setattr(Path, "open", counting)
        for tail in (1, 10_000):
            read.clear()
            path = f"/workers/image-0/logs?tail={tail}"
            told = await pool.http.get(path, headers=AS_JSON)
            [line] = told.json()["lines"]
            assert line.startswith("... ")
            assert line.endswith("the end")
            assert 4096 <= sum(read) <= 1024 * 1024

    with_router(body, small(tmp_path))


def test_a_log_is_followed_until_the_worker_is_removed(tmp_path: Path) -> None:
    log = tmp_path / "image-0.log"

    async def body(pool: Deployment) -> None:
        await ready(pool, 1)
        (worker,) = await workers(pool)
        logs = pool.running.fleet.logs
        async with pool.http.stream("GET", "/workers/image-0/logs?follow=true&tail=1") as answer:
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            lines = answer.aiter_lines()
            assert re.match(r"worker \d+ with child", await anext(lines))
            with log.open("ab") as file:
                file.write(b"half a ")
                file.flush()
                assert logs._followers == 1
                file.write(b"line\n\xff\n")
            assert [await anext(lines), await anext(lines)] == ["half a line", "\ufffd"]
            (await pool.http.delete(f"/workers/{worker['worker_id']}")).raise_for_status()
            assert [line async for line in lines if line.startswith("half")] == []
        await until(lambda: logs._followers == 0)

    with_router(body, small(tmp_path))


def test_who_leaves_or_comes_too_late_follows_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_logs, "MOST_FOLLOWERS", 1)
    path = "/workers/image-0/logs?follow=true"

    async def body(pool: Deployment) -> None:
        await ready(pool, 1)
        logs = pool.running.fleet.logs
        async with pool.http.stream("GET", path):
            assert logs._followers == 1
            refused = await pool.http.get(path)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_viewers")
        await until(lambda: logs._followers == 0)
        async with pool.http.stream("GET", path) as answer:
            pool.running.parts.feed.over.set()  # the router stops
            with fail_after(20):
                await answer.aread()

    with_router(body, small(tmp_path))


def test_delete_and_restart_over_http(tmp_path: Path) -> None:
    async def body(pool: Deployment) -> None:
        await ready(pool, 2)
        first, second = await workers(pool)
        answer = await pool.http.post(f"/workers/{first['worker_id']}/restart")
        assert answer.json() == {"status": "success", "worker_id": first["worker_id"]}
        await until(lambda: pool.running.fleet.views()[0].restarts == 1)
        await ready(pool, 2)
        assert (await workers(pool))[0]["launch"]["pid"] != first["launch"]["pid"]
        deleted = await pool.http.delete(f"/workers/{second['worker_id']}")
        assert deleted.is_success
        assert not processes.members(second["launch"]["pid"])
        assert len(await workers(pool)) == 1

        static = await pool.simulated()
        other = await pool.register(static.url)
        told = (await pool.http.get(f"/workers/{other.worker_id}")).json()
        assert told["worker"]["launch"] is None
        for method, path, status, code in (
            ("PUT", f"/workers/{other.worker_id}/restart", 409, "not_launched"),
            ("GET", f"/workers/{other.worker_id}/logs", 404, "not_launched"),
            ("GET", f"/workers/{other.worker_id}/logs?follow=true", 404, "not_launched"),
            ("GET", f"/workers/{first['worker_id']}/logs?tail=0", 400, "invalid_field"),
            ("GET", "/workers/http%3A%2F%2Fnobody%3A1/logs", 404, "unknown_worker"),
            ("POST", "/launcher/scale", 400, "invalid_field"),
        ):
            wrong = await pool.http.request(method, path)
            assert (wrong.status_code, wrong.json()["code"]) == (status, code), path
        for content in ({"num_workers": True}, {"num_workers": 1, "launcher": 3}):
            wrong = await pool.http.post("/launcher/scale", json=content)
            assert wrong.json()["code"] == "invalid_field"
        wrong = await pool.http.post("/launcher/scale", json={"workers": 2})
        assert wrong.json()["code"] == "unsupported_fields"

    with_router(body, small(tmp_path, num_workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody knows who writes to a file")
def test_workers_of_two_routers_with_one_folder_of_logs(tmp_path: Path) -> None:
    """As with `--fresh` beside workers that were left running."""
    settings = small(tmp_path)

    async def body(pool: Deployment) -> None:
        await ready(pool, 1)
        (ours,) = await workers(pool)
        async with deployed(launchers=(settings,)) as other:
            await ready(other, 1)
            (theirs,) = await workers(other)
            assert ours["launch"]["log"] == str(tmp_path / "image-0.log")
            assert theirs["launch"]["log"] == str(tmp_path / "image-0.2.log")
            assert (await other.http.post(f"/workers/{theirs['worker_id']}/restart")).is_success
            await until(lambda: other.running.fleet.views()[0].restarts == 1)
            await ready(other, 1)
        assert (await workers(pool))[0]["launch"] == ours["launch"]
        assert processes.look_up(ours["launch"]["pid"])

    with_router(body, settings)


def test_an_image_and_a_video_model_side_by_side(tmp_path: Path) -> None:
    async def body(pool: Deployment) -> None:
        await ready(pool, 2)
        found = await workers(pool)
        by_launcher = {w["launch"]["launcher"]: (w["models"], w["pool"]) for w in found}
        assert by_launcher == {
            "image": (["demo/image"], "default"),
            "video": (["demo/video"], "teacher"),
        }
        answer = await pool.http.post("/launcher/scale", json={"num_workers": 2})
        assert (answer.status_code, answer.json()["code"]) == (400, "ambiguous_launcher")

    quick = ("--load-seconds", "0")
    with_router(
        body,
        launcher(tmp_path, SIMULATED, worker_extra_args=quick),
        launcher(
            *(tmp_path, SIMULATED), model="demo/video", pool="teacher", worker_extra_args=quick
        ),
    )


def test_one_that_dies_asleep_comes_back_with_the_wake(tmp_path: Path) -> None:
    async def body(pool: Deployment) -> None:
        await ready(pool, 2)
        assert (await pool.http.post("/release_memory_occupation", json={})).is_success
        os.kill((await workers(pool))[0]["launch"]["pid"], signal.SIGKILL)
        await until(lambda: pool.running.fleet.views()[0].phase is Phase.DOWN)
        down = (await workers(pool))[0]
        assert down["is_sleeping"]
        assert not down["routable"]
        assert (await pool.http.post("/resume_memory_occupation", json={})).is_success
        await ready(pool, 2)
        registry = pool.running.parts.registry  # the new process is told to wake up, too
        await until(lambda: all(map(routable, registry)))

    extra = ("--time-scale", "0.01", "--load-seconds", "0")
    with_router(body, launcher(tmp_path, SIMULATED, num_workers=2, worker_extra_args=extra))


IMAGE = {"prompt": "a red kite", "size": "64x64", "num_inference_steps": 1}
