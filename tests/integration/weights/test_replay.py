"""Who missed a change is brought up before it is routable: joiners, new processes, sleepers."""

from __future__ import annotations

import httpx
import pytest
import trio

from router.pool.worker import Weights
from tests.integration.api.pools import (
    IMAGES,
    Member,
    RunPool,
    direct_to,
    is_ours,
    restart,
)
from tests.integration.deployment import Deployment, until
from tests.integration.weights.refits import (
    DISK,
    MERGE,
    SET,
    SLEEP,
    TENSOR,
    TENSORS,
    UNMERGE,
    WAKE,
    current,
    has,
    ledger,
    paths,
    refit,
    refitted,
)
from tests.patience import fail_after

LORA = {"lora_nickname": "ink", "lora_path": "loras/ink"}


def served_stale(member: Member, count: int = 1) -> bool:
    """Whether it generated anything before it had that many changes."""
    kinds = [entry.kind for entry in member.sim.log.work]
    return any("generate" in kind or "image" in kind for kind in kinds[:count])


async def join(pool: Deployment, **more: object) -> Member:
    sim = await pool.simulated(**IMAGES)
    await pool.http.post("/workers", json={"url": sim.url, **more})
    return Member(sim, pool.running.parts.registry.get(sim.url))


def test_a_joiner_gets_what_the_others_have_before_any_request(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        await pool.http.post(DISK, json={"model_path": "v2", "target_modules": ["vae"]})
        await pool.http.post(SET, json=LORA)
        b = await join(pool)
        assert b.known.weights in ("behind", "current")
        await until(lambda: current(b))
        assert paths(b) == [DISK, DISK, SET]
        assert b.known.weight_version == 3
        mine, theirs = a.sim.scheduler, b.sim.scheduler
        assert theirs.weights.identity == mine.weights.identity
        assert theirs.loras.identity == mine.loras.identity != ""

    run_pool(test, IMAGES)


def test_at_version_zero_nothing_is_gated(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        again = await restart(pool, a, **IMAGES)
        await until(lambda: a.known.incarnation == 2 and a.known.health == "healthy")
        assert current(again)
        b = await join(pool)
        await until(lambda: b.known.health == "healthy")
        assert current(b)
        assert paths(again) == paths(b) == []

    run_pool(test, IMAGES)


def test_a_fast_restart_between_two_probes(run_pool: RunPool) -> None:
    """Within milliseconds, and with nothing to be seen but the end of the idle connection."""

    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        again = await restart(pool, a, **IMAGES)
        answer = await pool.image()
        assert answer.status_code == 200
        assert answer.headers["x-weight-version"] == "1"
        assert has(again, "v1")
        assert paths(again) == [DISK]
        assert a.known.incarnation == 2

    run_pool(test, IMAGES, health_check_interval=3600.0)


def test_a_flap_replays_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        a.sim.faults.add("status", path="/health", status=500, seconds=0.5)
        await until(lambda: a.known.health == "unhealthy")
        await until(lambda: a.known.health == "healthy", within=10)
        await until(lambda: current(a))
        assert a.known.incarnation == 1
        assert paths(a) == [DISK]

    run_pool(test, IMAGES, health_check_failure_threshold=2)


def test_one_that_cannot_be_replayed_is_tried_again(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        sim = await pool.simulated(**IMAGES)
        sim.faults.add("drop", path=DISK, count=1)
        await pool.http.post("/workers", params={"url": sim.url})
        b = Member(sim, pool.running.parts.registry.get(sim.url))
        await until(lambda: paths(b))
        await until(lambda: b.known.weights == "behind" and b.known.weights_reason)
        await until(lambda: current(b))
        assert has(b, "v1")

    run_pool(test, IMAGES)


def test_a_sleeper_is_refitted_at_wake_before_it_serves(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": b.id})
        said = await refitted(pool, "v1")
        assert [row["worker_url"] for row in said["deferred"]] == [b.url]
        woke = await pool.http.post(WAKE)
        assert woke.status_code == 200
        await until(lambda: current(a, b))
        assert has(b, "v1")
        assert not served_stale(b)

    run_pool(test, IMAGES, IMAGES)


def test_all_asleep_the_change_waits_for_them(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP)
        said = await refitted(pool, "v1")
        assert said["results"] == []
        assert said["pending"] is True
        assert said["weight_version"] == 0
        assert {row["worker_url"] for row in said["deferred"]} == {a.url, b.url}
        assert (await ledger(pool))["pending"] == [
            {"path": DISK, "body": {"model_path": "v1"}, "label": "v1"}
        ]
        is_ours(await pool.image(), 503, "pool_asleep")
        await pool.http.post(WAKE)
        answer = await pool.image()  # waits for it
        assert answer.headers["x-weight-version"] == "1"
        assert has(a, "v1")
        assert has(b, "v1")
        assert (await ledger(pool))["pending"] == []

    run_pool(test, IMAGES, IMAGES)


def test_a_bad_path_for_sleepers_takes_nobody_out(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        await pool.http.post(SLEEP)
        await refitted(pool, "/nonexistent/typo")
        await pool.http.post(WAKE)
        await until(lambda: current(a, b))
        answer = await pool.image()
        assert (answer.status_code, answer.headers["x-weight-version"]) == (200, "1")
        known = await ledger(pool)
        assert "/nonexistent/typo" in known["last_error"]
        assert (known["weight_version"], known["pending"]) == (1, [])
        assert paths(a) == [DISK, DISK]  # no replay

    run_pool(test, IMAGES, IMAGES)


def test_changes_for_sleepers_come_in_order(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        for path in ("v1", "/nonexistent/x", "v2"):
            await refitted(pool, path)
        is_ours(await pool.http.post(TENSOR, json=TENSORS), 503, "pool_asleep")
        await pool.http.post(WAKE)
        await until(lambda: current(a))
        assert has(a, "v2")
        assert a.known.weight_version == 1
        assert paths(a) == [DISK]  # the last one sets all weights

    run_pool(test, IMAGES)


def test_a_full_change_replaces_what_waited_before_it(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        await pool.http.post(SLEEP)
        for path in ("v2", "v3", "v4"):
            await refitted(pool, path)
        part = {"model_path": "v5", "target_modules": ["transformer"]}
        assert (await pool.http.post(DISK, json=part)).json()["pending"] is True
        assert len((await ledger(pool))["pending"]) == 4
        await pool.http.post(WAKE)
        await until(lambda: current(a, b))
        known = await ledger(pool)
        assert (known["weight_version"], known["latest_issued"], known["pending"]) == (3, 3, [])
        assert [step["body"]["model_path"] for step in known["replay"]] == ["v4", "v5"]
        assert paths(a) == paths(b) == [DISK] * 3  # v1, v4, v5
        assert not pool.running.parts.store.rows("changes")

    run_pool(test, IMAGES, IMAGES)


def test_a_bad_path_for_sleepers_replaces_nothing(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SLEEP)
        for path in ("v1", "/nonexistent/x"):
            await refitted(pool, path)
        await pool.http.post(WAKE)
        await until(lambda: current(a))
        assert has(a, "v1")
        known = await ledger(pool)
        assert (known["weight_version"], known["pending"]) == (1, [])
        assert "/nonexistent/x" in known["last_error"]  # the later of the two, though made first

    run_pool(test, IMAGES)


def test_some_of_the_sleepers_wake_to_a_bad_path(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP)
        await refitted(pool, "bad/x")
        await pool.http.post(WAKE, params={"workers": a.id})
        assert (await pool.image()).status_code == 200  # it need not wait for the other one
        await pool.http.post(WAKE)
        await until(lambda: current(a, b))
        assert paths(b) == []

    run_pool(test, IMAGES, IMAGES)


def test_tensors_cannot_be_replayed(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        assert (await pool.http.post(TENSOR, json=TENSORS)).json()["weight_version"] == 2
        assert (await ledger(pool))["replayable"] is False
        b = await join(pool)
        await until(lambda: b.known.health == "healthy")
        assert b.known.weights is Weights.BEHIND
        assert b.known.stuck
        assert paths(b) == []
        # It is no hope for anybody.
        await pool.http.delete(f"/workers/{a.id}")
        is_ours(await pool.image(), 503, "weights_unavailable")
        # The next full update brings it back.
        assert (await refitted(pool, "v3"))["weight_version"] == 3
        assert current(b)
        assert has(b, "v3")

    run_pool(test, IMAGES)


def test_taken_at_its_word(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        sim = await pool.simulated(**IMAGES)
        async with direct_to(sim.url) as worker:
            await worker.post(DISK, json={"model_path": "v1"})
        body = {"url": sim.url, "weight_version": 5}
        said = is_ours(await pool.http.post("/workers", json=body), 409, "weight_version_unknown")
        assert said["weight_version"] == 1
        assert len(pool.running.parts.registry) == 1
        answer = await pool.http.post("/workers", json={**body, "weight_version": 1})
        assert answer.json()["worker"]["weights"] == "current"
        assert answer.json()["worker"]["weight_version"] == 1
        b = Member(sim, pool.running.parts.registry.get(sim.url))
        assert paths(b) == [DISK]

        # An older one makes it behind, here and by POST /weights.
        await refitted(pool, "v2")
        before = len(paths(b))
        attest = {"model": "image/a", "weight_version": 1, "workers": [b.id]}
        await pool.http.post("/weights", json=attest)
        await until(lambda: len(paths(b)) > before)
        await until(lambda: current(b))

    run_pool(test, IMAGES)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"weight_version": "1"},
        {"weight_version": -1},
        {"weight_version": True},
        {"weight_version": 1, "workers": "x"},
        {"weight_version": 1, "label": 5},
        {"weight_version": 1, "unknown": 5},
    ],
)
def test_attestations_that_are_none(run_pool: RunPool, body: dict[str, object]) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        assert (await pool.http.post("/weights", json=body)).status_code == 400
        assert (await ledger(pool))["weight_version"] == 0

    run_pool(test, IMAGES)


def test_the_ledger_can_be_reset(run_pool: RunPool) -> None:
    """The operator's way out, when nothing else is."""

    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(TENSOR, json=TENSORS)
        b = await join(pool)
        await until(lambda: b.known.stuck)
        answer = await pool.http.post("/weights", json={"weight_version": 7, "label": "mine"})
        assert answer.json()["weight_version"] == 7
        assert current(a, b)
        assert (await refitted(pool, "v8"))["weight_version"] == 8
        await pool.http.post("/weights", json={"weight_version": 0})
        assert (await refitted(pool, "v9"))["weight_version"] == 9  # no number twice

    run_pool(test, IMAGES)


def test_sync_answers_when_all_are_up(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await pool.http.post(SLEEP, params={"workers": b.id})
        await refitted(pool, "v1")
        c = await join(pool)
        answer = await pool.http.post("/weights/sync", json={})
        assert (answer.status_code, answer.json()["success"]) == (200, True)
        assert current(a, c)
        assert [row["worker_url"] for row in answer.json()["deferred"]] == [b.url]
        c.sim.faults.add("hang", path=DISK)
        await pool.http.post("/weights", json={"weight_version": 0, "workers": [c.id]})
        answer = await pool.http.post("/weights/sync", json={"timeout": 0.2})
        assert (answer.status_code, answer.json()["success"]) == (504, False)
        assert answer.json()["error"].startswith("After 0.2 s: These workers do not have")
        assert c.id in answer.json()["error"]

    run_pool(test, IMAGES, IMAGES)


def test_a_change_does_not_wait_for_a_replay_that_hangs(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        sim = await pool.simulated(**IMAGES)
        sim.faults.add("hang", path=DISK, count=1)
        await pool.http.post("/workers", params={"url": sim.url})
        b = Member(sim, pool.running.parts.registry.get(sim.url))
        await until(lambda: paths(b))
        with fail_after(5):
            await refitted(pool, "v2")
        assert current(a, b)
        assert has(b, "v2")

    run_pool(test, IMAGES)


def test_verify_tells_whether_they_agree(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        await refitted(pool, "v1")
        [shown] = (await pool.http.get("/weights?verify=true")).json()["models"]
        assert shown["consistent"] is True
        assert len(shown["workers"][0]["checksums"]["vae"]) == 64
        async with direct_to(b.url) as worker:
            await worker.post(DISK, json={"model_path": "v2"})
        [shown] = (await pool.http.get("/weights?verify=true")).json()["models"]
        assert shown["consistent"] is False
        assert "consistent" not in await ledger(pool)

    run_pool(test, IMAGES, IMAGES)


def test_loras_of_a_fresh_process(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await pool.http.post(SET, json=LORA)
        again = await restart(pool, a, **IMAGES)
        # Nothing proves that it is no longer the old one.
        await until(lambda: paths(again) == [MERGE, UNMERGE, SET] and current(a))
        assert [step["path"] for step in (await ledger(pool))["replay"]] == [SET]
        assert again.sim.scheduler.loras.identity
        # Taken out again, nothing is left to replay on the next process.
        await pool.http.post(UNMERGE, json={})
        assert (await ledger(pool))["replay"] == []
        third = await restart(pool, Member(again.sim, a.known), **IMAGES)
        await until(lambda: a.known.incarnation == 3 and current(a) and not a.known.suspicion)
        assert paths(third) == [MERGE, UNMERGE]
        assert (await refit(pool, "v9")).status_code == 200

    run_pool(test, IMAGES)


def test_a_request_waits_for_a_worker_that_is_about_to_be_brought_up(run_pool: RunPool) -> None:
    async def test(pool: Deployment, a: Member) -> None:
        await refitted(pool, "v1")
        answers: list[httpx.Response] = []

        async def image() -> None:
            answers.append(await pool.image())

        async with trio.open_nursery() as nursery:
            again = await restart(pool, a, **IMAGES, load_seconds=0.3, time_scale=1.0)
            for _ in range(3):
                nursery.start_soon(image)
        assert {r.headers["x-weight-version"] for r in answers} == {"1"}
        assert not served_stale(again)

    run_pool(test, IMAGES)
