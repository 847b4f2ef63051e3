"""Figures with their n and a 95 % interval, for people to look at. NumPy only: a serving gateway has no SciPy.

An interval speaks of traffic like this, not of these very requests alone, so drawing all of them leaves one, too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from calibrators.sampling import Z, wilson
from gateway.nouns import Floats

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Figure:
    """A value, its interval and how many rows it is of."""

    value: float
    low: float
    high: float
    n: int

    def json(self) -> Json:
        return asdict(self)


def share(hits: float, n: int) -> Figure:
    """hits of n, n >= 1, with Wilson's interval (1927)."""
    return Figure(hits / n, *wilson(hits / n, n), n)


def quantile(sorted_values: Floats, q: float) -> Figure:
    """A quantile and the order statistics that bracket it (binomial, normal approximation). (N,) rising, N >= 1."""
    n = sorted_values.size
    half = Z * (n * q * (1 - q)) ** 0.5
    low, high = max(0, int(np.floor(n * q - half))), min(n - 1, int(np.ceil(n * q + half)))
    return Figure(float(np.quantile(sorted_values, q)), float(sorted_values[low]), float(sorted_values[high]), n)


def mean(values: Floats, weights: Floats) -> Figure:
    """sum(w v) / sum(w). (N,) each, N >= 1, weights > 0."""
    return ratio(values, np.ones_like(values), weights)


def ratio(above: Floats, below: Floats, weights: Floats) -> Figure:
    """sum(w a) / sum(w b), rows being drawn together; delta method. (N,) each, N >= 1, sum(w b) > 0."""
    total = float(weights @ below)
    value = float(weights @ above) / total
    half = Z * float(((weights * (above - value * below)) ** 2).sum()) ** 0.5 / total
    return Figure(value, value - half, value + half, int(above.size))


def effective(weights: Floats) -> float:
    """(sum w)^2 / sum w^2. (N,), N >= 1, weights > 0."""
    return float(weights.sum()) ** 2 / float((weights**2).sum())
