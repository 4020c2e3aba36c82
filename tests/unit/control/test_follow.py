"""Looks at unfinished jobs."""

from __future__ import annotations

import gc
import json
import random
import weakref
from typing import Any

import trio
import trio.testing

from router.control.client import Answer, Unreachable
from router.control.follow import Follower
from router.control.jobs import JobControl
from router.control.operations import Operations
from router.dispatch import Dispatcher
from router.pool import policies
from router.pool.assets import AssetMap
from router.pool.cost import Speeds
from router.pool.registry import Registry
from router.pool.worker import Hold, HoldKind, Origin, Worker

FROZEN, SOUND = "http://frozen:1", "http://sound:1"


class Client:
    """One worker never answers; on the other every job has ended."""

    async def get(self, url: str, path: str, *, within: float) -> Answer:
        if url == FROZEN:
            await trio.sleep(within)
            raise Unreachable("no answer", timed_out=True)
        await trio.sleep(0.01)
        return Answer(200, json.dumps({"status": "completed"}).encode())


def job(worker: Worker, job_id: str) -> Hold:
    since = trio.current_time()
    return Hold(worker, 1, HoldKind.JOB, "video", since=since, job=True, job_id=job_id)


def test_the_jobs_of_a_frozen_worker_hold_up_no_look_at_others() -> None:
    async def main() -> None:
        registry, client = Registry(), Client()
        speeds = Speeds(trio.current_time)
        dispatcher = Dispatcher(registry, policies.make("least-request", speeds))
        frozen = registry.add(FROZEN, Origin.REGISTERED)
        sound = registry.add(SOUND, Origin.REGISTERED)
        anything: Any = client
        jobs = JobControl(registry, AssetMap(), anything, Operations())
        follower = Follower(registry, dispatcher, jobs, random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(follower.run)
            for number in range(70):
                dispatcher.job_found(job(frozen, f"frozen-{number}"))
            await trio.sleep(5)  # all of them are being looked at, or wait for it
            dispatcher.job_found(job(sound, "sound"))
            await trio.sleep(0.5)
            assert sound.jobs == 0
            assert frozen.jobs == 70
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_nothing_is_kept_of_a_worker_that_was_removed_with_its_jobs() -> None:
    async def main() -> None:
        registry, client = Registry(), Client()
        speeds = Speeds(trio.current_time)
        dispatcher = Dispatcher(registry, policies.make("least-request", speeds))
        anything: Any = client
        jobs = JobControl(registry, AssetMap(), anything, Operations())
        follower = Follower(registry, dispatcher, jobs, random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(follower.run)
            worker = registry.add(FROZEN, Origin.REGISTERED)
            dispatcher.job_found(job(worker, "job"))
            await trio.testing.wait_all_tasks_blocked()
            registry.remove(worker)
            kept, worker = weakref.ref(worker), registry.add(SOUND, Origin.REGISTERED)
            await trio.sleep(60)
            gc.collect()
            assert kept() is None
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_ghost_that_a_stop_leaves_behind_is_not_followed() -> None:
    async def main() -> None:
        registry = Registry()
        dispatcher = Dispatcher(registry, policies.make("least-request", Speeds()))
        worker = registry.add(SOUND, Origin.REGISTERED)
        anything: Any = Client()
        jobs = JobControl(registry, AssetMap(), anything, Operations())
        follower = Follower(registry, dispatcher, jobs, random.Random(1))
        async with trio.open_nursery() as nursery:
            await nursery.start(follower.run)
            nursery.cancel_scope.cancel()
        registry.occupy(Hold(worker, 1, HoldKind.GHOST))
        assert worker.ghosts == 1

    trio.run(main)
