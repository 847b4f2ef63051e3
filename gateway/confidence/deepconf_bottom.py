"""DeepConf's bottom-10 % group confidence."""

from gateway.confidence import Higher, Needs
from gateway.confidence._deepconf import STAND_IN, token_confidence
from gateway.confidence._order import kept_floor, lowest_mean
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs(stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, k: int = 20, window: int = 32, share: float = 0.1) -> float:
    """Mean of the least sure windows: *windows*, where lp_bottom takes tokens.

    Formula: mean of the max(1, floor(share M)) smallest of the M = N - window + 1 window means
        G_i = (1/window) Σ_{t=i}^{i+window-1} C_t; plain mean when N < window
    Unit: nats, >= 0
    Undefined: never
    Source: Fu et al. 2025, arXiv:2508.15260
    """
    groups = group_means(token_confidence(evidence.trace, k), window)
    return lowest_mean(groups, kept_floor(groups.size, share))
