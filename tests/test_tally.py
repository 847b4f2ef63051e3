"""Counting by plain numbers, held against prometheus_client's own counting."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.registry import DuplicateTimeseries

from gateway.tally import Counts, Spreads

BOUNDS = (0.1, 0.25, 1, 2.5)
VALUES = (0.0, 0.1, 0.1000001, 0.25, 0.3, 1, 2.5, 2.6, 1e9)  # on, below and beyond every bound


def told(registry: CollectorRegistry) -> list[str]:
    """What Prometheus reads, without when each series began."""
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


def test_counts_are_told_as_prometheus_tells_its_own() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    counts = Counts("x", "so many", ("tier", "why"), ours)
    counter = Counter("x", "so many", ["tier", "why"], registry=theirs)
    for labels, amount in ((("a", "b"), 1), (('"\n\\', "c"), 0.5), (("a", "b"), 2), (("a", "d"), 0)):
        counts.of(*labels).total += amount
        counter.labels(*labels).inc(amount)
    assert told(ours) == told(theirs)
    assert 'x_total{tier="a",why="b"} 3.0' in told(ours)


@pytest.mark.parametrize("labels", [(), ("tier",)])
def test_spreads_are_told_as_prometheus_tells_its_own(labels: tuple[str, ...]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    spreads = Spreads("x_seconds", "so long", BOUNDS, labels, ours)
    histogram = Histogram("x_seconds", "so long", labels, registry=theirs, buckets=BOUNDS)
    for value in VALUES:
        spreads.of(*labels).observe(value)
        (histogram.labels(*labels) if labels else histogram).observe(value)
    assert told(ours) == told(theirs)
    assert sum(spreads.of(*labels).counts) == len(VALUES)


def test_a_family_cannot_stand_twice_in_a_registry() -> None:
    registry = CollectorRegistry()
    Counts("x", "so many", (), registry)
    with pytest.raises(DuplicateTimeseries):
        Counter("x", "so many", registry=registry)
