"""DeepConf's token confidence, on which its whole family of features stands."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from gateway.nouns import Floats, TokenTrace

# What an engine calls C_t when it computes the mean over its own k candidates and ships no candidates.
STAND_IN = "confidence_k{k}"


@lru_cache(maxsize=8)
def token_confidence(trace: TokenTrace, k: int) -> Floats:
    """C_t, minus the mean of the k largest log-probs at each token. (T,) nats >= 0, higher = surer.

    Uses the first k columns of trace.top whatever their number, so a server that reports the chosen token as an extra
    candidate gives the same value. Without candidates, the engine's own C_t for the same k. Traces are frozen, so the
    five features of one answer share one computation. Fu et al. 2025, arXiv:2508.15260.
    """
    if trace.top is None or trace.top.shape[1] < k:
        return trace.signals[STAND_IN.format(k=k)]
    return np.asarray(-trace.top[:, :k].mean(axis=1))
