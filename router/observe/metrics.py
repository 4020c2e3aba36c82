"""The router's metrics for Prometheus: counts of facts on the bus, and gauges sampled at a scrape.

Label values are bounded: routes of the table, models and workers of the pool. A worker that is
removed takes its series with it.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator

import trio
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from .. import __version__, boundary
from ..front.record import ExchangeEnded
from ..pool import events
from ..pool.cost import Speeds
from ..pool.lifecycle import routable
from ..pool.queue import Queue
from ..pool.registry import Registry
from ..pool.worker import Worker
from .tally import Spread, Tally, gauge, single

OTHER = "other"
"""The model of a request that names a model which no worker serves."""

_MOST_MODELS = 256  # names of models over the life of the process; later ones count as `other`

# From a cached answer to a video of 20 minutes and its wait.
_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600, 1200, 2400)
_SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_VERSIONS = (0, 1, 2, 3, 5, 10, 20)
_PULSE = 1.0  # seconds between two measurements of the event loop

_ENDS = ("completed", "failed", "lost")  # of jobs

_ROUTE = ("route", "model")
_WORKER = ("worker", "pool", "model")
_FACETS = ("health", "admin", "memory", "weights")

Sample = Callable[[], Iterable[Metric]]


class Metrics(Collector):
    """Observes one router. `speeds` and `queue` are the dispatcher's."""

    def __init__(self, registry: Registry, speeds: Speeds, queue: Queue) -> None:
        self._registry, self._speeds, self._queue = registry, speeds, queue
        self._samples: list[Sample] = [self._process, self._workers, self._waiting]
        self._models: dict[str, str] = {}  # of each worker, by its URL
        self._names: set[str] | None = None  # all that workers serve; None: look again
        self._used: set[str] = set()  # as labels
        # Requests by route, counted by those who find the route.
        self.intake: defaultdict[str, int] = defaultdict(int)
        self._requests = Tally("requests", "Exchanges that ended; status none: without an answer.")
        self._requests.labels = (*_ROUTE, "status")
        self._retries = Tally("retries", "Further workers tried for a request.", _ROUTE)
        self._refused = Tally("refused", "Requests that were refused a worker.", ("code",))
        self._queued = Tally("queued", "Requests that found no free worker and waited.")
        about = "Seconds from the head of the request to the end of its answer."
        self._whole = Spread("request_seconds", about, _SECONDS, _ROUTE)
        about = "Seconds from the head of the request to its first worker."
        self._queue_time = Spread("queue_seconds", about, _SECONDS, _ROUTE)
        about = "Seconds from the first worker to the head of the answer."
        self._worker_time = Spread("worker_seconds", about, _SECONDS, _ROUTE)
        about = "Seconds from the head of the answer to its end."
        self._transfer = Spread("transfer_seconds", about, _SECONDS, _ROUTE)
        # The series of these four, in this order.
        self._times: dict[tuple[str, str], tuple[list[float], ...]] = {}
        about = "Weight versions issued since the worker's own when it got a request."
        self._staleness = Spread("staleness_versions", about, _VERSIONS, ("model",))
        self._stale: dict[str, list[float]] = {}  # its series
        self._granted = Tally("worker_leases", "Exchanges that the worker got.", ("worker",))
        self._ejected = Tally("worker_ejections", "Times the worker went on trial.", ("worker",))
        about = "Times another process was found behind the worker's URL."
        self._replaced = Tally("worker_replacements", about, ("worker",))
        about = "Health probes by what they found."
        self._probes = Tally("worker_probes", about, ("worker", "finding"))
        self._probe_time = Spread("probe_seconds", "Seconds that a health probe took.", _SHORT)
        self._issued = Tally("weight_versions", "Weight versions issued.", ("model",))
        about = "Seconds of weight changes, from the fence to the last worker."
        self._refits = Spread("refit_seconds", about, _SECONDS, ("model", "kind", "outcome"))
        about = "Seconds of videos and meshes, from their submission to their end."
        self._jobs = Spread("job_seconds", about, _SECONDS, ("endpoint", "model", "status"))
        about = "Seconds to write and sync a batch of state changes."
        self._writes = Spread("state_write_seconds", about, _SHORT)
        about = "Seconds of the sync alone (fsync)."
        self._syncs = Spread("state_sync_seconds", about, _SHORT)
        about = "Seconds of each phase of launched workers that is over."
        self._phases = Spread("launch_phase_seconds", about, _SECONDS, ("launcher", "phase"))
        about = "Seconds by which a task that slept a second woke too late."
        self._lag = Spread("event_loop_lag_seconds", about, _SHORT)
        self._counts = [value for value in vars(self).values() if isinstance(value, Tally | Spread)]
        self._of_workers = (self._granted, self._ejected, self._replaced, self._probes)
        self._collectors = CollectorRegistry()
        self._collectors.register(self)
        ProcessCollector(registry=self._collectors)
        self._observe()

    def sample(self, sample: Sample) -> None:
        """Call `sample` at each scrape for further gauges."""
        self._samples.append(sample)

    def state_written(self, seconds: float, synced: float) -> None:
        """A batch of changes is on the disk: how long that took, and the sync alone."""
        self._writes.note(seconds)
        self._syncs.note(synced)

    def phase_over(self, launcher: str, phase: str, seconds: float) -> None:
        """A launched worker has left a phase after this time."""
        self._phases.note(seconds, launcher, phase)

    async def run(self) -> None:
        """Measure the lag of the event loop; never returns."""
        while True:
            due = trio.current_time() + _PULSE
            await trio.sleep_until(due)
            self._lag.note(trio.current_time() - due)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that the `Accept` header asks for, and their content type."""
        try:
            encode, content_type = choose_encoder(accept)
        except TypeError:  # so it answers a version that is no number
            encode, content_type = choose_encoder("")
        return encode(self._collectors), content_type

    def collect(self) -> Iterator[Metric]:
        for count in self._counts:
            yield count.family()
        for sample in self._samples:
            yield from sample()

    # What happens.

    def _observe(self) -> None:
        bus = self._registry.bus
        bus.subscribe(self._ended, ExchangeEnded)
        bus.subscribe(self._leased, events.LeaseGranted)
        bus.subscribe(self._probed, events.Probed)
        bus.subscribe(lambda e: self._refused.add(e.error.code), events.Refused)
        bus.subscribe(lambda _: self._queued.add(), events.Queued)
        bus.subscribe(lambda e: self._ejected.add(e.worker.url), events.Ejected)
        bus.subscribe(lambda e: self._replaced.add(e.worker.url), events.Reincarnated)
        bus.subscribe(lambda e: self._issued.add(self._bounded(e.model)), events.VersionIssued)
        bus.subscribe(self._refitted, events.RefitEnded)
        bus.subscribe(self._job_ended, events.JobEnded)
        bus.subscribe(self._learned, events.CapabilitiesLearned)
        bus.subscribe(self._removed, events.WorkerRemoved)

    def _ended(self, event: ExchangeEnded) -> None:
        record = event.record
        model = self._models.get(record.worker or "")
        if model is None:
            model = self._named(record.model)
        route, status = record.route, record.status
        if not route:
            self.intake[route] += 1  # nobody could read the request
        self._requests.values[route, model, status] += 1
        times = self._times.get((route, model)) or self._timed(route, model)
        queue, worker, transfer, whole = times
        arrived, leased, answered = record.arrived, record.leased, record.answered
        if leased is not None:
            seconds = leased - arrived
            queue[bisect_left(_SECONDS, seconds)] += 1
            queue[-1] += seconds
            if record.tries > record.parts:
                self._retries.add(route, model, by=record.tries - record.parts)
        if answered is None:
            return
        if leased is not None:
            seconds = answered - leased
            worker[bisect_left(_SECONDS, seconds)] += 1
            worker[-1] += seconds
        if record.ended is not None:
            seconds = record.ended - answered
            transfer[bisect_left(_SECONDS, seconds)] += 1
            transfer[-1] += seconds
            seconds = record.ended - arrived
            whole[bisect_left(_SECONDS, seconds)] += 1
            whole[-1] += seconds

    def _timed(self, route: str, model: str) -> tuple[list[float], ...]:
        spreads = self._queue_time, self._worker_time, self._transfer, self._whole
        times = tuple(spread.series(route, model) for spread in spreads)
        self._times[route, model] = times
        return times

    def _leased(self, event: events.LeaseGranted) -> None:
        lease = event.lease
        worker = lease.worker
        self._granted.values[worker.url,] += 1
        if lease.weight_version is not None and worker.weight_lag is not None:
            model = self._models.get(worker.url, "")
            series = self._stale.get(model)
            if series is None:
                series = self._stale[model] = self._staleness.series(model)
            series[bisect_left(_VERSIONS, worker.weight_lag)] += 1
            series[-1] += worker.weight_lag

    def _refitted(self, event: events.RefitEnded) -> None:
        model = self._bounded(event.model)
        self._refits.note(event.seconds, model, event.kind, event.outcome)

    def _job_ended(self, event: events.JobEnded) -> None:
        hold, status = event.hold, "lost" if event.status is None else event.status
        model = self._models.get(hold.worker.url, "")
        known = str(status) if status in _ENDS else OTHER
        self._jobs.note(trio.current_time() - hold.since, hold.endpoint, model, known)

    def _probed(self, event: events.Probed) -> None:
        self._probes.add(event.worker.url, event.finding)
        self._probe_time.note(event.seconds)

    def _learned(self, event: events.CapabilitiesLearned) -> None:
        self._names = None
        can = event.worker.capabilities
        if can and can.models:
            self._models[event.worker.url] = self._bounded(can.models[0])

    def _removed(self, event: events.WorkerRemoved) -> None:
        self._names = None
        self._models.pop(event.worker.url, None)
        for tally in self._of_workers:
            tally.forget(event.worker.url)

    def _bounded(self, model: str) -> str:
        """The label of a model that a worker or ledger has."""
        if model in self._used or len(self._used) < _MOST_MODELS:
            self._used.add(model)
            return model
        return OTHER

    def _named(self, model: str | None) -> str:
        """The label of a model that a client has named."""
        if not model:
            return ""
        if self._names is None:
            can = [worker.capabilities for worker in self._registry]
            self._names = {name for one in can if one for name in one.models}
        return self._bounded(model) if model in self._names else OTHER

    # What is so at a scrape.

    def _process(self) -> Iterator[Metric]:
        build = (__version__, platform.python_version())
        yield gauge("build_info", "The running program.", ("version", "python"), [(build, 1)])
        received = Tally("requests_received", "Requests at intake, by the route that they ask for.")
        received.labels = ("route",)
        for route, number in self.intake.items():
            received.add(route, by=number)
        yield received.family()
        errors = Tally("contained_errors", "Unexpected errors that ended where they arose.")
        errors.labels = ("place",)
        for place, count in boundary.counts.items():
            errors.add(place, by=count)
        yield errors.family()

    def _workers(self) -> Iterator[Metric]:
        workers = list(self._registry)
        label = {w: (w.url, w.pool, self._models.get(w.url, "")) for w in workers}

        def each(name: str, text: str, value: Callable[[Worker], float]) -> Metric:
            rows = [(label[worker], value(worker)) for worker in workers]
            return gauge(f"worker_{name}", text, _WORKER, rows)

        yield single("workers", "Registered workers.", len(workers))
        yield each("routable", "1 if the worker may get generations now.", routable)
        yield each("on_trial", "1 while the worker is on trial.", lambda w: w.trial is not None)
        yield each(
            "slots", "Generations that the worker runs at once.", lambda w: w.max_concurrency
        )
        about = "Exchanges between dispatch and last byte."
        yield each("exchanges", about, lambda w: w.active_requests)
        about = "Version of the worker's weights; -1: unknown."
        yield each("weight_version", about, lambda w: w.weight_version)
        about = "Weight versions issued since the worker's own; -1: unknown, or very many."
        yield each("weight_lag", about, lambda w: -1 if w.weight_lag is None else w.weight_lag)
        rows = [((w.url, facet, str(getattr(w, facet))), 1.0) for w in workers for facet in _FACETS]
        labels = ("worker", "facet", "state")
        yield gauge("worker_state", "1 for the state of each facet of a worker.", labels, rows)
        held = [
            ((w.url, kind), float(count))
            for w in workers
            for kind, count in Counter(str(hold.kind) for hold in w.holds).items()
        ]
        yield gauge("worker_held_slots", "Slots by what holds them.", ("worker", "kind"), held)

    def _waiting(self) -> Iterator[Metric]:
        now = trio.current_time()
        waiting: Counter[str] = Counter()
        oldest: dict[str, float] = {}
        seconds: dict[tuple[str, str], float] = {}
        jobs: Counter[str] = Counter()
        for model in self._models.values():  # a series that comes and goes is hard to alert on
            waiting[model] = jobs[model] = 0
            oldest[model] = seconds[model, "running"] = seconds[model, "waiting"] = 0.0
        for worker in self._registry:
            model = self._models.get(worker.url, "")
            key = (model, "running")
            seconds[key] = seconds.get(key, 0.0) + self._speeds.outstanding(worker)
            jobs[model] += worker.jobs
        for one in self._queue.all():
            facts = one.facts
            fitting = self._queue.fitting(facts.wants)
            model = self._models.get(fitting[0].url, "") if fitting else self._named(facts.model)
            waiting[model] += 1
            oldest[model] = max(oldest.get(model, 0.0), now - one.since)
            key = (model, "waiting")
            seconds[key] = seconds.get(key, 0.0) + self._speeds.typical(facts.kind, facts.work)
        yield gauge("queue_depth", "Waiting requests.", ("model",), _rows(waiting))
        about = "Seconds that the longest waiting request has waited."
        yield gauge("queue_oldest_wait_seconds", about, ("model",), _rows(oldest))
        about = "Seconds of work given or waiting, by learnt speeds: divide by the workers."
        yield gauge("outstanding_seconds", about, ("model", "part"), seconds.items())
        yield gauge("jobs", "Videos and meshes that are being made.", ("model",), _rows(jobs))


def _rows(values: dict[str, float] | Counter[str]) -> list[tuple[tuple[str], float]]:
    return [((name,), value) for name, value in values.items()]
