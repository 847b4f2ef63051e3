"""Sliding means over a signal; shared by the group, bottom and lowest features of both families."""

from __future__ import annotations

import numpy as np

from gateway.confidence._order import mean
from gateway.nouns import Floats


def group_means(signal: Floats, window: int) -> Floats:
    """Means of all windows of `window` tokens, stride 1. signal: (T,) -> (max(1, T - window + 1),).

    An answer shorter than the window is one group. O(T) by prefix sums. Fu et al. 2025, arXiv:2508.15260.
    """
    if signal.size <= window:
        return np.array([mean(signal)])
    sums = np.empty(signal.size + 1)
    sums[0] = 0.0
    np.add.accumulate(signal, out=sums[1:])
    return np.asarray((sums[window:] - sums[:-window]) / window)
