"""Looks at the router from outside all the time: what it says, and what it leaves undone."""

from __future__ import annotations

from typing import Any

import trio

from tests.simulation.deployment import World
from tests.simulation.universe import Wrong
from tests.simulation.worker import Worker

_EVERY = 2.0  # seconds between two looks
_STEADY = 45.0  # seconds after which a worker that nothing happened to must serve
_TRIALS = 150.0  # and one that has failed requests
_IDLE = 8.0  # seconds that a worker may be idle while a request waits for it
# Seconds after which the end of a short job must be known, and of one that something has held up.
_LOOKS, _HELD_UP = 2.5, 25.0
_BUSY_PATIENCE = 55.0  # seconds of silence that do not make a busy worker a dead one


def serves(world: World, worker: Worker, seconds: float = _STEADY) -> bool:
    """Whether nothing at all has been in its way for so long."""
    now = trio.current_time()
    process = worker.process
    return (
        process is not None
        and worker.name in world.members
        and not (worker.taken or worker.handled or world.blind)
        and now - max(worker.disturbed, process.awake_since, world.disturbed) > seconds
        and now - worker.erred > _TRIALS
        and not (process.asleep or process.unfinished)
        and now - process.filmed > seconds
    )


def fits_change(world: World, worker: Worker) -> bool:
    """Whether a change can be made on it: it may have been woken a moment ago."""
    now = trio.current_time()
    process = worker.process
    return (
        process is not None
        and worker.name in world.members
        and not (worker.taken or worker.away or worker.napping or world.blind)
        and now - max(worker.moved, world.disturbed) > _STEADY
        and not process.asleep
        and now - process.awake_since > 0.5
    )


def refused_generation(world: World, request: str, code: str) -> None:
    """Nobody is to be had, says the router. Raises Wrong."""
    if code in ("no_workers", "no_routable_worker", "pool_asleep", "weights_unavailable"):
        for worker in world.workers:
            if world.replayable and serves(world, worker):
                raise Wrong(f"{request} was refused: {code}; and {worker.name} is well")


def refused_change(world: World, label: str, code: str, left: dict[str, str]) -> None:
    """`left`: why those that were to be held could not be. Raises Wrong."""
    late = any(why.startswith("its work did not end within") for why in left.values())
    if code == "no_workers" and not late:
        for worker in world.workers:
            if fits_change(world, worker):
                raise Wrong(f"{label} was refused: {code}; and {worker.name} is well")


async def overseer(world: World) -> None:
    idle: dict[str, float] = {}
    while True:
        world.universe.check()
        members = set(world.members)
        answer = await world.ask("the overseer", "GET", "/workers")
        if answer is not None:
            listed = {told["url"]: told for told in answer.json()["workers"]}
            for worker in world.workers:
                if worker.url in listed:
                    _look(world, worker, listed[worker.url])
                elif worker.name in members and worker.name in world.members:
                    raise Wrong(f"{worker.name} was registered, and is not listed any more")
        for worker in world.workers:
            if _idles(world, worker):
                since = idle.setdefault(worker.name, trio.current_time())
                if trio.current_time() - since > _IDLE and await _queued(world):
                    raise Wrong(
                        f"{worker.name} is idle for {_IDLE:g} s, and these wait: {_waiting(world)}"
                    )
            else:
                idle.pop(worker.name, None)
        await trio.sleep(_EVERY * max(1, world.theme.pace / 2))


def _look(world: World, worker: Worker, told: dict[str, Any]) -> None:
    calm = not world.operating and trio.current_time() - world.operated > _STEADY
    if calm and world.replayable and not told["routable"] and serves(world, worker):
        raise Wrong(f"nothing is in the way of {worker.name}, and it is {told['reasons']}")
    if told["health"] == "unhealthy" and worker.silent_since is not None and worker.alive:
        now, process = trio.current_time(), worker.process
        assert process is not None
        busy = process.busy_since
        silent = now - worker.silent_since
        quiet = worker.silent_since - max(worker.disturbed, world.disturbed)
        worked = busy is not None and busy < worker.silent_since - 1
        if worked and quiet > 20 and silent < _BUSY_PATIENCE:
            raise Wrong(
                f"{worker.name} is busy, and counts as dead after {silent:.0f} s of silence"
            )

    # A submission with a key goes on when its client has left, and nobody counts it.
    counted = world.theme.video <= 80 and not world.theme.insisters
    if counted and told["jobs"] > (most := _unfinished(worker)):
        most += world.submitting  # the router counts from before the worker does
        if told["jobs"] > most and _minds(world, worker):
            many = f"{told['jobs']} unfinished jobs, says the router of {worker.name}"
            raise Wrong(f"{many}; and for {_LOOKS:g} s there were at most {most}")


def _minds(world: World, worker: Worker) -> bool:
    """Whether the worker is there, and as fast as ever, and nobody does something to it."""
    quiet = trio.current_time() - max(worker.disturbed, world.disturbed) > 10
    there = worker.alive and worker.name in world.members and worker.slowed < world.round
    return there and quiet and not (worker.taken or worker.handled or world.blind)


def _unfinished(worker: Worker) -> int:
    """Jobs that are not over, or were not a few seconds ago."""
    process = worker.process
    if process is None:
        return 0
    now, kept = trio.current_time(), []
    for begun, ended in process.ended:
        if now - ended < (_LOOKS if begun > worker.disturbed else _HELD_UP):
            kept.append((begun, ended))
    process.ended = kept
    return process.unfinished + len(kept)


async def _queued(world: World) -> bool:
    """Whether the router has requests for which it has found no worker: of others it may be that
    they are on their way to one that is frozen."""
    answer = await world.ask("the overseer", "GET", "/queue")
    return answer is not None and answer.json()["oldest_wait_seconds"] > _IDLE


def _waiting(world: World) -> list[str]:
    """Requests that are at no worker, and that any could serve, for long enough to be seen."""
    now = trio.current_time()
    there = {name for worker in world.workers for name in worker.serving}
    return [
        name for name, since in world.painting.items() if name not in there and now - since > _IDLE
    ]


def _idles(world: World, worker: Worker) -> bool:
    process = worker.process
    if process is None or not world.replayable or world.operating:
        return False
    quiet = trio.current_time() - world.operated > _IDLE
    working = process.busy or process.scheduler.locked() or process.unfinished
    return quiet and not working and serves(world, worker) and bool(_waiting(world))
