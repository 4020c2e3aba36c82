"""The router's metrics, without a router."""

from __future__ import annotations

import pytest
import trio
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families as parse
from trio.testing import MockClock

from router.front.record import ExchangeEnded, ExchangeRecord
from router.observe.metrics import Metrics
from router.observe.tally import PREFIX, Spread, Tally
from router.pool import events
from router.pool.cost import Speeds
from router.pool.policies import LeastRequest
from router.pool.queue import Queue
from router.pool.registry import Registry
from router.pool.worker import Capabilities, Hold, HoldKind, Origin, Weights

HOSTILE = 'a"b\\c\nd{}=,# é'


def made() -> tuple[Registry, Metrics]:
    registry = Registry()
    queue = Queue(
        LeastRequest(), LeastRequest(), lambda: registry, lambda *_: None, lambda *_: None
    )
    return registry, Metrics(registry, Speeds(), queue)


def scraped(metrics: Metrics, accept: str = "text/plain") -> dict[str, Metric]:
    found: list[bytes] = []

    async def main() -> None:
        text, kind = metrics.exposition(accept)
        assert kind.startswith("text/plain; version=0.0.4")
        found.append(text)

    trio.run(main)
    return {family.name: family for family in parse(found[0].decode())}


def counts(family: Metric, *labels: str) -> dict[tuple[str, ...], float]:
    """How many values the histogram has, by these labels."""
    samples = [s for s in family.samples if s.name.endswith("_count")]
    return {tuple(s.labels[name] for name in labels): s.value for s in samples}


def ended(registry: Registry, model: str | None, worker: str | None = None, parts: int = 1) -> None:
    record = ExchangeRecord("id", "POST", "/x", arrived=1.0, route="/x", model=model)
    record.worker, record.status, record.tries = worker, 200, 3
    record.parts = parts
    record.leased, record.answered, record.ended = 3.0, 8.0, 8.125
    registry.bus.publish(ExchangeEnded(record))


def add(registry: Registry, url: str, model: str) -> None:
    worker = registry.add(url, Origin.REGISTERED)
    registry.learned(worker, Capabilities(models=(model, "alias")))


def test_a_tally_counts_and_forgets() -> None:
    tally = Tally("some", "Text.", ("worker", "why"))
    tally.add("a", "x")
    tally.add("a", "x", by=2)
    tally.add("b", "x")
    assert [s.value for s in tally.family().samples] == [3, 1]
    tally.forget("a")
    assert [s.labels["worker"] for s in tally.family().samples] == ["b"]


def test_buckets_are_cumulative_and_include_their_bound() -> None:
    spread = Spread("some", "Text.", (1, 2))
    for value in (0.5, 1, 1.5, 99):
        spread.note(value)
    samples = {
        (s.name[len(PREFIX) :], s.labels.get("le")): s.value for s in spread.family().samples
    }
    assert samples == {
        ("some_bucket", "1.0"): 2,
        ("some_bucket", "2.0"): 3,
        ("some_bucket", "+Inf"): 4,
        ("some_count", None): 4,
        ("some_sum", None): 102,
    }


def test_the_latency_is_split() -> None:
    registry, metrics = made()
    ended(registry, None)
    families = scraped(metrics)
    sums = {
        name: sample.value
        for name in ("queue", "worker", "transfer", "request")
        for sample in families[f"{PREFIX}{name}_seconds"].samples
        if sample.name.endswith("_sum")
    }
    assert sums == {"queue": 2, "worker": 5, "transfer": 0.125, "request": 7.125}
    assert [s.value for s in families[f"{PREFIX}retries"].samples] == [2]


def test_names_that_clients_invent_make_no_series() -> None:
    registry, metrics = made()
    add(registry, "http://a:1", "image/a")
    for model in ("image/a", "alias", None, *(f"invented/{n}" for n in range(50))):
        ended(registry, model)
    ended(registry, "invented", "http://a:1")  # the worker serves it under any name
    samples = scraped(metrics)[f"{PREFIX}requests"].samples
    counts = {s.labels["model"]: s.value for s in samples}
    assert counts == {"image/a": 2, "alias": 1, "": 1, "other": 50}


def test_models_of_workers_are_bounded() -> None:
    registry, metrics = made()
    for number in range(300):
        add(registry, "http://a:1", f"image/{number}")
        ended(registry, None, "http://a:1")
    counts = {s.labels["model"]: s.value for s in scraped(metrics)[f"{PREFIX}requests"].samples}
    assert len(counts) == 257
    assert counts["other"] == 300 - 256


def test_hostile_names_are_escaped() -> None:
    registry, metrics = made()
    add(registry, "http://a:1", HOSTILE)
    ended(registry, HOSTILE)
    (sample,) = scraped(metrics)[f"{PREFIX}requests"].samples
    assert sample.labels["model"] == HOSTILE


def test_the_parts_of_a_split_group_are_no_retries() -> None:
    registry, metrics = made()
    for parts in (1, 2, 3, 8):
        ended(registry, None, parts=parts)
    (sample,) = scraped(metrics)[f"{PREFIX}retries"].samples
    assert sample.value == 2 + 1


def test_lag_counts_issued_versions_not_their_numbers() -> None:
    registry, metrics = made()
    for url, lag in (("http://a:1", 1), ("http://b:1", None)):
        add(registry, url, "image/a")
        worker = registry.get(url)
        registry.set_weights(worker, Weights.CURRENT, 10, newest=20, lag=lag)
        registry.lease(worker).release()
    families = scraped(metrics)
    lags = families[f"{PREFIX}worker_weight_lag"].samples
    assert {s.labels["worker"]: s.value for s in lags} == {"http://a:1": 1, "http://b:1": -1}
    noted = families[f"{PREFIX}staleness_versions"].samples
    assert [s.value for s in noted if s.name.endswith(("_sum", "_count"))] == [1, 1]


def test_a_version_that_is_no_number_gets_the_plain_format() -> None:
    registry, metrics = made()
    ended(registry, None)
    for kind in ("text/plain", "application/openmetrics-text"):
        assert scraped(metrics, f"{kind};version=x")[f"{PREFIX}requests"].samples


def test_a_removed_worker_leaves_no_series() -> None:
    registry, metrics = made()
    for url in ("http://a:1", "http://b:1"):
        add(registry, url, "image/a")
        registry.lease(registry.get(url)).release()
        registry.reincarnate(registry.get(url), "test")
        registry.suspect(registry.get(url), "test")
    registry.remove(registry.get("http://a:1"))
    urls = {
        sample.labels["worker"]
        for family in scraped(metrics).values()
        for sample in family.samples
        if "worker" in sample.labels
    }
    assert urls == {"http://b:1"}


def test_refits_are_counted_by_what_came_of_them() -> None:
    registry, metrics = made()
    for applied, version in ((3, 1), (2, 2), (0, None)):
        registry.bus.publish(
            events.RefitEnded("id", "m", "disk", 3, applied, version, None, seconds=4.0)
        )
    family = scraped(metrics)[f"{PREFIX}refit_seconds"]
    assert counts(family, "model", "kind", "outcome") == {
        ("m", "disk", "applied"): 1,
        ("m", "disk", "partly"): 1,
        ("m", "disk", "void"): 1,
    }


def test_jobs_are_counted_by_how_they_ended() -> None:
    registry, metrics = made()
    add(registry, "http://a:1", "video/a")
    worker = registry.get("http://a:1")

    async def main() -> None:
        for status in ("completed", "failed", None, "invented-1", "invented-2"):
            hold = Hold(worker, 1, HoldKind.JOB, "video", since=trio.current_time())
            registry.bus.publish(events.JobEnded(hold, status))

    trio.run(main)
    family = scraped(metrics)[f"{PREFIX}job_seconds"]
    assert counts(family, "endpoint", "model", "status") == {
        ("video", "video/a", status): number
        for status, number in (("completed", 1), ("failed", 1), ("lost", 1), ("other", 2))
    }


def test_the_lag_of_the_loop_is_measured_without_a_scrape() -> None:
    _, metrics = made()

    async def main() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(metrics.run)
            await trio.sleep(2.5)
            clock.jump(3.1)  # as if something had held the loop up
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))
    samples = scraped(metrics)[f"{PREFIX}event_loop_lag_seconds"].samples
    assert [s.value for s in samples if s.name.endswith("_sum")] == [pytest.approx(2.6)]


def test_requests_that_nobody_could_read_are_at_intake_too() -> None:
    registry, metrics = made()
    metrics.intake["/x"] += 2
    record = ExchangeRecord("id", "client", "127.0.0.1", arrived=1.0)
    registry.bus.publish(ExchangeEnded(record))
    samples = scraped(metrics)[f"{PREFIX}requests_received"].samples
    assert {s.labels["route"]: s.value for s in samples} == {"/x": 2, "": 1}


def test_routers_of_one_process_do_not_share_counts() -> None:
    (one, first), (_, second) = made(), made()
    ended(one, None)
    assert scraped(first)[f"{PREFIX}requests"].samples
    assert not scraped(second)[f"{PREFIX}requests"].samples
