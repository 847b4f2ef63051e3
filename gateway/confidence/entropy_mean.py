"""Mean exact entropy over the answer's tokens, which only the engine knows."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs(signals=("entropy",))
HIGHER = Higher.DOUBTFUL


def feature(evidence: Evidence) -> float:
    """Mean entropy of the full vocabulary.

    Formula: mean_t H_t, H_t = -Σ_v p_t(v) ln p_t(v)
    Unit: nats, >= 0
    Undefined: never
    Source: Shannon 1948
    """
    return mean(evidence.trace.signals["entropy"])
