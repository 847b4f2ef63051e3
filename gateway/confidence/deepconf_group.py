"""DeepConf's group confidence: the average over sliding windows."""

from gateway.confidence import Higher, Needs
from gateway.confidence._deepconf import STAND_IN, token_confidence
from gateway.confidence._order import mean
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs(stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, k: int = 20, window: int = 32) -> float:
    """Mean of the window means, which counts the middle of an answer more than its ends.

    Formula: mean_i G_i with G_i = (1/window) Σ_{t=i}^{i+window-1} C_t, stride 1; plain mean when N < window
    Unit: nats, >= 0
    Undefined: never
    Source: Fu et al. 2025, arXiv:2508.15260
    """
    return mean(group_means(token_confidence(evidence.trace, k), window))
