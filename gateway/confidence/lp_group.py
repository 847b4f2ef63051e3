"""Mean over sliding windows of the emitted tokens' log-probs."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import mean
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, window: int = 32) -> float:
    """Mean of the window means.

    Formula: mean_i G_i with G_i = (1/window) Σ_{t=i}^{i+window-1} l_t; plain mean when N < window
    Unit: nats, <= 0
    Undefined: never
    Source: DeepConf's group on emitted tokens; Fu et al. 2025, arXiv:2508.15260
    """
    return mean(group_means(evidence.trace.chosen, window))
