"""Counters and histograms as plain numbers of one event loop.

What each request counts, it counts on `Tally.values` and `Spread.series` directly, without a call.

Those of prometheus_client lock at each step, and write to files if PROMETHEUS_MULTIPROC_DIR is set,
as SGLang sets it for its own processes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

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
    # By label values; numbers and None, which is the label `none`, are written at the scrape.
    values: defaultdict[tuple[object, ...], float] = field(
        init=False, factory=partial(defaultdict, float)
    )

    def add(self, *labels: str, by: float = 1) -> None:
        self.values[labels] += by

    def forget(self, first: str) -> None:
        """Drop the series whose first label has this value."""
        for labels in [labels for labels in self.values if labels[0] == first]:
            del self.values[labels]

    def family(self) -> CounterMetricFamily:
        family = CounterMetricFamily(PREFIX + self.name, self.text, labels=self.labels)
        if not self.labels:
            self.values.setdefault((), 0)
        for labels, value in self.values.items():
            family.add_metric(["none" if v is None else str(v) for v in labels], value)
        return family


@define(eq=False)
class Spread:
    """A histogram; `bounds` are the upper bounds of its buckets, rising."""

    name: str
    text: str
    bounds: Sequence[float]
    labels: Labels = ()
    _series: dict[Labels, list[float]] = field(init=False, factory=dict)

    def series(self, *labels: str) -> list[float]:
        """For each bucket how many values are in it alone; the last entry is the sum of all."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = [0.0] * (len(self.bounds) + 2)
        return series

    def note(self, value: float, *labels: str) -> None:
        series = self.series(*labels)
        series[bisect_left(self.bounds, value)] += 1
        series[-1] += value

    def family(self) -> HistogramMetricFamily:
        family = HistogramMetricFamily(PREFIX + self.name, self.text, labels=self.labels)
        names = [*map(str, map(float, self.bounds)), "+Inf"]
        for labels, series in self._series.items():
            if self.labels and not any(series[:-1]):
                continue  # no request got that far
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
