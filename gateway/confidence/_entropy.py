"""What the k most likely tokens tell about the entropy of the whole distribution."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gateway.nouns import Floats, TokenTrace


@lru_cache(maxsize=8)
def lower(trace: TokenTrace, k: int) -> Floats:
    """Lower bound of the entropy at each token. (T,) nats >= 0, higher = less sure; needs trace.top of K >= k."""
    assert trace.top is not None, "measure() checks what a feature needs"
    return bounds(trace.top[:, :k], vocabulary=k)[0]


def bounds(top: Floats, vocabulary: int) -> tuple[Floats, Floats]:
    """Lower and upper bound of the entropy from the k largest log-probs; both exact when these hold all the mass.

    top: (T, k) nats, falling along k; vocabulary: V >= k tokens; -> two arrays (T,), nats.
    With rest r and smallest known p_k: H_k + r (-ln p_k) <= H <= H_k + r ln((V - k) / r). The entropy of the k values
    renormalised, which others use, lies far below even the lower bound when r is large.
    """
    p = np.exp(top)
    known = -(p * top).sum(axis=1)
    # Half-precision engines report masses a little over 1; there the rest is nothing, not negative.
    rest = np.maximum(0.0, 1.0 - p.sum(axis=1))
    low = known - rest * top[:, -1]
    unseen = max(1, vocabulary - top.shape[1])
    high = known + np.where(rest > 0, rest * (np.log(unseen) - np.log(np.where(rest > 0, rest, 1.0))), 0.0)
    return low, np.maximum(low, high)
