"""Means and order statistics of a few hundred values, past the Python that NumPy wraps around its reductions: there the
wrapping costs more than the arithmetic."""

from __future__ import annotations

import math

import numpy as np

from gateway.nouns import Floats

# 0.07 * 100 is 7.000000000000001 and 0.29 * 100 is 28.999999999999996: without slack ceil and floor miss by one.
SLACK = 1e-9

ONES = np.ones(4096)  # for sums by a dot product, a third of what a reduction takes; beyond, BLAS may start threads


def kept_floor(size: int, share: float) -> int:
    """max(1, floor(share * size)): how many windows are the bottom ones. DeepConf's rounding."""
    return max(1, math.floor(share * size + SLACK))


def kept_ceil(size: int, share: float) -> int:
    """max(1, ceil(share * size)): how many tokens are the bottom ones."""
    return max(1, math.ceil(share * size - SLACK))


def mean(values: Floats) -> float:
    """values: (M,), M >= 1."""
    size = values.size
    return float(values.dot(ONES[:size]) if size <= ONES.size else np.add.reduce(values)) / size


def lowest(values: Floats) -> float:
    """values: (M,), M >= 1."""
    return values.item(values.argmin())  # half the time of a reduction; a NaN comes first in both


def lowest_mean(values: Floats, kept: int) -> float:
    """Mean of the `kept` lowest values, by partition: O(M). values: (M,), 1 <= kept <= M."""
    if kept == values.size:
        return mean(values)
    parted = values.copy()
    parted.partition(kept - 1)
    return mean(parted[:kept])


def quantile(values: Floats, q: float) -> float:
    """The q-quantile, linear between order statistics (NumPy's default). values: (M,), M >= 1; q in [0, 1]."""
    position = (values.size - 1) * q
    below = math.floor(position)
    above = min(below + 1, values.size - 1)
    if above == 0 or q == 0:
        return lowest(values)
    ordered = values.copy()
    ordered.partition((below, above))
    return float(ordered[below] + (position - below) * (ordered[above] - ordered[below]))
