"""Watches every registered worker: a task each that probes it and holds its idle connection."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio
from attrs import define, field

from ..pool import events
from ..pool.lifecycle import Probe
from ..pool.registry import Registry
from ..pool.worker import Health, Worker
from .client import ControlClient
from .health import Finding, NotRead, probe, read_capabilities
from .presence import open_idle, wait_closed

# After a failure, and until health is regained, probes come at these distances (seconds).
_RETRY_FIRST, _RETRY_MOST = 1.0, 10.0
# With a generation in flight, silence counts only after so long (seconds).
PATIENCE_WHILE_BUSY = 60.0
_JITTER = 0.1
# An idle connection that ends sooner says little (seconds). One such end may be a process that
# dies young; after a few in a row it is something in between that accepts and hangs up.
_BRIEF = 1.0
_MOST_BRIEF = 3


@define(eq=False)
class _Watch:
    """The watch over one registration of one worker."""

    worker: Worker
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    wake: trio.Event = field(factory=trio.Event)
    contacted: trio.Event = field(factory=trio.Event)
    looked: trio.Event = field(factory=trio.Event)  # replaced after each look
    begun: int = 0  # looks
    over: int = 0
    refresh: bool = False
    idle: trio.abc.Stream | None = None
    brief: int = 0  # idle connections in a row that ended at once
    silent_since: float | None = None  # when the first probe began that was not answered well
    retry: float = _RETRY_FIRST


@define(eq=False)
class Watchman:
    """Keeps the registry's view of health, capabilities and processes true.

    `interval`: seconds between two probes of a healthy worker, with a jitter of a tenth.
    """

    registry: Registry
    client: ControlClient
    interval: float = 10.0
    rng: random.Random = field(factory=random.Random)
    # Whether the process of a suspect is the one that was probed; None if nobody can prove it.
    prove: Callable[[Worker], bool | None] = lambda _: None
    _watches: dict[Worker, _Watch] = field(init=False, factory=dict)
    _nursery: trio.Nursery | None = field(init=False, default=None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch the workers there are, and those that join; never returns."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for worker in self.registry:
                self._begin(worker)
            self.registry.subscribe(self._observe)
            task_status.started()
            await trio.sleep_forever()

    def nudge(self, worker: Worker, *, refresh: bool = False) -> None:
        """Probe the worker at once; `refresh` also reads its capabilities again."""
        watch = self._watches.get(worker)
        if watch is not None:
            watch.refresh = watch.refresh or refresh
            watch.wake.set()

    async def first_contact(self, worker: Worker, *, within: float) -> bool:
        """Wait until the worker's first probe is over, at most so many seconds; False if it is
        not over by then."""
        watch = self._watches.get(worker)
        if watch is None:
            return False
        with trio.move_on_after(within):
            await watch.contacted.wait()
        return watch.contacted.is_set() and not worker.removed

    async def look_again(self, worker: Worker, *, within: float) -> None:
        """Probe the worker now, read its capabilities again, and wait until that is over, at
        most so many seconds."""
        watch = self._watches.get(worker)
        if watch is None:
            return
        self.nudge(worker, refresh=True)
        wanted = watch.begun + 1
        with trio.move_on_after(within):
            while watch.over < wanted and not worker.removed:
                await watch.looked.wait()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker):
                self._begin(worker)
            case events.WorkerRemoved(worker):
                watch = self._watches.pop(worker, None)
                if watch is not None:
                    watch.scope.cancel()
                    watch.contacted.set()  # nobody need wait for it any longer
                    watch.looked.set()
            case events.Trouble(worker, _):
                self.nudge(worker)

    def _begin(self, worker: Worker) -> None:
        assert self._nursery is not None
        watch = self._watches[worker] = _Watch(worker)
        self._nursery.start_soon(self._watch, watch)

    async def _watch(self, watch: _Watch) -> None:
        with watch.scope:
            async with trio.open_nursery() as nursery:
                try:
                    while True:
                        watch.begun += 1
                        await self._look(watch, nursery)
                        watch.over += 1
                        watch.looked.set()
                        watch.looked = trio.Event()
                        await self._pause(watch)
                finally:
                    nursery.cancel_scope.cancel()

    async def _pause(self, watch: _Watch) -> None:
        if watch.worker.health is Health.HEALTHY and not watch.worker.consecutive_failures:
            watch.retry = _RETRY_FIRST
            delay = self.interval * self.rng.uniform(1 - _JITTER, 1 + _JITTER)
        else:
            # One of ours that loads may serve at any moment, and a look at it costs little.
            delay = min(self.interval, _RETRY_FIRST if watch.worker.starting else watch.retry)
            watch.retry = min(_RETRY_MOST, watch.retry * 2)
        with trio.move_on_after(delay):
            await watch.wake.wait()

    async def _look(self, watch: _Watch, nursery: trio.Nursery) -> None:
        """One probe with all that follows from it."""
        watch.wake = trio.Event()
        worker = watch.worker
        # Before the probe, so that no death between the two goes unseen.
        if watch.idle is None:
            stream = await open_idle(worker.url)
            if stream is not None:
                watch.idle = stream
                nursery.start_soon(self._hold, watch, stream)
        asked = trio.current_time()
        finding = await probe(self.client, worker.url)
        if finding.probe is Probe.OK:
            finding = await self._well(watch)
        if finding.probe is not Probe.FAILED:
            watch.silent_since = None
        else:
            if watch.silent_since is None:
                watch.silent_since = asked
            silence = trio.current_time() - watch.silent_since
            if worker.active_requests and silence < PATIENCE_WHILE_BUSY:
                return  # busy, not dead
        self.registry.probed(worker, finding.probe, finding.reason)
        watch.contacted.set()

    async def _well(self, watch: _Watch) -> Finding:
        """`/health` is well: learn what is not known of this process yet."""
        worker = watch.worker
        replaced = worker.suspicion if worker.met and not self.prove(worker) else None
        back = worker.met and worker.health is Health.UNHEALTHY
        if worker.capabilities is None or replaced or back or watch.refresh:
            # Before reading: a wish that comes while we read is for another look.
            watch.refresh, wished = False, watch.refresh
            try:
                capabilities = await read_capabilities(self.client, worker.url)
            except NotRead as error:
                watch.refresh = watch.refresh or wished
                return error.finding
            if replaced:
                # No witness is kept yet, so a suspect that is back is another process.
                self.registry.reincarnate(worker, replaced)
            self.registry.learned(worker, capabilities)
        elif worker.suspicion is not None:
            self.registry.absolve(worker)
        return Finding(Probe.OK)

    async def _hold(self, watch: _Watch, stream: trio.abc.Stream) -> None:
        opened = trio.current_time()
        reason = await wait_closed(stream)
        watch.idle = None
        watch.brief = watch.brief + 1 if trio.current_time() - opened < _BRIEF else 0
        if watch.worker.met and watch.brief <= _MOST_BRIEF:
            self.registry.suspect(watch.worker, reason)
        if watch.brief <= 1:  # else we would look without a pause
            watch.wake.set()
