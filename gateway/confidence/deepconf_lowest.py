"""DeepConf's lowest group confidence, the one it also uses while a text is being written."""

from gateway.confidence import Higher, Needs
from gateway.confidence._deepconf import STAND_IN, token_confidence
from gateway.confidence._order import lowest
from gateway.confidence._windows import group_means
from gateway.nouns import Evidence

NEEDS = Needs(stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, k: int = 20, window: int = 32) -> float:
    """The least sure window.

    Formula: min_i G_i with G_i = (1/window) Σ_{t=i}^{i+window-1} C_t; plain mean when N < window
    Unit: nats, >= 0
    Undefined: never
    Source: Fu et al. 2025, arXiv:2508.15260
    """
    return lowest(group_means(token_confidence(evidence.trace, k), window))
