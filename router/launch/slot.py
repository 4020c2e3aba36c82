"""One wanted worker of a launcher: started, watched, started again, ended.

A slot outlives the processes that fill it. Its task is one loop: launch, live, clean up, decide
what follows. Requests (`retire`, `restart`) are noted, and interrupt any wait of the loop.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from attrs import define, evolve, field

from ..backoff import Backoff
from ..boundary import contained, keep_running
from ..errors import StartError, StateUnavailable
from ..pool.worker import Health, Memory, Origin, Worker
from ..text import words
from . import output, vigil
from .base import EngineUnavailable, Handle, Order, Reservation, Run, RunState, WorkerPlan
from .launcher import Death, Launcher, Shared
from .masking import masked
from .phases import Phase, PhaseChanged, SlotView
from .records import LaunchRecord

logger = logging.getLogger("router.launch")

_PAUSE_MOST = 30.0  # seconds between two tries of a launch that is impossible now


@define(eq=False)
class Slot:
    """A worker that should run, and its current launch."""

    launcher: Launcher
    index: int
    shared: Shared
    phase: Phase = Phase.QUEUED
    since: float = field(factory=trio.current_time)
    detail: str | None = None
    last_line: str | None = None
    restarts: int = 0
    plan: WorkerPlan | None = None
    worker: Worker | None = None
    handle: Handle | None = None
    run: Run | None = None
    record: LaunchRecord | None = None
    retiring: bool = False
    left: bool = False  # retired, but the worker keeps running for a later router
    over: trio.Event = field(factory=trio.Event)
    moved: trio.Event = field(factory=trio.Event)  # replaced when a facet of the worker changes
    begun: float = 0.0  # when the present launch began to run
    ready_at: float | None = None  # when it first served
    log_from: int | None = None  # where in the log the present launch begins; None: unknown
    _log: Path | None = None  # of the last launch
    _reservation: Reservation | None = None
    _used: bool = False  # a worker has or had the reserved ports
    _scope: trio.CancelScope = field(factory=trio.CancelScope)
    _again: bool = False
    _quick: int = 0  # quick deaths in a row
    _told: bool = True  # the registry knows that the last process has ended
    _outlived: bool = False  # a process that an earlier router launched here has ended
    _avoid: set[int] = field(factory=set)

    @property
    def name(self) -> str:
        return self.plan.name if self.plan else f"{self.launcher.name}-{self.index}"

    @property
    def runs(self) -> bool:
        """Whether the slot's process is known to run."""
        return self.run is not None and self.run.state is RunState.RUNNING

    @property
    def log(self) -> Path | None:
        """The file of the worker's output, if it is one of ours."""
        if self.handle is not None and self.handle.log is not None:
            return self.handle.log
        return self._log or self._first_log

    @property
    def _first_log(self) -> Path | None:
        if self.plan is None or not self.launcher.backend.local:
            return None
        return (self.launcher.log_dir or self.shared.log_dir) / f"{self.plan.name}.log"

    def view(self) -> SlotView:
        """The slot as people see it now."""
        return SlotView(
            name=self.name,
            launcher=self.launcher.name,
            index=self.index,
            phase=self.phase,
            since=self.since,
            url=self.worker.url if self.worker else None,
            pid=self.run.pid if self.run and self.runs else None,
            restarts=self.restarts,
            detail=self.detail,
            last_line=self.last_line,
            log=self.log,
            gpus=self.plan.gpus if self.plan else (),
        )

    # Requests.

    def retire(self, *, leave: bool = False) -> None:
        """Give the worker up: end it, or `leave` it running for a later router."""
        self.retiring = True
        self.left = self.left or leave
        self._scope.cancel()

    def restart(self) -> None:
        """Start the worker again now, whether it runs or was given up."""
        self._again = True
        self._scope.cancel()

    def noticed(self) -> None:
        """The registry has changed a facet of the slot's worker."""
        worker = self.worker
        if worker and self.phase is Phase.STARTING and worker.health is Health.HEALTHY:
            self.ready_at = trio.current_time()
            self.shared.ever_ready = True
            logger.info("%s is ready after %.0f s: %s", self.name, self.age(), worker.url)
            self.enter(Phase.READY)
        if worker and self.phase is Phase.DOWN and not _rests(worker):
            self.restart()
        self.moved.set()
        self.moved = trio.Event()

    # Before the task runs.

    def prepare(self) -> None:
        """Choose ports, and register the worker if they are its address. Raises StartError."""
        planner, keep = self.launcher.planner, None
        if self._reservation is not None and self._used:
            keep = self._reservation.ports
            self._reservation.give_back()
            self._reservation = None
        if self._reservation is None:
            self._reservation = planner.reserve(self.index, keep=keep, avoid=self._avoid)
            self._used = False
        self.plan = planner.plan(self.index, self._reservation.ports)
        if self.launcher.backend.local:
            self.register(self.plan.url)

    def adopt(self, record: LaunchRecord, handle: Handle) -> None:
        """Take over a launch of an earlier router. Raises StartError."""
        planner = self.launcher.planner
        self.plan = planner.plan(self.index, record.ports)
        self._reservation = planner.adopt(self.index, record.ports)
        self._used = True
        self.handle, self.restarts, self._log = handle, record.restarts, handle.log
        self.run = Run(RunState.RUNNING, process=handle.process)  # the backend has just said so
        self.record = evolve(record, ident=handle.ident, process=handle.process)
        self.shared.store.put(self.record)
        if self.launcher.backend.local:
            self.register(self.plan.url)
            assert self.worker is not None
            self.shared.registry.identify(self.worker, handle.process)

    def outlive(self) -> None:
        """Note that an earlier router's launch for this slot has ended, or is being ended."""
        self._outlived = True

    # The task.

    async def keep(self) -> None:
        """Fill the slot until it is retired. If cancelled, ends the launch by force."""
        try:
            while not self.retiring:
                await self._fill()
        finally:
            outlives = self.left or (self.shared.keep and not self.retiring)
            if self.handle is not None and not outlives:
                with trio.CancelScope(shield=True):
                    await self._end(())
            if self.record is not None and not outlives:
                self.shared.store.delete(LaunchRecord, self.record.key)
            if self._reservation is not None:
                self._reservation.give_back()
            self.enter(Phase.EXITED)
            self.over.set()

    async def _fill(self) -> None:
        """One launch, from its beginning to the decision about the next one."""
        self._again = False
        death: Death | None = None
        with self._interruptible(), contained("worker", f"the launch of {self.name}") as attempt:
            if self.handle is None:
                death = await self._launch()
            if death is None:
                death = await self._live()
        if attempt.error is not None:
            death = Death(f"failed unexpectedly: {words(attempt.error)}", condemned=True)
        if self.left:
            return
        if self.retiring:
            self.enter(Phase.ENDING)
        elif death is not None:
            await self._report(death)
        if self.handle is not None:
            if death is None and self.worker and not self.retiring:
                # Requests that wait for the worker go on waiting while its process ends.
                self.shared.registry.expect(self.worker, "the worker is restarting", ending=True)
            if death is None or death.condemned:
                await self._end(self.shared.supervision.patience)
            elif not death.lost:
                await self._end(())  # clean up after its first process
            self.handle = self.run = self.record = None
        if death is not None:
            await self._wait_after(death)
        if not self.retiring:
            self._begin_anew(death)

    def _interruptible(self) -> trio.CancelScope:
        self._scope = trio.CancelScope()
        if self.retiring or self._again:
            self._scope.cancel()
        return self._scope

    async def _launch(self) -> Death | None:
        """Have a worker started; returns None once it is. Retries while an engine or the disk
        fails."""
        backoff, token = Backoff(most=_PAUSE_MOST), secrets.token_hex(16)
        while True:
            try:
                if self.record is None:
                    await self.launcher.planner.learn()
                    self.prepare()
                # The worker may have been put to sleep just before it was to start again.
                if self.worker is not None and _rests(self.worker):
                    await self._park(
                        Phase.DOWN, "not running while asleep; the next wake starts the worker"
                    )
                await self._order(token)
                return None
            except (EngineUnavailable, StateUnavailable) as error:
                self.enter(Phase.QUEUED, str(error))
                logger.warning("%s waits to start: %s", self.name, error)
                await trio.sleep(backoff.next() * self.shared.rng.uniform(0.5, 1))
            except StartError as error:
                return Death(str(error), hopeless=True)

    async def _order(self, token: str) -> None:
        plan, store, backend, log = self.plan, self.shared.store, self.launcher.backend, None
        assert plan is not None
        assert self._reservation is not None
        if self._first_log is not None:
            log = self._log = await trio.to_thread.run_sync(output.unshared, self._first_log)
            self.log_from = await trio.to_thread.run_sync(output.size, log)
        self.record = LaunchRecord(
            launcher=plan.launcher,
            index=plan.index,
            name=plan.name,
            backend=backend.name,
            token=token,
            fingerprint=plan.fingerprint,
            command=plan.command,
            ports=plan.ports,
            log=str(log) if log else None,
            restarts=self.restarts,
        )
        # Durable before the spawn: an unrecorded worker would hold its GPU for ever.
        store.check()
        store.put(self.record)
        await store.commit()
        self.handle = Handle(token, log=log)
        self._reservation.unbind()
        self._used = True
        self.handle = await backend.launch(Order(plan, token, log, self.shared.owner))
        self.record = evolve(self.record, ident=self.handle.ident, process=self.handle.process)
        store.put(self.record)  # durable soon: until then the token finds it
        logger.info("%s started: %s", self.name, " ".join(masked(plan.command)))

    async def _live(self) -> Death:
        """Watch the launch until it ends, or must be ended."""
        self._told = False
        self.begun, self.ready_at = trio.current_time(), None
        self.enter(Phase.QUEUED)
        found: list[Death] = []
        async with trio.open_nursery() as nursery:

            async def conclude(wait: Callable[[], Awaitable[Death]]) -> None:
                found.append(await wait())
                nursery.cancel_scope.cancel()

            nursery.start_soon(conclude, self._gone)
            nursery.start_soon(conclude, lambda: vigil.hopelessly_unhealthy(self))
            nursery.start_soon(conclude, lambda: vigil.gone_astray(self))
            nursery.start_soon(vigil.tell_slowness, self)
            nursery.start_soon(vigil.watch_output, self)
        return found[0]

    async def _gone(self) -> Death:
        assert self.handle is not None
        run: Run | None = None
        while True:
            self.run = run = await self.launcher.backend.watch(self.handle, run)
            if run.state is RunState.RUNNING:
                self._running(run)
            elif run.state is RunState.PENDING:
                self.enter(Phase.QUEUED, run.reason or "waiting for resources")
            else:
                lost = run.state is RunState.LOST
                return Death(run.reason or run.state.value, run.status, lost=lost)

    def _running(self, run: Run) -> None:
        plan, worker = self.plan, self.worker
        url = run.url or (plan.url if plan and self.launcher.backend.local else None)
        if url is None:
            return
        if worker is not None and worker.process not in (None, run.process):
            self._replaced("its engine restarted the process")
            self._told = False
            self.enter(Phase.QUEUED)
        self.register(url)
        assert self.worker is not None
        if self._outlived:  # the pool's facts may be about the ended process
            self._outlived = False
            self._replaced("its process ended while no router was running")
            self._told = False
        self.shared.registry.identify(self.worker, run.process)
        if self.phase is Phase.QUEUED:
            self.begun, self.ready_at = trio.current_time(), None
            self.enter(Phase.STARTING)
        self.noticed()  # it may already be ready

    # After the end.

    async def _report(self, death: Death) -> None:
        """Report the death to the registry and the log."""
        now = trio.current_time()
        served = 0.0 if self.ready_at is None else now - self.ready_at
        self._quick = 0 if served >= self.shared.supervision.settled else self._quick + 1
        self.enter(Phase.ENDING if death.condemned else Phase.RESTARTING, death.reason)
        # A sleeping worker stays asleep, without a process, until its pool wakes up.
        if self.worker is not None and not _rests(self.worker):
            self._replaced(f"its process {death.reason}")
        if death.hopeless:
            logger.error("%s", death.reason)
            return
        self._avoid |= death.taken
        age, last = self.age(), ""
        with contained("worker", f"reading the output of {self.name}"):
            last = await self.last_words()
        if self.ready_at is None and self.plan is not None:
            self._avoid |= self.launcher.planner.taken(last, self.plan.ports)
        vigil.tell_end(self, death, age, last)

    async def _wait_after(self, death: Death) -> None:
        """Wait until the worker may be started again."""
        with self._interruptible():
            worker, supervision = self.worker, self.shared.supervision
            settings = self.launcher.settings
            if death.hopeless or self._quick >= supervision.quick_deaths:
                times = "" if death.hopeless else f" after {self._quick} quick deaths in a row"
                await self._park(Phase.FAILED, f"given up{times}: {death.reason}")
            if self.shared.stopping or not death.calls_for(settings.restart):
                await self._park(Phase.EXITED, death.reason)
            if worker and _rests(worker):
                await self._park(Phase.DOWN, f"{death.reason} while asleep")
            delay = supervision.pause(settings.restart_backoff, self._quick, self.shared.rng)
            why = f"{death.reason}; starts again in {delay:.1f} s"
            self.enter(Phase.RESTARTING, why)
            await trio.sleep(delay)

    async def _park(self, phase: Phase, why: str) -> None:
        if self.worker is not None:
            self.shared.registry.give_up(self.worker, why)
        self.enter(phase, why)
        await trio.sleep_forever()

    def _begin_anew(self, death: Death | None) -> None:
        registry, worker = self.shared.registry, self.worker
        self.restarts += 1
        if self._again:
            self._quick = 0
        self.enter(Phase.QUEUED)
        if worker is None or worker.removed:
            return
        self._replaced(f"its process {death.reason}" if death else "the worker was restarted")
        registry.expect(worker, "the worker is starting again")

    def _replaced(self, why: str) -> None:
        registry, worker = self.shared.registry, self.worker
        if worker is not None and not self._told:
            self._told = True
            registry.identify(worker, None)
            registry.expect(worker, why)  # first: a dead process must get no request
            registry.reincarnate(worker, why)

    async def _end(self, patience: tuple[float, ...]) -> None:
        backend, handle = self.launcher.backend, self.handle
        assert handle is not None
        # An engine may never answer again; then the record, our claim on the worker, goes anyway.
        with trio.move_on_after(self.shared.supervision.end_within):
            await keep_running(
                f"ending {self.name}", lambda: backend.end(handle, patience=patience)
            )
        self.shared.store.delete(LaunchRecord, f"{self.launcher.name}/{self.index}")
        self.handle = self.run = self.record = None

    def register(self, url: str) -> None:
        """Register the slot's worker in the pool under this URL."""
        registry, old = self.shared.registry, self.worker
        if old is not None and (old.url != url or old.removed):
            self.worker = None
            registry.remove(old)
        if self.worker is None:
            self.worker = registry.add(
                url,
                Origin.LAUNCHED,
                concurrency=self.launcher.settings.max_concurrency,
                batching=self.plan.batching if self.plan else 1,
                starting=True,
                label=self.name,
                role=self.launcher.role,
            )
            # The worker was known to an earlier router, unless this slot adopted its process.
            self._outlived = self._outlived or (self.worker.met and not self.runs)

    def enter(self, phase: Phase, detail: str | None = None) -> None:
        """Note the slot's phase, and the reason for it."""
        self.detail = detail
        if phase is not self.phase:
            old, since = self.phase, self.since
            self.phase, self.since = phase, trio.current_time()
            told = self.name, phase, detail, self.launcher.name, old, self.since - since
            self.shared.registry.bus.publish(PhaseChanged(*told))
        self.shared.tell()

    def age(self) -> float:
        """Seconds since the present launch began to run."""
        return trio.current_time() - self.begun

    async def last_words(self, count: int = 12) -> str:
        """The end of the worker's output, for people."""
        if self.log is None and self.handle is not None:
            return "\n".join(await self.launcher.backend.tail(self.handle, count))
        return await trio.to_thread.run_sync(output.last_words, self.log, count)


def _rests(worker: Worker) -> bool:
    """Whether the worker sleeps: until a wake it needs no process, and others may use its GPU."""
    return worker.memory in (Memory.ASLEEP, Memory.FALLING_ASLEEP)
