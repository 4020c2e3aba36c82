"""The document that viewers follow, and its counters, without a router."""

from __future__ import annotations

import trio

from router.observe.recent import Recent
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin
from router.web.feed import Document, Feed


def made() -> tuple[Registry, Recent]:
    registry = Registry()
    return registry, Recent(registry.bus, (), (), lambda: 0, lambda _: None)


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


def test_a_job_counts_as_done_only_if_its_worker_ended_it() -> None:
    async def main() -> None:
        registry, recent = made()
        for fate in ("ended", "removed", "replaced"):
            worker = registry.add(f"http://{fate}:1", Origin.REGISTERED)
            hold = Hold(worker, worker.incarnation, HoldKind.JOB)
            registry.occupy(hold)
            match fate:
                case "ended":
                    registry.drop(hold)
                case "removed":
                    registry.remove(worker)
                case "replaced":
                    registry.reincarnate(worker, "test")
        assert sum(row[1] for row in recent.series()["steps"]) == 1

    trio.run(main)
