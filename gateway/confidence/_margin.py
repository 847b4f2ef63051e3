"""The gap between the two most likely tokens."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gateway.nouns import Floats, TokenTrace

# What an engine calls the margin when it computes it and ships no candidates.
STAND_IN = "margin"


@lru_cache(maxsize=8)
def margins(trace: TokenTrace) -> Floats:
    """First minus second choice at each token, as probabilities. (T,) in [0, 1], higher = surer; exact from K >= 2."""
    if trace.top is None or trace.top.shape[1] < 2:
        return trace.signals[STAND_IN]
    p = np.exp(trace.top[:, :2])
    return np.asarray(p[:, 0] - p[:, 1])
