"""What a collective does to a process of a simulated worker: it answers once all members have been
called, as NCCL does, or when its own patience is at an end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from tests.simulation.process import MODULES
from tests.simulation.universe import Wrong

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.worker import Reply, Worker

_WATCHDOG = 25.0  # seconds until a worker gives up waiting for the others
_QUIET = 20  # seconds without a disturbance after which its answer surely comes


@define(eq=False)
class Meeting:
    """The members of one collective. `failed`: since when it cannot end, as the router knows."""

    called: dict[str, Process] = field(factory=dict)
    arrived: set[str] = field(factory=set)
    all_there: trio.Event = field(factory=trio.Event)
    failed: float | None = None

    def fail(self, worker: Worker) -> None:
        link = worker.host.link
        if self.failed is None and link.up and not link.loss:
            self.failed = trio.current_time()


async def take_part(worker: Worker, process: Process, content: dict[str, Any]) -> Reply:
    """What a process does that is called in a collective."""
    label, members, name = content["names"][0], set(content["members"]), worker.name
    meeting = worker.world.meetings.setdefault(label, Meeting())
    if name not in members or meeting.called.setdefault(name, process) is not process:
        raise Wrong(f"{name} is called for {label}, and is no member of it any more")
    worker.note(f"is called for {label}")
    try:
        async with worker.turn(process):
            worker.world.tell(worker)
            fault, worker.faults.next_update = worker.faults.next_update, ""
            await worker.takes(process, worker.dice.uniform(0.05, 1))
            if process.asleep or fault == "none" or content["refuses"] in (name, "all"):
                quiet = trio.current_time() - worker.disturbed > _QUIET
                if quiet and not (worker.taken or worker.handled):
                    meeting.fail(worker)
                status = 404 if content["refuses"] == "all" else 400  # it does not know the call
                return status, {"success": False, "message": "no such group"}
            meeting.arrived.add(name)
            if meeting.arrived == members:
                meeting.all_there.set()
            with trio.move_on_after(_WATCHDOG) as scope:
                await meeting.all_there.wait()
            if scope.cancelled_caught:
                meeting.arrived.discard(name)
                worker.note(f"waits no longer for the others of {label}")
                return 500, {"success": False, "message": "the watchdog has ended the collective"}
            await worker.takes(process, worker.dice.uniform(0.05, 1))
            worker.world.may_have_other_weights(worker)
            some = [MODULES[0]] if fault == "partial" else content.get("target_modules")
            process.weights = process.weights.loaded(
                f"half of {label}" if fault == "partial" else label, some
            )
            if fault == "hang":
                await trio.sleep_forever()
            if fault:
                return 500, {"success": False, "message": "it failed"}
            worker.note(f"has {label}")
            return 200, {"success": True, "message": "updated"}
    finally:
        if worker.process is not process:
            meeting.fail(worker)
