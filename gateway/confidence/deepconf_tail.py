"""DeepConf's tail confidence."""

from gateway.confidence import Higher, Needs
from gateway.confidence._deepconf import STAND_IN, token_confidence
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs(stand_ins=(STAND_IN,))
HIGHER = Higher.SURER


def feature(evidence: Evidence, *, k: int = 20, window: int = 32) -> float:
    """Mean token confidence of the end of the answer.

    Formula: mean of the last `window` values of C_t = -(1/k) Σ_{j<=k} l_t,(j); all of them when N < window
    Unit: nats, >= 0
    Undefined: never
    Source: Fu et al. 2025, arXiv:2508.15260
    """
    return mean(token_confidence(evidence.trace, k)[-window:])
