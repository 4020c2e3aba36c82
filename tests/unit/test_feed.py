"""The document that viewers follow, and its counters, without a router."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from router.observe.recent import STEP, Recent
from router.pool import events
from router.pool.match import Facts
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin
from router.web.feed import Document, Feed


def made() -> tuple[Registry, Recent]:
    registry = Registry()
    return registry, Recent(registry.bus, (), (), lambda: 0)


def test_a_change_of_any_size_reaches_a_viewer() -> None:
    async def main() -> None:
        registry, recent = made()
        feed, rest = Feed(registry, recent), dict[str, str]()

        def describe(_: object) -> Document:
            return {}

        with feed.viewing():
            feed.snapshot(describe, rest)
            place = feed.last
            rest = {"queue": "x" * 2_000_000}
            feed.look(describe, lambda: rest)
            changes = feed.after(place)
            assert changes is not None
            assert [rest["queue"].encode() in change for change in changes] == [True]

    trio.run(main)


def test_only_completed_jobs_count_as_done() -> None:
    async def main() -> None:
        registry, recent = made()
        worker = registry.add("http://a:1", Origin.REGISTERED)
        for status in ("completed", "failed", None, "completed", "cancelled"):
            hold = Hold(worker, worker.incarnation, HoldKind.JOB)
            registry.bus.publish(events.JobEnded(hold, status))
        (step,) = recent.series()["steps"]
        assert step[1:3] == [2, 1]

    trio.run(main)


def test_a_queue_that_stands_still_is_drawn_as_it_was() -> None:
    waiting = 0

    async def main() -> None:
        nonlocal waiting
        registry = Registry()
        recent = Recent(registry.bus, (), (), lambda: waiting)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recent.run)
            await trio.sleep(STEP / 2)
            for waiting in (1, 2, 3):
                registry.bus.publish(events.Queued(Facts(), waiting))
            await trio.sleep(3 * STEP)
            waiting = 1  # two have got a worker, and nothing else happens
            await trio.sleep(2 * STEP)
            waiting = 0
            await trio.sleep(STEP)
            nursery.cancel_scope.cancel()
        assert [row[3] for row in recent.series()["steps"]] == [3, 3, 3, 3, 1, 1, 0]

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_refit_is_one_row_whatever_happens_meanwhile() -> None:
    async def main() -> None:
        registry, recent = made()
        publish = registry.bus.publish
        publish(events.RefitBegan("one", "m", "disk", 3), events.RefitBegan("two", "n", "lora", 1))
        publish(events.VersionIssued("m", 7, "step-7"))
        first, second = recent.refits()
        assert (first["weight_version"], first["label"], first["ended"]) == (7, "step-7", None)
        assert second["weight_version"] is None
        publish(events.RefitEnded("one", "m", "disk", 3, 2, 7, "step-7", 4.0))
        publish(events.RefitEnded("two", "n", "lora", 1, 0, None, None, 1.0))
        rows = recent.refits()
        assert [(row["workers"], row["failed"], row["kind"]) for row in rows] == [
            (3, 1, "disk"),
            (1, 1, "lora"),
        ]
        assert all(row["ended"] is not None for row in rows)

    trio.run(main)
