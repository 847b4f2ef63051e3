"""The least likely window of emitted tokens."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import lowest
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, window: int = 32) -> float:
    """The lowest window mean.

    Formula: min_i G_i with G_i = (1/window) Σ_{t=i}^{i+window-1} l_t; plain mean when N < window
    Unit: nats, <= 0
    Undefined: never
    Source: DeepConf's lowest group on emitted tokens; Fu et al. 2025, arXiv:2508.15260
    """
    return lowest(group_means(evidence.trace.chosen, window))
