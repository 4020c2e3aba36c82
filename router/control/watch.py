"""Watches every registered worker: one task per worker probes it and holds its idle connection."""

from __future__ import annotations

import logging
import random
from functools import partial
from weakref import WeakKeyDictionary

import trio
from attrs import define, field
from trio.lowlevel import ParkingLot

from ..backoff import Backoff
from ..boundary import keep_running
from ..front.record import serving
from ..net.addresses import Addresses, NotOneAddress, SamePeer
from ..net.allowed import NotAllowed
from ..net.lookup import Unresolved
from ..net.trust import Trust
from ..pool import events
from ..pool.assets import Made
from ..pool.ids import BadWorkerURL
from ..pool.lifecycle import Probe
from ..pool.registry import Registry
from ..pool.worker import UNPROVEN, Capabilities, Health, Origin, Worker
from ..text import words
from .client import ControlClient
from .health import Finding, NotRead, probe, read_capabilities
from .identity import Evidence, ProcessIdentity, Verdict, challenge, open_idle, wait_closed
from .tasks import SoftLimiter, Tasks

logger = logging.getLogger("router.control")

# Seconds between probes after a failure, until the worker is healthy again: the first pause and the
# longest.
_RETRY_FIRST, _RETRY_MOST = 1.0, 10.0
# Seconds before silence counts while a worker has work (an exchange, a job, a ghost, a control
# call).
PATIENCE_WHILE_BUSY = 60.0
_JITTER = 0.1
# Seconds. An idle connection that ends sooner, twice in a row, causes no probe: something in
# between may accept connections and hang up, again and again.
_BRIEF = 1.0
_UNSEEN = "it no longer knows what it made"
_MOST_SILENT = 3  # unanswered identity checks before a worker counts as another


@define(eq=False)
class _Watch:
    """The watch over one registration of one worker."""

    worker: Worker
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    wake: trio.Event = field(factory=trio.Event)
    looked: ParkingLot = field(factory=ParkingLot)  # parked until the next look is over
    begun: int = 0  # number of the last look begun; `over`: of the last look done
    over: int = 0
    refresh: bool = False
    idle: trio.abc.Stream | None = None
    evidence: Evidence = field(factory=Evidence)
    brief: int = 0  # idle connections in a row that ended at once
    # Assets that may prove that the process is the same; None while there is no cause to ask.
    recalled: tuple[Made, ...] | None = None
    silent: int = 0  # identity checks in a row without an answer
    silent_since: float | None = None  # start of the first FAILED probe in a row
    # The idle connection that was open when the worker went out of reach: if it outlasts that time,
    # the process is the same. None if anything else speaks against the process.
    outlasting: trio.abc.Stream | None = None
    backoff: Backoff = field(factory=lambda: Backoff(_RETRY_FIRST, _RETRY_MOST))


@define(eq=False)
class Watchman(Tasks):
    """Keeps the registry's view of health, capabilities and processes true.

    `interval`: seconds between two probes of a healthy worker, with a jitter of a tenth.
    """

    registry: Registry
    client: ControlClient
    identity: ProcessIdentity
    interval: float = 10.0
    rng: random.Random = field(factory=random.Random)
    addresses: Addresses = field(factory=Addresses)
    trust: Trust = field(factory=Trust)
    instance: str = ""  # the id of this router, as its own `/health` tells it
    _watches: dict[Worker, _Watch] = field(init=False, factory=dict)
    # Why a worker was refused at first contact.
    _refusals: WeakKeyDictionary[Worker, BadWorkerURL | SamePeer] = field(
        init=False, factory=WeakKeyDictionary
    )
    _first_looks: SoftLimiter = field(init=False, factory=SoftLimiter)

    def _begin(self) -> None:
        self.addresses.on_move = self._moved
        for worker in self.registry:
            self._begin_watch(worker)
        self.registry.subscribe(
            self._observe,
            *(events.WorkerAdded, events.WorkerRemoved, events.Trouble, events.Suspected),
        )

    def nudge(self, worker: Worker, *, refresh: bool = False) -> None:
        """Probe the worker at once; with `refresh`, also read its capabilities again."""
        watch = self._watches.get(worker)
        if watch is not None:
            watch.refresh = watch.refresh or refresh
            watch.wake.set()

    async def first_contact(self, worker: Worker, *, within: float) -> bool:
        """Wait until the worker's first probe is over, at most `within` seconds; returns False if
        it is not over by then. Raises BadWorkerURL if the URL cannot be a worker, and SamePeer if
        the worker is registered already under another URL."""
        watch = self._watches.get(worker)
        if watch is not None:
            await self._until_over(watch, 1, within)
        if worker in self._refusals:  # the worker may have been removed before this wait began
            raise self._refusals[worker]
        return watch is not None and watch.over > 0 and not worker.removed

    async def look_again(self, worker: Worker, *, within: float) -> None:
        """Probe the worker now and read its capabilities again; wait until that is over, at most
        `within` seconds."""
        watch = self._watches.get(worker)
        if watch is None:
            return
        self.nudge(worker, refresh=True)
        await self._until_over(watch, watch.begun + 1, within)

    async def _until_over(self, watch: _Watch, look: int, within: float) -> None:
        with trio.move_on_after(within):
            while watch.over < look and not watch.worker.removed:
                await watch.looked.park()

    def _observe(self, event: events.Event) -> None:
        match event:
            case events.WorkerAdded(worker):
                self._begin_watch(worker)
            case events.WorkerRemoved(worker):
                watch = self._watches.pop(worker, None)
                if watch is not None:
                    watch.scope.cancel()
                    watch.looked.unpark_all()
                self.addresses.forget(worker.url)
            case events.Trouble(worker, _):
                self.nudge(worker)
            case events.Suspected(worker, _):
                watch = self._watches.get(worker)
                if watch is not None:
                    self._recall(watch)

    def _begin_watch(self, worker: Worker) -> None:
        watch = self._watches[worker] = _Watch(worker)
        if worker.suspicion is not None:
            self._recall(watch)
        self._start(self._keep_watching, watch)

    async def _keep_watching(self, watch: _Watch) -> None:
        serving.set(None)

        def failed(error: Exception) -> None:
            why = f"its probe failed unexpectedly: {type(error).__name__}: {words(error)}"
            self.registry.probed(watch.worker, Probe.FAILED, why)
            self._look_is_over(watch)

        with watch.scope:
            await keep_running(
                f"the watch over worker {watch.worker.url}", partial(self._watch, watch), failed
            )

    async def _watch(self, watch: _Watch) -> None:
        try:
            async with trio.open_nursery() as nursery:
                try:
                    while True:
                        watch.begun += 1
                        if watch.begun == 1:  # all first looks start together with the router
                            async with self._first_looks.slot():
                                await self._look(watch, nursery)
                        else:
                            await self._look(watch, nursery)
                        self._look_is_over(watch)
                        await self._pause(watch)
                finally:
                    nursery.cancel_scope.cancel()
        finally:
            watch.idle = None
            worker = watch.worker
            there = self.registry.find(worker.url)
            if there is worker:
                self.addresses.held.discard(worker.url)
            elif there is None:  # the worker may have been met at the moment of its removal
                self.addresses.forget(worker.url)

    def _look_is_over(self, watch: _Watch) -> None:
        watch.over = watch.begun
        watch.looked.unpark_all()

    def _recall(self, watch: _Watch) -> None:
        """Note the assets that the process has made, before another process may make some."""
        if watch.recalled is None:
            watch.recalled = self.identity.recall(watch.worker)

    async def _pause(self, watch: _Watch) -> None:
        worker = watch.worker
        well = worker.health is Health.HEALTHY and not worker.consecutive_failures
        if well and worker.suspicion is None and not watch.silent:
            watch.backoff.reset()
            delay = self.interval * self.rng.uniform(1 - _JITTER, 1 + _JITTER)
        else:
            # A launched worker that loads may serve at any moment, and a look costs little.
            pause = watch.backoff.next()
            delay = min(self.interval, _RETRY_FIRST if watch.worker.starting else pause)
        with trio.move_on_after(delay):
            await watch.wake.wait()

    async def _look(self, watch: _Watch, nursery: trio.Nursery) -> None:
        """One probe, and its consequences."""
        watch.wake = trio.Event()
        worker = watch.worker
        # Connect before the probe, so that no death between the two goes unseen. If the connection
        # failed but the probe succeeds, the worker has just come up: do both again.
        for _ in range(2):
            asked = trio.current_time()
            if watch.idle is None and not worker.is_plain:
                try:
                    await self._connect(watch, nursery)
                except Unresolved as error:
                    barred = isinstance(error, NotAllowed)  # which no patience will change
                    found = Probe.BACKEND_DEAD if barred else Probe.FAILED
                    idle, finding = None, Finding(found, str(error))
                    self._turn_away(watch, error)
                    break
            idle = watch.idle
            finding = await probe(self.client, worker.url, worker.role)
            if self._is_itself(watch, finding):
                return
            if idle is not None or worker.is_plain or finding.probe is not Probe.OK:
                break
        if finding.probe is Probe.OK:
            finding = await self._well(watch, idle)
        if finding.probe is not Probe.OK:
            self._not_well(watch, finding)
        if finding.probe is not Probe.FAILED:
            watch.silent_since = None
        else:
            if watch.silent_since is None:
                watch.silent_since = asked
            silence = trio.current_time() - watch.silent_since
            busy = worker.leases or worker.holds or self.client.is_calling(worker.url)
            if busy and silence < PATIENCE_WHILE_BUSY:
                return  # busy, not dead
        took = trio.current_time() - asked
        self.registry.probed(worker, finding.probe, finding.reason, seconds=took)
        if watch.idle is None:
            self._recall(watch)  # while no connection is open, another process may come unseen

    async def _connect(self, watch: _Watch, nursery: trio.Nursery) -> None:
        """Open the idle connection if possible. Raises Unresolved."""
        stream = await open_idle(watch.worker.url, self.addresses, self.trust)
        if stream is not None:
            watch.idle = stream
            self.addresses.held.add(watch.worker.url)
            nursery.start_soon(self._hold, watch, stream)

    def _moved(self, url: str, before: str, now: str) -> None:
        worker = self.registry.find(url)
        if worker is not None and worker.met:
            if watch := self._watches.get(worker):
                watch.outlasting = None
            self.registry.suspect(worker, f"its host name resolves to {now} now, not to {before}")

    def _turn_away(self, watch: _Watch, error: Unresolved) -> None:
        """At first contact, note why such a worker must not be registered."""
        worker = watch.worker
        if watch.over:
            return
        if isinstance(error, NotOneAddress):
            self._refusals[worker] = BadWorkerURL(f"Worker URL {worker.url} is refused: {error}")
        elif isinstance(error, SamePeer):
            other = self.registry.find(error.url)
            # A worker of the other scheme that never had a good probe was a slip.
            slip = other and not other.met and other.url[:5] != worker.url[:5]
            if worker.origin is not Origin.LAUNCHED and not slip:
                logger.warning("%s: it is left out", error)
                self._refusals[worker] = error
                self.registry.remove(worker)
            elif other and other.origin is not Origin.LAUNCHED:
                logger.warning("%s, which is left out", error)
                self.registry.remove(other)
                watch.wake.set()

    def _is_itself(self, watch: _Watch, finding: Finding) -> bool:
        """Whether this router has answered. At first contact a worker that was not launched is
        removed: it could never serve a request."""
        if not finding.instance or finding.instance != self.instance:
            return False
        worker = watch.worker
        told = f"Worker URL {worker.url} leads to this router itself"
        if watch.over or worker.origin is Origin.LAUNCHED:
            self.registry.probed(worker, Probe.FAILED, told)
        else:
            logger.error("%s; it is left out", told)
            self._refusals[worker] = BadWorkerURL(told)
            self.registry.remove(worker)
        return True

    def _not_well(self, watch: _Watch, finding: Finding) -> None:
        """The worker may have been down, so the end of its connection was no chance."""
        if watch.evidence.take() is not None:
            watch.evidence.was_true()
        self._recall(watch)  # to ask the worker once it is well again
        if finding.probe is not Probe.FAILED or finding.behind:
            watch.outlasting = None
        elif finding.unreached and watch.worker.suspicion is None:
            watch.outlasting = watch.idle
        # The end of the idle connection comes from a worker that can be reached. There its health
        # only flaps.
        sound = watch.idle is not None and watch.evidence.counts and not finding.unreached
        sound = sound or watch.worker.is_plain  # only a refused connection means another process
        if watch.worker.met and (finding.behind or not sound):
            self.registry.suspect(watch.worker, finding.reason or "it was not well")

    async def _well(self, watch: _Watch, idle: trio.abc.Stream | None) -> Finding:
        """`/health` is well: check whether the process is the same, and read what is not known yet.

        `idle`: the connection that was open before the probe.
        """
        worker = watch.worker
        if not worker.met and worker.suspicion is None:
            watch.recalled = None  # no known process could have been replaced
        verdict = None if watch.recalled is None else await self._judge(watch)
        unsure = verdict in (Verdict.UNKNOWN, Verdict.OTHER)
        if unsure and idle is not None and watch.silent_since is not None:
            await challenge(idle)  # a restart while out of reach has not ended the connection
            same = watch.outlasting is idle and watch.idle is idle and watch.evidence.counts
            if same and verdict is Verdict.UNKNOWN:
                verdict = Verdict.SAME
        doubt = worker.suspicion
        new = verdict is Verdict.OTHER or (verdict is Verdict.UNKNOWN and doubt is not None)
        back = worker.met and worker.health is Health.UNHEALTHY
        capabilities = None
        if worker.capabilities is None or new or back or watch.refresh:
            # Cleared before reading: a refresh requested during the read is for another look.
            watch.refresh, wished = False, watch.refresh
            try:
                capabilities = (
                    Capabilities()
                    if worker.is_plain
                    else await read_capabilities(self.client, worker.url)
                )
            except NotRead as error:
                watch.refresh = watch.refresh or wished
                return error.finding
        if verdict is not None and verdict is not Verdict.SILENT:
            if watch.idle is not idle and watch.evidence.counts:
                return Finding(Probe.OK)  # that process has ended since: look again
            watch.recalled = watch.outlasting = None
            if new:
                proof = "" if verdict is Verdict.OTHER else UNPROVEN
                self.registry.reincarnate(worker, f"{doubt or _UNSEEN}{proof}")
            else:
                self.registry.absolve(worker)
        if capabilities is not None:
            self.registry.learned(worker, capabilities)
        return Finding(Probe.OK)

    async def _judge(self, watch: _Watch) -> Verdict:
        """Whether the process is the known one, and what the end of its idle connection meant."""
        evidence = watch.evidence
        lasted, counted = evidence.take(), evidence.counts
        verdict = await self.identity.judge(watch.worker, watch.recalled or ())
        watch.silent = watch.silent + 1 if verdict is Verdict.SILENT else 0
        if watch.silent >= _MOST_SILENT:
            watch.silent, verdict = 0, Verdict.UNKNOWN
        if verdict is Verdict.OTHER:
            evidence.was_true()
        elif verdict is not Verdict.SILENT and lasted is not None:
            evidence.was_vain(lasted, proven=verdict is Verdict.SAME)
            if counted and not evidence.counts:
                logger.warning(
                    "worker %s: something in between ends its idle connection, after %g s this "
                    "time; such an end does not count as one of the process any more",
                    watch.worker.url,
                    round(lasted, 1),
                )
        return verdict

    async def _hold(self, watch: _Watch, stream: trio.abc.Stream) -> None:
        opened = trio.current_time()
        reason = await wait_closed(stream)
        lasted = trio.current_time() - opened
        watch.idle = watch.outlasting = None
        self.addresses.held.discard(watch.worker.url)
        watch.brief = watch.brief + 1 if lasted < _BRIEF else 0
        self._recall(watch)
        if watch.evidence.ended(lasted) and watch.worker.met:
            self.registry.suspect(watch.worker, reason)
        if watch.brief <= 1:  # else the watch would look without a pause
            watch.wake.set()
