"""Sleep and wake beside everything else that goes on, by what the workers saw."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio

from router import dispatch
from tests.integration.api.pools import IMAGES, VIDEOS, Member, RunPool, is_ours, restart
from tests.integration.deployment import IMAGE, Deployment, until
from tests.integration.test_websocket_relay import Client

SLEEP, WAKE = "/release_memory_occupation", "/resume_memory_occupation"


def seen(member: Member) -> list[str]:
    """What the worker's scheduler was given, in order."""
    short = {"release_memory_occupation": "release", "resume_memory_occupation": "resume"}
    return [short.get(entry.kind, entry.kind) for entry in member.sim.log.work]


def check_log(member: Member) -> None:
    """It was idle at each release, and nothing ran until the resume."""
    asleep = False
    earlier: list[Any] = []
    for entry in member.sim.log.work:
        if entry.kind == "release_memory_occupation":
            assert all(other.end is not None for other in earlier), "busy"
            assert all(other.end <= entry.queued for other in earlier), "busy"
            asleep = True
        elif entry.kind == "resume_memory_occupation":
            asleep = False
        elif entry.kind in ("image", "video", "realtime", "rollout"):
            assert not asleep, f"{entry.kind} at a sleeper"
            assert entry.outcome == "done"
            earlier.append(entry)


class Asked:
    """Calls that go on, by name."""

    def __init__(self, pool: Deployment, nursery: trio.Nursery) -> None:
        self.pool = pool
        self.nursery = nursery
        self.answers: dict[str, httpx.Response] = {}

    def start(self, name: str, path: str, **more: Any) -> None:
        self.nursery.start_soon(self._ask, name, path, more)

    async def _ask(self, name: str, path: str, more: dict[str, Any]) -> None:
        self.answers[name] = await self.pool.http.post(path, **more)


def test_a_generation_is_finished_first(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=1e6, count=1)
        async with trio.open_nursery() as nursery:
            asked = Asked(pool, nursery)
            asked.start("running", "/v1/images/generations", json=IMAGE)
            await until(lambda: a.sim.scheduler.running)
            asked.start("waiting", "/v1/images/generations", json=IMAGE)
            await until(lambda: pool.running.parts.dispatcher.queue.waiting)
            asked.start("sleep", SLEEP)
            await until(lambda: "waiting" in asked.answers)
            assert a.known.memory == "falling_asleep"
            assert a.sim.scheduler.running
            assert seen(a) == ["image"]
            is_ours(asked.answers["waiting"], 503, "pool_asleep")
            is_ours(await pool.image(), 503, "pool_asleep")
            a.sim.scheduler.hurry()
        assert asked.answers["running"].status_code == 200
        assert asked.answers["sleep"].status_code == 200
        assert seen(a) == ["image", "release"]
        check_log(a)

    run_pool(test, IMAGES)


def test_a_job_is_finished_first(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=1e6, count=1)
        job = await pool.http.post("/v1/videos", json={"prompt": "x", "size": "64x64"})
        async with trio.open_nursery() as nursery:
            asked = Asked(pool, nursery)
            asked.start("sleep", SLEEP)
            await until(lambda: a.known.memory == "falling_asleep")
            status = (await pool.http.get(f"/v1/videos/{job.json()['id']}")).json()["status"]
            assert status != "completed"
            assert seen(a) == ["video"]
            a.sim.scheduler.hurry()
        assert asked.answers["sleep"].json()["success"] is True
        check_log(a)
        # What it has made can be fetched all the while.
        assert (await pool.http.get(f"/v1/videos/{job.json()['id']}/content")).status_code == 200
        # Its failures to generate would say nothing of its health; probes go on.
        assert a.known.health == "healthy"

    run_pool(test, VIDEOS)


def test_a_generation_that_nobody_waits_for_is_finished_first(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("slow", factor=5000, count=1)
        async with trio.open_nursery() as client:
            client.start_soon(pool.image)
            await until(lambda: a.sim.scheduler.running)
            client.cancel_scope.cancel()
        await until(lambda: a.known.ghosts)
        assert (await pool.http.post(SLEEP)).json()["success"] is True
        check_log(a)

    run_pool(test, IMAGES)


def test_a_session_is_closed(run_pool: RunPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_SESSION_GRACE", 0.1)

    async def test(pool: Deployment, a: Member) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", pool.running.port)
        async with stream:
            client = Client(stream)
            await client.open()
            await until(lambda: a.known.holds)
            async with trio.open_nursery() as nursery:
                asked = Asked(pool, nursery)
                asked.start("sleep", SLEEP)
                code = await client.message()
        assert isinstance(code, tuple)
        assert code[0] == 1012
        assert asked.answers["sleep"].json()["success"] is True
        check_log(a)

    run_pool(test, VIDEOS)


def test_under_load(run_pool: RunPool) -> None:
    """However sleeps, wakes and generations meet: none is given to a sleeper."""

    async def test(pool: Deployment, *members: Member) -> None:
        statuses: set[int] = set()
        over = False

        async def generate() -> None:
            while not over:
                answer = await pool.image()
                statuses.add(answer.status_code)
                if answer.status_code != 200:
                    is_ours(answer, 503, "pool_asleep")
                    await trio.sleep(0.005)

        async def nap(i: int) -> None:
            for n in range(6):
                who = members[i : i + 2] if n % 3 else members
                names = ",".join(member.id for member in who)
                for path in (SLEEP, WAKE):
                    answer = await pool.http.post(path, params={"workers": names})
                    assert answer.status_code == 200, answer.text
                    await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(generate)
            async with trio.open_nursery() as naps:
                for i in range(len(members)):
                    naps.start_soon(nap, i)
            over = True
        assert statuses == {200, 503}
        for _ in range(4):
            assert (await pool.image()).status_code == 200
        for member in members:
            check_log(member)
            assert member.known.memory == "awake"

    run_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_sleeper_that_is_started_again_gives_its_gpu_back(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP)
        a = await restart(pool, a, **IMAGES)
        await until(lambda: a.sim.scheduler.asleep and a.known.memory == "asleep")
        assert a.known.incarnation == 2
        assert seen(a) == ["release"]
        is_ours(await pool.image(), 503, "pool_asleep")
        assert (await pool.http.post(WAKE)).json()["success"] is True
        for _ in range(4):
            assert (await pool.image()).status_code == 200
        check_log(a)
        check_log(b)

    # Nothing but the end of its idle connection tells.
    run_pool(test, IMAGES, IMAGES, health_check_interval=3600)


@pytest.mark.parametrize("last", [SLEEP, WAKE])
def test_one_that_was_down_follows_when_it_is_back(run_pool: RunPool, last: str) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        b.sim.kill()
        await until(lambda: b.known.health == "unhealthy")
        paths = [SLEEP] if last == SLEEP else [SLEEP, WAKE]
        for path in paths:
            answer = await pool.http.post(path)
            assert answer.status_code == 200
            assert [row["worker_url"] for row in answer.json()["deferred"]] == [b.url]
        listed = (await pool.http.get("/workers")).json()["workers"][1]
        word = "falling_asleep" if last == SLEEP else "waking"
        assert listed["reasons"] == ["unhealthy", word]
        b = await restart(pool, b, **IMAGES)
        if last == SLEEP:
            await until(lambda: b.known.memory == "asleep")
            assert b.sim.scheduler.asleep
            is_ours(await pool.image(), 503, "pool_asleep")
            assert (await pool.http.post(WAKE)).json()["success"] is True
        await until(lambda: b.known.health == "healthy" and b.known.memory == "awake")
        assert {(await pool.image()).headers["x-worker-id"] for _ in range(4)} == {a.id, b.id}
        check_log(b)

    run_pool(test, IMAGES, IMAGES)


def test_a_worker_in_quarantine_follows_when_it_is_cleared(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": True})
        slept = await pool.http.post(SLEEP)
        assert [row["reasons"] for row in slept.json()["deferred"]] == [
            ["quarantined", "falling_asleep"]
        ]
        assert seen(b) == []
        await pool.http.put(f"/workers/{b.id}", json={"is_dead": False})
        await until(lambda: b.known.memory == "asleep")
        assert seen(b) == ["release"]
        is_ours(await pool.image(), 503, "pool_asleep")

    run_pool(test, IMAGES, IMAGES)


def test_a_sleeper_is_removed(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP)
        removed = await pool.http.delete(f"/workers/{a.id}", params={"drain": True})
        assert removed.status_code == 200
        assert (await pool.http.post(WAKE)).json()["success"] is True
        assert seen(a) == ["release"]
        assert (await pool.image()).headers["x-worker-id"] == b.id

    run_pool(test, IMAGES, IMAGES)


def test_a_wake_whose_client_left_while_it_waited_is_dropped(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path=SLEEP, by=0.3)
        async with trio.open_nursery() as nursery:
            asked = Asked(pool, nursery)
            asked.start("sleep", SLEEP)
            await until(lambda: a.asked("POST", SLEEP))
            with trio.move_on_after(0.1):
                await pool.http.post(WAKE)
        assert asked.answers["sleep"].status_code == 200
        await trio.sleep(0.05)
        assert a.known.memory == "asleep"
        assert seen(a) == ["release"]

    run_pool(test, IMAGES)


def test_a_busy_one_holds_up_nobody_else(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        for member in (a, b):
            member.sim.faults.add("slow", factor=1e6)
        async with trio.open_nursery() as nursery:
            asked = Asked(pool, nursery)
            asked.start("running", "/v1/images/generations", json=IMAGE)
            await until(lambda: a.sim.scheduler.running or b.sim.scheduler.running)
            busy, idle = (a, b) if a.sim.scheduler.running else (b, a)
            idle.sim.faults.clear()
            asked.start("sleep", SLEEP)
            await until(lambda: idle.known.memory == "asleep")
            assert busy.known.memory == "falling_asleep"
            # It may even be woken again meanwhile.
            woke = await pool.http.post(WAKE, params={"workers": idle.id})
            assert woke.json()["success"] is True
            assert (await pool.image()).headers["x-worker-id"] == idle.id
            assert "sleep" not in asked.answers
            busy.sim.scheduler.hurry()
        assert busy.known.memory == "asleep"
        check_log(a)
        check_log(b)

    run_pool(test, IMAGES, IMAGES)


def test_a_change_that_was_slept_through_is_made_up_for(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": a.id})
        change = await pool.http.post("/update_weights_from_disk", json={"model_path": "step-1"})
        assert [row["worker_url"] for row in change.json()["deferred"]] == [a.url]
        a.sim.faults.add("delay", path="/update_weights_from_disk", by=2.0)
        woke = await pool.http.post(WAKE)
        assert woke.json()["success"] is True
        reasons = {row["worker_url"]: row["reasons"] for row in woke.json()["deferred"]}
        assert reasons == {a.url: ["weights_behind"]}
        for _ in range(4):
            assert (await pool.image()).headers["x-worker-id"] == b.id
        await until(lambda: a.known.weights == "current")
        assert {(await pool.image()).headers["x-worker-id"] for _ in range(4)} == {a.id, b.id}
        assert seen(a)[:4] == ["release", "resume", "update_weights_from_disk", "image"]
        check_log(a)
        generations = [*a.sim.log.generations(), *b.sim.log.generations()]
        assert {entry.model_path for entry in generations} == {"step-1"}

    run_pool(test, IMAGES, IMAGES)


def test_a_change_while_all_sleep_is_made_at_their_wake(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        change = await pool.http.post("/update_weights_from_disk", json={"model_path": "step-1"})
        assert change.status_code == 200
        assert len(change.json()["deferred"]) == 1
        assert seen(a) == ["release"]
        woke = await pool.http.post(WAKE)
        assert woke.json()["success"] is True
        assert (await pool.image()).status_code == 200
        assert seen(a) == ["release", "resume", "update_weights_from_disk", "image"]
        assert a.sim.log.generations()[0].model_path == "step-1"

    run_pool(test, IMAGES)


def test_one_that_is_registered_again_during_another_call_is_not_woken(run_pool: RunPool) -> None:
    """Not every worker knows the call to wake."""

    async def test(pool: Deployment, a: Member) -> None:
        a.sim.faults.add("delay", path="/get_weights_checksum", by=0.5)
        async with trio.open_nursery() as nursery:
            asked = Asked(pool, nursery)
            asked.start("sums", "/get_weights_checksum", json={})
            await until(lambda: a.asked("POST", "/get_weights_checksum"))
            (await pool.http.delete(f"/workers/{a.url}")).raise_for_status()
            again = await pool.register(a.url)
            assert again.memory == "awake"
        assert a.asked("POST", WAKE) == []

    run_pool(test, IMAGES)
