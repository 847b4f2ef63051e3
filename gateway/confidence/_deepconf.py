"""DeepConf's token confidence, on which its whole family of features stands."""

from __future__ import annotations

import numpy as np

from gateway.nouns import Floats, TokenTrace


def token_confidence(trace: TokenTrace, k: int) -> Floats:
    """C_t, minus the mean of the k largest log-probs at each token. (T,) nats >= 0, higher = surer.

    Uses the first k columns of trace.top whatever their number, so a server that reports the chosen token as an extra
    candidate gives the same value. Fu et al. 2025, arXiv:2508.15260.
    """
    assert trace.top is not None, "measure() checks what a feature needs"
    return np.asarray(-trace.top[:, :k].mean(axis=1))
