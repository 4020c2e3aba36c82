"""Watches a running worker: its health, its readiness and its output."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from ..pool.worker import Health
from . import output
from .launcher import Death
from .phases import Phase

if TYPE_CHECKING:
    from .slot import Slot

logger = logging.getLogger("router.launch")
_output = logging.getLogger("router.launch.output")

_LOOK = 1.0  # seconds between two looks at the output of a starting worker


async def hopelessly_unhealthy(slot: Slot) -> Death:
    """Wait until the worker has been unhealthy for so long that it counts as dead."""
    bound = slot.shared.supervision.unhealthy
    while True:
        with trio.move_on_after(bound):
            while slot.worker and slot.worker.health is Health.UNHEALTHY:
                await slot.moved.wait()
        worker = slot.worker
        if worker and worker.health is Health.UNHEALTHY:
            why = worker.health_reason or "failed health probes"
            return Death(f"was unhealthy for {bound:g} s ({why})", condemned=True)
        await slot.moved.wait()


async def gone_astray(slot: Slot) -> Death:
    """Wait until the worker says that it serves on another port, as workers without --strict-ports
    do. Then a stranger answers on the planned port."""
    log, plan = slot.log, slot.plan
    if log is None or plan is None:
        await trio.sleep_forever()
    follower, served = output.Follower(log, at=slot.log_from), False
    while not served:
        served = slot.ready_at is not None  # then one more look: a stranger may have answered
        words = "\n".join(await trio.to_thread.run_sync(follower.new))
        port = slot.launcher.planner.moved(words, plan.ports)
        if port is not None:
            taken = plan.ports.http
            why = f"found port {taken} taken and moved to port {port}"
            return Death(why, condemned=True, taken=frozenset((taken,)))
        await trio.sleep(_LOOK)
    await trio.sleep_forever()


async def tell_slowness(slot: Slot) -> None:
    """Report a worker that is not ready in time. It is left loading: first downloads take long."""
    timeout = slot.launcher.settings.wait_timeout
    while slot.ready_at is None:
        left = slot.begun + timeout - trio.current_time()
        if slot.phase is Phase.STARTING and left <= 0:
            slot.enter(Phase.STARTING, f"not ready after {timeout:g} s; still loading")
            logger.warning(
                "%s is not ready after %g s and is still loading; the end of its log:",
                slot.name,
                timeout,
                extra={"quoted": await slot.last_words()},
            )
            return
        await trio.sleep(left if left > 0 else timeout)


async def watch_output(slot: Slot) -> None:
    """Keep `last_line` current while the worker starts, and copy its output to a debug log."""
    log = slot.log
    if log is None:
        return
    async with trio.open_nursery() as nursery:
        if _output.isEnabledFor(logging.DEBUG):
            follower = output.Follower(log, partial(_tell, slot), slot.log_from)
            nursery.start_soon(follower.run)
        while slot.ready_at is None:
            line = (await slot.last_words(1)).strip()
            if line != slot.last_line:
                slot.last_line = line
                slot.shared.tell()
            await trio.sleep(_LOOK)


def tell_end(slot: Slot, death: Death, age: float, last: str) -> None:
    """Report the death of a worker, with its last output if no prompt can be in it."""
    how = f"{slot.name} {death.reason} after {age:.0f} s"
    extra = {"worker": slot.worker.url if slot.worker else None}
    if _may_be_told(slot):
        logger.error("%s; the end of its log:", how, extra={**extra, "quoted": last})
    else:
        logger.error("%s; its log, which may hold prompts: %s", how, slot.log, extra=extra)


def _tell(slot: Slot, line: str) -> None:
    if _may_be_told(slot):
        _output.debug("[%s] %s", slot.name, line)


def _may_be_told(slot: Slot) -> bool:
    """Whether the log may have the output: that of a worker that serves holds prompts."""
    adopted = slot.log is not None and slot.log_from is None
    return slot.shared.prompts or (slot.ready_at is None and not adopted)
