"""DeepConf's average trace confidence."""

from gateway.confidence import Higher, Needs
from gateway.confidence._deepconf import STAND_IN, token_confidence
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs(stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, k: int = 20) -> float:
    """Mean token confidence.

    Formula: (1/N) Σ_t C_t with C_t = -(1/k) Σ_{j<=k} l_t,(j)
    Unit: nats, >= 0
    Undefined: never
    Source: Fu et al. 2025, arXiv:2508.15260
    """
    return mean(token_confidence(evidence.trace, k))
