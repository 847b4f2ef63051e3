"""Mean lower bound of the entropy over the answer's tokens."""

from gateway.confidence import Higher, Needs, _entropy
from gateway.confidence._order import mean
from gateway.nouns import Evidence

NEEDS = Needs()
HIGHER = Higher.DOUBTFUL


def feature(evidence: Evidence, *, k: int = 20) -> float:
    """Mean entropy that the k candidates prove.

    Formula: mean_t of H_k + r (-ln p_t,(k)) with H_k = -Σ_{j<=k} p ln p and rest r = 1 - Σ_{j<=k} p
    Unit: nats, >= 0
    Undefined: never
    Source: own; the rest of the mass lies on tokens no likelier than the k-th
    """
    return mean(_entropy.lower(evidence.trace, k))
