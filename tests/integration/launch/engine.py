"""An engine as far from here as can be: it places workers elsewhere, answers slowly or not at all,
loses machines, starts jobs again by itself, and outlives every router. All in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import trio
from attrs import define, field

from router.errors import StartError
from router.launch.base import EngineUnavailable, Handle, Order, Run, RunState

TRIES = 3


@define(eq=False)
class Job:
    """A job of the engine. It is the engine that knows it, not a router."""

    order: Order
    number: int
    starts: int = 0
    machine: str | None = None  # None: it waits for room
    processes: int = 0
    status: int | None = None
    lost: bool = False
    killed_at: float | None = None
    output: list[str] = field(factory=list)

    @property
    def over(self) -> bool:
        return self.status is not None or self.lost


@define(eq=False)
class Engine:
    """Runs jobs on machines. What a job does is told by its command: `stay`, `exit N`,
    `stubborn` or `refused`."""

    machines: dict[str, int] = field(factory=lambda: {"n1": 8, "n2": 8})  # name: room
    latency: float = 0.0  # seconds of every answer
    pace: float = 1.0  # seconds between two looks at the jobs
    down: bool = False  # answers nobody
    requeues: bool = False  # starts again what a lost machine ran
    jobs: dict[str, Job] = field(factory=dict)  # by token
    asked: Callable[[], None] = lambda: None  # told of every call

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Place jobs, and let them end; never returns."""
        task_status.started()
        while True:
            for job in self.jobs.values():
                self._look_at(job)
            await trio.sleep(self.pace)

    def _look_at(self, job: Job) -> None:
        if job.over:
            return
        if job.machine is None:
            job.machine = next((name for name, room in self.machines.items() if room), None)
            if job.machine is not None:
                self.machines[job.machine] -= 1
                job.starts += 1
                job.processes = 2 if job.order.plan.command[0] == "stubborn" else 1
                job.output.append("hello")
        elif job.order.plan.command[0] == "exit":
            job.output.append("bye")
            self.finish(job, int(job.order.plan.command[1]))

    def finish(self, job: Job, status: int) -> None:
        job.status, job.processes = status, 0
        if job.machine in self.machines:
            self.machines[job.machine] += 1

    def lose(self, machine: str) -> None:
        """A machine is gone, with all that ran there."""
        del self.machines[machine]
        for job in self.jobs.values():
            if job.machine == machine and not job.over:
                job.processes = 0
                job.machine = None
                job.lost = not self.requeues

    async def answer(self) -> None:
        """Every call comes through here. Raises EngineUnavailable."""
        self.asked()
        for _ in range(TRIES):
            await trio.sleep(self.latency)
            if not self.down:
                return
            await trio.sleep(self.pace)
        raise EngineUnavailable("the engine does not answer")


@define(eq=False)
class EngineBackend:
    """What a router has of an engine. It remembers nothing by itself."""

    engine: Engine
    name: str = "engine"
    local: bool = False

    async def launch(self, order: Order) -> Handle:
        await self.engine.answer()
        if order.plan.command[0] == "refused":
            raise StartError("the engine refuses it: no such partition")
        jobs = self.engine.jobs
        job = jobs.setdefault(order.token, Job(order, len(jobs)))
        await trio.sleep(self.engine.latency)  # the way back
        return self._handle(job)

    async def watch(self, handle: Handle, known: Run | None) -> Run:
        while True:
            try:
                await self.engine.answer()
            except EngineUnavailable:
                continue  # no news is no death
            run = self._run(self.engine.jobs.get(handle.token))
            if run != known:
                return run
            await trio.sleep(self.engine.pace)

    async def end(self, handle: Handle, *, patience: Sequence[float]) -> None:
        try:
            if sum(patience):
                await self._ask(handle, polite=True)
                with trio.move_on_after(sum(patience)):
                    while self._lives(handle):
                        await trio.sleep(self.engine.pace / 10)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(10):
                await self._ask(handle, polite=False)

    async def find(self, handles: Sequence[Handle]) -> Mapping[str, Handle]:
        await self.engine.answer()
        return {
            handle.token: self._handle(self.engine.jobs[handle.token])
            for handle in handles
            if self._lives(handle)
        }

    async def tail(self, handle: Handle, lines: int) -> list[str]:
        await self.engine.answer()
        job = self.engine.jobs.get(handle.token)
        return job.output[-lines:] if job else []

    async def _ask(self, handle: Handle, *, polite: bool) -> None:
        while True:
            try:
                await self.engine.answer()
                break
            except EngineUnavailable:
                continue
        job = self.engine.jobs.get(handle.token)
        stubborn = job is not None and job.order.plan.command[0] == "stubborn"
        if job is not None and not job.over and not (polite and stubborn):
            self.engine.finish(job, -15 if polite else -9)

    def _lives(self, handle: Handle) -> bool:
        job = self.engine.jobs.get(handle.token)
        return job is not None and not job.over

    def _handle(self, job: Job) -> Handle:
        return Handle(job.order.token, f"job-{job.number}", log=job.order.log)

    def _run(self, job: Job | None) -> Run:
        if job is None:
            return Run(RunState.ENDED, reason="was forgotten by the engine")
        if job.lost:
            return Run(RunState.LOST, reason="was on a machine that is gone")
        if job.status is not None:
            word = f"exited with status {job.status}" if job.status >= 0 else "was ended"
            return Run(RunState.ENDED, status=job.status, reason=word)
        if job.machine is None:
            return Run(RunState.PENDING, reason="no machine has room")
        url = f"http://{job.machine}.test:{job.order.plan.ports.http}"
        process = f"job-{job.number}/{job.starts}"
        return Run(RunState.RUNNING, None if self.local else url, process)
