"""The least likely windows of emitted tokens."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import kept_floor, lowest_mean
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, window: int = 32, share: float = 0.1) -> float:
    """Mean of the lowest window means.

    Formula: mean of the max(1, floor(share M)) smallest of the M window means
        G_i = (1/window) Σ_{t=i}^{i+window-1} l_t; plain mean when N < window
    Unit: nats, <= 0
    Undefined: never
    Source: DeepConf's bottom 10 % on emitted tokens; Fu et al. 2025, arXiv:2508.15260
    """
    groups = group_means(evidence.trace.chosen, window)
    return lowest_mean(groups, kept_floor(groups.size, share))
