"""Counters and histograms as plain numbers of one event loop.

Those of prometheus_client lock at each step, and write to files if PROMETHEUS_MULTIPROC_DIR is set,
as SGLang sets it for its own processes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence

from attrs import define, field
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)

PREFIX = "sglang_diffusion_router_"

Labels = tuple[str, ...]


@define(eq=False)
class Tally:
    """A counter; `name` is without the prefix and without `_total`."""

    name: str
    text: str
    labels: Labels = ()
    _values: dict[Labels, float] = field(init=False, factory=dict)

    def add(self, *labels: str, by: float = 1) -> None:
        self._values[labels] = self._values.get(labels, 0) + by

    def forget(self, first: str) -> None:
        """Drop the series whose first label has this value."""
        for labels in [labels for labels in self._values if labels[0] == first]:
            del self._values[labels]

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(PREFIX + self.name, self.text, labels=self.labels)
        if not self.labels:
            self._values.setdefault((), 0)
        for labels, value in self._values.items():
            family.add_metric(labels, value)
        return family


@define(eq=False)
class Spread:
    """A histogram; `bounds` are the upper bounds of its buckets, rising."""

    name: str
    text: str
    bounds: Sequence[float]
    labels: Labels = ()
    # For each bucket the values in it alone; the last entry is their sum.
    _series: dict[Labels, list[float]] = field(init=False, factory=dict)

    def note(self, value: float, *labels: str) -> None:
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = [0.0] * (len(self.bounds) + 2)
        series[bisect_left(self.bounds, value)] += 1
        series[-1] += value

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(PREFIX + self.name, self.text, labels=self.labels)
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        for labels, series in self._series.items():
            total, buckets = 0.0, []
            for name, count in zip(names, series, strict=False):
                total += count
                buckets.append((name, total))
            family.add_metric(labels, buckets, sum_value=series[-1])
        return family


def gauge(
    name: str, text: str, labels: Labels, rows: Iterable[tuple[Sequence[str], float]]
) -> GaugeMetricFamily:
    """A gauge with these rows of label values and value."""
    family = GaugeMetricFamily(PREFIX + name, text, labels=labels)
    for values, value in rows:
        family.add_metric(values, value)
    return family


def single(name: str, text: str, value: float) -> GaugeMetricFamily:
    """A gauge without labels."""
    return gauge(name, text, (), [((), value)])
