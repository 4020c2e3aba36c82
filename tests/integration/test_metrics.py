"""`GET /metrics` against what clients saw."""

from __future__ import annotations

import re
import socket
from collections import Counter
from pathlib import Path

import trio
from prometheus_client.core import Metric

from router.observe.tally import PREFIX
from router.pool.worker import Capabilities, Origin
from tests.integration.api.pools import IMAGES, VIDEOS, Member, run_with_pool
from tests.integration.deployment import IMAGE, Deployment, never, run_deployed, until
from tests.integration.exposition import scrape

ROOT = Path(__file__).resolve().parents[2]
GENERATIONS = "/v1/images/generations"


async def scraped(pool: Deployment) -> dict[str, Metric]:
    families = await scrape(pool, "/metrics")
    return {name.removeprefix(PREFIX): family for name, family in families.items()}


def values(family: Metric, *labels: str, suffix: str = "") -> dict[tuple[str, ...], float]:
    """The samples by these labels, without those that are zero."""
    found: Counter[tuple[str, ...]] = Counter()
    for sample in family.samples:
        if sample.name.endswith(suffix) and not sample.name.endswith("_created"):
            found[tuple(sample.labels[name] for name in labels)] += sample.value  # type: ignore[assignment]
    return {key: value for key, value in found.items() if value}


def test_the_counts_are_what_clients_saw() -> None:
    seen: Counter[tuple[str, str, str]] = Counter()

    async def test(pool: Deployment, a: Member, b: Member) -> None:
        async def ask(model: str, label: str, **more: object) -> None:
            body = {**IMAGE, "model": model, **more}
            answer = await pool.http.post(GENERATIONS, json=body)
            seen[GENERATIONS, label, str(answer.status_code)] += 1

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask, "image/a", "image/a")
            nursery.start_soon(ask, "nobody/has/it", "other")
        await ask("image/a", "image/a", size="wrong")
        assert len(seen) >= 3
        made = await pool.http.post("/v1/videos", json={"prompt": "x", "model": "video/b"})
        assert made.status_code == 200

        families = await scraped(pool)
        counts = values(families["requests"], "route", "model", "status")
        of_images = {key: count for key, count in counts.items() if key[0] == GENERATIONS}
        assert of_images == seen
        assert counts["/v1/videos", "video/b", "200"] == 1
        # Nothing is under way, except this scrape.
        ended = values(families["requests"], "route")
        ended["/metrics",] = ended.get(("/metrics",), 0) + 1
        assert values(families["requests_received"], "route") == ended
        granted = values(families["worker_leases"], "worker")
        assert granted[a.url,] == len(a.asked("POST", GENERATIONS))
        counted = values(families["worker_seconds"], "route", "model", suffix="_count")
        assert counted[GENERATIONS, "image/a"] == len(a.asked("POST", GENERATIONS))
        assert values(families["worker_routable"], "worker") == {(a.url,): 1, (b.url,): 1}
        assert values(families["worker_state"], "worker", "facet", "state")[
            b.url, "memory", "awake"
        ]
        assert values(families["worker_probes"], "worker", "finding")[a.url, "ok"] > 0

    run_with_pool(test, IMAGES, VIDEOS, strict_model=True)


def test_what_waits_and_who_left() -> None:
    async def test(pool: Deployment) -> None:
        worker = await pool.script(**{GENERATIONS: never})
        await pool.register(worker.url)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pool.image)
                await until(lambda: pool.running.parts.dispatcher.queue.waiting == 2)
                families = await scraped(pool)
                scope.cancel()
        came = values(families["requests_received"], "route")[GENERATIONS,]
        assert came == 3
        assert not any(key[0] == GENERATIONS for key in values(families["requests"], "route"))
        assert sum(values(families["queue_depth"], "model").values()) == 2
        assert sum(values(families["queue_oldest_wait_seconds"], "model").values()) > 0
        parts = {key[0] for key in values(families["outstanding_seconds"], "part")}
        assert parts == {"running", "waiting"}
        assert values(families["worker_held_slots"], "worker", "kind") == {
            (worker.url, "generation"): 1
        }
        assert values(families["queued"]) == {(): 2}

        async def left() -> float:
            counts = values((await scraped(pool))["requests"], "route", "status")
            return counts.get((GENERATIONS, "none"), 0)

        while await left() < 3:  # bounded by the test
            await trio.sleep(0.01)

    run_deployed(test)


def test_what_is_refused_or_is_no_http_exchange_is_at_intake_too() -> None:
    async def test(pool: Deployment) -> None:
        assert (await pool.http.post("/weights/sync", json={})).status_code == 401
        with socket.create_connection(("127.0.0.1", pool.running.port)) as raw:
            raw.sendall(b"nonsense\r\n\r\n")
            with socket.create_connection(("127.0.0.1", pool.running.port)) as other:
                other.sendall(
                    b"GET /x HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                    b"Sec-WebSocket-Version: 13\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
                )
                said: dict[tuple[str, ...], float] = {}
                while not {("",), ("websocket",), ("/weights/sync",)} <= said.keys():
                    families = await scraped(pool)
                    said = values(families["requests"], "route")
        came = values(families["requests_received"], "route")
        del came["/metrics",], said["/metrics",]
        assert came == said

    run_deployed(test, admin_api_key="secret")


def test_a_rolling_change_is_one_refit() -> None:
    async def test(pool: Deployment, *members: Member) -> None:
        body = {"model_path": "v1"}
        path, rolling = "/update_weights_from_disk", {"rolling": "1"}
        changed = await pool.http.post(path, json=body, params=rolling)
        assert changed.status_code == 200
        members[0].sim.faults.add("fail_next_update")
        changed = await pool.http.post(path, json={"model_path": "v2"})
        assert changed.status_code == 502
        families = await scraped(pool)
        refits = values(families["refit_seconds"], "kind", "outcome", suffix="_count")
        assert refits == {("disk", "applied"): 1, ("disk", "partly"): 1}
        rows = pool.running.parts.feed.recent.refits()
        assert [(row["workers"], row["failed"]) for row in rows] == [(3, 0), (3, 1)]
        assert [row["weight_version"] for row in rows] == [1, 2]

    run_with_pool(test, IMAGES, IMAGES, IMAGES)


def test_a_removed_worker_leaves_no_series() -> None:
    async def test(pool: Deployment, a: Member, b: Member) -> None:
        assert (await pool.image()).status_code == 200
        assert a.url in (await pool.http.get("/metrics")).text
        removed = await pool.http.delete(f"/workers/{a.id}")
        assert removed.status_code == 200
        await until(lambda: a.known.removed)
        text = (await pool.http.get("/metrics")).text
        assert a.url not in text
        assert b.url in text

    run_with_pool(test, IMAGES, IMAGES)


def test_the_page_lists_every_metric() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = text.split("\n## Monitoring\n")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `(\w+)`", section, re.MULTILINE)

    async def test(pool: Deployment, a: Member) -> None:
        families = await scraped(pool)
        ours = [f for f in families.values() if f.name.startswith(PREFIX)]
        names = [
            f.name.removeprefix(PREFIX) + ("_total" if f.type == "counter" else "") for f in ours
        ]
        assert sorted(listed) == sorted(names)

    run_with_pool(test, IMAGES)


def test_many_workers_are_one_quick_scrape() -> None:
    async def test(pool: Deployment) -> None:
        registry = pool.running.parts.registry
        for number in range(200):
            worker = registry.add(f"http://127.0.0.1:1/{number}", Origin.REGISTERED)
            registry.learned(worker, Capabilities(models=("image/a",)))
        with trio.fail_after(10):  # it takes 0.1 s at most on a free core
            families = await scraped(pool)
        assert len(families["worker_slots"].samples) == 200

    run_deployed(test)
