"""`GET /engine_metrics`: the metrics of all workers in one answer."""

from __future__ import annotations

import trio
from prometheus_client.core import Metric

from router.observe.engines import UP, WORKER
from router.pool.worker import Origin
from tests.integration.api.pools import IMAGES, Member, run_with_pool
from tests.integration.deployment import Deployment, answer, at_pace, never, run_deployed
from tests.integration.exposition import scrape

RUNNING = "sglang:diffusion_num_running_reqs"


async def scraped(pool: Deployment) -> dict[str, Metric]:
    return await scrape(pool, "/engine_metrics")


def up(families: dict[str, Metric]) -> dict[str, tuple[str, float]]:
    samples = families[UP].samples
    return {sample.labels[WORKER]: (sample.labels["why"], sample.value) for sample in samples}


def test_the_metrics_of_all_workers() -> None:
    async def test(pool: Deployment, a: Member, b: Member, without: Member) -> None:
        families = await scraped(pool)
        assert up(families) == {a.url: ("", 1), b.url: ("", 1), without.url: ("status_404", 0)}
        running = families[RUNNING]
        assert running.type == "gauge"
        labels = [sample.labels for sample in running.samples]
        assert labels == [
            {WORKER: url, "role": "monolithic", "replica": "0"} for url in (a.url, b.url)
        ]
        assert "x-worker-id" not in (await pool.http.get("/engine_metrics")).headers
        assert (await pool.http.head("/engine_metrics")).status_code == 200

    metrics = {**IMAGES, "enable_metrics": True}
    run_with_pool(test, metrics, metrics, IMAGES)


def test_workers_that_fail_are_named() -> None:
    async def test(pool: Deployment) -> None:
        good = await pool.script(**{"/metrics": answer(200, body=b"x 1\n")})
        hostile = await pool.script(**{"/metrics": answer(200, body=b"\x1f\x8b\xff{{{ 1\n")})
        forged = f'x{{{WORKER}="{good.url}"}} 7\n'.encode()
        liar = await pool.script(**{"/metrics": answer(200, body=forged)})
        huge = await pool.script(**{"/metrics": answer(200, body=b"#" * (8 * 1024 * 1024 + 1))})
        for worker in (good, hostile, liar, huge):
            await pool.register(worker.url)
        dead = pool.running.parts.registry.add("http://127.0.0.1:1", Origin.REGISTERED)
        families = await scraped(pool)
        assert up(families) == {
            good.url: ("", 1),
            hostile.url: ("garbage", 0),
            liar.url: ("", 1),
            huge.url: ("unreachable", 0),
            dead.url: ("unreachable", 0),
        }
        assert {sample.labels[WORKER]: sample.value for sample in families["x"].samples} == {
            good.url: 1,
            liar.url: 7,
        }

    run_deployed(test)


def test_all_are_asked_at_once_and_none_for_long() -> None:
    async def test(pool: Deployment) -> None:
        asked: list[trio.SocketStream] = []
        all_asked = trio.Event()

        async def together(stream: trio.SocketStream) -> None:
            asked.append(stream)
            if len(asked) == 3:
                all_asked.set()
            await all_asked.wait()
            await stream.send_all(answer(200, body=b"x 1\n"))

        good = [await pool.script(**{"/metrics": together}) for _ in range(3)]
        slow = answer(200, body=b"x 1\n" * 10_000)
        late = [await pool.script(**{"/metrics": how}) for how in (never, at_pace(slow, 0.05))]
        for worker in (*good, *late):
            await pool.register(worker.url)
        assert up(await scraped(pool)) == {
            **{worker.url: ("", 1) for worker in good},
            **{worker.url: ("timeout", 0) for worker in late},
        }

    run_deployed(test)


def test_without_workers() -> None:
    async def test(pool: Deployment) -> None:
        families = await scraped(pool)
        assert set(families) == {UP}
        assert up(families) == {}

    run_deployed(test)
