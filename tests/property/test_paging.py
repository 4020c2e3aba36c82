"""Paging through the merged list, while jobs are made and deleted: each job exactly once."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trio
from attrs import Factory, define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from router.control.client import Answer
from router.control.jobs import JobControl
from router.control.operations import Operations
from router.pool.assets import AssetKind, AssetMap
from router.pool.catalog import Page
from router.pool.registry import Registry
from router.pool.worker import Origin, Worker

WORKERS = 3
VIDEO = AssetKind.VIDEO


@define(eq=False)
class Pool:
    """Workers that hold jobs, and the part of the router that lists them."""

    second: int = 0  # what the clock says: workers tell the time of creation to the second
    made: list[str] = Factory(list)  # in the order of creation
    held: dict[str, list[dict[str, Any]]] = Factory(dict)
    workers: list[Worker] = Factory(list)
    registry: Registry = Factory(Registry)
    assets: AssetMap = Factory(AssetMap)
    seen: list[str] = Factory(list)
    jobs: JobControl = field(init=False)

    def __attrs_post_init__(self) -> None:
        for i in range(WORKERS):
            worker = self.registry.add(f"http://w{i}:1", Origin.STATIC)
            self.workers.append(worker)
            self.held[worker.url] = []
        self.jobs = JobControl(self.registry, self.assets, self, Operations())  # type: ignore[arg-type]

    def make(self, index: int, through_the_router: bool) -> None:
        # Ids that sort otherwise than they were made.
        job_id = f"{len(self.made) * 7919 % 1000:03d}-{len(self.made)}"
        worker = self.workers[index]
        self.made.append(job_id)
        self.held[worker.url].append({"id": job_id, "created_at": self.second, "status": "queued"})
        if through_the_router:
            self.assets.learn(job_id, worker, VIDEO)

    def prepare(self, steps: list[tuple[Any, ...]]) -> None:
        for step in steps:
            if step[0] == "make":
                self.make(*step[1:])
            else:
                self.second += 1

    def delete(self, job_id: str) -> None:
        for jobs in self.held.values():
            jobs[:] = [job for job in jobs if job["id"] != job_id]
        self.assets.forget(job_id)

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        """What a worker answers, in place of the client."""
        await trio.lowlevel.checkpoint()
        query = {name: values[0] for name, values in parse_qs(urlsplit(path).query).items()}
        assert query["order"] == "asc"
        jobs, limit = list(self.held[url]), 3  # fewer than wanted: more pages to read
        if "after" in query:
            places = [i for i, job in enumerate(jobs) if job["id"] == query["after"]]
            jobs = jobs[places[0] + 1 :] if places else []
        content = {"data": jobs[:limit], "has_more": len(jobs) > limit}
        return Answer(200, json.dumps(content).encode())

    async def turn(self, limit: int, descending: bool) -> bool:
        """Read the next page; whether there is another."""
        after = self.seen[-1] if self.seen else None
        page = await self.jobs.page(VIDEO, Page(after, limit, descending))
        found = [job["id"] for job in page["data"]]
        assert len(found) <= limit
        assert (page["first_id"], page["last_id"]) == (
            (found[0], found[-1]) if found else (None, None)
        )
        assert page["unavailable_workers"] == []
        self.seen += found
        assert found or not page["has_more"]
        return bool(page["has_more"])


make = st.tuples(st.just("make"), st.integers(0, WORKERS - 1), st.booleans())
tick = st.tuples(st.just("tick"))
turn = st.tuples(st.just("turn"))
delete = st.tuples(st.just("delete"), st.integers(0, 3))
before = st.lists(st.one_of(make, make, tick), max_size=25)
during = st.lists(st.one_of(make, make, turn, tick, delete), max_size=30)


async def play(pool: Pool, steps: list[tuple[Any, ...]], limit: int, descending: bool) -> None:
    more = True
    for step in steps:
        match step:
            case ("make", index, through_the_router):
                pool.make(index, through_the_router)
            case ("tick",):
                pool.second += 1
            case ("delete", back) if back < len(pool.seen):
                pool.delete(pool.seen[-1 - back])  # the cursor itself among them
            case ("turn",) if more:
                more = await pool.turn(limit, descending)
    for _ in range(len(pool.made) + 2):
        if not more:
            return
        more = await pool.turn(limit, descending)
    raise AssertionError("paging has no end")


@settings(max_examples=150)
@given(before=before, during=during, limit=st.integers(1, 100) | st.integers(1, 4))
def test_ascending(before: list[Any], during: list[Any], limit: int) -> None:
    async def main() -> None:
        pool = Pool()
        pool.prepare(before)
        await play(pool, during, limit, False)
        while await pool.turn(limit, False):  # what was made after the last page
            pass
        assert sorted(pool.seen) == sorted(pool.made)  # each exactly once

    trio.run(main)


@settings(max_examples=150)
@given(before=before, during=during, limit=st.integers(1, 100) | st.integers(1, 4))
def test_descending(before: list[Any], during: list[Any], limit: int) -> None:
    async def main() -> None:
        pool = Pool()
        pool.prepare(before)
        existed = list(pool.made)
        first = await pool.turn(limit, True)
        if first:
            await play(pool, during, limit, True)
        assert len(set(pool.seen)) == len(pool.seen)
        assert [job for job in pool.made if job in pool.seen] == existed

    trio.run(main)


@settings(max_examples=60)
@given(before=before, limit=st.integers(1, 5), room=st.integers(1, 8), descending=st.booleans())
def test_more_jobs_than_the_map_has_room_for(
    before: list[Any], limit: int, room: int, descending: bool
) -> None:
    async def main() -> None:
        pool = Pool(assets=AssetMap(room))
        pool.prepare(before)
        for _ in range(len(pool.made) + 1):
            if not await pool.turn(limit, descending):
                break
        assert sorted(pool.seen) == sorted(pool.made)

    trio.run(main)


@settings(max_examples=60)
@given(before=before, limit=st.integers(1, 9))
def test_what_is_new_to_the_router_is_in_the_order_of_its_time(
    before: list[Any], limit: int
) -> None:
    async def main() -> None:
        pool = Pool()
        pool.prepare([(*step[:2], False) if step[0] == "make" else step for step in before])
        await play(pool, [], limit, False)
        times = {job["id"]: job["created_at"] for jobs in pool.held.values() for job in jobs}
        assert [times[job] for job in pool.seen] == sorted(times.values())

    trio.run(main)


@settings(max_examples=60)
@given(jobs=st.lists(st.integers(0, WORKERS - 1), max_size=30), descending=st.booleans())
def test_both_orders_are_the_same_backwards(jobs: list[int], descending: bool) -> None:
    async def main() -> None:
        pool = Pool()
        for index in jobs:
            pool.make(index, through_the_router=True)
        await play(pool, [], 4, descending)
        assert pool.seen == (pool.made[::-1] if descending else pool.made)

    trio.run(main)
