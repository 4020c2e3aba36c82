"""The workers that the router launches: built from the settings, ended with the router."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from ..control.identity import Verdict
from ..errors import Conflict, StartError, describe
from ..launch import adoption
from ..launch.base import Planner
from ..launch.fleet import Fleet
from ..launch.launcher import Launcher, Shared
from ..launch.local import LocalBackend
from ..launch.planner import LocalPlanner, make_planners
from ..launch.records import LaunchRecord
from ..observe import logs
from ..pool.worker import Worker
from ..settings import RouterSettings
from ..store.opening import StateRefused
from ..store.store import Store

logger = logging.getLogger("router.service")


async def make_plans(settings: RouterSettings, store: Store) -> list[LocalPlanner]:
    """A planner for each launcher of the settings. Raises StartError if one cannot be satisfied."""
    alive = bool(store.rows(LaunchRecord.table))
    return await make_planners(settings.launchers, alive=alive)


def make_fleet(
    settings: RouterSettings,
    shared: Shared,
    planners: Sequence[Planner],
    drain: Callable[[Worker], Awaitable[None]],
) -> Fleet:
    """The fleet of workers that the settings ask for; see `Fleet.drain`."""
    local = LocalBackend()
    launchers = [
        Launcher(planner, local, launcher)
        for launcher, planner in zip(settings.launchers, planners, strict=True)
    ]
    return Fleet(launchers, shared, drain, {local.name: local})


@contextmanager
def log_folder(settings: RouterSettings, state: Path | None) -> Iterator[Path]:
    """The folder for the output of launched workers whose settings name none. Without a state
    directory it is temporary and removed, unless the workers are kept."""
    if state is not None:
        yield state / "logs"
        return
    if all(launcher.log_dir is not None for launcher in settings.launchers):
        yield Path()
        return
    folder = Path(tempfile.mkdtemp(prefix="sglang-d-router-logs-"))
    logger.info("the logs of launched workers are in %s", folder)
    try:
        yield folder
    finally:
        if not settings.keep_workers:
            shutil.rmtree(folder, ignore_errors=True)


async def prove(fleet: Fleet, worker: Worker) -> Verdict:
    """Ask the launcher whether a worker's process is the one it launched."""
    await trio.lowlevel.checkpoint()
    match fleet.proves(worker):
        case None:
            return Verdict.UNKNOWN
        case same:
            return Verdict.SAME if same else Verdict.OTHER


def restart(fleet: Fleet, worker: Worker) -> None:
    """Start a worker again if it was launched and is still wanted."""
    with suppress(Conflict):
        fleet.restart(worker)


def reap(folder: Path) -> tuple[set[str], set[str]]:
    """End the workers left running by routers with this state directory. Returns the names of the
    workers that lived, and of those that this program cannot reach. Raises StartError."""
    logs.configure("warning")
    if not folder.is_dir():
        raise StartError(f"The state directory {folder} does not exist")
    try:
        store = Store.open(folder.absolute())
    except OSError as error:
        raise StateRefused(f"{folder} cannot be used: {describe(error)}") from error

    async def end_all() -> tuple[set[str], set[str]]:
        local = LocalBackend()
        async with store.running(serving=False):
            return await adoption.reap(store, {local.name: local})

    return trio.run(end_all, strict_exception_groups=True)


async def give_up(fleet: Fleet) -> None:
    """End the router if all its launched workers have failed at their start and no others exist."""
    await fleet.watch_for_collapse()
    raise StartError(
        "no launched worker could start, and there are no other workers; see the log above"
    )
