"""Counters and histograms of what happens with every request, as plain numbers that one thread adds to.

prometheus_client's own take a lock and seven calls to add one: a sixteenth of what a decision cost. These are told
through it, like its own but for the `_created` series, which they do not have.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Count:
    """One series of a counter. Whoever counts adds to `total`, nothing below 0."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total: float = 0


class Spread:
    """One series of a histogram. bounds: rising; a value belongs to the first that it does not exceed."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # the last beyond all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Counts(Collector):
    """A family of counters, one for each that was asked for by its labels' values."""

    def __init__(self, name: str, told: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._named = (name, told, None, tuple(labels))
        self._series: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def of(self, *labels: str) -> Count:
        """The series of these values, begun at 0."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Count()
        return found

    def describe(self) -> Iterable[Metric]:
        """The family without its numbers."""
        return [CounterMetricFamily(*self._named)]

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily(*self._named)
        for labels, one in list(self._series.items()):
            family.add_metric(labels, one.total)
        return [family]


class Spreads(Collector):
    """A family of histograms. bounds: of their buckets, rising, without infinity."""

    def __init__(
        self, name: str, told: str, bounds: Sequence[float], labels: Sequence[str], registry: CollectorRegistry
    ) -> None:
        self._named, self._bounds = (name, told, None, None, tuple(labels)), tuple(bounds)
        self._series: dict[tuple[str, ...], Spread] = {}
        registry.register(self)

    def of(self, *labels: str) -> Spread:
        """The series of these values, begun at 0."""
        found = self._series.get(labels)
        if found is None:
            found = self._series[labels] = Spread(self._bounds)
        return found

    def describe(self) -> Iterable[Metric]:
        """The family without its numbers."""
        return [HistogramMetricFamily(*self._named)]

    def collect(self) -> Iterable[Metric]:
        family = HistogramMetricFamily(*self._named)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for labels, one in list(self._series.items()):
            family.add_metric(labels, list(zip(names, accumulate(one.counts), strict=True)), one.total)
        return [family]
