"""Mean distance of the next-token distribution from the uniform one, which only the engine knows."""

from gateway.confidence import Higher, Needs
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs(signals=("self_certainty",))
HIGHER = Higher.SURER


def feature(evidence: Evidence) -> float:
    """DeepConf's C_t is its truncated cousin.

    Formula: (1/N) Σ_t [-(1/V) Σ_v ln p_t(v) - ln V], the mean KL(uniform || p_t)
    Unit: nats, >= 0
    Undefined: never
    Source: Kang et al. 2025, arXiv:2502.18581
    """
    return mean(evidence.trace.signals["self_certainty"])
