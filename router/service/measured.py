"""Connects the metrics with rooms that `router.observe` may not import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import Metric

from ..dispatch import Dispatcher
from ..launch.fleet import Fleet
from ..launch.phases import PhaseChanged
from ..observe.metrics import Metrics
from ..observe.tally import gauge, single
from ..pool.assets import AssetMap
from ..pool.registry import Registry
from ..pool.weights import Ledgers
from ..store.store import StateWritten, Store


def measure(
    registry: Registry,
    dispatcher: Dispatcher,
    ledgers: Ledgers,
    store: Store,
    fleet: Fleet,
    assets: AssetMap,
) -> Metrics:
    """The metrics of these parts."""
    metrics = Metrics(registry, dispatcher.speeds, dispatcher.queue)
    registry.bus.subscribe(
        lambda event: metrics.state_written(event.seconds, event.synced), StateWritten
    )
    registry.bus.subscribe(
        lambda event: metrics.phase_over(event.launcher, event.old, event.seconds), PhaseChanged
    )

    def sample() -> Iterator[Metric]:
        versions = [((ledger.model,), ledger.version) for ledger in ledgers]
        about = "Version of the weights that the model's workers are to have."
        yield gauge("model_weight_version", about, ("model",), versions)
        about = "Videos, meshes and images whose owners the router knows."
        yield single("assets", about, len(assets))
        yield single("queue_limit", "The most requests that may wait.", dispatcher.limits.size)
        about = "1 while changes cannot be written to the disk."
        yield single("state_failing", about, store.failing is not None)
        phases = Counter((view.launcher, str(view.phase)) for view in fleet.views())
        about = "Workers of a launcher in each phase."
        yield gauge("launched_workers", about, ("launcher", "phase"), phases.items())

    metrics.sample(sample)
    return metrics
